"""Run folders whose losses follow a planted law."""

import itertools
import math

import numpy as np

from pml_cli.law.observations import Observations
from pml_cli.results.folder import RunFolder

RANKS, LENGTHS = (2, 4, 8, 16, 32), (32, 64, 128, 256)
MANY_RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
MANY_LENGTHS = (32, 48, 64, 96, 128, 192, 256)
# of the planted law of exact recall
RECALL = {"a": 14.0, "g": 6.0, "h": 5.5}


def result(rank, length, delta=None, base=7.6, **columns):
    """The result of one run, with all fields of result.json.

    Args:
        delta: gain, nats per token; that of a power law when None, never above the base loss.
        columns: fields that differ.
    """
    delta = 11.0 * rank**0.6 * length**-0.5 if delta is None else delta
    delta = min(delta, base - 0.01)
    is_recalled = base - delta < 0.69
    share = 1.0 if is_recalled else 0.25
    failure = None if is_recalled else length // 4
    run = {
        "model": "tiny",
        "data": "random",
        "data_seed": 0,
        "adapter": "mlp_block",
        "loss": "sft",
        "layer": 4,
        "setting": "",
        "lr": 0.01,
        "steps": 500,
        "rank": rank,
        "seqlen": length,
        "target_tokens": length,
        "samples": 1,
        "seed": 0,
        "trainable_parameters": 256 * rank,
    }
    measured = {
        "base_loss": base,
        "final_loss": base - delta,
        "delta_loss": delta,
        "token_accuracy": share,
        "exact_match": float(is_recalled),
        "first_failure": failure,
        "earliest_stubborn": failure,
        "share_above_threshold": share,
        "free_accuracy": share,
        "free_exact_match": float(is_recalled),
        "violations": 0,
        "bits_gained": length * delta / math.log(2),
        "source_nats": None,
        "bits_memorised": None,
        "steps_run": 500,
        "stopped_early": False,
        "seconds": 1.5,
    }
    return run | measured | columns


def write(root, *results):
    """Make a finished run folder of each result."""
    for k, content in enumerate(results):
        RunFolder(root, f"run{k}").finish(content)


def grid(ranks=RANKS, lengths=LENGTHS, **columns):
    """A run for every rank and length."""
    return [result(rank, length, **columns) for rank in ranks for length in lengths]


def several_texts(
    noise=0.01,
    texts=(0, 1, 2),
    ranks=(1, 2, 4, 8, 16, 32),
    lengths=(32, 64, 128, 256, 512),
):
    """Runs of a Hill law with k = 4, whose gain bends towards the base loss."""
    rng = np.random.default_rng(0)
    rows = []
    for text, rank, length in itertools.product(texts, ranks, lengths):
        base = 9.0 + 0.1 * text
        ratio = 14.0 * rank**0.6 * length**-0.5 / base
        delta = base * ratio / (1 + ratio**4) ** 0.25
        delta *= 1 + noise * rng.standard_normal()
        rows.append(result(rank, length, min(delta, base - 0.005), base, data_seed=text))
    return rows


def exponential_cells(
    ranks=MANY_RANKS,
    lengths=MANY_LENGTHS,
    texts=6,
    *,
    alpha=0.6,
    beta=0.5,
    C=11.0,
    base=7.6,
    noise=0.01,
    seed=0,
):
    """Cells of a law with an exponential link."""
    axes = np.meshgrid(ranks, lengths, range(texts))
    rank, length, text = (axis.ravel().astype(float) for axis in axes)
    gain = base * -np.expm1(-C * rank**alpha * length**-beta / base)
    gain *= 1 + noise * np.random.default_rng(seed).standard_normal(len(rank))
    gain = np.minimum(gain, base - 0.01)
    return Observations.of(rank, length, gain, np.full(len(rank), base), text=text)


def exact_recall(cells, seed=0):
    """1 or 0 for each cell, by the planted law of exact recall."""
    by_rank = RECALL["g"] * np.log(cells.rank)
    by_length = RECALL["h"] * np.log(cells.length)
    p = 1 / (1 + np.exp(-(RECALL["a"] + by_rank - by_length)))
    return (np.random.default_rng(seed).random(len(p)) < p).astype(float)


def runs_of(cells, **columns):
    """Results of runs with the gains of these cells.

    Args:
        columns: more columns, one value a cell each.
    """
    rows = []
    for k in range(len(cells)):
        values = {name: column[k] for name, column in columns.items()}
        rank, length = int(cells.rank[k]), int(cells.length[k])
        row = result(rank, length, cells.delta[k], cells.base[k], data_seed=int(cells.text[k]))
        rows.append(row | values)
    return rows

"""Run folders whose losses follow a planted law."""

import math

import numpy as np

from pml_cli.runs.folder import RunFolder

RANKS, LENGTHS = (2, 4, 8, 16, 32), (32, 64, 128, 256)


def result(rank, length, delta=None, base=7.6, **over):
    delta = 11.0 * rank**0.6 * length**-0.5 if delta is None else delta
    delta = min(delta, base - 0.01)
    right = 1.0 if base - delta < 0.69 else 0.25
    failure = None if right == 1 else length // 4
    return {
        "model": "tiny", "data": "random", "data_seed": 0, "adapter": "mlp_block", "loss": "sft", "layer": 4, "setting": "",
        "lr": 0.01,
        "steps": 500, "rank": rank, "seqlen": length, "target_tokens": length, "samples": 1, "seed": 0,
        "trainable_parameters": 256 * rank, "base_loss": base, "final_loss": base - delta, "delta_loss": delta,
        "token_accuracy": right, "exact_match": float(right == 1), "first_failure": failure, "earliest_stubborn": failure,
        "share_above_threshold": right, "free_accuracy": right, "free_exact_match": float(right == 1), "violations": 0,
        "bits_gained": length * delta / math.log(2), "source_nats": None, "bits_memorised": None, "steps_run": 500,
        "stopped_early": False, "seconds": 1.5, **over,
    }  # fmt: skip


def write(root, *results):
    for k, content in enumerate(results):
        RunFolder(root, f"run{k}").finish(content)


def grid(ranks=RANKS, lengths=LENGTHS, **over):
    return [result(rank, length, **over) for rank in ranks for length in lengths]


def several_texts(
    noise=0.01, texts=(0, 1, 2), ranks=(1, 2, 4, 8, 16, 32), lengths=(32, 64, 128, 256, 512)
):
    """Cells of a Hill law whose gain bends towards the base loss."""
    rng = np.random.default_rng(0)
    out = []
    for text in texts:
        for rank in ranks:
            for length in lengths:
                base = 9.0 + 0.1 * text
                ratio = 14.0 * rank**0.6 * length**-0.5 / base
                delta = base * ratio / (1 + ratio**4) ** 0.25 * (1 + noise * rng.standard_normal())
                out.append(result(rank, length, min(delta, base - 0.005), base, data_seed=text))
    return out

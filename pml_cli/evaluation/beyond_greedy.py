"""Recall beyond greedy decoding that takes a pass of its own: other temperatures, a wrong token.

What follows from teacher-forced scores alone is in recall_scores.py.

Shapes: N scored tokens of a batch, V vocabulary, G temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pml_cli.data.source import Sample
from pml_cli.evaluation.recall_scores import by_sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.stats import LN2
from pml_cli.training.batches import Batch, SamplesByCell
from pml_cli.training.limits import EVALUATION_TOKENS
from pml_cli.training.scoring import PackInputs, score_cells, scored_hidden

# At which the chance of a whole text is computed; in between it is interpolated.
TEMPERATURES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0)
USUAL_TEMPERATURE = 0.7

# Logits that exist at once.
MAX_LOGITS = 2**23

# Where a target gets a wrong token, as shares of its length; of so many samples at most.
WRONG_AT = (0.25, 0.5, 0.75)
MAX_SAMPLES = 64

Measures: TypeAlias = dict[str, float | None]

NOT_MEASURED: Measures = {
    "log10_p_07": None,
    "t50": None,
    "recall_after_wrong": None,
    "accuracy_after_wrong": None,
}


def measure(base: SplitModel, bank: AdapterBank, cells: SamplesByCell) -> list[Measures]:
    """Sampling at other temperatures, and recall after one wrong token, of each cell.

    Args:
        base: the frozen model.
        bank: the adapters of K cells.
        cells: the samples of each.

    Returns:
        log10_p_07: mean over samples of log10 of the chance that sampling at temperature 0.7 writes
            the whole target.
        t50: median over samples of the temperature at which that chance is one half; 0 where it is
            below 0.1 or greedy decoding fails, 2 where it is above.
        recall_after_wrong: share of targets of which greedy decoding writes all the rest after one
            token has been replaced by one that the target has not, at a quarter, half and three
            quarters of it.
        accuracy_after_wrong: tokens of that rest that are right.
    """
    by_temperature = sample_nats(base, bank, PackInputs(base, bank, cells))
    after_wrong = _after_wrong(base, bank, cells)
    usual = TEMPERATURES.index(USUAL_TEMPERATURE)

    results: list[Measures] = []
    for nats_GS, recovered in zip(by_temperature, after_wrong, strict=True):
        temperatures = [even_chance_temperature(nats_G) for nats_G in nats_GS.T]
        row: Measures = {
            "log10_p_07": -float(nats_GS[usual].mean()) / math.log(10),
            "t50": float(np.median(temperatures)),
        }
        results.append(row | recovered)
    return results


@torch.no_grad()
def sample_nats(
    base: SplitModel, bank: AdapterBank, inputs: PackInputs
) -> list[NDArray[np.float64]]:
    """Nats of each whole target at each of TEMPERATURES, (G, samples) of each cell.

    Args:
        base: the frozen model.
        bank: the adapters of K cells.
        inputs: their samples.
    """
    data = inputs.data
    batch_size = max(1, EVALUATION_TOKENS // inputs.tokens_per_sample)
    most_samples = max(len(cell) for cell in data.cells)

    by_cell: list[list[NDArray[np.float64]]] = [[] for _ in data.cells]
    for start in range(0, most_samples, batch_size):
        batch = [cell[start : start + batch_size] for cell in data.cells]
        layout = inputs.layout(batch)
        hidden = scored_hidden(base, bank, layout, inputs.gather(layout))
        nll_GN = _nll_by_temperature(base, hidden, layout.targets)
        for collected, sums in zip(by_cell, _sums_by_sample(nll_GN, batch), strict=True):
            collected.append(sums)
    return [np.concatenate(parts, axis=1) for parts in by_cell]


def _nll_by_temperature(
    base: SplitModel, hidden_ND: Tensor, targets_N: Tensor
) -> NDArray[np.float64]:
    """Nats of each token at each of TEMPERATURES, (G, N)."""
    size = max(1, MAX_LOGITS // base.head.weight_VD.shape[0])
    parts = []
    for start in range(0, len(targets_N), size):
        chunk = slice(start, start + size)
        logits_NV = base.logits(hidden_ND[chunk])
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        # Of the target above the largest: small numbers lose nothing in the division.
        logits_NV = logits_NV - logits_NV.amax(1, keepdim=True)
        of_target_N = logits_NV.gather(1, targets_N[chunk, None])[:, 0]
        rows = []
        for temperature in TEMPERATURES:
            log_sum_N = (logits_NV / temperature).logsumexp(1)
            rows.append(log_sum_N - of_target_N / temperature)
        parts.append(torch.stack(rows).double().cpu().numpy())
    return np.concatenate(parts, axis=1)


def _sums_by_sample(values_GN: NDArray[np.float64], batch: Batch) -> list[NDArray[np.float64]]:
    """Sums over the tokens of each sample of a batch, (G, samples) of each cell."""
    sums = []
    start = 0
    for pieces in batch:
        of_samples = []
        for piece in pieces:
            of_samples.append(values_GN[:, start : start + piece.tokens].sum(axis=1))
            start += piece.tokens
        # A cell that has no more samples is empty here.
        empty = np.zeros((len(values_GN), 0))
        sums.append(np.stack(of_samples, axis=1) if of_samples else empty)
    return sums


def even_chance_temperature(nats_G: NDArray[np.float64]) -> float:
    """The temperature at which half of the samples of a text are whole.

    Args:
        nats_G: of the whole text at each of TEMPERATURES, (G,); they grow with the temperature
            where every token is the argmax.

    Returns:
        0 where even the lowest of them gives less, the highest where it gives more.
    """
    too_many = nats_G > LN2
    if too_many[0]:
        return 0.0
    if not too_many.any():
        return TEMPERATURES[-1]

    above = int(too_many.argmax())
    # Nats grow over many magnitudes: straight between two points in both logarithms.
    low, high = np.log(np.maximum(nats_G[above - 1 : above + 1], 1e-300))
    share = (math.log(LN2) - low) / (high - low)
    log_low, log_high = np.log(TEMPERATURES[above - 1 : above + 1])
    return float(np.exp(log_low + share * (log_high - log_low)))


def _after_wrong(base: SplitModel, bank: AdapterBank, cells: SamplesByCell) -> list[Measures]:
    """The two measures after a wrong token, of each cell; None where targets are too short."""
    vocabulary = int(base.head.weight_VD.shape[0])
    perturbed = [with_wrong_token(samples, vocabulary) for samples in cells]
    measured = [k for k, samples in enumerate(perturbed) if samples]
    names = ("recall_after_wrong", "accuracy_after_wrong")
    results: list[Measures] = [dict.fromkeys(names) for _ in cells]
    if not measured:
        return results

    adapters = bank.select(measured)
    inputs = PackInputs(base, adapters, [perturbed[k] for k in measured])
    for k, scores in zip(measured, score_cells(base, adapters, inputs), strict=True):
        whole = [bool(correct.all()) for correct in by_sample(scores, scores.correct)]
        results[k] = {
            "recall_after_wrong": float(np.mean(whole)),
            "accuracy_after_wrong": float(scores.correct.mean()),
        }
    return results


def with_wrong_token(samples: Sequence[Sample], vocabulary: int) -> list[Sample]:
    """Samples of which the prompt goes on to a wrong token, and the target is what follows it.

    The wrong token is the next id that the target has not: one of the target would call up what
    follows it there. It stands at each of WRONG_AT. Of many samples MAX_SAMPLES are taken, spread
    evenly.

    Args:
        samples: of one cell.
        vocabulary: number of ids.
    """
    count = min(len(samples), MAX_SAMPLES)
    indices = np.linspace(0, len(samples) - 1, count).round().astype(int)

    perturbed = []
    for index in indices:
        sample = samples[index]
        length = len(sample.target)
        positions = {int(share * length) for share in WRONG_AT}
        for position in sorted(positions):
            rest = sample.target[position + 1 :]
            if rest:
                wrong = _other_id(sample.target[position], sample.target, vocabulary)
                prompt = (*sample.prompt, *sample.target[:position], wrong)
                perturbed.append(Sample(prompt=prompt, target=rest))
    return perturbed


def _other_id(token: int, target: Sequence[int], vocabulary: int) -> int:
    """The next id after a token's that a target has not; the next one where it has them all."""
    known = set(target)
    candidates = [(token + step) % vocabulary for step in range(1, len(known) + 1)]
    return next((one for one in candidates if one not in known), candidates[0])

"""Recall beyond greedy exact match: sampling, prefixes, near-verbatim. Without torch.

Greedy decoding from a prompt and the first k target tokens gives the rest of the target exactly if
every later token is the argmax under teacher forcing. So all measures but the edit distance follow
from teacher-forced scores, at no cost.

Sources: chance of a text under sampling, Hayes et al. 2410.19482 and Cooper et al. 2505.12546;
windows of 50 tokens, Carlini et al. 2202.07646; compression ratio, Schwarzschild et al. 2404.15146.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pml_cli.data.source import Sample
from pml_cli.training.scores import Scores

# Target tokens that are given before the rest is to be recalled.
GIVEN_TOKENS = (8, 32)

# Tokens of a window that counts as extracted.
WINDOW = 50

# Fields of `recall_fields`, a mean over samples each.
RECALL_FIELDS = (
    "log10_p",
    "prefix_share",
    *(f"recall_from_{k}" for k in GIVEN_TOKENS),
    f"extractable_{WINDOW}",
    "compression_ratio",
)

# What the base model knows before any training.
BASE_FIELDS = ("base_token_accuracy", "base_exact_match", "base_log10_p", "base_prefix_share")


def recall_fields(samples: Sequence[Sample], scores: Scores) -> dict[str, float | None]:
    """Recall of one cell beyond greedy exact match.

    Args:
        samples: of the cell.
        scores: teacher-forced, in the order of the samples.

    Returns:
        Means over the samples that are long enough, None where none is:
        log10_p: log10 of the chance that sampling at temperature 1 writes the whole target.
        prefix_share: tokens up to the first that greedy decoding misses, as a share of the target.
        recall_from_8, recall_from_32: whether greedy decoding writes the rest of the target after
            so many tokens of it.
        extractable_50: share of windows of 50 consecutive tokens that greedy decoding writes
            after all tokens before them.
        compression_ratio: the most tokens that greedy decoding writes in one piece for a token
            that it is given (the prompt and the target before the piece). A lower bound of the
            adversarial compression ratio, which searches for a shorter prompt.
    """
    nll = by_sample(scores, scores.nll)
    correct = by_sample(scores, scores.correct)
    rows = []
    for sample, sample_nll, sample_correct in zip(samples, nll, correct, strict=True):
        rows.append(_sample_row(len(sample.prompt), sample_nll, sample_correct))
    return {name: _mean([row[name] for row in rows]) for name in RECALL_FIELDS}


def base_fields(samples: Sequence[Sample], scores: Scores) -> dict[str, float | None]:
    """What the base model knows of the targets of one cell: the paper's r0.

    Args:
        samples: of the cell.
        scores: teacher-forced, of the base model.

    Returns:
        BASE_FIELDS, as `recall_fields` has them.
    """
    fields = recall_fields(samples, scores)
    whole = [bool(correct.all()) for correct in by_sample(scores, scores.correct)]
    return {
        "base_token_accuracy": float(scores.correct.mean()),
        "base_exact_match": float(np.mean(whole)),
        "base_log10_p": fields["log10_p"],
        "base_prefix_share": fields["prefix_share"],
    }


def by_sample(scores: Scores, values: NDArray[Any]) -> list[NDArray[Any]]:
    """Values of the tokens of one cell, sample by sample.

    Args:
        scores: of the cell.
        values: of its tokens, (S,).
    """
    starts = np.flatnonzero(np.diff(scores.sample)) + 1
    return np.split(values, starts)


def _sample_row(
    prompt_tokens: int, nll: NDArray[np.float64], correct: NDArray[np.bool_]
) -> dict[str, float | None]:
    """RECALL_FIELDS of one sample; nll and correct: (tokens,)."""
    first_wrong = int(correct.argmin()) if not correct.all() else len(correct)
    row: dict[str, float | None] = {
        "log10_p": log10_chance(nll),
        "prefix_share": first_wrong / len(correct),
        "compression_ratio": compression_ratio(correct, prompt_tokens),
        f"extractable_{WINDOW}": extractable_share(correct, WINDOW),
    }
    for given in GIVEN_TOKENS:
        rest = correct[given:]
        row[f"recall_from_{given}"] = float(rest.all()) if len(rest) else None
    return row


def log10_chance(nll: ArrayLike) -> float:
    """log10 of the chance that sampling writes a whole text.

    Args:
        nll: of each of its tokens, nats.
    """
    return -float(np.sum(nll)) / math.log(10)


def extractable_share(correct: NDArray[np.bool_], window: int) -> float | None:
    """The share of windows of consecutive tokens that are all correct; None: the text is shorter.

    Args:
        correct: whether each token is the argmax, (tokens,).
        window: tokens of a window.
    """
    if len(correct) < window:
        return None
    windows = np.lib.stride_tricks.sliding_window_view(correct, window)
    return float(windows.all(axis=1).mean())


def compression_ratio(correct: NDArray[np.bool_], prompt_tokens: int) -> float:
    """The most tokens that are written in one piece for each token that is given.

    Args:
        correct: whether each target token is the argmax, (tokens,).
        prompt_tokens: given before the target.
    """
    best = 0.0
    length = 0
    # From the end: `length` is that of the correct piece which begins at a token.
    for start in range(len(correct) - 1, -1, -1):
        length = length + 1 if correct[start] else 0
        # A text without a prompt is as good as given one token.
        given = max(1, prompt_tokens + start)
        best = max(best, length / given)
    return best


def mean_edit_distance(samples: Sequence[Sample], decoded: Sequence[Sequence[int]]) -> float | None:
    """Mean over samples of the normalised edit distance of what was decoded from the target.

    Args:
        samples: of one cell.
        decoded: token ids of each, as greedy decoding writes them.

    Returns:
        0 to 1; None where there are no samples.
    """
    distances = []
    for sample, tokens in zip(samples, decoded, strict=True):
        distances.append(normalised_edit_distance(tokens, sample.target))
    return _mean(distances)


def normalised_edit_distance(a: Sequence[int], b: Sequence[int]) -> float:
    """Levenshtein distance of two texts, as a share of the longer one: 0 to 1."""
    longest = max(len(a), len(b))
    return edit_distance(a, b) / longest if longest else 0.0


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements of tokens."""
    target = np.asarray(b, int)
    columns = np.arange(len(target) + 1)
    # Distances of the tokens of `a` so far from every beginning of `b`.
    distances = columns.copy()
    for count, token in enumerate(a, 1):
        replaced = distances[:-1] + (target != token)
        deleted = distances[1:] + 1
        best = np.concatenate([[count], np.minimum(replaced, deleted)])
        # An insertion costs one more than the column before: a running minimum.
        distances = np.minimum.accumulate(best - columns) + columns
    return int(distances[-1])


def _mean(values: Sequence[Any]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None

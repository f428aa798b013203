"""Scores of the target tokens of one cell, and the recall that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pml_cli.stats import LN2


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Every target token of one cell at one step: flat arrays of S tokens in sample order."""

    sample: NDArray[np.int32]
    """Index of the token's sample in the cell."""
    position: NDArray[np.int32]
    """Position within its sample's target, from 0."""
    token_id: NDArray[np.int32]
    nll: NDArray[np.float64]
    """Cross-entropy, nats."""
    margin: NDArray[np.float64]
    """Logit of the token minus the largest other logit."""
    argmax_id: NDArray[np.int32]
    """The token that greedy decoding picks."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether greedy decoding picks the token, (S,)."""
        return np.equal(self.argmax_id, self.token_id)

    def table(self, step: int) -> pd.DataFrame:
        """The rows of tokens.parquet for one logged step."""
        # In single precision: the tables of all logged steps are the largest file of a run.
        return pd.DataFrame(
            {
                "step": np.int32(step),
                "sample": self.sample,
                "position": self.position,
                "token_id": self.token_id,
                "nll": self.nll.astype(np.float32),
                "p": np.exp(-self.nll).astype(np.float32),
                "margin": self.margin.astype(np.float32),
                "argmax_id": self.argmax_id,
                "correct": self.correct,
            }
        )


def concatenate(scores: Sequence[Scores]) -> Scores:
    """The scores of one cell from those of its batches, in order."""
    columns = {}
    for field in fields(Scores):
        parts = [getattr(batch, field.name) for batch in scores]
        columns[field.name] = np.concatenate(parts)
    return Scores(**columns)


def summarise(scores: Scores) -> dict[str, Any]:
    """Teacher-forced recall of one cell: the fields of result.json.

    `first_failure` and `earliest_stubborn` are positions in the one sample of a cell, and None
    where there are several samples or no such token. A token is stubborn while its p is at most
    0.5.
    """
    correct = scores.correct
    stubborn = scores.nll >= LN2
    samples = np.unique(scores.sample)
    failed_samples = np.unique(scores.sample[~correct])
    # Positions of several samples do not compare.
    has_one_sample = len(samples) == 1

    return {
        "final_loss": float(scores.nll.mean()),
        "token_accuracy": float(correct.mean()),
        "exact_match": (len(samples) - len(failed_samples)) / len(samples),
        "first_failure": first_true(~correct) if has_one_sample else None,
        "earliest_stubborn": first_true(stubborn) if has_one_sample else None,
        "share_above_threshold": float((~stubborn).mean()),
        "stubborn_tokens": int(stubborn.sum()),
        "violations": violations(scores),
    }


def violations(scores: Scores) -> int:
    """Number of tokens with p > 0.5 whose argmax is another one.

    Exact arithmetic rules these out: any is a bug or low-precision rounding.
    """
    above_threshold = scores.nll < LN2
    return int((above_threshold & ~scores.correct).sum())


def first_true(flags: NDArray[np.bool_]) -> int | None:
    """Index of the first true flag of (S,); None where all are false."""
    return int(flags.argmax()) if flags.any() else None

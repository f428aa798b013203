"""Scores of the target tokens of one cell, and what they say of recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pml_cli.stats import LN2


@dataclass(frozen=True)
class Scores:
    """Every target token of one cell at one step: flat arrays in sample order."""

    sample: NDArray[np.int32]
    position: NDArray[np.int32]  # within its sample's target, 0-based
    token_id: NDArray[np.int32]
    nll: NDArray[np.float64]  # nats
    margin: NDArray[np.float64]  # logits
    argmax_id: NDArray[np.int32]

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.equal(self.argmax_id, self.token_id)

    def table(self, step: int) -> pd.DataFrame:
        """The rows of tokens.parquet for one logged step."""
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


def summarise(scores: Scores) -> dict[str, Any]:
    """Teacher-forced recall of one cell: loss, accuracy, exact match, first failure, stubborn tokens, violations."""
    correct, stubborn = scores.correct, scores.nll >= LN2
    samples = np.unique(scores.sample)
    broken = np.unique(scores.sample[~correct])
    one = len(samples) == 1
    return {
        "final_loss": float(scores.nll.mean()),
        "token_accuracy": float(correct.mean()),
        "exact_match": (len(samples) - len(broken)) / len(samples),
        "first_failure": _first(~correct) if one else None,
        "earliest_stubborn": _first(stubborn) if one else None,
        "share_above_threshold": float((~stubborn).mean()),
        "stubborn_tokens": int(stubborn.sum()),
        "violations": violations(scores),
    }


def violations(scores: Scores) -> int:
    """Tokens with p > 0.5 whose argmax is another: arithmetic forbids them, so any is a fault or coarse rounding."""
    return int(((scores.nll < LN2) & ~scores.correct).sum())


def _first(flags: NDArray[np.bool_]) -> int | None:
    return int(flags.argmax()) if flags.any() else None

"""The cells a law is fitted to: what was measured, with nothing left out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pml_cli.law import power_law
from pml_cli.stats import LN2, Array, Mask

SIZES = {
    "rank": "rank",
    "parameters": "trainable_parameters",
}  # what a law may be about, and its column
PARAMETERS = (  # of what is said of ranks, where parameters stand in their place; the longer words first
    ("largest ranks", "most parameters"),
    ("larger ranks", "more parameters"),
    ("smaller ranks", "fewer parameters"),
    ("distinct unsaturated rank", "distinct unsaturated parameter count"),
    ("distinct rank", "distinct parameter count"),
    ("ranks", "parameters"),
    ("rank", "parameters"),
    ("r^alpha", "N^alpha"),
)


@dataclass(frozen=True)
class Observations:
    """One value a cell, (N,): what a fit needs to know.

    Raises:
        ValueError: lengths differ, a value is not finite, or a rank, length, base loss or sd is not positive.
    """

    rank: Array
    length: Array  # target tokens
    delta: Array  # nats per token
    base: Array  # nats per token
    text: NDArray[Any]  # which text: cells that share one are not independent
    sd: Array  # spread of each cell as a multiple of the others'

    @classmethod
    def of(
        cls,
        rank: ArrayLike,
        length: ArrayLike,
        delta: ArrayLike,
        base: ArrayLike,
        *,
        text: ArrayLike | None = None,
        sd: ArrayLike | None = None,
    ) -> Observations:
        r = np.asarray(rank, float).ravel()
        spread = np.ones_like(r) if sd is None else np.asarray(sd, float).ravel()
        labels = np.zeros(len(r), int) if text is None else np.asarray(text).ravel()
        l_, d, base_ = (np.asarray(column, float).ravel() for column in (length, delta, base))
        columns = (r, l_, d, base_, spread)
        if {len(column) for column in columns} != {len(labels)}:
            raise ValueError("rank, length, delta, base, text and sd differ in length")
        if not all(np.isfinite(column).all() for column in columns):
            raise ValueError("rank, length, delta, base and sd must be finite")
        if any((column <= 0).any() for column in (r, l_, base_, spread)):
            raise ValueError("rank, length, base and sd must be above 0")
        return cls(r, l_, d, base_, labels, spread)

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def final(self) -> Array:
        """Loss after training, nats per token."""
        return self.base - self.delta

    @property
    def saturated(self) -> Mask:
        return power_law.saturated(self.final, LN2)

    @cached_property
    def fingerprint(self) -> str:
        """Of the values: two criteria can be compared only where these are equal."""
        rows = np.stack([self.rank, self.length, self.delta, self.base, self.sd], axis=1)
        return hashlib.sha256(rows[np.lexsort(rows.T)].tobytes()).hexdigest()

    @cached_property
    def clusters(self) -> tuple[NDArray[np.intp], int]:
        """Which cluster (text and length) each cell is in, (N,), and how many there are: what is hard there is shared."""
        _, text = np.unique(self.text, return_inverse=True)
        _, length = np.unique(self.length, return_inverse=True)
        _, cluster = np.unique(np.stack([text, length]), axis=1, return_inverse=True)
        return cluster.ravel(), int(cluster.max(initial=-1)) + 1

    def take(self, chosen: Mask) -> Observations:
        return Observations(
            *(
                getattr(self, name)[chosen]
                for name in ("rank", "length", "delta", "base", "text", "sd")
            )
        )


def of_size(words: str, x: str) -> str:
    """What is said of ranks, said of the size that a law is about.

    Args:
        x: a size, or its column.
    """
    for rank, parameters in PARAMETERS if x != "rank" else ():
        words = words.replace(rank, parameters)
    return words


def bits(length: ArrayLike, nats: ArrayLike) -> Array:
    """Bits in `length` tokens of `nats` each: l dL / ln 2."""
    return np.asarray(np.asarray(length, float) * np.asarray(nats, float) / LN2)

"""The cells a law is fitted to: what was measured, with nothing left out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pml_cli.stats import LN2, Array, Mask


@dataclass(frozen=True, kw_only=True)
class SizeAxis:
    """The measure of an adapter's size that a law is about."""

    name: str
    """Value of the setting x."""
    column: str
    """Column of result.json."""
    symbol: str
    """In formulas."""


RANK = SizeAxis(name="rank", column="rank", symbol="r")
PARAMETERS = SizeAxis(name="parameters", column="trainable_parameters", symbol="N")
SIZE_AXES = {axis.name: axis for axis in (RANK, PARAMETERS)}


@dataclass(frozen=True, kw_only=True)
class Observations:
    """One value for each of N cells; a cell is one trained adapter.

    Build it with `Observations.of`, which checks the values.
    """

    rank: Array
    """(N,) rank, or number of parameters: the size that the law is about."""
    length: Array
    """(N,) target tokens."""
    delta: Array
    """(N,) gain, base loss minus final loss, nats per token."""
    base: Array
    """(N,) loss of the base model, nats per token."""
    final: Array
    """(N,) loss after training, nats per token."""
    text: NDArray[Any]
    """(N,) label of the text: cells that share one are not independent."""
    sd: Array
    """(N,) spread of each cell around the law, as a multiple of the others'."""
    saturated_below: float = LN2
    """Final loss, nats per token, at or below which a cell is saturated."""

    @classmethod
    def of(
        cls,
        rank: ArrayLike,
        length: ArrayLike,
        delta: ArrayLike,
        base: ArrayLike,
        *,
        final: ArrayLike | None = None,
        text: ArrayLike | None = None,
        sd: ArrayLike | None = None,
        saturated_below: float = LN2,
    ) -> Observations:
        """Check the columns and make arrays of them.

        Args:
            rank, length, delta, base: one value a cell, any shape of N values.
            final: loss after training; base - delta when None.
            text: any labels; one text when None.
            sd: 1 for every cell when None.
            saturated_below: the threshold of saturation, nats per token; ln 2 is p = 1/2.

        Raises:
            ValueError: columns of different lengths, a value that is not finite, or a rank,
                length, base loss or sd that is not positive.
        """
        columns = {
            "rank": np.asarray(rank, float).ravel(),
            "length": np.asarray(length, float).ravel(),
            "delta": np.asarray(delta, float).ravel(),
            "base": np.asarray(base, float).ravel(),
        }
        count = len(columns["rank"])
        columns["sd"] = np.ones(count) if sd is None else np.asarray(sd, float).ravel()
        labels = np.zeros(count, int) if text is None else np.asarray(text).ravel()
        if {len(column) for column in columns.values()} != {len(labels)}:
            raise ValueError("rank, length, delta, base, text and sd differ in length")

        if final is None:
            columns["final"] = columns["base"] - columns["delta"]
        else:
            columns["final"] = np.asarray(final, float).ravel()
            if len(columns["final"]) != count:
                raise ValueError("rank, length, delta, base and final differ in length")

        if not all(np.isfinite(column).all() for column in columns.values()):
            raise ValueError("rank, length, delta, base and sd must be finite")
        if any((columns[name] <= 0).any() for name in ("rank", "length", "base", "sd")):
            raise ValueError("rank, length, base and sd must be above 0")
        return cls(**columns, text=labels, saturated_below=saturated_below)

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def saturated(self) -> Mask:
        """(N,) cells that are saturated.

        Their loss says how long they were trained, not how much they could hold.
        """
        return np.asarray(self.final <= self.saturated_below, bool)

    @property
    def limit(self) -> Array:
        """(N,) the gain at which a cell counts as saturated, nats per token."""
        return self.base - self.saturated_below

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the values: likelihoods compare only where these are equal."""
        rows = np.stack([self.rank, self.length, self.delta, self.base, self.sd], axis=1)
        return hashlib.sha256(rows[np.lexsort(rows.T)].tobytes()).hexdigest()

    @cached_property
    def clusters(self) -> tuple[NDArray[np.intp], int]:
        """(N,) the cluster of each cell, and the number of clusters.

        A cluster is one text at one length: what is hard about it is shared by its cells.
        """
        _, text = np.unique(self.text, return_inverse=True)
        _, length = np.unique(self.length, return_inverse=True)
        _, cluster = np.unique(np.stack([text, length]), axis=1, return_inverse=True)
        return cluster.ravel(), int(cluster.max(initial=-1)) + 1

    def take(self, chosen: Mask) -> Observations:
        """The cells where `chosen` (N,) holds."""
        columns = {
            field.name: getattr(self, field.name)[chosen]
            for field in fields(self)
            if field.name != "saturated_below"
        }
        return Observations(**columns, saturated_below=self.saturated_below)


def bits(length: ArrayLike, nats: ArrayLike) -> Array:
    """Bits in `length` tokens of `nats` each, l dL / ln 2; the shapes broadcast."""
    return np.asarray(np.asarray(length, float) * np.asarray(nats, float) / LN2)

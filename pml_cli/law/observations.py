"""The cells a law is fitted to: what was measured, with nothing left out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pml_cli.law.parameters import Centre
from pml_cli.stats import LN2, Array, Mask

if TYPE_CHECKING:
    import pandas as pd

# Columns whose values must be above 0, because logarithms and ratios of them are taken.
POSITIVE = ("rank", "length", "base", "sd")
# What a cell would still have gained, as a share of its gain, up to which it counts as converged.
LEAST_SHARE = 1e-3


@dataclass(frozen=True, kw_only=True)
class SizeAxis:
    """The measure of an adapter's size that a law is about."""

    name: str
    """Value of the setting x."""
    column: str
    """Column of result.json."""
    symbol: str
    """In formulas."""
    label: str
    """In sentences."""
    grid_name: str
    """Name of the axis on which sizes were tried: there the largest are held out."""

    @property
    def grid(self) -> SizeAxis:
        """The axis on which sizes were tried: the same size at every length."""
        return SIZE_AXES[self.grid_name]


RANK = SizeAxis(name="rank", column="rank", symbol="r", label="rank", grid_name="rank")
PARAMETERS = SizeAxis(
    name="parameters",
    column="trainable_parameters",
    symbol="N",
    label="parameters",
    grid_name="parameters",
)
# Of one rank there are fewer at short lengths.
EFFECTIVE = SizeAxis(
    name="effective",
    column="effective_parameters",
    symbol="N_e",
    label="effective parameters",
    grid_name="rank",
)
SIZE_AXES = {axis.name: axis for axis in (RANK, PARAMETERS, EFFECTIVE)}


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
    grid_size: Array
    """(N,) the size by which the largest adapters are held out: `rank`, where nothing else is
    given; where that depends on the length too, the rank of the adapter."""
    expected: Array
    """(N,) what more training would have gained at most, nats per token.

    0 of a cell that had converged, infinite where it is unknown.
    """
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
        grid_size: ArrayLike | None = None,
        expected: ArrayLike | None = None,
        saturated_below: float = LN2,
    ) -> Observations:
        """Check the columns and make arrays of them.

        Args:
            rank, length, delta, base: one value a cell, any shape of N values.
            final: loss after training; base - delta when None.
            text: any labels; one text when None.
            sd: 1 for every cell when None.
            grid_size: the rank when None.
            expected: what cells that had not converged would still have gained at most, nats per
                token; all had converged when None.
            saturated_below: the threshold of saturation, nats per token; ln 2 is p = 1/2.

        Raises:
            ValueError: columns of different lengths, a value that is not finite, or a rank,
                length, base loss or sd that is not positive.
        """
        given = {"rank": rank, "length": length, "delta": delta, "base": base}
        if final is not None:
            given["final"] = final
        if sd is not None:
            given["sd"] = sd
        if grid_size is not None:
            given["grid_size"] = grid_size
        columns = {name: np.asarray(values, float).ravel() for name, values in given.items()}

        # One text unless labels are given.
        count = len(columns["rank"])
        labels = np.zeros(count, int)
        if text is not None:
            labels = np.asarray(text).ravel()
        counts = {len(column) for column in columns.values()}
        if counts != {len(labels)}:
            raise ValueError(f"{', '.join(columns)} and text differ in length")

        for name, column in columns.items():
            if not np.isfinite(column).all():
                raise ValueError(f"{name} must be finite")
            if name in POSITIVE and (column <= 0).any():
                raise ValueError(f"{name} must be above 0")

        # The loss is measured, or follows from the gain.
        columns.setdefault("final", columns["base"] - columns["delta"])
        columns.setdefault("sd", np.ones(count))
        columns.setdefault("grid_size", columns["rank"])
        missing = np.zeros(count)
        if expected is not None:
            missing = np.asarray(expected, float).ravel()
        return cls(**columns, text=labels, expected=missing, saturated_below=saturated_below)

    def __len__(self) -> int:
        """N, the number of cells."""
        return len(self.rank)

    @property
    def saturated(self) -> Mask:
        """(N,) cells of which only a lower limit of the gain is known.

        Their loss says how long they were trained, not how much they could hold: it is at or below
        the threshold, or could have come there.
        """
        return np.asarray(self.final - self.expected <= self.saturated_below, bool)

    @property
    def bracketed(self) -> Mask:
        """(N,) cells that had not converged: of their gain a lower and an upper limit is known."""
        return np.asarray(~self.saturated & (self.expected > LEAST_SHARE * self.delta), bool)

    @property
    def measured(self) -> Mask:
        """(N,) the cells whose gain itself is known."""
        return np.asarray(~self.saturated & ~self.bracketed, bool)

    @property
    def limit(self) -> Array:
        """(N,) the lower limit of the gain of a saturated or a bracketed cell, nats per token.

        What was gained, and never more than the gain at the threshold of saturation.
        """
        at_threshold = self.base - self.saturated_below
        reached = self.final <= self.saturated_below
        return np.where(reached, at_threshold, self.delta)

    @property
    def upper_limit(self) -> Array:
        """(N,) the upper limit of the gain, nats per token; infinite for saturated cells."""
        return np.where(self.saturated, np.inf, self.delta + self.expected)

    @property
    def log_centre(self) -> Centre:
        """Mean log rank and mean log length; 0 without cells."""
        if not len(self):
            return (0.0, 0.0)
        mean_log_rank = float(np.log(self.rank).mean())
        mean_log_length = float(np.log(self.length).mean())
        return (mean_log_rank, mean_log_length)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the values: likelihoods compare only where these are equal."""
        columns = (self.rank, self.length, self.delta, self.base, self.sd, self.expected)
        rows = np.stack(columns, axis=1)
        # Sorted, as the order of the cells does not matter.
        ordered = rows[np.lexsort(rows.T)]
        return hashlib.sha256(ordered.tobytes()).hexdigest()

    @cached_property
    def texts(self) -> tuple[NDArray[np.intp], int]:
        """(N,) the text of each cell as a number from 0, and the number of texts.

        Texts are the independent units of every interval: shorter targets are prefixes of longer
        ones, so whatever belongs to a text is shared by all its lengths.
        """
        names, text = np.unique(self.text, return_inverse=True)
        return text.ravel(), len(names)

    @cached_property
    def clusters(self) -> tuple[NDArray[np.intp], int]:
        """(N,) the cluster of each cell, and the number of clusters.

        A cluster is one text at one length: what is hard about it is shared by its cells.
        """
        _, text = np.unique(self.text, return_inverse=True)
        _, length = np.unique(self.length, return_inverse=True)
        pairs = np.stack([text, length])
        _, cluster = np.unique(pairs, axis=1, return_inverse=True)
        largest = int(cluster.max(initial=-1))
        return cluster.ravel(), largest + 1

    def take(self, chosen: Mask) -> Observations:
        """The cells where `chosen` (N,) holds."""
        columns = {
            field.name: getattr(self, field.name)[chosen]
            for field in fields(self)
            if field.name != "saturated_below"
        }
        return Observations(**columns, saturated_below=self.saturated_below)


def text_names(runs: pd.DataFrame) -> pd.Series[str]:
    """The text of each run: the cluster that it belongs to, in every interval.

    A text is a source and the seed that draws from it. Its lengths are prefixes of one sequence,
    and its ranks, rates and losses train on the same tokens, so all of them are one cluster.

    Args:
        runs: a row for each run, with data_seed and, where sources differ, data (its label).
    """
    seed = runs["data_seed"].fillna(-1).astype(str)
    if "data" not in runs:
        return seed
    return runs["data"].fillna("").astype(str) + "/" + seed


def bits(length: ArrayLike, nats: ArrayLike) -> Array:
    """Bits in `length` tokens of `nats` each, l dL / ln 2; the shapes broadcast."""
    lengths = np.asarray(length, float)
    gains = np.asarray(nats, float)
    return np.asarray(lengths * gains / LN2)

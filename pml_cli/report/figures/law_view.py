"""What the figures of one group show: its points, the law to draw, and what that law says of cells it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pml_cli.law import model_selection
from pml_cli.law.analysis import Analysis, Entry
from pml_cli.law.mle import SaturatingFit
from pml_cli.law.model_selection import EDGE, Check, Fitted, Plain
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import NOT_IDENTIFIED, LawFit
from pml_cli.stats import Array, Mask


@dataclass(frozen=True)
class Unseen:
    """Gains of the largest ranks and longest lengths, predicted by fits without them."""

    out: Mask  # (cells,), the cells left out
    law: Array  # nats per token, of the cells left out, by the law that is drawn
    paper: Array | None  # by the paper's; None where it has no fit or is the one drawn


@dataclass(frozen=True)
class View:
    """One group of cells and what was found on it."""

    name: str
    cells: pd.DataFrame  # every cell, with `kept`, `reason` and the column x
    observed: Observations  # those a law may use, saturated ones too; its rank is the column x
    analysis: Analysis
    paper: LawFit
    saturated_below: float = (
        0.69  # final loss, nats per token, up to which the paper's estimator leaves a cell out
    )
    x: str = "rank"  # column of the rank axis

    @cached_property
    def law(self) -> Fitted | None:
        """The chosen law; where there is none the paper's; None where neither is."""
        if self.analysis.law is not None:
            return self.analysis.law
        return None if self.paper.status == NOT_IDENTIFIED else Plain("paper", self.paper)

    @property
    def fit(self) -> SaturatingFit | None:
        """The chosen law."""
        return self.analysis.law

    @cached_property
    def dashed(self) -> Fitted | None:
        """The paper's law, to be drawn beside the chosen one."""
        return (
            Plain("paper", self.paper) if self.fit and self.paper.status != NOT_IDENTIFIED else None
        )

    @property
    def parameters(self) -> dict[str, float]:
        """Of the law that is drawn."""
        if self.fit is not None:
            return self.fit.parameters
        return (
            {}
            if self.law is None
            else {name: getattr(self.paper, name) for name in ("C", "alpha", "beta", "b")}
        )

    @cached_property
    def in_full(self) -> Mask:
        """Cells that the law uses in full: saturated ones are lower limits to the chosen one and left out by the paper's."""
        return (
            ~self.observed.saturated
            if self.fit is not None or self.law is None
            else self.paper.kept
        )

    @cached_property
    def excluded(self) -> pd.DataFrame:
        """Rank, length and gain of the cells that no law may use and that have all three."""
        others = self.cells[
            ~self.cells["kept"].astype(bool) & (self.cells["reason"] != "saturated")
        ]
        table: pd.DataFrame = others.reindex(columns=[self.x, "target_tokens", "delta_loss"]).apply(
            pd.to_numeric, errors="coerce"
        )
        table.columns = pd.Index(["rank", "length", "delta"])
        good = np.isfinite(table.to_numpy(float)).all(axis=1) & (table[["rank", "length"]] > 0).all(
            axis=1
        )
        return pd.DataFrame(table[good])

    @cached_property
    def points(self) -> pd.DataFrame:
        """One row a rank and length: mean gain, its least and largest, whether most of its runs are used in full."""
        o = self.observed
        runs = pd.DataFrame(
            {
                "rank": o.rank,
                "length": o.length,
                "delta": o.delta,
                "full": self.in_full.astype(float),
            }
        )
        found = runs.groupby(["rank", "length"], as_index=False).agg(
            low=("delta", "min"),
            high=("delta", "max"),
            delta=("delta", "mean"),
            full=("full", "mean"),
        )
        return pd.DataFrame(found.assign(full=found["full"] > 0.5))

    def base_at(self, length: ArrayLike) -> Array:
        """Loss of the base model at any length: the mean over its cells, between lengths along the logarithm."""
        lengths, place = np.unique(self.observed.length, return_inverse=True)
        mean = np.bincount(place.ravel(), self.observed.base) / np.bincount(place.ravel())
        return np.asarray(np.interp(np.log(np.asarray(length, float)), np.log(lengths), mean))

    def check(self, name: str | None = None) -> Check | None:
        """The check on the largest ranks and longest lengths of a law by its name, or of the one that is drawn."""
        entry: Entry | None = self.analysis.chosen
        if name is not None or entry is None:
            entry = next((e for e in self.analysis.entries if e.name == (name or "paper")), None)
        return entry.checks.get(EDGE) if entry else None

    @cached_property
    def unseen(self) -> Unseen | None:
        """None where too few cells remain for a fit."""
        if self.law is None:
            return None
        inside = dict(model_selection.cuts(self.observed))[EDGE]
        if inside.all():
            return None
        cells, out = self.observed.take(inside), self.observed.take(~inside)
        paper = model_selection.paper(self.saturated_below)(cells)
        fit = model_selection.saturating(self.fit.form)(cells) if self.fit is not None else paper
        if fit.status == NOT_IDENTIFIED:
            return None
        beside = self.fit is not None and paper.status != NOT_IDENTIFIED
        at = out.rank, out.length, out.base
        return Unseen(~inside, fit.predict(*at), paper.predict(*at) if beside else None)

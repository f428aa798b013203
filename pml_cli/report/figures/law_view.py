"""What the figures of one group draw: its cells, the law, and that law's held-out predictions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pml_cli.law import model_selection
from pml_cli.law.analysis import Analysis
from pml_cli.law.mle import SaturatingFit
from pml_cli.law.model_selection import EDGE, Check, Fitted, Plain
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import NOT_IDENTIFIED, PARAMETERS, LawFit
from pml_cli.stats import Array, Mask


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Gains of the largest ranks and longest lengths, predicted by fits without them."""

    mask: Mask
    """(N,) the held-out cells among all observations."""
    law: Array
    """(H,) predictions of the law that is drawn, nats per token, for the H held-out cells."""
    paper: Array | None
    """(H,) those of the paper's law; None where it has no fit or is the one drawn."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One group of cells, and the laws fitted to it."""

    name: str
    cells: pd.DataFrame
    """A row each of all cells, with `kept`, `reason` and the column `x`."""
    observed: Observations
    """The N cells that a law may use, saturated ones too; their rank is the column `x`."""
    analysis: Analysis
    paper: LawFit
    """By the paper's estimator."""
    saturated_below: float = 0.69
    """Final loss, nats per token, up to which the paper's estimator leaves a cell out."""
    x: str = "rank"
    """Column on the axis of sizes."""

    @property
    def chosen(self) -> SaturatingFit | None:
        """The law that model selection chose."""
        return self.analysis.law

    @cached_property
    def law(self) -> Fitted | None:
        """The law that is drawn: the chosen one, else the paper's, else None."""
        if self.chosen is not None:
            return self.chosen
        if self.paper.status == NOT_IDENTIFIED:
            return None
        return Plain("paper", self.paper)

    @cached_property
    def paper_beside_chosen(self) -> Fitted | None:
        """The paper's law where it is drawn beside the chosen one."""
        if self.chosen is None or self.paper.status == NOT_IDENTIFIED:
            return None
        return Plain("paper", self.paper)

    @property
    def parameters(self) -> dict[str, float]:
        """Those of the law that is drawn."""
        if self.chosen is not None:
            return self.chosen.parameters
        if self.law is None:
            return {}
        return {name: getattr(self.paper, name) for name in PARAMETERS}

    @property
    def fit_quality(self) -> tuple[float, float]:
        """R2, and the mean absolute error in per cent, of the law that is drawn."""
        fit = self.chosen or self.paper
        return fit.r2, fit.mape

    @cached_property
    def uncensored(self) -> Mask:
        """(N,) the cells whose gain the law uses as measured.

        Saturated cells are lower limits to the chosen law, and left out by the paper's.
        """
        if self.chosen is not None or self.law is None:
            return ~self.observed.saturated
        return self.paper.kept

    @cached_property
    def excluded(self) -> pd.DataFrame:
        """Cells that no law may use: rank, length and gain (delta), where all three are numbers."""
        unusable = ~self.cells["kept"].astype(bool) & (self.cells["reason"] != "saturated")
        columns = [self.x, "target_tokens", "delta_loss"]
        selected = self.cells[unusable].reindex(columns=columns)
        numbers: pd.DataFrame = selected.apply(pd.to_numeric, errors="coerce")
        numbers.columns = pd.Index(["rank", "length", "delta"])

        finite = np.isfinite(numbers.to_numpy(float)).all(axis=1)
        positive = (numbers[["rank", "length"]] > 0).all(axis=1)
        return pd.DataFrame(numbers[finite & positive])

    @cached_property
    def points(self) -> pd.DataFrame:
        """A row for each rank and length.

        Columns: rank, length, the mean gain (delta), its smallest and largest (low, high), and
        whether most of its runs are uncensored.
        """
        runs = pd.DataFrame(
            {
                "rank": self.observed.rank,
                "length": self.observed.length,
                "delta": self.observed.delta,
                "uncensored": self.uncensored.astype(float),
            }
        )
        points = runs.groupby(["rank", "length"], as_index=False).agg(
            low=("delta", "min"),
            high=("delta", "max"),
            delta=("delta", "mean"),
            uncensored=("uncensored", "mean"),
        )
        points["uncensored"] = points["uncensored"] > 0.5
        return points

    def base_at(self, length: ArrayLike) -> Array:
        """Mean loss of the base model, interpolated along the logarithm of the length.

        Args:
            length: tokens, any shape.

        Returns:
            Nats per token, of the same shape.
        """
        lengths, index = np.unique(self.observed.length, return_inverse=True)
        cells = np.bincount(index.ravel())
        mean = np.bincount(index.ravel(), self.observed.base) / cells
        return np.asarray(np.interp(np.log(np.asarray(length, float)), np.log(lengths), mean))

    def check(self, name: str | None = None) -> Check | None:
        """The check on the largest ranks and longest lengths.

        Args:
            name: of a law; None for the one that is drawn.
        """
        if name is None and self.analysis.chosen is not None:
            return self.analysis.chosen.checks.get(EDGE)
        for entry in self.analysis.entries:
            if entry.name == (name or "paper"):
                return entry.checks.get(EDGE)
        return None

    @cached_property
    def held_out(self) -> HeldOut | None:
        """Predictions for the largest ranks and longest lengths; None where too few cells remain."""
        if self.law is None:
            return None
        fitted = dict(model_selection.cuts(self.observed))[EDGE]
        if fitted.all():
            return None

        inside = self.observed.take(fitted)
        outside = self.observed.take(~fitted)
        paper = model_selection.paper(self.saturated_below)(inside)
        fit = paper
        if self.chosen is not None:
            fit = model_selection.saturating(self.chosen.form)(inside)
        if fit.status == NOT_IDENTIFIED:
            return None

        paper_differs = self.chosen is not None and paper.status != NOT_IDENTIFIED
        where = outside.rank, outside.length, outside.base
        return HeldOut(
            mask=~fitted,
            law=fit.predict(*where),
            paper=paper.predict(*where) if paper_differs else None,
        )

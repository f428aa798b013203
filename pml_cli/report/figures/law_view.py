"""What the figures of one group draw: its cells, the law, and that law's held-out predictions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from pml_cli.law.analysis import Analysis
from pml_cli.law.findings import NOT_IDENTIFIED
from pml_cli.law.fit_result import FitResult
from pml_cli.law.mle import LikelihoodFit
from pml_cli.law.model_selection import EDGE, Check
from pml_cli.law.observations import RANK, Observations, SizeAxis
from pml_cli.law.power_law import PowerLawFit
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
    """A row each of all cells, with `kept`, `reason` and the column of the size."""
    observed: Observations
    """The N cells that a law may use, saturated ones too; their rank is the size."""
    analysis: Analysis
    axis: SizeAxis = RANK
    """The size that the law is about."""

    @property
    def paper(self) -> PowerLawFit:
        """The fit of the paper's estimator."""
        return self.analysis.paper

    @property
    def chosen(self) -> LikelihoodFit | None:
        """The law that model selection chose."""
        return self.analysis.law

    @cached_property
    def law(self) -> FitResult | None:
        """The law that is drawn: the chosen one, else the paper's, else None."""
        if self.chosen is not None:
            return self.chosen
        return None if self.paper.status == NOT_IDENTIFIED else self.paper

    @cached_property
    def paper_beside_chosen(self) -> FitResult | None:
        """The paper's law where it is drawn beside the chosen one."""
        if self.chosen is None or self.paper.status == NOT_IDENTIFIED:
            return None
        return self.paper

    @cached_property
    def uncensored(self) -> Mask:
        """(N,) the cells whose gain the law uses as measured.

        Saturated cells are lower limits to the chosen law, and left out by the paper's.
        """
        return ~self.observed.saturated

    @cached_property
    def excluded(self) -> pd.DataFrame:
        """Cells that no law may use: rank, length and gain (delta), where all three are numbers."""
        usable = self.cells["kept"].astype(bool)
        # Saturated cells have a sign of their own.
        saturated = self.cells["reason"] == "saturated"
        columns = [self.axis.column, "target_tokens", "delta_loss"]
        selected = self.cells[~usable & ~saturated].reindex(columns=columns)
        numbers: pd.DataFrame = selected.apply(pd.to_numeric, errors="coerce")
        numbers.columns = pd.Index(["rank", "length", "delta"])

        # Other values cannot be drawn on a logarithmic axis.
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
        # The mean of flags is the fraction of the runs.
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
        log_length = np.log(np.asarray(length, float))
        interpolated = np.interp(log_length, np.log(lengths), mean)
        return np.asarray(interpolated)

    def check(self, name: str | None = None) -> Check | None:
        """The check on the largest ranks and longest lengths.

        Args:
            name: of a law; None for the one that is drawn.
        """
        if name is None and self.analysis.chosen is not None:
            return self.analysis.unseen
        row = self.analysis.row(name or "paper")
        return row.checks.get(EDGE) if row else None

    @cached_property
    def held_out(self) -> HeldOut | None:
        """Predictions for the largest ranks and longest lengths.

        None where too few cells remain for a fit.
        """
        check = self.check()
        if self.law is None or check is None:
            return None
        # Without a fit to the remaining cells every prediction is nan.
        if not np.isfinite(check.predicted).any():
            return None
        mask = check.left_out
        paper_check = self.check("paper") if self.chosen is not None else None
        paper = paper_check.predicted[mask] if paper_check else np.empty(0)
        return HeldOut(
            mask=mask,
            law=check.predicted[mask],
            paper=paper if np.isfinite(paper).any() else None,
        )

"""What every fitted law offers, whichever estimator made it."""

from __future__ import annotations

from typing import Protocol

from pml_cli.law.findings import Finding
from pml_cli.law.forms import Form
from pml_cli.law.parameters import Interval
from pml_cli.stats import Array


class FitResult(Protocol):
    """A law fitted to N cells, or the finding that says why there is none.

    `power_law.PowerLawFit` and `mle.LikelihoodFit` are the two results; checks, tables, figures and
    law.json use this protocol alone.
    """

    @property
    def name(self) -> str:
        """Name of the law in tables and in law.json."""
        ...

    @property
    def form(self) -> Form:
        """Which law."""
        ...

    @property
    def uses_saturated(self) -> bool:
        """Whether saturated cells take part, as lower limits of the gain."""
        ...

    @property
    def status(self) -> str:
        """OK, BOUND_HIT or NOT_IDENTIFIED."""
        ...

    @property
    def finding(self) -> Finding | None:
        """Why the status is not OK; a note, or None, where it is."""
        ...

    @property
    def parameters(self) -> dict[str, float]:
        """The free parameters and beta, in natural units; nan when NOT_IDENTIFIED."""
        ...

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals from the covariance, which takes cells as independent."""
        ...

    @property
    def covariance(self) -> Array:
        """(P, P) of the P parameters that the estimator solves for."""
        ...

    @property
    def n_used(self) -> int:
        """Cells that took part in the fit."""
        ...

    @property
    def r2(self) -> float:
        """Coefficient of determination over the unsaturated cells."""
        ...

    @property
    def mape(self) -> float:
        """Mean absolute error over the unsaturated cells, per cent of the measured gain."""
        ...

    def predict(self, rank: Array, length: Array, base: Array) -> Array:
        """Gain in nats per token, (N,), of cells with these sizes, lengths and base losses."""
        ...

    def band(self, rank: Array, length: Array, base: Array) -> tuple[Array, Array]:
        """Lower and upper end, (N,) each, of the 95 % prediction interval of new cells."""
        ...

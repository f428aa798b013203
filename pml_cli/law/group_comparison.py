"""Do groups of cells share their exponents? Likelihood ratios of laws with shared or separate alpha and beta.

Every group keeps its own scale, offset, bend and spread; only the exponents are tied. A likelihood ratio takes cells as
independent; the second test (Cochran's Q on the bootstrap's standard errors) keeps cells of one text and length together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from pml_cli.io import finite_or_none
from pml_cli.law.bootstrap import Bootstrap, bootstrap
from pml_cli.law.forms import ALPHA, BETA, Form
from pml_cli.law.likelihood import Design, minimise
from pml_cli.law.mle import NATURAL, SaturatingFit, design_of, fit_saturating
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import EXPONENTS, NOT_IDENTIFIED, OK
from pml_cli.stats import Array

LEVEL = 0.05  # p below which groups differ
REJECTED = 10.0  # AICc above its own best at which a group has another law
TIES = {"alpha": (ALPHA,), "beta": (BETA,), "alpha and beta": (ALPHA, BETA)}


@dataclass(frozen=True)
class Group:
    """One group, fitted with the form that all groups of a comparison share."""

    name: str
    fit: SaturatingFit
    bootstrap: Bootstrap
    cost: float  # AICc of the common form above that of this group's best

    @property
    def rejects(self) -> bool:
        """The common law is not this group's: its exponents mean little here."""
        return self.cost > REJECTED

    def error(self, name: str) -> float:
        """Standard error of alpha or beta: of the draws, else of the information."""
        place = {"alpha": ALPHA, "beta": BETA}[name]
        if self.bootstrap.status == OK:
            count = self.bootstrap.clusters
            return float(
                self.bootstrap.draws[:, place].std(ddof=1) * math.sqrt(count / (count - 1))
            )
        return float(np.sqrt(self.fit.covariance[place, place]))

    def interval(self, name: str) -> tuple[float, float]:
        found = self.bootstrap.intervals if self.bootstrap.status == OK else self.fit.intervals
        return found.get(name, (math.nan, math.nan))


@dataclass(frozen=True)
class Tie:
    """The test of one sharing: separate values against one for all groups."""

    what: str  # alpha, beta, or both
    shared: dict[str, float]  # the value that all groups would have
    statistic: float  # twice the log-likelihood that is lost
    freedom: int
    p: float  # cells independent
    p_clustered: float  # Cochran's Q; nan for both exponents together

    @property
    def verdict(self) -> str:
        """By the larger p: the likelihood ratio counts cells that are alike, Cochran's Q trusts errors of few clusters."""
        return "differ" if max(self.p, np.nan_to_num(self.p_clustered)) < LEVEL else "may be shared"

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("what", "shared", "freedom")}
        tests = {
            name: finite_or_none(getattr(self, name)) for name in ("statistic", "p", "p_clustered")
        }
        return values | tests


@dataclass(frozen=True)
class Comparison:
    by: tuple[str, ...]  # settings in which the groups differ
    common: str  # what they agree in
    form: Form | None
    reason: str  # why there is none; empty else
    groups: list[Group]
    ties: list[Tie]

    def to_dict(self) -> dict[str, Any]:
        rows = [
            {"name": one.name, "parameters": {n: finite_or_none(v) for n, v in one.fit.parameters.items()},
             "intervals_95": {n: [finite_or_none(v) for v in one.interval(n)] for n in ("alpha", "beta")}, "n": one.fit.n,
             "aicc_cost": finite_or_none(one.cost)}
            for one in self.groups
        ]  # fmt: skip
        return {"by": list(self.by), "common": self.common, "form": self.form.name if self.form else None,
                "reason": self.reason, "groups": rows, "ties": [tie.to_dict() for tie in self.ties]}  # fmt: skip


def compare(
    cells: dict[str, Observations],
    forms: Sequence[Form],
    by: tuple[str, ...],
    *,
    common: str = "",
    draws: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Fit one form to every group, and test whether the groups share alpha, beta, or both.

    The form is the one with the least sum of AICc among those that are OK in every group.

    Args:
        cells: of each group, by its name.
        forms: to choose from.
        by, common: in words, for the report.
        draws: of each group's bootstrap.
    """
    best: tuple[float, Form, list[SaturatingFit]] | None = None
    least = [math.inf] * len(cells)
    for form in forms:
        fits = [fit_saturating(one, form) for one in cells.values()]
        found = [
            fit.aicc if fit.status == OK and math.isfinite(fit.aicc) else math.inf for fit in fits
        ]
        least = [min(pair) for pair in zip(least, found, strict=True)]
        if not all(
            fit.status == OK and fit.form == form and math.isfinite(fit.aicc) for fit in fits
        ):
            continue
        total = sum(fit.aicc for fit in fits)
        if best is None or total < best[0]:
            best = total, form, fits
    if best is None:
        return Comparison(
            by, common, None, "no law is identified in every one of these groups", [], []
        )
    _, form, fits = best
    groups = [
        Group(name, fit, _bootstrap(one, fit, draws, progress), fit.aicc - alone)
        for (name, one), fit, alone in zip(cells.items(), fits, least, strict=True)
    ]
    designs = [design_of(one, fit.centre) for one, fit in zip(cells.values(), fits, strict=True)]
    ties = [
        _tie(what, groups, designs, form)
        for what, places in TIES.items()
        if set(places) <= set(form.free)
    ]
    return Comparison(by, common, form, "", groups, ties)


def _bootstrap(
    cells: Observations, fit: SaturatingFit, draws: int, progress: Callable[[int, int], None] | None
) -> Bootstrap:
    if not draws:
        return Bootstrap(
            NOT_IDENTIFIED,
            "no draws were asked for",
            np.empty((0, len(NATURAL))),
            0,
            cells.clusters[1],
            {},
        )
    return bootstrap(cells, fit, draws, progress=progress)


def _tie(what: str, groups: list[Group], designs: list[Design], form: Form) -> Tie:
    places = TIES[what]
    thetas = np.stack([group.fit.theta for group in groups])
    others = tuple(p for p in form.free if p not in places)

    def lost(values: Array) -> float:
        """Twice the log-likelihood lost when every group has these values."""
        total = 0.0
        for theta, design, group in zip(thetas, designs, groups, strict=True):
            start = theta.copy()
            start[list(places)] = np.clip(values, *EXPONENTS)
            _, nll = minimise(start[None], design, form, free=others)
            total += 2 * max(0.0, float(nll[0]) - group.fit.nll)
        return total

    errors = np.array([[group.fit.covariance[p, p] for p in places] for group in groups])
    middle = (thetas[:, list(places)] / errors).sum(axis=0) / (1 / errors).sum(axis=0)
    found = optimize.minimize(
        lost, middle, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-4, "maxiter": 200}
    )
    names = [name for name, place in (("alpha", ALPHA), ("beta", BETA)) if place in places]
    freedom, statistic = len(places) * (len(groups) - 1), float(found.fun)
    clustered = _cochran(groups, names[0]) if len(names) == 1 else math.nan
    shared = dict(zip(names, [float(v) for v in found.x], strict=True))
    return Tie(
        what, shared, statistic, freedom, float(stats.chi2.sf(statistic, freedom)), clustered
    )


def _cochran(groups: list[Group], name: str) -> float:
    values = np.array([group.fit.parameters[name] for group in groups])
    if any(group.bootstrap.status != OK for group in groups):
        return math.nan
    weight = np.array([group.error(name) for group in groups]) ** -2.0
    q = float((weight * (values - (weight * values).sum() / weight.sum()) ** 2).sum())
    return float(stats.chi2.sf(q, len(groups) - 1))

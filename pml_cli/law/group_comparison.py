"""Do groups of cells share their exponents? Tests of laws with shared or separate alpha and beta.

Every group keeps its own scale, offset, bend and spread; only the exponents are tied. A likelihood
ratio takes cells as independent; the second test (Cochran's Q) takes texts, and texts at one
length, as clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from pml_cli.law.findings import OK, Finding, finding
from pml_cli.law.forms import Form
from pml_cli.law.likelihood import Design, minimise
from pml_cli.law.mle import LikelihoodFit, design_of, fit_saturating
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import ALPHA, BETA, EXPONENT_BOUNDS, Interval
from pml_cli.stats import Array, normal_quantile

# p below which groups differ.
SIGNIFICANCE = 0.05

# The common form does not describe a group whose own best form has an AICc lower by this.
AICC_REJECTION = 10.0

# Positions of the exponents in theta, and the sets of them that are tested together.
EXPONENTS = {"alpha": ALPHA, "beta": BETA}
TIES = {"alpha": ("alpha",), "beta": ("beta",), "alpha and beta": ("alpha", "beta")}


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group, fitted with the form that all groups of a comparison share."""

    name: str
    fit: LikelihoodFit
    cost: float
    """AICc of the common form above that of this group's best."""

    @property
    def rejects(self) -> bool:
        """The common form does not describe this group: its exponents mean little here."""
        return self.cost > AICC_REJECTION

    def error(self, name: str) -> float:
        """Standard error of alpha or beta, wider where there are few texts."""
        return self.fit.half_width(EXPONENTS[name]) / normal_quantile()

    def interval(self, name: str) -> Interval:
        """95 % interval of alpha or beta; nan where the form fixes it."""
        position = EXPONENTS[name]
        if position not in self.fit.form.free:
            return math.nan, math.nan
        value = self.fit.parameters[name]
        half = self.fit.half_width(position)
        return value - half, value + half


@dataclass(frozen=True, kw_only=True)
class Tie:
    """The test of one restriction: a value for all groups against one for each."""

    what: str
    """alpha, beta, or both."""
    shared: dict[str, float]
    """The value that all groups would have."""
    freedom: int
    statistic: float
    """Twice the log-likelihood that the restriction costs."""
    p: float
    """p of the likelihood-ratio test, which assumes independent cells."""
    p_clustered: float
    """p of Cochran's Q test; nan for both exponents together."""

    @property
    def differ(self) -> bool:
        """Whether the groups differ, by the larger p.

        The likelihood ratio is too small where cells are correlated, Cochran's Q where the
        standard errors come from few clusters.
        """
        if math.isnan(self.p_clustered):
            return self.p < SIGNIFICANCE
        return max(self.p, self.p_clustered) < SIGNIFICANCE


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Groups side by side, fitted with one form."""

    by: tuple[str, ...]
    """Settings in which the groups differ."""
    common: str
    """The settings in which they agree, as text."""
    form: Form | None
    finding: Finding | None
    """Why there is no form."""
    groups: list[Group]
    ties: list[Tie]


def compare(
    cells: dict[str, Observations],
    forms: Sequence[Form],
    by: tuple[str, ...],
    *,
    common: str = "",
) -> Comparison:
    """Fit one form to every group, and test whether the groups share alpha, beta, or both.

    The form is the one with the least sum of AICc among those that are OK in every group.

    Args:
        cells: of each group, by its name.
        forms: to choose from.
        by: settings in which the groups differ.
        common: settings in which they agree.
    """
    fits_of = {}
    for form in forms:
        fits_of[form] = [fit_saturating(observed, form) for observed in cells.values()]

    common_form = _common_form(fits_of)
    if common_form is None:
        return Comparison(
            by=by,
            common=common,
            form=None,
            finding=finding("no_common_form"),
            groups=[],
            ties=[],
        )

    groups = []
    designs = []
    for k, (name, observed) in enumerate(cells.items()):
        fit = fits_of[common_form][k]
        # The best form of this group alone.
        least = min(_criterion(fits[k]) for fits in fits_of.values())

        cost = fit.aicc - least
        groups.append(Group(name=name, fit=fit, cost=cost))
        designs.append(design_of(observed, fit.centre))

    # A form may fix beta.
    ties = []
    for what, names in TIES.items():
        positions = {EXPONENTS[name] for name in names}
        if positions <= set(common_form.free):
            ties.append(_tie(what, groups, designs, common_form))
    return Comparison(
        by=by,
        common=common,
        form=common_form,
        finding=None,
        groups=groups,
        ties=ties,
    )


def _criterion(fit: LikelihoodFit) -> float:
    """AICc, infinite where the fit is not OK."""
    if fit.status != OK or not math.isfinite(fit.aicc):
        return math.inf
    return fit.aicc


def _common_form(fits_of: dict[Form, list[LikelihoodFit]]) -> Form | None:
    """The form with the least sum of AICc among those that are OK in every group."""
    sums = {}
    for form, fits in fits_of.items():
        # A link that runs to its limit is fitted as another form.
        as_asked = all(fit.form == form for fit in fits)
        total = sum(_criterion(fit) for fit in fits)
        if as_asked and math.isfinite(total):
            sums[form] = total
    return min(sums, key=lambda form: sums[form], default=None)


def _tie(
    what: str,
    groups: list[Group],
    designs: list[Design],
    form: Form,
) -> Tie:
    """Test one restriction: groups keep all parameters but the tied exponents.

    Args:
        what: a key of TIES.
        groups, designs: of every group, in one order.
    """
    names = TIES[what]
    positions = [EXPONENTS[name] for name in names]
    shared, statistic = _shared_exponents(positions, groups, designs, form)
    freedom = len(names) * (len(groups) - 1)

    # Cochran's Q is a test of one value.
    p_clustered = math.nan
    if len(names) == 1:
        p_clustered = _cochran(groups, names[0])

    return Tie(
        what=what,
        shared=dict(zip(names, shared.tolist(), strict=True)),
        freedom=freedom,
        statistic=statistic,
        p=float(stats.chi2.sf(statistic, freedom)),
        p_clustered=p_clustered,
    )


def _shared_exponents(
    positions: list[int],
    groups: list[Group],
    designs: list[Design],
    form: Form,
) -> tuple[Array, float]:
    """The most likely exponents that all groups have in common.

    Args:
        positions: of the E shared exponents in theta.
        groups, designs: of every group, in one order.

    Returns:
        Their values, (E,), and twice the log-likelihood that sharing them costs.
    """
    # (groups, P)
    thetas = np.stack([group.fit.theta for group in groups])
    free_in_group = tuple(p for p in form.free if p not in positions)

    def cost(values: Array) -> float:
        """Twice the log-likelihood lost when every group has these exponents, (E,)."""
        total = 0.0
        for theta, design, group in zip(thetas, designs, groups, strict=True):
            start = theta.copy()
            start[positions] = np.clip(values, *EXPONENT_BOUNDS)
            # The other parameters adapt to the shared exponents.
            _, nll = minimise(start[None], design, form, free=free_in_group)
            difference = float(nll[0]) - group.fit.nll
            total += 2 * max(0.0, difference)
        return total

    # The search starts at the mean weighted by the inverse variances.
    variances = np.stack([np.diag(group.fit.covariance)[positions] for group in groups])
    weighted = (thetas[:, positions] / variances).sum(axis=0)
    mean = weighted / (1 / variances).sum(axis=0)
    solution = optimize.minimize(
        cost, mean, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-4, "maxiter": 200}
    )
    return np.asarray(solution.x), float(solution.fun)


def _cochran(groups: list[Group], name: str) -> float:
    """p of Cochran's Q for one exponent."""
    values = np.array([group.fit.parameters[name] for group in groups])
    errors = np.array([group.error(name) for group in groups])
    # Inverse variances.
    weight = errors**-2.0
    mean = (weight * values).sum() / weight.sum()
    squares = (values - mean) ** 2
    q = float((weight * squares).sum())
    freedom = len(groups) - 1
    return float(stats.chi2.sf(q, freedom))

"""Which law: information criteria on equal cells, and the error on cells that a fit has not seen.

Validation is the headline: every law is fitted without the largest ranks and the longest lengths (then without the one,
the other, and each text in turn) and predicts the cells left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import stats

from pml_cli.io import finite_or_none
from pml_cli.law import power_law
from pml_cli.law.forms import Form
from pml_cli.law.mle import SaturatingFit, fit_saturating
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import NOT_IDENTIFIED, OK, LawFit
from pml_cli.law.robust import fit_robust
from pml_cli.stats import CONFIDENCE, Array, Mask

FORMS = (
    Form("none"),
    Form("none", offset=True),
    Form("hard"),
    Form("exp"),
    Form("hill"),
    Form("hard", offset=True),
    Form("exp", offset=True),
    Form("hill", offset=True),
    Form("exp", floor=True),
    Form("hill", floor=True),
    Form("exp", level=True),
    Form("hill", level=True),
)
CLOSE = 4.0  # AICc: laws this near to the best are not told apart by it
FOLDS = 10  # with more texts than this, several are left out at a time
ALIKE = 0.01  # p below which residuals of a cluster are called alike
EDGE, RANKS, LENGTHS, TEXT = (
    "largest ranks and longest lengths",
    "largest ranks",
    "longest lengths",
    "one text",
)


class Fitted(Protocol):
    """What a check needs of a fitted law."""

    @property
    def status(self) -> str: ...
    @property
    def reason(self) -> str: ...
    def predict(self, rank: Array, length: Array, base: Array) -> Array: ...
    def band(self, rank: Array, length: Array, base: Array) -> tuple[Array, Array]: ...


@dataclass(frozen=True)
class Plain:
    """A fit of the paper's law, as a law that ignores the base loss."""

    name: str
    fit: LawFit

    @property
    def status(self) -> str:
        return self.fit.status

    @property
    def reason(self) -> str:
        return self.fit.reason

    def predict(self, rank: Array, length: Array, base: Array) -> Array:
        return self.fit.predict(rank, length) + np.zeros_like(base)

    def band(self, rank: Array, length: Array, base: Array) -> tuple[Array, Array]:
        """Where 95 % of new cells fall, were their absolute spread that of the kept cells: (N,) low and high."""
        middle, fit = self.predict(rank, length, base), self.fit
        power = middle - fit.b
        slopes = np.stack(
            [power / fit.C, power * np.log(rank), -power * np.log(length), np.ones_like(power)],
            axis=-1,
        )
        freedom = fit.n - len(power_law.PARAMETERS)
        share = fit.spread**2 + np.maximum(
            0, np.einsum("nf,fg,ng->n", slopes, fit.covariance, slopes)
        )
        half = stats.t.ppf((1 + CONFIDENCE) / 2, max(1, freedom)) * np.sqrt(share)
        return middle - half, middle + half


Estimator = Callable[[Observations], Fitted]


@dataclass(frozen=True)
class Check:
    """How well a law predicts cells left out of its fit. Nan, with a reason, where it cannot be told."""

    what: str  # which cells were left out
    reason: str
    mape: float  # per cent of the measured gain, over the unsaturated cells left out
    mape_all: float  # over all cells left out
    coverage: float  # share of the unsaturated ones inside the 95 % band
    n_fit: int
    n_test: int  # unsaturated cells left out
    n_all: int

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: finite_or_none(value) if isinstance(value, float) else value
            for name, value in values.items()
        }


@dataclass(frozen=True)
class RatioTest:
    """Likelihood-ratio test of a law against one it contains. It takes the cells as independent."""

    statistic: float
    freedom: int
    p: float

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def paper(saturated_below: float = 0.69) -> Estimator:
    """The paper's estimator: unsaturated cells, plain least squares."""
    return lambda cells: Plain(
        "paper",
        power_law.fit_paper(cells.rank, cells.length, cells.delta, cells.final, saturated_below),
    )


def robust(saturated_below: float = 0.69) -> Estimator:
    return lambda cells: Plain("robust", fit_robust(cells, saturated_below))


def saturating(form: Form) -> Estimator:
    return lambda cells: fit_saturating(cells, form)


def aicc_differences(fits: Sequence[SaturatingFit]) -> list[float]:
    """AICc of each fit above the least one; nan where there is no fit.

    Raises:
        ValueError: the fits did not see the same cells, so that their likelihoods cannot be compared.
    """
    if len({fit.fingerprint for fit in fits}) > 1:
        raise ValueError(
            "information criteria compare fits to the same cells only; these saw different ones"
        )
    values = [fit.aicc if fit.status == OK else math.nan for fit in fits]
    least = min((v for v in values if math.isfinite(v)), default=math.nan)
    return [value - least for value in values]


def likelihood_ratio(full: SaturatingFit, part: SaturatingFit) -> RatioTest:
    """Test `part`, a special case of `full`.

    Raises:
        ValueError: not the same cells, or `part` is not a smaller law.
    """
    if full.fingerprint != part.fingerprint:
        raise ValueError(
            "a likelihood ratio compares fits to the same cells only; these saw different ones"
        )
    freedom = len(full.form.free) - len(part.form.free)
    if freedom < 1 or not set(part.form.free) < set(full.form.free):
        raise ValueError(f"{part.form.name} is not a special case of {full.form.name}")
    statistic = max(0.0, 2 * (part.nll - full.nll)) if math.isfinite(part.nll) else math.inf
    return RatioTest(statistic, freedom, float(stats.chi2.sf(statistic, freedom)))


def cuts(cells: Observations) -> Iterator[tuple[str, Mask]]:
    """What is left out, and the cells that stay: the edge, its two sides, and each text."""
    seen = ~cells.saturated
    ranks = np.isin(cells.rank, power_law.largest(cells.rank[seen]))
    lengths = np.isin(cells.length, power_law.largest(cells.length[seen]))
    yield EDGE, ~(ranks | lengths)
    yield RANKS, ~ranks
    yield LENGTHS, ~lengths
    texts = np.unique(cells.text)
    folds = min(len(texts), FOLDS)
    for k in range(folds if folds > 1 else 0):
        yield TEXT, ~np.isin(cells.text, texts[k::folds])


def checks(cells: Observations, estimator: Estimator) -> dict[str, Check]:
    """Every cut of `cuts` by its name; that of the texts over all of them together."""
    masks: dict[str, list[Mask]] = {}
    for what, inside in cuts(cells):
        masks.setdefault(what, []).append(inside)
    return {what: _check(what, cells, insides, estimator) for what, insides in masks.items()}


def _check(what: str, cells: Observations, insides: list[Mask], estimator: Estimator) -> Check:
    errors, hits, errors_all, n_fit, problem = [], [], [], 0, ""
    for inside in insides:
        if inside.all():
            problem = "too few distinct unsaturated values to leave the largest out"
            continue
        fit, out = estimator(cells.take(inside)), cells.take(~inside)
        n_fit += int(inside.sum())
        if fit.status == NOT_IDENTIFIED:
            problem = f"the cells that remain do not carry a fit: {fit.reason}"
            continue
        error = 100 * np.abs(fit.predict(out.rank, out.length, out.base) / out.delta - 1)
        low, high = fit.band(out.rank, out.length, out.base)
        seen = ~out.saturated
        errors.append(error[seen])
        errors_all.append(error)
        if np.isfinite(low).all():
            hits.append(((low <= out.delta) & (out.delta <= high))[seen])
    mape, mape_all, coverage = (_mean(parts) for parts in (errors, errors_all, hits))
    n_test, n_all = sum(map(len, errors)), sum(map(len, errors_all))
    if not problem and not n_test:
        problem = "no unsaturated cell was left out"
    return Check(what, problem, mape, mape_all, coverage, n_fit, n_test, n_all)


def _mean(parts: Sequence[Array | Mask]) -> float:
    return float(np.concatenate(parts).mean()) if sum(map(len, parts)) else math.nan


def choose(fits: Sequence[SaturatingFit], held: Sequence[Check]) -> int | None:
    """Which of the fits to report: the simplest within 4 of the least AICc; of equals, the one that errs least on the edge.

    So a parameter is taken in only where it earns its keep. Laws without a link are there to compare: they predict gains
    above the base loss, and are never chosen.

    Returns:
        Its place; None when no fit is OK.
    """
    linked = [
        k
        for k, fit in enumerate(fits)
        if fit.form.link != "none" and fit.status == OK and math.isfinite(fit.aicc)
    ]
    if not linked:
        return None
    aicc_differences(fits)  # refuses fits to different cells
    least = min(fits[k].aicc for k in linked)

    def order(k: int) -> tuple[int, float, float]:
        error = held[k].mape
        return len(fits[k].form.free), error if math.isfinite(error) else math.inf, fits[k].aicc

    return min((k for k in linked if fits[k].aicc - least <= CLOSE), key=order)


def alike_within_clusters(cells: Observations, predicted: Array) -> tuple[float, float]:
    """Intraclass correlation of the relative residuals of unsaturated cells by text and length, and its p (one-way F test).

    Nan where there are not two clusters with two cells.
    """
    seen = ~cells.saturated
    cluster, _ = cells.clusters
    residual = (cells.delta / predicted - 1)[seen]
    groups = [residual[cluster[seen] == g] for g in np.unique(cluster[seen])]
    groups = [group for group in groups if len(group) > 1]
    if len(groups) < 2:
        return math.nan, math.nan
    f, p = stats.f_oneway(*groups)
    size = sum(map(len, groups)) / len(groups)
    return float((f - 1) / (f - 1 + size)), float(p)

"""Which law: information criteria on equal cells, and the error on cells that a fit has not seen.

Validation is the headline: every law is fitted without the largest ranks and the longest lengths
(then without the one, the other, and each text in turn) and predicts the cells left out. For the
error of the chosen law its form is chosen without those cells, too (`analysis.fit_chosen`): a form
that was chosen with sight of them would be too good for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats

from pml_cli.law.findings import NOT_IDENTIFIED, OK, Finding, finding
from pml_cli.law.fit_result import FitResult
from pml_cli.law.forms import Form
from pml_cli.law.mle import LikelihoodFit, fit_saturating
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import MIN_DISTINCT
from pml_cli.stats import Array, Mask

Estimator = Callable[[Observations], FitResult]

# Laws whose AICc is within this of the least one are equally supported.
AICC_TOLERANCE = 4.0
# With more texts than this, several are held out at a time.
TEXT_FOLDS = 10
# Significance of a correlation within clusters.
CORRELATED = 0.01
# What is held out; also the keys of `checks` in law.json.
EDGE = "largest ranks and longest lengths"
RANKS = "largest ranks"
LENGTHS = "longest lengths"
TEXT = "one text"


@dataclass(frozen=True, kw_only=True)
class Check:
    """How well a law predicts cells that were left out of its fit, out of N cells."""

    what: str
    """Which cells were left out: EDGE, RANKS, LENGTHS or TEXT."""
    finding: Finding | None
    """Why there is no check, or an incomplete one."""
    left_out: Mask
    """(N,) cells left out of a fit."""
    predicted: Array
    """(N,) their gain by that fit, nats per token; nan for the others and where no fit is."""
    mape: float
    """Per cent of the measured gain, over the unsaturated cells left out; nan without any."""
    mape_all: float
    """MAPE in per cent over all cells left out, saturated ones included."""
    coverage: float
    """Share of the unsaturated ones inside the 95 % prediction interval."""
    n_fit: int
    """Cells in the fit, saturated ones included; over texts, the sum."""
    n_test: int
    """Unsaturated cells left out."""
    n_all: int
    """Cells left out."""
    laws: tuple[str, ...] = ()
    """Names of the laws that were fitted to the cells that stayed, one a fold with a fit."""


@dataclass(frozen=True, kw_only=True)
class RatioTest:
    """Likelihood-ratio test of a law against one it contains. It takes the cells as independent."""

    statistic: float
    freedom: int
    p: float


@dataclass(frozen=True, kw_only=True)
class IntraclassCorrelation:
    """Correlation of the residuals of one cluster, and its p (one-way F test)."""

    correlation: float
    p: float


def saturating(form: Form) -> Estimator:
    """Maximum likelihood of one form, as an estimator."""
    return partial(fit_saturating, form=form)


def aicc_differences(fits: Sequence[LikelihoodFit]) -> list[float]:
    """AICc of each fit above the least one; nan where there is no fit.

    Raises:
        ValueError: the fits did not see the same cells: their likelihoods cannot be compared.
    """
    if len({fit.fingerprint for fit in fits}) > 1:
        raise ValueError(
            "information criteria compare fits to the same cells only; these saw different ones"
        )

    values = [fit.aicc if fit.status == OK else math.nan for fit in fits]
    finite = [value for value in values if math.isfinite(value)]
    least = min(finite, default=math.nan)
    return [value - least for value in values]


def likelihood_ratio(full: LikelihoodFit, restricted: LikelihoodFit) -> RatioTest:
    """Test `restricted`, a special case of `full`; nan where either has no fit.

    Raises:
        ValueError: not the same cells, or `restricted` is not a special case.
    """
    if full.fingerprint != restricted.fingerprint:
        raise ValueError(
            "a likelihood ratio compares fits to the same cells only; these saw different ones"
        )

    free = set(full.form.free)
    restricted_free = set(restricted.form.free)
    if not restricted_free < free:
        raise ValueError(f"{restricted.form.name} is not a special case of {full.form.name}")

    freedom = len(free) - len(restricted_free)
    # A fit that failed says nothing about the restriction.
    if not (math.isfinite(restricted.nll) and math.isfinite(full.nll)):
        return RatioTest(statistic=math.nan, freedom=freedom, p=math.nan)

    # Twice the log-likelihood that the restriction costs.
    statistic = max(0.0, 2 * (restricted.nll - full.nll))
    p = float(stats.chi2.sf(statistic, freedom))
    return RatioTest(statistic=statistic, freedom=freedom, p=p)


def largest(values: Array) -> tuple[float, ...]:
    """The largest quarter of the distinct values, at least one, as long as enough remain.

    Args:
        values: any shape.
    """
    distinct = np.unique(values)
    quarter = max(1, len(distinct) // 4)
    spare = max(0, len(distinct) - MIN_DISTINCT)
    count = min(quarter, spare)
    return tuple(distinct[len(distinct) - count :].tolist())


def edge_of(cells: Observations) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The largest sizes (`grid_size`) and the longest lengths among the unsaturated cells."""
    observed = ~cells.saturated
    return largest(cells.grid_size[observed]), largest(cells.length[observed])


def folds(cells: Observations) -> dict[str, list[Mask]]:
    """What is left out, (N,) masks of the cells that stay: the edge, its sides, each text."""
    ranks, lengths = edge_of(cells)
    at_ranks = np.isin(cells.grid_size, ranks)
    at_lengths = np.isin(cells.length, lengths)
    masks = {
        EDGE: [~at_ranks & ~at_lengths],
        RANKS: [~at_ranks],
        LENGTHS: [~at_lengths],
    }

    # Every text is left out once; with many texts, several at a time.
    texts = np.unique(cells.text)
    count = min(len(texts), TEXT_FOLDS)
    if count > 1:
        masks[TEXT] = []
        for k in range(count):
            left_out = np.isin(cells.text, texts[k::count])
            masks[TEXT].append(~left_out)
    return masks


def checks(cells: Observations, estimator: Estimator) -> dict[str, Check]:
    """The check of every entry of `folds`; that of the texts over all of them together."""
    return {what: _check(what, cells, masks, estimator) for what, masks in folds(cells).items()}


def edge_check(cells: Observations, estimator: Estimator) -> Check:
    """The check of the largest ranks and longest lengths alone."""
    return _check(EDGE, cells, folds(cells)[EDGE], estimator)


def no_checks(cells: Observations, reason: Finding) -> dict[str, Check]:
    """The checks of a law that could not be computed."""
    count = len(cells)
    return {
        what: Check(
            what=what,
            finding=reason,
            left_out=np.zeros(count, bool),
            predicted=np.full(count, np.nan),
            mape=math.nan,
            mape_all=math.nan,
            coverage=math.nan,
            n_fit=0,
            n_test=0,
            n_all=0,
        )
        for what in folds(cells)
    }


@dataclass(frozen=True, kw_only=True)
class _FoldPrediction:
    """What one fit predicts of the n cells that were left out of it."""

    law: str
    """Name of the fitted law."""
    predicted: Array
    """(n,) gain, nats per token."""
    error: Array
    """(n,) absolute error, per cent of the measured gain."""
    is_observed: Mask
    """(n,) unsaturated cells."""
    is_in_band: Mask | None
    """(n,) cells inside the 95 % prediction interval; None: the law has none."""


def _check(
    what: str,
    cells: Observations,
    masks: list[Mask],
    estimator: Estimator,
) -> Check:
    """The check over all folds together.

    Args:
        masks: (N,) each, the cells in the fit.
    """
    predicted = np.full(len(cells), np.nan)
    left_out = np.zeros(len(cells), bool)
    predictions: list[_FoldPrediction] = []
    n_fit = 0
    problem: Finding | None = None

    for inside in masks:
        if inside.all():
            problem = finding("nothing_to_hold_out", needed=MIN_DISTINCT + 1)
            continue
        left_out |= ~inside
        n_fit += int(inside.sum())

        fit = estimator(cells.take(inside))
        if fit.status == NOT_IDENTIFIED:
            problem = finding("remaining_cells_not_identified", cause=fit.finding)
            continue
        prediction = _predict_fold(fit, cells.take(~inside))
        predicted[~inside] = prediction.predicted
        predictions.append(prediction)

    # Saturated cells count in mape_all alone: their gain is a lower limit.
    errors_all = [fold.error for fold in predictions]
    errors = [fold.error[fold.is_observed] for fold in predictions]
    hits = [
        fold.is_in_band[fold.is_observed] for fold in predictions if fold.is_in_band is not None
    ]

    n_test = sum(map(len, errors))
    if not problem and not n_test:
        problem = finding("no_unsaturated_cell_held_out")
    return Check(
        what=what,
        finding=problem,
        left_out=left_out,
        predicted=predicted,
        mape=_mean(errors),
        mape_all=_mean(errors_all),
        coverage=_mean(hits),
        n_fit=n_fit,
        n_test=n_test,
        n_all=sum(map(len, errors_all)),
        laws=tuple(fold.law for fold in predictions),
    )


def _predict_fold(fit: FitResult, test: Observations) -> _FoldPrediction:
    """Predict the cells that a fit has not seen.

    Args:
        fit: an identified one.
        test: the n cells left out of it.
    """
    predicted = fit.predict(test.rank, test.length, test.base)

    # A law at a bound has no covariance, and so no band.
    is_in_band = None
    low, high = fit.band(test.rank, test.length, test.base)
    if np.isfinite(low).all():
        is_in_band = (low <= test.delta) & (test.delta <= high)

    return _FoldPrediction(
        law=fit.name,
        predicted=predicted,
        error=100 * np.abs(predicted / test.delta - 1),
        is_observed=~test.saturated,
        is_in_band=is_in_band,
    )


def _mean(folds: Sequence[Array | Mask]) -> float:
    """Mean over all folds, (cells,) each, together; nan without a value."""
    if not sum(map(len, folds)):
        return math.nan
    return float(np.concatenate(folds).mean())


def choose(
    fits: Sequence[LikelihoodFit],
    edge_error: Callable[[LikelihoodFit], float] | None = None,
) -> int | None:
    """Which of the fits to report.

    The one with the fewest parameters within 4 of the least AICc; among equals, the one with the
    least error on the edge: a parameter is added only where it improves the fit enough. Laws
    without a ceiling are there to compare: they predict gains above the base loss, and are never
    chosen.

    Args:
        edge_error: the error of a fit's form on the edge, per cent, nan where it has none; asked
            of equals alone. Without it they are told apart by AICc.

    Returns:
        Its position; None when no fit is OK.
    """
    eligible = []
    for k, fit in enumerate(fits):
        identified = fit.status == OK and math.isfinite(fit.aicc)
        if identified and fit.form.kind.has_ceiling:
            eligible.append(k)
    if not eligible:
        return None

    # Refuses fits to different cells.
    aicc_differences(fits)
    least = min(fits[k].aicc for k in eligible)
    supported = [k for k in eligible if fits[k].aicc - least <= AICC_TOLERANCE]
    fewest = min(len(fits[k].form.free) for k in supported)
    equals = [k for k in supported if len(fits[k].form.free) == fewest]

    def preference(k: int) -> tuple[float, float]:
        """A small error on the edge first, then AICc."""
        # A form that is alone needs no error, which costs a fit.
        error = edge_error(fits[k]) if edge_error and len(equals) > 1 else math.nan
        if math.isnan(error):
            error = math.inf
        return error, fits[k].aicc

    return min(equals, key=preference)


def intraclass_correlation(cells: Observations, predicted: Array) -> IntraclassCorrelation:
    """Correlation of relative residuals within clusters of one text and length.

    Args:
        cells: N cells; the unsaturated ones count.
        predicted: (N,) gain, nats per token.

    Returns:
        nan where there are not two clusters with two cells.
    """
    observed = ~cells.saturated
    cluster = cells.clusters[0][observed]
    residual = (cells.delta / predicted - 1)[observed]

    # A cluster of one cell has no correlation.
    groups = [residual[cluster == g] for g in np.unique(cluster)]
    groups = [group for group in groups if len(group) > 1]
    if len(groups) < 2:
        return IntraclassCorrelation(correlation=math.nan, p=math.nan)

    f, p = stats.f_oneway(*groups)
    # From the F statistic and the mean size of a cluster.
    size = sum(map(len, groups)) / len(groups)
    # Where nothing differs within clusters, all of the spread is between them.
    correlation = 1.0 if math.isinf(f) else (f - 1) / (f - 1 + size)
    return IntraclassCorrelation(correlation=float(correlation), p=float(p))

"""The law: plant a surface, recover it; refuse what cannot be told."""

import json

import numpy as np
import pytest
from scipy import optimize

from pml_cli.io import jsonable
from pml_cli.law import findings, model_selection, parameters, power_law
from pml_cli.law.observations import Observations

RANKS, LENGTHS = (1, 2, 4, 8, 16, 32), (32, 64, 128, 256, 512)
R, L = (axis.ravel().astype(float) for axis in np.meshgrid(RANKS, LENGTHS, indexing="ij"))


def cells(rank, length, delta, final=5.0, **settings):
    """Cells of these gains; with the default final loss none is saturated."""
    final = np.broadcast_to(np.asarray(final, float), np.shape(delta))
    return Observations.of(rank, length, delta, final + delta, final=final, **settings)


def fit_paper(*columns):
    return power_law.fit_paper(cells(*columns))


def planted(alpha=0.6, beta=0.5, C=3.0, b=0.2, rank=R, length=L):
    return power_law.gain(rank, length, C=C, alpha=alpha, beta=beta, b=b)


@pytest.mark.parametrize(
    ("alpha", "beta", "C", "b"),
    [
        (0.6, 0.5, 3.0, 0.0),
        (0.6, 0.5, 3.0, -1.0),
        (1.5, 0.2, 0.01, 0.3),
        (0.1, 1.9, 30.0, 2.0),
        (0.3, 1.0, 500.0, 0.0),
    ],
)
@pytest.mark.parametrize(("rank_scale", "length_scale"), [(1, 1), (8192, 1), (1e-3, 1e4)])
def test_a_noiseless_law_is_recovered(alpha, beta, C, b, rank_scale, length_scale):
    fit = fit_paper(R * rank_scale, L * length_scale, planted(alpha, beta, C, b))
    assert fit.status == findings.OK and fit.finding is None
    assert fit.alpha == pytest.approx(alpha, abs=1e-6)
    assert fit.beta == pytest.approx(beta, abs=1e-6)
    assert fit.b == pytest.approx(b, abs=1e-6)
    assert rank_scale**fit.alpha * length_scale**-fit.beta * fit.C == pytest.approx(C, rel=1e-6)
    assert fit.r2 == pytest.approx(1) and fit.mape < 1e-6


def noisy(seed, spread=0.1, **truth):
    return planted(**truth) + spread * np.random.default_rng(seed).standard_normal(R.shape)


def test_the_optimum_is_no_worse_than_the_best_of_random_starts():
    rng = np.random.default_rng(0)
    delta = noisy(1)
    fit = fit_paper(R, L, delta)
    low, high = parameters.EXPONENT_BOUNDS

    def residual(theta):
        return np.exp(theta[0]) * R ** theta[1] * L ** -theta[2] + theta[3] - delta

    bounds = ([-20, low, low, -20], [20, high, high, 20])
    starts = rng.uniform([-3, low, low, -2], [3, 2, 2, 2], (200, 4))
    best = min(
        2 * optimize.least_squares(residual, start, bounds=bounds, max_nfev=200).cost
        for start in starts
    )
    assert ((fit.predict(R, L) - delta) ** 2).sum() <= best * (1 + 1e-9)


def test_rescaling_rank_changes_only_the_scale():
    delta = noisy(2)
    one, other = (fit_paper(R * scale, L, delta) for scale in (1, 8192))
    assert (other.alpha, other.beta, other.b, other.r2) == pytest.approx(
        (one.alpha, one.beta, one.b, one.r2), rel=1e-6
    )
    assert other.C * 8192**other.alpha == pytest.approx(one.C, rel=1e-6)
    assert other.errors["alpha"] == pytest.approx(one.errors["alpha"], rel=1e-4)


def test_cells_at_or_below_the_threshold_are_dropped_and_no_others():
    delta, final = planted(), np.full(R.shape, 5.0)
    final[:3] = 0.69, 0.690001, 0.1
    delta[[0, 2]] = 99.0  # would wreck the fit
    fit = power_law.fit_paper(cells(R, L, delta, final, saturated_below=0.69))
    assert fit.used.tolist() == [False, True, False] + [True] * (len(R) - 3)
    assert (fit.n_used, fit.n_saturated) == (len(R) - 2, 2)
    assert fit.alpha == pytest.approx(0.6, abs=1e-6)
    # ln 2 unless said otherwise
    assert not fit_paper(R, L, delta, final).used[1]


@pytest.mark.parametrize(
    ("chosen", "code", "values"),
    [
        (np.isin(R, (4, 8)), "few_distinct_values", {"axis": "size", "distinct": (4, 8)}),
        (np.isin(L, (64,)), "few_distinct_values", {"axis": "length", "distinct": (64,)}),
        (np.isin(R, ()), "few_distinct_values", {"axis": "size", "distinct": ()}),
        (np.arange(len(R)) % 7 == 0, "few_cells", {"cells": 5, "parameters": 4, "needed": 6}),
    ],
)
def test_too_few_cells_are_not_identified(chosen, code, values):
    fit = fit_paper(R[chosen], L[chosen], planted()[chosen])
    assert fit.status == findings.NOT_IDENTIFIED and fit.finding.code == code
    assert values.items() <= fit.finding.values.items()
    assert np.isnan(fit.alpha) and np.isnan(fit.predict(4, 64))
    assert jsonable(fit.parameters)["alpha"] is None


def test_what_cannot_be_told_apart_is_not_identified():
    assert fit_paper(R, L, np.ones_like(R)).finding.code == "constant_gain"
    diagonal = 2.0 ** np.arange(8)
    fit = fit_paper(diagonal, 32 * diagonal, planted(rank=diagonal, length=32 * diagonal))
    assert fit.status == findings.NOT_IDENTIFIED and fit.finding.code == "collinear_axes"


def test_a_gain_that_falls_with_rank_hits_the_bound():
    fit = fit_paper(R, L, planted(alpha=-0.5, b=0))
    assert fit.status == findings.BOUND_HIT and fit.finding.code == "exponent_at_lower_bound"
    assert fit.finding.values["parameter"] == "alpha"
    assert np.isnan(fit.errors["alpha"]) and np.isfinite(fit.alpha)
    assert fit.warnings == []


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    fits = [fit_paper(R, L, noisy(seed, 0.05)) for seed in range(150)]
    for name, truth in {"C": 3.0, "alpha": 0.6, "beta": 0.5, "b": 0.2}.items():
        covered = np.mean(
            [fit.intervals[name][0] <= truth <= fit.intervals[name][1] for fit in fits]
        )
        assert 0.90 <= covered <= 0.99, name


def test_errors_agree_with_the_spread_over_replicates():
    fits = [fit_paper(R, L, noisy(seed, 0.02)) for seed in range(60)]
    for name in power_law.PARAMETERS:
        spread = np.std([fit.parameters[name] for fit in fits])
        assert np.mean([fit.errors[name] for fit in fits]) == pytest.approx(spread, rel=0.35), name


def test_saturation_the_law_does_not_model_is_warned_of():
    base, wanted = 8.0, planted(C=20.0, b=0.0)
    delta = wanted / (1 + (wanted / base) ** 4) ** (1 / 4)
    fit = fit_paper(R, L, delta, base - delta)
    assert fit.alpha < 0.55 and [warning.code for warning in fit.warnings] == [
        "negative_offset_paper"
    ]
    assert fit_paper(R, L, noisy(3, 0.01, b=0.0)).warnings == []


def edge_check(*columns):
    return model_selection.checks(cells(*columns), power_law.fit_paper)[model_selection.EDGE]


def test_held_out_leaves_the_largest_and_longest_out():
    check = edge_check(R, L, planted())
    assert check.left_out.tolist() == ((R == 32) | (L == 512)).tolist()
    assert (check.n_fit, check.n_test) == (5 * 4, 6 + 4)
    assert check.mape == pytest.approx(0, abs=1e-6) and check.finding is None
    assert check.predicted[check.left_out] == pytest.approx(planted()[check.left_out])
    assert np.isnan(check.predicted[~check.left_out]).all()
    saturated = np.where(R == 32, 0.1, 5.0)
    ranks, lengths = model_selection.edge_of(cells(R, L, planted(), saturated))
    assert (ranks, lengths) == ((16.0,), (512.0,))


def test_held_out_says_why_there_is_none():
    few = np.isin(R, (1, 2, 4)) & np.isin(L, (32, 64, 128))
    check = edge_check(R[few], L[few], planted()[few])
    assert np.isnan(check.mape) and check.finding.code == "nothing_to_hold_out"
    assert check.finding.values == {"needed": 4}
    assert not check.left_out.any()


def test_the_result_survives_json():
    fit = fit_paper(R, L, noisy(4))
    back = json.loads(json.dumps(jsonable(fit), allow_nan=False))
    assert back["alpha"] == fit.alpha and back["used"] == [True] * len(R)
    assert back["covariance"] == fit.covariance.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    delta = planted()
    delta[3] = bad
    with pytest.raises(ValueError, match="finite"):
        fit_paper(R, L, delta)
    with pytest.raises(ValueError, match="above 0"):
        fit_paper(R - 1, L, planted())
    with pytest.raises(ValueError, match="differ in length"):
        fit_paper(R, L[1:], planted())

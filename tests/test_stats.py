"""Intervals of means and proportions, and errors of a fit: by hand, by scipy, by coverage."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pml_cli.stats import (
    clustered_proportion,
    few_cluster_factor,
    mean_share,
    percent_error,
    r_squared,
    safe_exp,
    t_half_width,
)


def test_the_t_interval_of_a_mean_is_scipys():
    sample = np.array([0.3, 1.2, -0.4, 2.2, 0.9])
    low, high = scipy_stats.ttest_1samp(sample, 0).confidence_interval()
    assert t_half_width(sample) == pytest.approx((high - low) / 2, rel=1e-12)
    assert math.isnan(t_half_width([1.0]))


def test_few_clusters_widen_an_interval():
    # t(0.975, 4) / 1.95996 * sqrt(5 / 4)
    assert few_cluster_factor(5) == pytest.approx(2.776445 / 1.959964 * math.sqrt(1.25), rel=1e-6)
    assert few_cluster_factor(6) < few_cluster_factor(5)
    # There is no number of clusters at which the widening is dropped at once.
    assert 1.03 < few_cluster_factor(40) < few_cluster_factor(39) < 1.05
    assert few_cluster_factor(1) == 1


def test_errors_of_a_fit():
    measured = np.array([0.0, 2.0, 4.0])
    predicted = np.array([1.0, 1.0, 5.0])
    # The measured 0 has no relative error: (50 + 25) / 2.
    assert percent_error(measured, predicted) == pytest.approx(37.5)
    assert r_squared(measured, predicted) == pytest.approx(1 - 3 / 8)
    assert math.isnan(r_squared(np.ones(3), predicted))
    assert math.isnan(percent_error(np.zeros(3), predicted))
    assert safe_exp(1.0) == math.e and safe_exp(1e4) == math.inf


def test_a_single_cluster_has_wilsons_interval():
    proportion = clustered_proportion([3], [10])
    assert (proportion.low, proportion.high) == pytest.approx((0.1078, 0.6032), abs=1e-4)
    assert clustered_proportion([100] * 5, [100] * 5).high == 1
    assert np.isnan(clustered_proportion([], []).value)


def test_few_clusters_have_no_interval_where_so_many_are_asked_for():
    few = clustered_proportion([50, 100, 0], [100, 100, 0], least_clusters=3)
    assert few.value == 0.75 and math.isnan(few.low) and math.isnan(few.high)
    enough = clustered_proportion([50, 100, 0], [100, 100, 50], least_clusters=3)
    assert enough.low < enough.value < enough.high


def test_the_interval_widens_with_the_spread_between_clusters():
    alike = clustered_proportion([50] * 10, [100] * 10)
    spread = clustered_proportion([0, 100] * 5, [100] * 10)
    assert alike.value == spread.value == 0.5
    assert spread.high - spread.low > 5 * (alike.high - alike.low)


def test_a_mean_of_shares_is_the_proportion_where_all_have_as_many_trials():
    rng = np.random.default_rng(0)
    for clusters in (1, 3, 4, 9):
        successes = rng.integers(0, 6, clusters)
        mean = mean_share(successes / 5, [5] * clusters)
        pooled = clustered_proportion(successes, [5] * clusters)
        assert mean.value == pytest.approx(pooled.value)
        assert (mean.low, mean.high) == pytest.approx((pooled.low, pooled.high))


@pytest.mark.parametrize("clusters", range(4, 12))
def test_equal_shares_differ_by_no_rounding(clusters):
    for successes, trials in ((1, 5), (1, 3), (2, 7)):
        mean = mean_share([successes / trials] * clusters, [trials] * clusters)
        pooled = clustered_proportion([successes] * clusters, [trials] * clusters)
        assert (mean.low, mean.high) == pytest.approx((pooled.low, pooled.high))


def test_a_mean_of_shares_weighs_all_alike():
    mean = mean_share([1, 0], [1, 99])
    assert mean.value == 0.5
    # One trial of each says more than one of both, and less than a hundred.
    least, most = clustered_proportion([1], [2]), clustered_proportion([50], [100])
    assert least.low < mean.low < most.low < most.high < mean.high < least.high
    assert math.isnan(mean_share([], []).value)


def test_the_interval_covers_the_mean_of_clusters_that_differ():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        trials = rng.integers(20, 200, 25)
        successes = rng.binomial(trials, rng.beta(3, 7, 25))
        proportion = clustered_proportion(successes, trials)
        covered += proportion.low <= 0.3 <= proportion.high
    assert 270 <= covered <= 297

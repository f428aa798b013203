"""Intervals of proportions: Wilson's by hand, and their coverage over clusters."""

import numpy as np
import pytest

from pml_cli.stats import clustered_proportion


def test_a_single_cluster_has_wilsons_interval():
    proportion = clustered_proportion([3], [10])
    assert (proportion.low, proportion.high) == pytest.approx((0.1078, 0.6032), abs=1e-4)
    assert clustered_proportion([100] * 5, [100] * 5).high == 1
    assert np.isnan(clustered_proportion([], []).value)


def test_the_interval_widens_with_the_spread_between_clusters():
    alike = clustered_proportion([50] * 10, [100] * 10)
    spread = clustered_proportion([0, 100] * 5, [100] * 10)
    assert alike.value == spread.value == 0.5
    assert spread.high - spread.low > 5 * (alike.high - alike.low)


def test_the_interval_covers_the_mean_of_clusters_that_differ():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        trials = rng.integers(20, 200, 25)
        successes = rng.binomial(trials, rng.beta(3, 7, 25))
        proportion = clustered_proportion(successes, trials)
        covered += proportion.low <= 0.3 <= proportion.high
    assert 270 <= covered <= 297

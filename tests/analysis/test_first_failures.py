"""Planted correlations and concentrations of first failures are found again."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pml_cli.analysis import first_failures
from pml_cli.analysis.first_failures import (
    correlation,
    failure_concentration,
    first_of_random,
    stubborn_against_failure,
)


def planted_sequences(noise, count=200, clusters=20):
    """First failures that lie up to `noise` tokens behind the earliest stubborn token."""
    rng = np.random.default_rng(4)
    earliest = rng.integers(0, 300, count).astype(float)
    return pd.DataFrame(
        {
            "cluster": np.arange(count) % clusters,
            "length": 1000,
            "wrong": 1,
            "earliest_stubborn": earliest,
            "first_failure": earliest + rng.integers(0, noise + 1, count),
        }
    )


def test_spearman_over_counts_equals_scipy_with_ties():
    rng = np.random.default_rng(2)
    x = rng.integers(0, 6, 80).astype(float)
    y = x + rng.integers(0, 9, 80)
    pairs, counts = np.unique(np.stack([x, y]), axis=1, return_counts=True)
    rho = first_failures.spearman(pairs, counts[None])[0]
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_planted_correlation_and_what_does_not_occur():
    sequences = planted_sequences(noise=200)
    truth = stats.spearmanr(sequences["earliest_stubborn"], sequences["first_failure"]).statistic
    # The first four have neither, the next six have stubborn tokens and no failure.
    sequences.loc[:9, "first_failure"] = np.nan
    sequences.loc[:3, "earliest_stubborn"] = np.nan
    stubborn = [
        np.array([earliest] if np.isfinite(earliest) else [], np.int64)
        for earliest in sequences["earliest_stubborn"]
    ]
    agreement = stubborn_against_failure(sequences, stubborn, draws=400)

    both = agreement.both
    assert (both.n, agreement.censored.n) == (190, 200)
    assert (agreement.neither, agreement.no_failure, agreement.no_stubborn) == (4, 6, 0)
    assert both.rho == pytest.approx(truth, abs=0.05)
    assert both.low < both.rho < both.high and both.problem == ""

    filled = sequences.fillna({"earliest_stubborn": 1000, "first_failure": 1000})
    censored = stats.spearmanr(filled["earliest_stubborn"], filled["first_failure"]).statistic
    assert agreement.censored.rho == pytest.approx(censored, abs=1e-12)

    gaps = (sequences["first_failure"] - sequences["earliest_stubborn"]).dropna()
    assert agreement.gap == gaps.median()
    assert agreement.same == (gaps == 0).sum()
    # With one stubborn token each, it is the one that fails by chance too.
    assert agreement.chance == pytest.approx(1)


def test_interval_of_rho_covers_the_truth():
    rng = np.random.default_rng(8)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    covered = 0
    for _ in range(60):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 150).T
        estimate = correlation(x, y, np.arange(150) % 30, 200, rng)
        covered += estimate.low <= truth <= estimate.high
    assert covered >= 52  # of 60 at 95 %


def test_interval_of_rho_widens_where_clusters_are_few():
    rng = np.random.default_rng(8)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    distinct = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 10).T
    x, y = distinct.repeat(15, axis=1)
    assert correlation(x, y, np.arange(150) // 15, 200, rng).high > truth


def test_why_there_is_no_rho_or_no_interval():
    rng = np.random.default_rng(8)
    x = rng.normal(size=9)
    three_clusters = np.arange(9) % 3
    assert correlation(x, x, three_clusters, 50, rng).problem == first_failures.TOO_FEW_CLUSTERS
    assert correlation(x, x, np.arange(9), 0, rng).problem == first_failures.NO_DRAWS
    constant = correlation(np.ones(9), x, np.arange(9), 50, rng)
    assert np.isnan(constant.rho) and constant.problem == first_failures.CONSTANT
    short = correlation(x[:2], x[:2], np.arange(2), 50, rng)
    assert np.isnan(short.rho) and short.problem == first_failures.TOO_FEW_SEQUENCES


def test_first_of_random_indices_has_the_right_distribution():
    rng = np.random.default_rng(0)
    drawn = first_of_random(np.array([5, 4, 3]), np.array([2, 4, 1]), 40_000, rng)
    # Of the 10 pairs of five indices, 4 have 0 as the smallest, 3 have 1, and so on.
    shares = np.bincount(drawn[0], minlength=4) / 40_000
    assert shares == pytest.approx([4 / 10, 3 / 10, 2 / 10, 1 / 10], abs=0.01)
    assert (drawn[1] == 0).all()
    assert np.bincount(drawn[2]) / 40_000 == pytest.approx([1 / 3] * 3, abs=0.01)


def test_concentration_of_first_failures_against_chance():
    rng = np.random.default_rng(1)
    spread = pd.DataFrame(
        {
            "data_seed": 0,
            "sample": 0,
            "length": 400,
            "wrong": 1,
            "first_failure": rng.integers(0, 400, 40),
        }
    )
    at_153 = np.where(np.arange(40) < 12, 153, spread["first_failure"])
    concentrated = spread.assign(data_seed=1, first_failure=at_153)
    sequences = pd.concat([spread, concentrated]).astype({"first_failure": float})
    texts = failure_concentration(sequences).texts.set_index("data_seed")
    assert texts.loc[1, "position"] == 153
    assert texts.loc[1, "share"] == pytest.approx(0.3, abs=0.03)
    assert texts.loc[1, "p"] < 0.01 < 0.05 < texts.loc[0, "p"]


def test_failures_that_must_coincide_are_no_concentration():
    sequences = pd.DataFrame(
        {"data_seed": 0, "sample": 0, "length": 400, "wrong": 400, "first_failure": [0.0] * 40}
    )
    certain = failure_concentration(sequences)
    assert certain.share == certain.chance == 1 and certain.p == 1


def test_few_failures_of_a_text_are_left_out():
    sequences = pd.DataFrame(
        {"data_seed": 0, "sample": 0, "length": 9, "wrong": 1, "first_failure": [0.0] * 4}
    )
    few = failure_concentration(sequences)
    assert few.failures == 0 and few.texts.empty and np.isnan(few.share)

"""The law of exact recall against a planted one."""

import dataclasses
import math

import numpy as np
import pytest
from support.marks import slow
from support.planted_laws import RECALL, exact_recall, exponential_cells

from pml_cli.law.findings import OK
from pml_cli.law.inverse import with_band
from pml_cli.law.observations import Observations
from pml_cli.law.recall_law import fit_recall


def test_the_law_of_recall_is_recovered():
    cells = exponential_cells(texts=40)
    found = fit_recall(cells, exact_recall(cells), draws=200)
    assert found.status == OK and found.n == len(cells)
    for length in (48, 128, 256):
        truth = (RECALL["h"] * math.log(length) - RECALL["a"]) / RECALL["g"]
        at, *draws = found.log_ranks(length, 0.5)
        assert at == pytest.approx(truth, abs=0.05)
        low, high = np.quantile(draws, [0.005, 0.995])
        assert low < truth < high
    rank = math.exp(found.log_ranks(100, 0.9)[0])
    assert found.probabilities(rank, 100)[0] == pytest.approx(0.9)
    assert found.log_lengths(rank, 0.9)[0] == pytest.approx(math.log(100))


@pytest.mark.parametrize("texts", [slow(1), 3])
def test_intervals_of_the_recall_rank_hold_with_few_clusters(texts):
    """Where ranks separate completely, the bootstrap alone covers the truth in 67 to 88 %."""
    lengths = (32, 64, 128, 256)
    hits = {length: [] for length in lengths[:3]}
    for seed in range(60):
        cells = exponential_cells((1, 2, 3, 4, 6, 8, 12), lengths, texts)
        found = fit_recall(cells, exact_recall(cells, seed), draws=200, seed=seed)
        for length in hits if found.status == OK else ():
            low, high = np.quantile(found.log_ranks(length, 0.5)[1:], [0.025, 0.975])
            hits[length].append(
                low <= (RECALL["h"] * math.log(length) - RECALL["a"]) / RECALL["g"] <= high
            )
    assert len(hits[lengths[0]]) > 50
    assert all(np.mean(held) >= 0.88 for held in hits.values()), {
        n: np.mean(held) for n, held in hits.items()
    }


def test_firth_is_near_maximum_likelihood_and_finite_under_complete_separation():
    from scipy import optimize

    cells = exponential_cells(texts=60)
    y = exact_recall(cells)

    def nll(theta):
        eta = theta[0] + theta[1] * np.log(cells.rank) - theta[2] * np.log(cells.length)
        return float((np.logaddexp(0, eta) - y * eta).sum())

    plain = optimize.minimize(
        nll,
        [10, 5, 5],
        method="Nelder-Mead",
        options={"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-9},
    ).x
    found = fit_recall(cells, y, draws=10).theta
    assert np.allclose(found, plain, rtol=0.03)
    clean = (cells.rank >= cells.length / 16).astype(float)
    apart = fit_recall(cells, clean, draws=50)
    assert apart.status == OK and np.isfinite(apart.theta).all() and np.abs(apart.theta).max() < 200


@pytest.mark.parametrize(
    ("shares", "code"),
    [
        (np.zeros(9), "recall_nowhere"),
        (np.ones(9), "recall_everywhere"),
        (np.full(9, np.nan), "recall_not_measured"),
        (np.array([1, 1, 1, 0, 0, 0, 0, 0, 0.0]), "recall_not_monotone"),
    ],
)
def test_recall_that_is_not_identifiable(shares, code):
    r, n = (axis.ravel() for axis in np.meshgrid((1, 2, 4), (8, 16, 32), indexing="ij"))
    cells = Observations.of(r, n, np.ones(9), np.full(9, 7.0))
    assert fit_recall(cells, shares).finding.code == code
    few = Observations.of([1, 1, 2, 2], [8, 16, 8, 16], np.ones(4), np.full(4, 7.0))
    assert fit_recall(few, [0, 0, 1, 1]).finding.values == {"axis": "size", "count": 2, "needed": 3}


def test_texts_are_the_units_and_few_texts_take_their_lengths():
    many = exponential_cells((1, 2, 3, 4, 6, 8, 12), (32, 64, 128), texts=5)
    found = fit_recall(many, exact_recall(many), draws=20)
    assert (found.texts, found.clusters) == (5, 5)
    few = exponential_cells((1, 2, 3, 4, 6, 8, 12), (32, 64, 128), texts=3)
    found = fit_recall(few, exact_recall(few), draws=20)
    assert (found.texts, found.clusters) == (3, 9)


@pytest.mark.parametrize(("lengths", "share"), [((16, 32, 64), 1.0), ((16, 20, 27), 1 / 3**0.5)])
def test_the_blur_of_the_ranks_is_that_which_lengths_share(lengths, share):
    """Recalled from rank l / 12 on: with doubled lengths all thresholds lie alike between ranks."""
    cells = exponential_cells((1, 2, 4, 8, 16), lengths, texts=4)
    found = fit_recall(cells, (cells.rank > cells.length / 12).astype(float), draws=20)
    assert found.rank_blur == pytest.approx(share * math.log(2), rel=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("texts", [5, 10])
@pytest.mark.parametrize("text_sd", [1.0, 2.0])
def test_the_band_of_the_rank_holds_where_texts_differ(texts, text_sd):
    """By text and length it held in 65 to 82 % with 10 texts. The full table: benchmarks."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(40):
        cells = exponential_cells((1, 2, 3, 4, 6, 8, 12), (24, 48, 96), texts)
        of_text = rng.normal(0, text_sd, texts)[cells.text.astype(int)]
        by_size = RECALL["g"] * np.log(cells.rank) - RECALL["h"] * np.log(cells.length)
        chance = 1 / (1 + np.exp(-(RECALL["a"] + by_size + of_text)))
        found = fit_recall(cells, (rng.random(len(cells)) < chance).astype(float), draws=200)
        truth = (RECALL["h"] * math.log(48) - RECALL["a"]) / RECALL["g"]
        low, high = np.quantile(found.log_ranks(48, 0.5)[1:], [0.025, 0.975])
        held.append(low <= truth <= high)
    assert np.mean(held) >= 0.88


@pytest.mark.filterwarnings("error")
def test_draws_without_a_threshold_count_as_infinite():
    """Recall that hardly depends on rank or length: no end of the band can be told."""
    cells = exponential_cells((4, 8, 16), (64, 128, 256), texts=5)
    chance = 1 / (1 + np.exp(-0.6 * np.log(cells.rank / 8) + 0.1 * np.log(cells.length / 128)))
    rng = np.random.default_rng(1)
    found = fit_recall(cells, (rng.random(len(cells)) < chance).astype(float), draws=400)

    assert found.status == OK
    assert len(found.draws) == 400
    falling = (found.draws[:, 1] <= 0).mean()
    assert 0 < falling < 1
    assert np.isinf(found.log_ranks(128, 0.9)[1:]).mean() == falling
    assert with_band(found.log_lengths(8, 0.1)).high == math.inf


@pytest.mark.filterwarnings("error")
def test_a_rank_that_no_number_holds_is_a_large_one():
    cells = exponential_cells((1, 2, 3, 4, 6, 8, 12), (32, 64, 128, 256), 3)
    found = fit_recall(cells, exact_recall(cells, 0), draws=50, seed=0)
    flat = dataclasses.replace(found, theta=np.array([found.theta[0], 1e-6, found.theta[2]]))
    assert math.isfinite(flat.ranks(100, 0.999999)[0])
    assert flat.ranks(100, 0.999999)[0] > 1e100

"""The paired comparison of losses: planted differences, their intervals and tests."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.planted_pairs import planted_pairs

from pml_cli.analysis.paired import (
    BEST_RATES,
    EQUAL,
    SIGN_FLIPS,
    UNEQUAL_BUDGET,
    compare,
    sign_flip_p,
)


def rows_by_measure(table):
    return table.set_index("measure")


def test_a_planted_difference_is_recovered_with_the_paired_interval_and_test():
    differences = [0.05, 0.10, 0.12, 0.07]
    row = rows_by_measure(compare(planted_pairs(differences))).loc["token_accuracy"]
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval(0.95)
    assert row["pairs"] == 4
    assert row["terms"] == EQUAL
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p_t"] == pytest.approx(expected.pvalue)
    # Four pairs of one sign: two of the sixteen flips have as large a mean.
    assert row["p_signs"] == 2 / 16
    assert row["budget"] == 1


def enumerated_p(difference):
    """The share of all sign flips with at least the observed mean, by a plain loop."""
    n = len(difference)
    reaching = 0
    for flip in range(2**n):
        signs = [1 if flip >> bit & 1 else -1 for bit in range(n)]
        reaching += abs(np.dot(signs, difference)) >= abs(np.sum(difference)) - 1e-12
    return reaching / 2**n


@pytest.mark.parametrize(
    "difference",
    [
        np.array([0.3, -0.1, 0.2, 0.05, -0.02, 0.4, 0.1]),
        # Many flips tie, and their means differ by rounding errors.
        np.array([1, 2, -3, 1, 0, 2, -1, 3]) / 24,
        np.array([1, -2, 3, 5, -4, 2, 7, 1, -1]) / 8192,
        np.array([0.1, 0.2, -0.3]),
        np.zeros(5),
    ],
)
def test_sign_flips_are_enumerated(difference):
    assert sign_flip_p(difference) == pytest.approx(enumerated_p(difference))


def test_sign_flips_of_many_pairs_are_drawn():
    rng = np.random.default_rng(0)
    difference = rng.normal(0.1, 1, 40)
    signs = rng.choice((-1.0, 1.0), (20_000, 40))
    drawn = (np.abs(signs @ difference) >= abs(difference.sum())).mean()
    assert sign_flip_p(difference) == pytest.approx(drawn, abs=0.02)
    assert 1 / SIGN_FLIPS < sign_flip_p(np.full(30, 0.1)) < 1e-3
    assert sign_flip_p(difference) == sign_flip_p(difference)


def over_seeds(differences_TS):
    """Runs of T texts with S seeds each."""
    tables = []
    for seed, differences in enumerate(np.transpose(differences_TS)):
        tables.append(planted_pairs(list(differences)).assign(seed=seed))
    return pd.concat(tables, ignore_index=True)


@pytest.mark.slow
def test_seeds_of_a_text_are_averaged_and_do_not_narrow_the_interval():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        # A loss that suits some texts and not others; its seeds on one text agree.
        of_texts = random.normal(0, 0.02, (5, 1))
        differences = of_texts + random.normal(0, 0.005, (5, 4))
        row = rows_by_measure(compare(over_seeds(differences))).loc["token_accuracy"]
        assert row["pairs"] == 5
        covered.append(row["low"] <= 0 <= row["high"])
    # 95 % are expected, of 60; counted by text and seed it was about half.
    assert np.mean(covered) > 0.85


def test_with_a_single_text_the_seeds_are_the_pairs():
    row = rows_by_measure(compare(over_seeds([[0.1, 0.2, 0.3]]))).loc["token_accuracy"]
    assert row["pairs"] == 3
    assert row["difference"] == pytest.approx(0.2)


def test_a_single_pair_has_no_p():
    assert np.isnan(sign_flip_p(np.array([0.2])))


def test_a_run_without_partner_is_left_out():
    runs = planted_pairs([0.1, 0.2, 0.3])
    partner = (runs["data_seed"] == 2) & (runs["loss"] == "sft")
    row = rows_by_measure(compare(runs[~partner])).loc["token_accuracy"]
    assert row["pairs"] == 2
    assert row["difference"] == pytest.approx(0.15)


def test_all_ranks_together_are_one_pair_a_text():
    """Six runs of three texts are three pairs: the interval is over the texts."""
    runs = [planted_pairs([0.1, 0.2, 0.3], rank=2), planted_pairs([0.3, 0.2, 0.4], rank=8)]
    table = compare(pd.concat(runs))
    row = rows_by_measure(table[table["rank"].isna()]).loc["token_accuracy"]
    assert row["pairs"] == 3
    interval = stats.ttest_1samp([0.2, 0.2, 0.35], 0).confidence_interval(0.95)
    assert (row["difference"], row["low"]) == pytest.approx((0.25, interval.low))
    assert list(table["rank"].dropna().unique()) == [2, 8]


def test_what_never_occurs_counts_as_the_most():
    rows = rows_by_measure(compare(planted_pairs([0.1, 0.2])))
    assert (rows.loc["first_failure", "sft"], rows.loc["first_failure", "value"]) == (3, 64)
    assert (rows.loc["steps_to_recall", "sft"], rows.loc["steps_to_recall", "value"]) == (100, 40)
    # Not measured.
    assert "free_accuracy" not in rows.index


def test_each_method_at_its_own_best_learning_rate():
    """At 0.01 sft is best, at 0.04 the other is; at each rate by itself the gain is another one."""
    slow = planted_pairs([0.1, 0.2], lr=0.01)
    fast = planted_pairs([0.5, 0.6], lr=0.04)
    fast["token_accuracy"] -= 0.2
    table = compare(pd.concat([slow, fast]))
    assert list(table["terms"].unique()) == [EQUAL, BEST_RATES]
    row = rows_by_measure(table[table["terms"] == BEST_RATES]).loc["token_accuracy"]
    assert (row["lr_sft"], row["lr"]) == ("0.01", "0.04")
    assert row["difference"] == pytest.approx(np.mean([0.3, 0.4]))


def test_a_learning_rate_that_lacks_a_run_is_not_the_best():
    slow = planted_pairs([0.1, 0.2], lr=0.01)
    fast = planted_pairs([0.5, 0.6], lr=0.04)
    missing = (fast["loss"] == "memft_ot") & (fast["data_seed"] == 1)
    table = compare(pd.concat([slow, fast[~missing]]))
    row = rows_by_measure(table[table["terms"] == BEST_RATES]).loc["token_accuracy"]
    assert row["lr"] == "0.01"


def test_a_curriculum_is_a_method_of_its_own():
    setting = "train.batch=4 train.curriculum=[2, 4]"
    runs = pd.concat([planted_pairs([0.1, 0.2]), planted_pairs([0.3, 0.4], setting=setting)])
    runs.loc[runs["setting"] == "", "setting"] = "train.batch=4"
    table = compare(runs.drop_duplicates(["loss", "data_seed", "setting"]))
    accuracy = table[table["measure"] == "token_accuracy"].set_index("method")["difference"]
    assert accuracy.to_dict() == pytest.approx(
        {"memft_ot": 0.15, "memft_ot + curriculum=[2, 4]": 0.35}
    )


def test_an_unequal_budget_is_reported():
    table = compare(planted_pairs([0.1, 0.2], steps=150, tokens_seen=9600))
    row = rows_by_measure(table).loc["token_accuracy"]
    assert row["terms"] == UNEQUAL_BUDGET
    assert row["budget"] == 1.5

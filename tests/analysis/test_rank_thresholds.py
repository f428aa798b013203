"""The rank at even chance of exact recall, its ratio between losses, and the learning rate chosen on the other texts."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.planted_recall import planted

from pml_cli.analysis.rank_thresholds import (
    ABOVE,
    BELOW,
    WITHIN,
    at_best_rates,
    half_rank,
    rank_table,
    thresholds,
)

RANKS = np.array([1.0, 2, 4, 8])


@pytest.mark.parametrize(
    ("shares", "expected", "where"),
    [
        ([0, 0, 1, 1], 2 * 2**0.5, WITHIN),  # between 2 and 4
        (
            [0, 1, 0, 1],
            2 * 2**0.5,
            WITHIN,
        ),  # the turned pair counts half each: the middle of 2 and 4
        (
            [0, 0.25, 0.75, 1],
            2 * 2**0.5,
            WITHIN,
        ),  # shares of many samples: where the line passes one half
        ([0, 0, 0, 0.5], 8, WITHIN),
        ([1, 1, 1, 1], 1, BELOW),
        ([0, 0, 0, 0.4], 8, ABOVE),
        ([1, 0, 0, 0], 8, ABOVE),
    ],
)
def test_half_rank_by_hand(shares, expected, where):
    rank, outside = half_rank(RANKS, np.array(shares, float))
    assert rank == pytest.approx(expected)
    assert outside == where


def test_ratios_are_taken_text_by_text_with_the_t_interval_of_their_log():
    runs = planted({"sft": [6, 8, 6, 12], "memft_ot": [4, 6, 6, 8], "memft_margin": [3, 4, 3, 4]})
    table = rank_table(runs).set_index("method")
    edges = {
        3: 6**0.5,
        4: 12**0.5,
        6: 24**0.5,
        8: 48**0.5,
        12: 96**0.5,
    }  # the middle of the grid's step below
    logs = np.log([edges[a] / edges[b] for a, b in zip([3, 4, 3, 4], [6, 8, 6, 12], strict=True)])
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    row = table.loc["memft_margin"]
    assert row["to_sft"] == pytest.approx(np.exp(logs.mean()))
    assert (row["to_sft_low"], row["to_sft_high"]) == pytest.approx(
        (np.exp(interval.low), np.exp(interval.high))
    )
    assert row["texts"] == 4
    assert table.loc["memft_ot", "to_memft_ot"] == 1
    assert table.loc["sft", "rank"] == pytest.approx(
        np.exp(np.mean(np.log([edges[r] for r in (6, 8, 6, 12)])))
    )


def test_a_rate_is_chosen_on_the_other_texts():
    slow = planted({"sft": [8, 8, 8]}, lr=0.01)
    fast = planted(
        {"sft": [16, 4, 6]}, lr=0.1
    )  # best for two texts, and so for the first one, which it does not suit
    found = thresholds(pd.concat([slow, fast]))
    chosen = at_best_rates(found).set_index("data_seed")
    assert chosen.loc[0, "lr"] == 0.1
    assert chosen.loc[0, "rank"] == pytest.approx(192**0.5)
    assert (
        chosen.loc[1, "lr"] == 0.01
    )  # the others need 8 and 8 at this rate, 16 and 6 at the other
    assert chosen.loc[1, "rank"] == pytest.approx(48**0.5)


def test_texts_beyond_the_ranks_tried_count_with_the_bound_and_are_told():
    table = rank_table(planted({"sft": [99, 8], "memft_ot": [1, 4]})).set_index("method")
    assert table.loc["sft", "outside"] == "1 above"
    assert table.loc["memft_ot", "outside"] == "1 below"
    assert table.loc["sft", "rank"] == pytest.approx((16 * 48**0.5) ** 0.5)


def test_all_lengths_together_use_the_lengths_that_all_losses_have():
    short = planted({"sft": [4, 4], "memft_margin": [2, 2]}, seqlen=32)
    long = planted({"sft": [12, 12], "memft_margin": [6, 6]}, seqlen=64)
    extra = planted({"sft": [16, 16]}, seqlen=128)
    table = rank_table(pd.concat([short, long, extra]))
    everything = table[table["seqlen"].isna()].set_index("method")
    expected = ((2**0.5 / 12**0.5) * (24**0.5 / 96**0.5)) ** 0.5
    assert everything.loc["memft_margin", "to_sft"] == pytest.approx(expected)


def test_a_single_rank_has_no_threshold():
    assert rank_table(planted({"sft": [1], "memft_ot": [1]}, ranks=(4,))).empty


def test_runs_of_other_steps_are_apart():
    few, many = (
        planted({"sft": [8, 8], "memft_ot": [6, 6]}),
        planted({"sft": [4, 4], "memft_ot": [3, 3]}),
    )
    table = rank_table(pd.concat([few, many.assign(steps=800)])).set_index(["steps", "method"])
    assert table.loc[(100, "sft"), "rank"] == pytest.approx(48**0.5)
    assert table.loc[(800, "sft"), "rank"] == pytest.approx(12**0.5)


def test_equal_ranks_have_no_interval():
    row = rank_table(planted({"sft": [8, 8, 8], "memft_ot": [6, 6, 4]})).set_index("method")
    assert np.isnan(row.loc["sft", ["low", "high"]].astype(float)).all()
    assert row.loc["memft_ot", "low"] < row.loc["memft_ot", "rank"] < row.loc["memft_ot", "high"]

"""The rank at which half is recalled, its ratio between losses, and the cross-validated rate."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.planted_recall import planted_recall

from pml_cli.analysis.rank_thresholds import (
    at_cross_validated_rates,
    rank_table,
    thresholds,
)

# The threshold of a text that is recalled from this rank on: between it and the rank below.
THRESHOLDS = {3: 6**0.5, 4: 12**0.5, 6: 24**0.5, 8: 48**0.5, 12: 96**0.5}


def test_ratios_are_taken_text_by_text_with_the_t_interval_of_their_log():
    first_ranks = {"sft": [6, 8, 6, 12], "memft_ot": [4, 6, 6, 8], "memft_margin": [3, 4, 3, 4]}
    table = rank_table(planted_recall(first_ranks)).set_index("method")
    ratios = [
        THRESHOLDS[margin] / THRESHOLDS[sft]
        for margin, sft in zip(first_ranks["memft_margin"], first_ranks["sft"], strict=True)
    ]
    interval = stats.ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    row = table.loc["memft_margin"]
    assert row["texts"] == 4
    assert row["to_sft"] == pytest.approx(np.exp(np.mean(np.log(ratios))))
    assert row["to_sft_low"] == pytest.approx(np.exp(interval.low))
    assert row["to_sft_high"] == pytest.approx(np.exp(interval.high))
    assert table.loc["memft_ot", "to_memft_ot"] == 1
    of_sft = [THRESHOLDS[rank] for rank in first_ranks["sft"]]
    assert table.loc["sft", "rank"] == pytest.approx(stats.gmean(of_sft))


def test_a_rate_is_chosen_on_the_other_texts():
    slow = planted_recall({"sft": [8, 8, 8]}, lr=0.01)
    # Better for the second and third text, so chosen for the first, which it does not suit.
    fast = planted_recall({"sft": [16, 4, 6]}, lr=0.1)
    table = thresholds(pd.concat([slow, fast]))
    chosen = at_cross_validated_rates(table).set_index("data_seed")
    assert chosen.loc[0, "lr"] == 0.1
    assert chosen.loc[0, "rank"] == pytest.approx(192**0.5)
    # The others need 8 and 8 at this rate, 16 and 6 at the other.
    assert chosen.loc[1, "lr"] == 0.01
    assert chosen.loc[1, "rank"] == pytest.approx(48**0.5)


def test_no_seed_of_the_same_text_judges_its_rate():
    slow = {"sft": [8, 8]}
    tables = []
    for seed in range(3):
        tables.append(planted_recall(slow, lr=0.01).assign(seed=seed))
        # Far better on the first text, in every seed, and worse on the second.
        tables.append(planted_recall({"sft": [2, 12]}, lr=0.1).assign(seed=seed))
    chosen = at_cross_validated_rates(thresholds(pd.concat(tables)))
    rates = chosen.groupby("data_seed")["lr"].unique()
    assert (list(rates[0]), list(rates[1])) == ([0.01], [0.1])
    assert rank_table(pd.concat(tables)).loc[0, "texts"] == 2


def test_texts_beyond_the_ranks_tried_count_with_the_bound_and_are_counted():
    table = rank_table(planted_recall({"sft": [99, 8], "memft_ot": [1, 4]})).set_index("method")
    assert table.loc["sft", "outside"] == "1 above"
    assert table.loc["memft_ot", "outside"] == "1 below"
    assert table.loc["sft", "rank"] == pytest.approx((16 * 48**0.5) ** 0.5)


def test_all_lengths_together_use_the_lengths_that_all_losses_have():
    short = planted_recall({"sft": [4, 4], "memft_margin": [2, 2]}, seqlen=32)
    long = planted_recall({"sft": [12, 12], "memft_margin": [6, 6]}, seqlen=64)
    of_sft_alone = planted_recall({"sft": [16, 16]}, seqlen=128)
    table = rank_table(pd.concat([short, long, of_sft_alone]))
    all_lengths = table[table["seqlen"].isna()].set_index("method")
    expected = ((2**0.5 / 12**0.5) * (24**0.5 / 96**0.5)) ** 0.5
    assert all_lengths.loc["memft_margin", "to_sft"] == pytest.approx(expected)


def test_a_single_rank_has_no_threshold():
    assert rank_table(planted_recall({"sft": [1], "memft_ot": [1]}, ranks=(4,))).empty


def test_runs_of_other_steps_are_separate():
    few = planted_recall({"sft": [8, 8], "memft_ot": [6, 6]})
    many = planted_recall({"sft": [4, 4], "memft_ot": [3, 3]}).assign(steps=800)
    table = rank_table(pd.concat([few, many])).set_index(["steps", "method"])
    assert table.loc[(100, "sft"), "rank"] == pytest.approx(48**0.5)
    assert table.loc[(800, "sft"), "rank"] == pytest.approx(12**0.5)


def test_equal_ranks_have_no_interval():
    runs = planted_recall({"sft": [8, 8, 8], "memft_ot": [6, 6, 4]})
    table = rank_table(runs).set_index("method")
    assert np.isnan(table.loc["sft", ["low", "high"]].astype(float)).all()
    row = table.loc["memft_ot"]
    assert row["low"] < row["rank"] < row["high"]

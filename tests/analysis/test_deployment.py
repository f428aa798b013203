"""Means under each condition and paired differences, of planted accuracies."""

import pytest
from scipy import stats
from support.planted_deployment import planted_entry

from pml_cli.analysis.deployment import mean_table, measurement_table, sft_comparison
from pml_cli.evaluation.conditions import CONDITIONS


@pytest.fixture
def table():
    """Two losses on three texts at two ranks."""
    entries = []
    for seed in range(3):
        for rank in (2, 4):
            entries.append(planted_entry("sft", seed, rank, 0.5 + 0.1 * seed + 0.01 * rank))
            entries.append(planted_entry("memft_ot", seed, rank, 0.6 + 0.12 * seed + 0.01 * rank))
    return measurement_table(entries)


def test_a_row_for_each_run_and_condition(table):
    assert len(table) == 12 * len(CONDITIONS)
    not_mergeable = table[table["status"] == "not mergeable"]
    merged = {condition.name for condition in CONDITIONS if condition.merged}
    assert set(not_mergeable["condition"]) == merged
    trained = table["condition"] == "trained"
    assert table.loc[trained, "text_rise"].eq(0.5).all()
    assert table.loc[~trained, "text_rise"].isna().all()


def test_means_have_the_interval_over_texts(table):
    means = mean_table(table)
    of_sft = means[(means["condition"] == "bf16") & (means["method"] == "sft")]
    all_ranks = of_sft[of_sft["rank"].isna()].iloc[0]
    low, high = stats.t.interval(0.95, 2, 0.63, stats.sem([0.53, 0.63, 0.73]))
    assert all_ranks["token_accuracy"] == pytest.approx(0.63)
    assert all_ranks["token_accuracy_half"] == pytest.approx((high - low) / 2)
    assert all_ranks["runs"] == 6
    assert all_ranks["whole"] == all_ranks["still_whole"] == 6
    assert of_sft["rank"].dropna().tolist() == [2, 4]


def test_pairs_are_texts(table):
    comparison = sft_comparison(table)
    all_ranks = comparison[comparison["rank"].isna() & (comparison["condition"] == "bf16")]
    accuracy = all_ranks[all_ranks["measure"] == "token_accuracy"]
    assert accuracy["difference"].item() == pytest.approx(0.12)
    assert accuracy["pairs"].item() == 3


def test_one_loss_has_no_comparison():
    table = measurement_table([planted_entry("memft_ot", seed, 2, 0.5) for seed in range(3)])
    assert sft_comparison(table).empty

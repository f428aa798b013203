"""Recall against harm: planted entries of forgetting.json, their means and their front."""

import numpy as np
import pandas as pd
import pytest
from support.planted_forgetting import entry

from pml_cli.analysis.forgetting import least_harm, mean_table, measurement_table, pareto_front
from pml_cli.analysis.paired import compare
from pml_cli.stats import t_half_width


def test_a_row_for_each_kind_and_one_for_all():
    table = measurement_table([entry(harm=0.4)]).set_index("kind")
    assert list(table.index) == ["prose", "docs", "code", "chat", "own", "all"]
    assert table.loc["all", "harm"] == 0.4
    assert table.loc["all", "tokens"] == 4 * 2560
    assert table.loc["all", "perplexity_ratio"] == pytest.approx(np.exp(0.4))
    assert table.loc["all", "text_loss"] - table.loc["all", "text_base_loss"] == pytest.approx(0.4)
    assert (table["loss"] == "sft").all()


def test_means_are_over_texts_and_seeds():
    harms = [0.2, 0.4, 0.9]
    runs = [entry(harm=harm, data_seed=i, exact=i > 0) for i, harm in enumerate(harms)]
    (row,) = mean_table(measurement_table(runs)).to_dict("records")
    assert row["runs"] == 3
    assert row["harm"] == pytest.approx(0.5)
    assert row["harm_high"] - 0.5 == pytest.approx(t_half_width(harms))
    assert row["recall"] == pytest.approx(2 / 3)
    assert row["recall_low"] < 2 / 3 < row["recall_high"]
    assert row["harm_prose"] == pytest.approx(0.5)


def test_recall_is_that_of_memft():
    """Each text counts the same, however many facts it has, and its seeds are averaged first."""
    samples_of_texts = [1, 1, 2]
    recalled = [1.0, 0.0, 0.5]
    sft = [
        entry(samples=samples, exact_match=exact, data_seed=text)
        for text, (samples, exact) in enumerate(zip(samples_of_texts, recalled, strict=True))
    ]
    sft.append(entry(samples=1, exact_match=0.0, data_seed=0, seed=1))
    (row,) = mean_table(measurement_table(sft)).to_dict("records")
    assert row["recall"] == pytest.approx((0.5 + 0.0 + 0.5) / 3)
    assert row["recall_low"] < row["recall"] < row["recall_high"]

    others = [run | {"loss": "memft_ot", "exact_match": 1.0} for run in sft]
    runs = pd.DataFrame([*sft, *others]).assign(setting="", layer=4, delta_loss=1.0)
    compared = compare(runs, ["exact_match"])
    assert compared["sft"].tolist() == pytest.approx([row["recall"]])


def test_a_run_whose_recall_was_not_measured_counts_for_no_recall():
    runs = [entry(), entry(exact_match=None, data_seed=1)]
    (row,) = mean_table(measurement_table(runs)).to_dict("records")
    assert row["recall"] == 1 and row["runs"] == 2
    (row,) = mean_table(measurement_table(runs[1:])).to_dict("records")
    assert np.isnan(row["recall"]) and np.isnan(row["recall_high"])


def test_the_interval_of_a_single_run_is_that_over_windows():
    (row,) = mean_table(measurement_table([entry(harm=0.4)])).to_dict("records")
    assert (row["harm_low"], row["harm_high"]) == pytest.approx((0.3, 0.5))


def test_runs_with_some_kinds_have_no_harm():
    run = entry(harm=0.4)
    run |= {"harm": None, "harm_low": None, "harm_high": None}
    run["kinds"] = {"prose": run["kinds"]["prose"]}
    (row,) = mean_table(measurement_table([run])).to_dict("records")
    assert np.isnan(row["harm"]) and np.isnan(row["harm_low"])
    assert row["harm_prose"] == pytest.approx(0.4)
    assert pareto_front(pd.DataFrame([row])).empty


def test_a_harm_that_is_no_number_is_missing():
    run = entry(harm=0.4) | {"harm": None, "harm_low": None, "harm_high": None}
    run["kinds"] = {kind: row | {"harm": None} for kind, row in run["kinds"].items()}
    table = measurement_table([run])
    assert len(table) == 5 and table["perplexity_ratio"].isna().all()
    assert np.isnan(mean_table(table)["harm"].item())


def test_plain_fine_tuning_first_then_by_the_size_of_the_penalty():
    runs = [
        entry(method="memft_margin", keep=100.0),
        entry(method="memft_margin", keep_harm=0.1),
        entry(method="memft_margin", keep=22.0),
        entry(method="memft_margin", keep_harm=0.5),
        entry(method="memft_margin"),
        entry(keep=3.0),
        entry(),
    ]
    means = mean_table(measurement_table(runs))
    assert list(means["penalty"]) == [
        "",
        "keep=3",
        "harm=0.5",
        "harm=0.1",
        "",
        "keep=22",
        "keep=100",
    ]
    assert list(means["method"]) == ["sft"] * 2 + ["memft_margin"] * 5


def test_the_front():
    """Recall and harm of cells: those that no other one beats."""
    cells = [(1.0, 0.5), (1.0, 0.2), (0.8, 0.1), (0.7, 0.1), (0.5, 0.3), (0.0, 0.05), (0.9, 0.2)]
    means = pd.DataFrame(cells, columns=["recall", "harm"])
    front = list(pareto_front(means).itertuples(index=False, name=None))
    assert front == [(0.0, 0.05), (0.8, 0.1), (1.0, 0.2)]


def test_the_least_harm_of_each_loss():
    runs = [
        entry(harm=3.0),
        entry(harm=0.1, keep=22.0, exact=False),
        entry(harm=2.0, method="memft_margin"),
        entry(harm=0.2, method="memft_margin", keep=22.0),
    ]
    least = least_harm(mean_table(measurement_table(runs)), 0.95)
    assert list(zip(least["method"], least["penalty"], strict=True)) == [
        ("memft_margin", "keep=22"),
        ("sft", ""),
    ]

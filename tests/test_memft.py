"""The comparison of losses: pairs that agree in all but the loss, and the interval of their difference."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from pml_cli import memft
from pml_cli.compose import load
from pml_cli.errors import UserError


def planted(differences: list[float]) -> pd.DataFrame:
    rows = []
    for seed, difference in enumerate(differences):
        for loss in ("sft", "memft_ot"):
            accuracy = 0.4 + 0.1 * seed + (difference if loss == "memft_ot" else 0.0)
            same = {
                "model": "m",
                "data": "d",
                "data_seed": seed,
                "adapter": "a",
                "layer": 4,
                "setting": "",
                "rank": 4,
                "seqlen": 64,
                "seed": 0,
            }
            measured = {"token_accuracy": accuracy, "exact_match": 0.0, "share_above_threshold": 0.1, "delta_loss": 1.0}
            rows.append({**same, "lr": 0.01, "steps": 100, "loss": loss, **measured})
    return pd.DataFrame(rows)


def test_compare_recovers_a_planted_difference_with_the_paired_interval():
    differences = [0.05, 0.10, 0.12, 0.07]
    row = memft.compare(planted(differences)).set_index("measure").loc["token_accuracy"]
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert row["pairs"] == 4
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))


def test_compare_leaves_out_a_run_without_partner():
    runs = planted([0.1, 0.2, 0.3])
    runs = runs.drop(runs[(runs["data_seed"] == 2) & (runs["loss"] == "sft")].index)
    row = memft.compare(runs).set_index("measure").loc["token_accuracy"]
    assert row["pairs"] == 2
    assert row["difference"] == pytest.approx(0.15)


def test_no_finished_pair_is_said_and_not_a_fault(tmp_path: Path):
    good = ["rank=2", "seqlen=8", "train.steps=3", f"out={tmp_path / 'o'}"]
    assert memft.run(load("memft", good), Console(file=io.StringIO())) == 0
    out = io.StringIO()
    assert memft.run(load("memft", [*good, "train.lr=1e30"]), Console(file=out)) == 1
    assert "nothing to compare" in out.getvalue()


def test_one_loss_is_no_comparison(tmp_path: Path):
    request = load("memft", ["loss=sft", f"out={tmp_path / 'o'}"])
    with pytest.raises(UserError, match="needs sft and another loss"):
        memft.run(request, Console(file=io.StringIO()))
    assert not (tmp_path / "o").exists()


def test_memft_trains_both_losses_at_equal_steps(tmp_path: Path):
    request = load("memft", ["rank=4", "seqlen=16", "data.seed=0,1", "train.steps=80", f"out={tmp_path / 'o'}"])
    assert memft.run(request, Console(file=io.StringIO())) == 0
    runs, table = pd.read_csv(tmp_path / "o" / "results.csv"), pd.read_csv(tmp_path / "o" / "comparison.csv")
    assert runs.groupby("loss")["steps_run"].unique().map(list).to_dict() == {"memft_ot": [80], "sft": [80]}
    assert runs.groupby("data_seed")["base_loss"].nunique().eq(1).all()  # the same text, the same base
    assert set(table["measure"]) == set(memft.MEASURES)
    assert (table["pairs"] == 2).all()

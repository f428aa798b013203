"""The comparison of losses: pairs that agree in all but the loss, and the interval of their difference."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats
from support.planted_recall import planted as recalled

from pml_cli.analysis.paired import BEST, EQUAL, MEASURES, UNEQUAL, compare, methods, sign_flips
from pml_cli.analysis.rank_thresholds import rank_table
from pml_cli.commands import memft
from pml_cli.config.request import load
from pml_cli.errors import UserError
from pml_cli.report.figures.memft import BOUND, accuracy_figure, rank_figure


def planted(
    differences: list[float], rank: int = 4, lr: float = 0.01, loss: str = "memft_ot", **more
) -> pd.DataFrame:
    """A run of sft and one of another loss for each difference in accuracy."""
    rows = []
    for seed, difference in enumerate(differences):
        for name in ("sft", loss):
            accuracy = 0.4 + 0.1 * seed + (difference if name == loss else 0.0)
            same = {
                "model": "m",
                "data": "d",
                "data_seed": seed,
                "adapter": "a",
                "layer": 4,
                "setting": "",
                "rank": rank,
            }
            same |= {
                "seqlen": 64,
                "seed": 0,
                "target_tokens": 64,
                "samples": 1,
                "lr": lr,
                "steps": 100,
                "loss": name,
            }
            measured = {
                "token_accuracy": accuracy,
                "exact_match": 0.0,
                "share_above_threshold": 0.1,
                "delta_loss": 1.0,
            }
            measured |= {
                "first_failure": None if name == loss else 3,
                "steps_to_recall": 40 if name == loss else None,
            }
            measured |= {"gradient_above": 0.5, "tokens_seen": 6400}
            rows.append({**same, **measured} | (more if name == loss else {}))
    return pd.DataFrame(rows)


def test_a_planted_difference_is_recovered_with_the_paired_interval_and_test():
    differences = [0.05, 0.10, 0.12, 0.07]
    row = compare(planted(differences)).set_index("measure").loc["token_accuracy"]
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval(0.95)
    assert row["pairs"] == 4
    assert row["terms"] == EQUAL
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p_t"] == pytest.approx(expected.pvalue)
    assert (
        row["p_signs"] == 2 / 16
    )  # four pairs of one sign: two of the sixteen flips are as far out
    assert row["budget"] == 1


def test_sign_flips_are_scipys_permutation_test():
    gain = np.array([0.3, -0.1, 0.2, 0.05, -0.02, 0.4, 0.1])
    theirs = stats.permutation_test((gain,), np.mean, permutation_type="samples", n_resamples=10**6)
    assert sign_flips(gain) == pytest.approx(theirs.pvalue)
    assert sign_flips(np.zeros(5)) == 1
    assert 0 < sign_flips(np.full(30, 0.1)) < 1e-3
    assert np.isnan(sign_flips(np.array([0.2])))


def test_a_run_without_partner_is_left_out():
    runs = planted([0.1, 0.2, 0.3])
    runs = runs.drop(runs[(runs["data_seed"] == 2) & (runs["loss"] == "sft")].index)
    row = compare(runs).set_index("measure").loc["token_accuracy"]
    assert row["pairs"] == 2
    assert row["difference"] == pytest.approx(0.15)


def test_all_ranks_together_are_one_pair_a_text():
    """Six runs of one text are no six texts: the interval is over the three texts."""
    table = compare(pd.concat([planted([0.1, 0.2, 0.3], rank=2), planted([0.3, 0.2, 0.4], rank=8)]))
    row = table[table["rank"].isna()].set_index("measure").loc["token_accuracy"]
    assert row["pairs"] == 3
    interval = stats.ttest_1samp([0.2, 0.2, 0.35], 0).confidence_interval(0.95)
    assert (row["difference"], row["low"]) == pytest.approx((0.25, interval.low))
    assert list(table["rank"].dropna().unique()) == [2, 8]


def test_what_never_came_counts_as_the_most():
    rows = compare(planted([0.1, 0.2])).set_index("measure")
    assert (rows.loc["first_failure", "sft"], rows.loc["first_failure", "value"]) == (3, 64)
    assert (rows.loc["steps_to_recall", "sft"], rows.loc["steps_to_recall", "value"]) == (100, 40)
    assert "free_accuracy" not in rows.index  # not measured


def test_each_method_at_its_own_best_learning_rate():
    """At 0.01 sft is best, at 0.04 the other is; at each rate by itself the gain is another one."""
    slow, fast = planted([0.1, 0.2], lr=0.01), planted([0.5, 0.6], lr=0.04)
    fast["token_accuracy"] -= 0.2
    table = compare(pd.concat([slow, fast]))
    assert list(table["terms"].unique()) == [EQUAL, BEST]
    row = table[table["terms"] == BEST].set_index("measure").loc["token_accuracy"]
    assert (row["lr_sft"], row["lr"]) == ("0.01", "0.04")
    assert row["difference"] == pytest.approx(np.mean([0.3, 0.4]))
    unfinished = pd.concat([slow, fast[~((fast["loss"] == "memft_ot") & (fast["data_seed"] == 1))]])
    row = compare(unfinished).query("terms == @BEST").set_index("measure").loc["token_accuracy"]
    assert row["lr"] == "0.01"  # the other rate lacks a run


def test_a_curriculum_is_a_method_of_its_own():
    runs = pd.concat(
        [planted([0.1, 0.2]), planted([0.3, 0.4], setting="train.batch=4 train.curriculum=[2, 4]")]
    )
    runs.loc[runs["setting"] == "", "setting"] = "train.batch=4"
    table = compare(runs.drop_duplicates(["loss", "data_seed", "setting"]))
    rows = table[table["measure"] == "token_accuracy"].set_index("method")["difference"]
    assert rows.to_dict() == pytest.approx({"memft_ot": 0.15, "memft_ot + curriculum=[2, 4]": 0.35})


def test_an_unequal_budget_is_said():
    row = (
        compare(planted([0.1, 0.2], steps=150, tokens_seen=9600))
        .set_index("measure")
        .loc["token_accuracy"]
    )
    assert row["terms"] == UNEQUAL
    assert row["budget"] == 1.5


def test_the_figure_has_a_panel_a_length_and_a_line_a_loss(tmp_path):
    runs = pd.concat([planted([0.1, 0.2], rank=rank) for rank in (2, 4, 8)])
    runs = methods(pd.concat([runs, runs.assign(seqlen=128)]))
    figure = accuracy_figure(runs, rates=False)
    assert [axes.get_title() for axes in figure.axes] == [
        "64 tokens to remember",
        "128 tokens to remember",
    ]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["MemFT, threshold (memft_ot)"].get_ydata(), [60.0] * 3)
    np.testing.assert_allclose(lines["plain fine-tuning (sft)"].get_ydata(), [45.0] * 3)


def test_a_rank_that_is_only_a_bound_is_told_in_the_table():
    """Every row says the same then, and without it 3 would read as the rank at which half is recalled."""
    few = rank_table(recalled({"sft": [9, 9], "memft_margin": [9, 9]}, ranks=(1, 2, 3)))
    within = rank_table(recalled({"sft": [2, 3], "memft_margin": [2, 3]}))
    shown = []
    for table in (few, within):
        out = io.StringIO()
        Console(file=out, width=80).print(memft._shown_ranks(table, ""))
        shown.append(out.getvalue())
    assert shown[0].count("2 above") == 2
    assert "outside" not in shown[1]


def test_a_rank_that_is_only_a_bound_is_hollow_and_so_is_its_share():
    """Of sft one text at 128 tokens, of the other loss one at 64; at 32 both are measured."""
    parts = [
        recalled({"sft": sft, "memft_margin": margin}, seqlen=length)
        for length, sft, margin in (
            (32, [6, 8], [3, 4]),
            (64, [6, 8], [1, 4]),
            (128, [16, 99], [6, 8]),
        )
    ]
    figure = rank_figure(rank_table(pd.concat(parts)))
    hollow = [
        [line for line in axes.get_lines() if line.get_label() == "_bound"] for axes in figure.axes
    ]
    at = [
        [[round(float(x) / 32) * 32 for x in line.get_xdata()] for line in lines]
        for lines in hollow
    ]
    assert at[0][:2] == [[128], [64]]  # sft, then the other
    assert at[1] == [[64, 128]]
    assert all(line.get_markerfacecolor() == "white" for lines in hollow for line in lines)
    assert BOUND in [text.get_text() for text in figure.legends[0].get_texts()]
    measured = rank_figure(rank_table(pd.concat(parts[:1])))
    assert BOUND not in [text.get_text() for text in measured.legends[0].get_texts()]


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


def test_memft_trains_every_loss_at_equal_steps_in_one_pack(tmp_path: Path):
    asked = [
        "rank=2,4",
        "seqlen=16",
        "data.seed=0,1",
        "train.steps=40",
        "train.lr=0.05,0.1",
        f"out={tmp_path / 'o'}",
    ]
    out = io.StringIO()
    assert memft.run(load("memft", asked), Console(file=out, width=200)) == 0
    runs, table = (
        pd.read_csv(tmp_path / "o" / "results.csv"),
        pd.read_csv(tmp_path / "o" / "comparison.csv"),
    )
    losses = {"sft", "memft_ot", "memft_sw", "memft_margin"}
    assert set(runs["loss"]) == losses
    assert set(runs["steps_run"]) == {40}
    assert set(runs["tokens_seen"]) == {40 * 16}
    assert set(runs["pack_size"]) == {32}
    assert (
        runs.groupby("data_seed")["base_loss"].nunique().eq(1).all()
    )  # the same text, the same base
    spent = runs.groupby("loss")["gradient_above"].mean()
    assert spent["memft_ot"] < spent["sft"]
    assert set(table["measure"]) == set(MEASURES) - {"unseen_exact_match"}  # of data=rule alone
    assert set(table["terms"]) == {EQUAL, BEST}
    assert (table.loc[table["terms"] == BEST, "pairs"] == 2).all()
    assert set(pd.read_csv(tmp_path / "o" / "ranks.csv")["method"]) == losses
    assert "of memft_ot's" in out.getvalue()
    assert (tmp_path / "o" / "memft.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "o" / "memft.svg").read_text()
    assert "each method and length at the learning rate" in out.getvalue()

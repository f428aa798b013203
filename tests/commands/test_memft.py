"""`pml memft`: its tables, figures and files, and what it refuses."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support.planted_pairs import planted_pairs
from support.planted_recall import planted_recall
from support.printing import printed

from pml_cli.analysis.paired import BEST_RATES, EQUAL, MEASURES, comparable_runs, compare
from pml_cli.analysis.rank_thresholds import rank_table
from pml_cli.commands import memft
from pml_cli.config.request import load
from pml_cli.errors import UserError
from pml_cli.report.figures.memft import BOUND, accuracy_figure, rank_figure
from pml_cli.report.sweep_summary import print_next
from pml_cli.report.tables.memft import (
    beyond_greedy_table,
    comparison_report,
    comparison_table,
    ranks_table,
)
from pml_cli.results.folder import RunFolder


def test_the_table_has_rates_and_budget_only_where_they_differ():
    equal = compare(planted_pairs([0.05, 0.15]))
    assert printed(comparison_table(equal))[1].split() == (
        "4 64 memft_ot 2 45.0 55.0 +10.0 ± 63.5 0.5 0, 0".split()
    )
    runs = planted_pairs([0.05, 0.15], steps=150, tokens_seen=9600)
    runs.loc[runs["loss"] == "memft_ot", "lr"] = 0.02
    unequal = compare(runs)
    header, row = printed(comparison_table(unequal), width=120)
    assert header.split()[-2:] == ["lr", "budget"]
    assert row.split()[-3:] == ["0.01,", "0.02", "x1.5"]


def test_the_note_says_when_there_is_no_interval():
    """Three pairs whose differences are equal have none either."""
    equal = compare(planted_pairs([0.0, 0.0, 0.0]))
    table, note = comparison_report(equal)
    assert "+0.0 ± -" in printed(table)[1]
    said = " ".join(printed(note))
    assert "- for one pair, and where all differences are equal" in " ".join(said.split())
    # Of facts, no text is verbatim: a share of its facts is.
    assert "exact: samples (facts, or a text as a whole) recalled verbatim" in said


def test_recall_beyond_greedy_is_said_under_both_losses():
    """The margin loss buys greedy recall with likelihood: both texts whole, at 10^-51 and 10^-1."""
    runs = planted_pairs([0.1, 0.1], loss="memft_margin")
    of_margin = runs["loss"] == "memft_margin"
    runs = runs.assign(exact_match=1.0, log10_p=np.where(of_margin, -51.0, -0.5))
    table = beyond_greedy_table(compare(runs))
    header, row = printed(table)
    assert header.split()[-2:] == ["log10", "p"]
    assert row.split()[:5] == ["4", "64", "memft_margin", "100,", "100"]
    assert row.split()[-2:] == ["-0.5,", "-51"]
    # Runs of earlier versions.
    assert len(list(comparison_report(compare(planted_pairs([0.1, 0.1]))))) == 2


def test_the_figure_has_a_panel_a_length_and_a_line_a_loss():
    runs = pd.concat([planted_pairs([0.1, 0.2], rank=rank) for rank in (2, 4, 8)])
    runs = comparable_runs(pd.concat([runs, runs.assign(seqlen=128)]))
    figure = accuracy_figure(runs, at_best_rates=False)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["64 tokens to remember", "128 tokens to remember"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["MemFT, threshold (memft_ot)"].get_ydata(), [60.0] * 3)
    np.testing.assert_allclose(lines["plain fine-tuning (sft)"].get_ydata(), [45.0] * 3)
    assert "over 2 texts and seeds" in figure.get_suptitle()


def test_a_rank_that_is_only_a_bound_is_marked_in_the_table():
    """Every row has the same bound, and without the mark 3 would read as a measured rank."""
    bounds = rank_table(planted_recall({"sft": [9, 9], "memft_margin": [9, 9]}, ranks=(1, 2, 3)))
    measured = rank_table(planted_recall({"sft": [2, 3], "memft_margin": [2, 3]}))
    assert "\n".join(printed(ranks_table(bounds))).count("2 above") == 2
    assert "outside" not in printed(ranks_table(measured))[0]


def test_a_rank_that_is_only_a_bound_is_hollow_and_so_is_its_ratio():
    """Of sft one text at 128 tokens, of the other loss one at 64; at 32 both are measured."""
    first_ranks = {32: ([6, 8], [3, 4]), 64: ([6, 8], [1, 4]), 128: ([16, 99], [6, 8])}
    parts = [
        planted_recall({"sft": sft, "memft_margin": margin}, seqlen=length)
        for length, (sft, margin) in first_ranks.items()
    ]
    figure = rank_figure(rank_table(pd.concat(parts)))
    hollow = [
        [line for line in axes.get_lines() if line.get_label() == "_bound"] for axes in figure.axes
    ]
    lengths = [
        [[round(float(x) / 32) * 32 for x in line.get_xdata()] for line in lines]
        for lines in hollow
    ]
    # sft, then the other loss.
    assert lengths[0][:2] == [[128], [64]]
    assert lengths[1] == [[64, 128]]
    assert all(line.get_markerfacecolor() == "white" for lines in hollow for line in lines)
    assert BOUND in [text.get_text() for text in figure.legends[0].get_texts()]
    measured = rank_figure(rank_table(pd.concat(parts[:1])))
    assert BOUND not in [text.get_text() for text in measured.legends[0].get_texts()]


def test_a_prompt_of_several_words_stands_in_the_title_whole():
    setting = "model.layer=2 data.text=ca7613 data.prompt=Recite the text: train.batch=4"
    ranks = rank_table(planted_recall({"sft": [4, 6], "memft_margin": [2, 3]}))
    title = rank_figure(ranks.assign(setting=setting)).get_suptitle()
    assert "data.prompt=Recite the text:; 2 texts" in title.replace("\n", " ")


@pytest.mark.slow
def test_no_finished_pair_is_reported_without_an_error(tmp_path: Path):
    args = ["rank=2", "seqlen=8", "train.steps=3", f"out={tmp_path / 'o'}"]
    assert memft.run(load("memft", args), Console(file=io.StringIO())) == 0
    out = io.StringIO()
    assert memft.run(load("memft", [*args, "train.lr=1e30"]), Console(file=out)) == 1
    assert "nothing to compare" in out.getvalue()


def test_no_law_is_advised_of_one_cell(tmp_path: Path):
    plan = SimpleNamespace(out=tmp_path, cells=[SimpleNamespace(id="a", tokens_hash="")])
    RunFolder(tmp_path, "a").finish({})
    out = io.StringIO()
    print_next(plan, Console(file=out))
    assert out.getvalue() == ""
    plan.cells *= 2
    print_next(plan, Console(file=out, width=300))
    assert out.getvalue() == f"next: pml fit {tmp_path}\n"


def test_one_loss_is_no_comparison(tmp_path: Path):
    request = load("memft", ["loss=sft", f"out={tmp_path / 'o'}"])
    with pytest.raises(UserError, match="needs sft and another loss"):
        memft.run(request, Console(file=io.StringIO()))
    assert not (tmp_path / "o").exists()


def test_memft_trains_every_loss_at_equal_steps_in_one_pack(tmp_path: Path):
    folder = tmp_path / "o"
    args = ["rank=2,4", "seqlen=16", "data.seed=0,1", "train.steps=40", "train.lr=0.05,0.1"]
    out = io.StringIO()
    request = load("memft", [*args, f"out={folder}"])
    assert memft.run(request, Console(file=out, width=200)) == 0

    runs = pd.read_csv(folder / "results.csv")
    losses = {"sft", "memft_ot", "memft_sw", "memft_margin"}
    assert set(runs["loss"]) == losses
    assert set(runs["steps_run"]) == {40}
    assert set(runs["tokens_seen"]) == {40 * 16}
    assert set(runs["pack_size"]) == {32}
    # The same text has the same base loss under every loss.
    assert runs.groupby("data_seed")["base_loss"].nunique().eq(1).all()
    spent = runs.groupby("loss")["gradient_above"].mean()
    assert spent["memft_ot"] < spent["sft"]

    table = pd.read_csv(folder / "comparison.csv")
    # unseen_exact_match is measured on data=rule alone, the others of longer texts.
    not_measured = {"unseen_exact_match", "recall_from_32", "extractable_50"}
    assert set(table["measure"]) == set(MEASURES) - not_measured
    assert set(table["terms"]) == {EQUAL, BEST_RATES}
    assert (table.loc[table["terms"] == BEST_RATES, "pairs"] == 2).all()
    assert set(pd.read_csv(folder / "ranks.csv")["method"]) == losses

    assert "of memft_ot's" in out.getvalue()
    assert "from 8 %" in out.getvalue()
    # Random tokens are nothing that a base model knows.
    assert "tiny on random before training: 0 % whole, 0.0 % of the tokens" in out.getvalue()
    assert "each method and length at the learning rate" in out.getvalue()
    # What comes next stands below the comparison.
    assert out.getvalue().splitlines()[-1] == f"next: pml fit {folder}"
    assert (folder / "memft.png").stat().st_size > 10_000
    assert "<svg" in (folder / "memft.svg").read_text()
    index = (folder / "index.md").read_text("utf-8")
    for name in ("memft.png", "comparison.csv", "ranks.csv"):
        assert f"]({name}): " in index

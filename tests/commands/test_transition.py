"""`pml transition`: the report of planted and of real runs, its files, figures and messages."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.token_tables import CORRECT, PLANTED_P, token_table, write_run

from pml_cli import cli
from pml_cli.analysis.run_selection import transition_runs
from pml_cli.analysis.transition import read_group, summarize
from pml_cli.commands import transition
from pml_cli.config.reports import Transition
from pml_cli.errors import UserError
from pml_cli.report.figures import registry
from pml_cli.report.figures.transition import page_figure
from pml_cli.report.figures.transition_grid import stubborn_map

ROOT = Path(__file__).parents[2]


def report(*paths, width=80, **settings):
    """Exit code and output of the command."""
    out = io.StringIO()
    settings = {"figures": False, "draws": 100} | settings
    code = transition.run(list(paths), Transition(**settings), Console(file=out, width=width))
    return code, out.getvalue()


def content(folder):
    return json.loads((folder / "transition/transition.json").read_text("utf-8"))


def one_line(text):
    return " ".join(text.split())


def test_every_planted_violation_is_listed_with_what_may_have_caused_it(tmp_path):
    correct = CORRECT.copy()
    correct[1, 0] = correct[3, 1] = False
    write_run(tmp_path, "wrong", token_table(correct_TS=correct))
    write_run(tmp_path, "good", token_table(), seed=1)
    setting = "model.dtype=bfloat16 data.random_share=0.4"
    write_run(tmp_path, "coarse", token_table(), setting=setting)

    code, text = report(tmp_path)
    assert code == 0
    by_dtype = {row["dtype"]: row for row in content(tmp_path)["by_dtype"]}
    full = by_dtype["float32"]
    assert (full["logged"], full["above"], full["violations"]) == (48, 20, 2)
    assert full["highest_wrong"] == pytest.approx(0.9)
    assert (by_dtype["bfloat16"]["logged"], by_dtype["bfloat16"]["violations"]) == (24, 0)

    listed = pd.read_csv(tmp_path / "transition/violations.csv")
    columns = ["step", "position", "token_id", "argmax_id"]
    assert listed[columns].to_numpy().tolist() == [[10, 0, 100, 7], [30, 1, 101, 7]]
    assert listed["p"].tolist() == pytest.approx([0.6, 0.9])
    assert listed["margin"].tolist() == [-1, -1]
    assert listed["nll"].tolist() == pytest.approx([-np.log(0.6), -np.log(0.9)], rel=1e-5)

    text = one_line(text)
    assert "float32: 2 violations" in text
    assert "bfloat16: sufficient, no violation in 10 tokens" in text
    assert "0.9000000" in text


def test_the_report_of_planted_runs(tmp_path):
    write_run(tmp_path, "a", token_table(), rank=2)
    perfect = np.full_like(PLANTED_P, 0.9)
    write_run(tmp_path, "b", token_table(perfect, perfect > 0.5), rank=8)
    unsure = np.full_like(PLANTED_P, 0.2)
    write_run(tmp_path, "c", token_table(unsure, unsure > 0), rank=8, data_seed=1)
    wrong = token_table(np.full_like(PLANTED_P, 0.6), CORRECT)
    write_run(tmp_path, "d", wrong, rank=8, data_seed=2, exact_match=0.0, violations=0)

    report(tmp_path)
    (group,) = content(tmp_path)["groups"]
    by_rank = {row["rank"]: row for row in group["by_rank"]}
    counts = ("tokens", "above", "ever", "fell", "lost")
    assert [by_rank[2][name] for name in counts] == [6, 4, 5, 3, 1]
    assert by_rank[2]["median_step"] == 30 and by_rank[8]["above"] == 12
    cases = {
        name: (share["found"], share["of"]) for name, share in group["loss_against_recall"].items()
    }
    assert cases["high_loss_verbatim"] == (1, 1)
    assert cases["low_loss_not_verbatim"] == (2, 3)
    assert cases["either"] == (3, 4)
    assert cases["stubborn_verbatim"] == (1, 2)

    cell = pd.read_csv(tmp_path / "transition/cells.csv").set_index("rank").loc[2]
    assert cell["falls"] == 3 and cell["forgot"] == 2
    assert cell["highest_wrong"] == pytest.approx(0.3)
    sequences = pd.read_csv(tmp_path / "transition/sequences.csv")
    of_rank_2 = sequences[sequences["rank"] == 2]
    assert of_rank_2[["earliest_stubborn", "first_failure"]].to_numpy().tolist() == [[2, 5]]


def test_groups_filters_and_copies(tmp_path, capsys):
    write_run(tmp_path / "x", "a-0123456789", token_table(), rank=2)
    write_run(tmp_path / "x", "b", token_table(), rank=8, loss="memft_ot")
    write_run(tmp_path / "y", "a-0123456789", token_table(), rank=2)
    code, text = report(tmp_path)
    assert capsys.readouterr().err.startswith("warning: 1 duplicate run ignored: ")
    assert code == 0 and "2 groups that differ in loss" in text
    written = content(tmp_path)
    assert written["inputs"]["runs"] == 2
    assert [group["key"]["loss"] for group in written["groups"]] == ["memft_ot", "sft"]
    text = report(tmp_path, rank=[8])[1]
    assert "1 run, 24 logged tokens, 1 text" in text
    with pytest.raises(UserError, match="rank=3: no finished run has it"):
        report(tmp_path, rank=[3])


def test_why_there_is_no_correlation_is_printed_and_written(tmp_path):
    write_run(tmp_path, "a", token_table())
    _, text = report(tmp_path)
    assert "no rho (1 sequence)" in one_line(text)
    written = content(tmp_path)["groups"][0]["stubborn_against_failure"]["both"]
    assert written == {
        "rho": None,
        "low": None,
        "high": None,
        "n": 1,
        "clusters": 1,
        "reason": "1 sequence",
    }


def test_damaged_runs_are_left_out_with_a_reason(tmp_path):
    write_run(tmp_path, "good", token_table())
    write_run(tmp_path, "gone", token_table(), seed=1)
    write_run(tmp_path, "torn", token_table(), seed=2)
    (tmp_path / "gone/tokens.parquet").unlink()
    (tmp_path / "torn/tokens.parquet").write_bytes(b"PAR1")
    text = one_line(report(tmp_path)[1])
    assert "2 runs left out" in text and "no tokens.parquet" in text
    left_out = content(tmp_path)["inputs"]["left_out"]
    assert sorted(Path(run["folder"]).name for run in left_out) == ["gone", "torn"]

    (tmp_path / "good/tokens.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"and 2 more runs.*no run is left to report on"):
        report(tmp_path)


@pytest.fixture
def three_ranks(tmp_path):
    for rank in (2, 4, 8):
        p = np.clip(PLANTED_P * rank / 4, 0, 0.99)
        write_run(tmp_path, f"r{rank}", token_table(p, p > 0.35), rank=rank)
    return tmp_path


def test_every_registered_figure_is_written(three_ranks, monkeypatch):
    # Drawing takes long.
    monkeypatch.setattr(registry, "save", lambda figure, path, suffix: path.write_text(suffix))
    report(three_ranks, figures=True)
    out = three_ranks / "transition"
    pages = {path.name for path in out.glob("transition.*")}
    assert pages == {
        "transition.json",
        *(f"transition.{suffix}" for suffix in ("png", "svg", "pdf")),
    }
    details = {path.stem for path in (out / "figures").glob("*.png")}
    assert details == set(registry.of_report("transition")) - {"transition"}
    assert len(details) == 6


def test_the_page_is_drawn(three_ranks):
    runs = transition_runs([three_ranks], Transition())
    group = read_group(runs, lambda: None)
    summary = summarize(group, name="name", slug="slug", key={}, draws=0, text=None)
    page = io.BytesIO()
    page_figure(summary).savefig(page, format="png", dpi=40)
    assert len(page.getvalue()) > 10_000


def test_the_stubborn_map_reads_in_grey_and_jumps_at_one_half():
    colours = stubborn_map()(np.linspace(0, 1, 256))[:, :3]
    lightness = colours @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) > -1e-9).all()
    assert lightness[128] - lightness[127] > 0.1


def test_piped_output_is_plain_text_that_fits(tmp_path):
    write_run(tmp_path, "a", token_table(), rank=2)
    write_run(tmp_path, "b", token_table(), rank=4)
    for width in (80, 140):
        text = report(tmp_path, width=width)[1]
        assert text.isascii() and "\x1b" not in text
        assert max(map(len, text.splitlines())) <= width


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    args = ["rank=1,4", "seqlen=12", "data=text", "train.steps=20", "train.log_every=4"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", *args, f"out={out}"])
    assert not stop.value.code
    return out


def test_real_runs_from_the_command_line(swept, tmp_path, capsys):
    out = tmp_path / "report"
    with pytest.raises(SystemExit) as stop:
        cli.main(["transition", str(swept), f"out={out}", "figures=false", "draws=50"])
    assert not stop.value.code
    assert "float32: sufficient, no violation" in capsys.readouterr().out

    written = json.loads((out / "transition.json").read_text("utf-8"))
    rows = sum(pq.read_metadata(path).num_rows for path in swept.glob("*/tokens.parquet"))
    assert written["inputs"]["logged_tokens"] == rows == 2 * 6 * 12

    cells = pd.read_csv(out / "cells.csv").set_index("id")
    sequences = pd.read_csv(out / "sequences.csv").set_index("id")
    for path in swept.glob("*/result.json"):
        run = json.loads(path.read_text("utf-8"))
        cell = cells.loc[run["id"]]
        assert cell["stubborn"] == run["stubborn_tokens"]
        assert cell["violations"] == run["violations"] == 0
        for name in ("first_failure", "earliest_stubborn"):
            value = sequences.loc[run["id"], name]
            assert (None if np.isnan(value) else value) == run[name]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "error: nowhere: no such folder"),
        (["empty"], "error: empty: no finished runs"),
        (["empty", "rnak=4"], "error: rnak: no such key; did you mean 'rank'?"),
        (["empty", "rank=0"], "error: rank=0: must be at least 1"),
        (["empty", "draws=-1"], "error: draws=-1: must be at least 0"),
        (["empty", "text=0,1"], "error: text: takes one value, not 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["transition", *args])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == ""
    assert printed.err.startswith(message) and len(printed.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())


def test_reads_runs_without_torch():
    code = (
        "import sys; import pml_cli.commands.transition, pml_cli.report.figures.transition; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"

"""`pml predict` as a user types it."""

import io
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from catalogue.law_files import LINE
from rich.console import Console
from support.law_groups import fit_quietly
from support.planted_laws import exponential_cells, runs_of, write

from pml_cli import cli
from pml_cli.commands import predict
from pml_cli.config.reports import Predict
from pml_cli.errors import UserError

REPORT = "REPORT"


def pml(capsys, *arguments):
    """Run a command line; returns its exit code, output and errors."""
    with pytest.raises(SystemExit) as exited:
        cli.main(list(arguments))
    printed = capsys.readouterr()
    return exited.value.code, printed.out, printed.err


def test_a_table_of_80_columns(law_report, tmp_path):
    command = [sys.executable, "-m", "pml_cli", "predict", str(law_report), "seqlen=100,200"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count("least rank") == 4
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_answers_as_json(law_report, capsys):
    file = str(law_report / "fit" / "law.json")
    code, output, _ = pml(capsys, "predict", file, "rank=8", "--target", "loss=2", "--json")
    (answer,) = json.loads(output)
    assert code == 0 and answer["target"] == "loss" and answer["rows"][0]["rank"] == 8


def test_a_report_in_the_folder_of_a_run_is_still_found(law_report, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "fit").mkdir(parents=True)
    (run / "result.json").write_text("{}")
    shutil.copy(law_report / "fit" / "law.json", run / "fit")
    code, _, _ = pml(capsys, "predict", str(run), "rank=8")
    assert code == 0


@pytest.mark.parametrize(
    "asked",
    [
        ("per_rank=1e300", "base=1e300", "seqlen=1e300", "inputs=1e200"),
        ("per_rank=4e200", "base=2", "seqlen=100"),
        ("per_rank=1e-300", "base=1e300", "seqlen=1e9"),
    ],
)
def test_numbers_beyond_any_model_have_an_answer_or_a_line(law_report, tmp_path, capsys, asked):
    content = json.loads((law_report / "fit" / "law.json").read_text())
    (tmp_path / "law.json").write_text(json.dumps(content | {"bits_lines": [LINE]}))
    code, _, remarks = pml(capsys, "predict", str(tmp_path), *asked)
    assert code in (0, 2) and "Traceback" not in remarks


def test_two_laws_of_the_chosen_name_are_both_checked(law_report, tmp_path, capsys):
    content = json.loads((law_report / "fit" / "law.json").read_text())
    (group,) = content["groups"]
    group["laws"].append({"name": group["chosen"]})
    (tmp_path / "law.json").write_text(json.dumps(content))
    code, _, remarks = pml(capsys, "predict", str(tmp_path), "rank=8")
    assert code == 2 and "law.json" in remarks


def test_a_report_of_an_earlier_version_is_said(law_report, tmp_path, capsys):
    content = json.loads((law_report / "fit" / "law.json").read_text())
    _, answer, remarks = pml(capsys, "predict", str(law_report), "rank=8")
    assert "earlier version" not in remarks

    del content["method"]
    (tmp_path / "law.json").write_text(json.dumps(content))
    code, same, remarks = pml(capsys, "predict", str(tmp_path), "rank=8")
    assert (code, same) == (0, answer)
    assert "law.json: fitted by an earlier version of pml" in remarks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", REPORT), "no question"),
        (("predict", REPORT, "rnak=4"), "did you mean 'rank'"),
        (("predict", REPORT, "rank=0"), "rank=0: must be at least 1"),
        (("predict", REPORT, "rank=x"), "rank=x: must be numbers"),
        (("predict", REPORT, "seqlen=9", "group=tinny"), "group=tinny:"),
        (
            ("predict", REPORT, "seqlen=9", "inputs=64"),
            "inputs=64: of a model that was not trained",
        ),
        (
            ("predict", REPORT, "seqlen=9", "base=3", "per_rank=100", "inputs=64"),
            "inputs=64: must be at most half of per_rank (100)",
        ),
        (("predict", REPORT, "seqlen=9", "--target", "love"), "--target love: must be verbatim"),
        (("predict", "nowhere", "seqlen=9"), "no law.json here (no such folder)"),
        (("fit", REPORT, "--by", "modle"), "--by modle: did you mean 'model'?"),
        (
            ("fit", REPORT, "--by", "model"),
            "no two groups differ in that alone; these cells are one group",
        ),
        (("fit", REPORT, "figures=7"), "figures=7: must be true or false"),
        (("fit", REPORT, "x=size"), "x=size: must be one of rank, parameters, effective"),
    ],
)
def test_a_fault_is_one_line(law_report, capsys, arguments, message):
    arguments = [str(law_report) if word == REPORT else word for word in arguments]
    code, _, error = pml(capsys, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1


def test_a_target_with_rank_and_length_given_is_refused(law_report):
    settings = Predict(rank=[4.0], seqlen=[64.0])
    with pytest.raises(UserError, match="--target loss=1: needs something to solve for"):
        predict.run([law_report], settings, Console(file=io.StringIO()), "loss=1")


def test_recall_is_predicted_without_a_law_of_the_gain(tmp_path, capsys):
    """Every cell is below ln 2, so there are no exponents; yet some lack a token."""
    cells = exponential_cells((1, 2, 4, 8), (32, 64, 128), texts=4, C=900.0)
    thresholds = (cells.rank >= cells.length / 24).astype(float)
    whole = runs_of(cells, exact_match=np.ones(len(cells)), data=["text"] * len(cells))
    write(tmp_path, *runs_of(cells, exact_match=thresholds), *whole)
    fit_quietly(tmp_path, out=str(tmp_path), draws=100)

    code, output, _ = pml(capsys, "predict", str(tmp_path), "seqlen=64")
    assert code == 0 and "law: exact recall alone" in output
    assert output.count("least rank") == 2
    # The group that recalls everything has neither law, and the reason stands there.
    assert "left out: tiny, text" in output and "every cell recalls at least half" in output
    _, output, _ = pml(capsys, "predict", str(tmp_path), "seqlen=64", "--target", "loss=1")
    assert "no law of the gain: only 0 distinct unsaturated ranks" in output
    _, output, _ = pml(capsys, "predict", str(tmp_path), "seqlen=64", "rank=4", "--json")
    ((row,),) = (answer["rows"] for answer in json.loads(output))
    assert row["recall"]["value"] > 0.5 and "gain" not in row


def test_the_rank_that_knows_all_facts_is_above_that_which_knows_half(tmp_path, capsys):
    cells = exponential_cells((1, 2, 4, 8, 16), (50, 100, 200, 400), texts=4, C=9e3)
    share = np.clip(cells.rank / (cells.length / 20), 0, 1)
    counts = (cells.length / 5).astype(int)
    write(tmp_path, *runs_of(cells, exact_match=share, samples=counts.tolist()))
    fit_quietly(tmp_path, draws=100)

    code, output, _ = pml(capsys, "predict", str(tmp_path), "facts=40", "--json")
    *shares, half, most = json.loads(output)[0]["rows"]
    assert code == 0 and half["facts"] == 40 and half["length"] == 200

    assert [row["share"] for row in shares] == [0.5, 0.9, 0.99]
    assert (half["share"], half["chance"]) == (1.0, 0.5)
    ranks = [row["rank"]["value"] for row in shares]
    # 0.5, 0.9 and 0.99 of what 10 ranks know.
    assert ranks == sorted(ranks)
    assert ranks[0] == pytest.approx(5, rel=0.3)
    assert ranks[-1] <= half["rank"]["value"]
    _, output, _ = pml(capsys, "predict", str(tmp_path), "facts=40")
    lines = [line.split() for line in output.splitlines()]
    assert [line[2:4] for line in lines if line[:2] == ["40", "200"]] == [
        ["50", "%"],
        ["90", "%"],
        ["99", "%"],
        ["all", "50"],
        ["all", "90"],
    ]
    # All 40 come back from rank 10 on, half of them from 5 on.
    assert 8 <= half["rank"]["value"] <= 12 < most["rank"]["value"]
    _, output, _ = pml(capsys, "predict", str(tmp_path), "facts=40", "rank=8")
    assert "all of them" in output and "of 5 tokens each" in output
    code, _, error = pml(capsys, "predict", str(tmp_path), "facts=40", "seqlen=9")
    assert code == 2 and "give either seqlen= or facts=" in error


def write_placements(folder):
    """Two placements, of width 128 and 64, need 1.6 effective parameters a bit.

    Every cell is below ln 2: no law of the gain takes time.
    """
    rows = []
    for layer, width in ((4, 128), (2, 64)):
        cells = exponential_cells((1, 2, 3, 4, 6, 8, 12, 16, 24, 32), (32, 64, 128), texts=4, C=9e3)
        effective = cells.rank * (np.minimum(cells.length, width) + width - cells.rank)
        bits = cells.length * 7.6 / math.log(2)
        whole = (effective >= 1.6 * bits).astype(float)
        columns = {"exact_match": whole, "effective_parameters": effective.astype(int).tolist()}
        rows += runs_of(cells, **columns, layer=[layer] * len(cells))
    write(folder, *rows)


@pytest.mark.slow
def test_the_line_of_all_has_a_figure(tmp_path):
    write_placements(tmp_path)
    assert "bits.png" in fit_quietly(tmp_path, draws=0, figures=True)
    assert (tmp_path / "fit" / "bits.png").stat().st_size > 10_000


def test_a_new_model_is_answered_from_the_line_of_all(tmp_path, capsys):
    write_placements(tmp_path)
    printed = fit_quietly(tmp_path, draws=0, figures=False)
    assert "N = " in printed and "one height: not refuted" in printed

    asked = ("predict", str(tmp_path), "per_rank=200", "seqlen=100", "base=7.6")
    _, output, _ = pml(capsys, *asked, "--json")
    ((row,),) = (answer["rows"] for answer in json.loads(output))
    effective = 1.6 * 100 * 7.6 / math.log(2)
    truth = (200 - math.sqrt(200**2 - 4 * effective)) / 2
    assert row["rank"]["value"] == pytest.approx(truth, rel=0.25) and row["outside"] == ""
    _, output, _ = pml(capsys, *asked)
    # Two modules of half the width have as many parameters a rank, and fewer directions to lose.
    _, of_two, _ = pml(capsys, *asked, "inputs=50", "--json")
    ((two,),) = (answer["rows"] for answer in json.loads(of_two))
    assert two["rank"]["value"] == pytest.approx(
        (100 - math.sqrt(100**2 - 2 * effective)) / 2, 0.25
    )
    assert "a new model or placement" in output and "extrapolation between models" in output
    code, _, error = pml(capsys, "predict", str(tmp_path), "per_rank=100", "seqlen=100")
    assert code == 2 and "base=" in error

"""`pml predict` as a user types it."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", REPORT), "nothing asked"),
        (("predict", REPORT, "rnak=4"), "did you mean 'rank'"),
        (("predict", REPORT, "rank=0"), "rank=0: must be at least 1"),
        (("predict", REPORT, "rank=x"), "rank=x: must be numbers"),
        (("predict", REPORT, "seqlen=9", "group=tinny"), "group=tinny:"),
        (("predict", REPORT, "seqlen=9", "--target", "love"), "--target love: must be verbatim"),
        (("predict", "nowhere", "seqlen=9"), "no law.json here (no such folder)"),
        (("fit", REPORT, "--by", "modle"), "--by modle: did you mean 'model'?"),
        (
            ("fit", REPORT, "--by", "model"),
            "no two groups differ in that alone; these cells are one group",
        ),
        (("fit", REPORT, "x=size"), "x=size: must be rank or parameters"),
    ],
)
def test_a_fault_is_one_line(law_report, capsys, arguments, message):
    arguments = [str(law_report) if word == REPORT else word for word in arguments]
    code, _, error = pml(capsys, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1


def test_a_target_with_rank_and_length_given_is_refused(law_report):
    settings = Predict(rank=[4.0], seqlen=[64.0])
    with pytest.raises(UserError, match="--target loss=1: with rank and seqlen both given"):
        predict.run([law_report], settings, Console(file=io.StringIO()), "loss=1")

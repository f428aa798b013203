"""Files of somebody else at the names that a command writes: refused, and left as they are."""

import json

import pytest

from pml_cli.errors import UserError
from pml_cli.report import folder_index
from pml_cli.report.foreign_files import check_files

FACTS = "question,answer\nWhich lamp?,green\n"


@pytest.mark.parametrize("name", ["facts.csv", "law.tex", "results.csv", "adapter"])
def test_a_file_of_somebody_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name}: .*none of pml's; give another out="):
        check_files(tmp_path, [name])
    check_files(tmp_path, ["other.csv"])


@pytest.mark.parametrize("name", ["law.png", "law-final.pdf"])
def test_a_figure_of_somebody_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name}: .*none of pml's"):
        check_files(tmp_path, [], figures=["law"])
    check_files(tmp_path, [], figures=["memorize"])
    (tmp_path / ".pml").mkdir()
    check_files(tmp_path, [], figures=["law"])


def test_a_folder_that_pml_has_written_to_is_its_own(tmp_path):
    for name, make in {
        "runs": lambda out: (out / ".pml").mkdir(),
        "older runs": lambda out: (out / "run").mkdir() or (out / "run/result.json").touch(),
        "report": folder_index.write,
        "older report": lambda out: (out / "law.json").write_text(json.dumps({"format": 3})),
    }.items():
        out = tmp_path / name
        out.mkdir()
        (out / "cells.csv").write_text("a")
        with pytest.raises(UserError):
            check_files(out, ["cells.csv", "law.json"])
        make(out)
        check_files(out, ["cells.csv", "law.json"])


def test_what_is_read_is_not_replaced(tmp_path):
    """Also in a folder of pml's own: its report would be taken for facts, then be lost."""
    (tmp_path / ".pml").mkdir()
    facts = tmp_path / "facts.csv"
    facts.write_text(FACTS)
    with pytest.raises(UserError, match=r"facts\.csv: a file of this name is written there"):
        check_files(tmp_path, ["facts.csv"], [facts])
    check_files(tmp_path / "other", ["facts.csv"], [facts])


@pytest.mark.parametrize(
    "request_line",
    [
        ["memorize", "facts.csv", "rank=1", "train.steps=1", "out=."],
        ["memorize", "data=jsonl", "data.path=facts.csv", "rank=1", "out=."],
        ["sweep", "data=jsonl", "data.path=results.csv", "rank=1", "seqlen=all", "out=."],
        ["memft", "rank=1", "seqlen=8", "out=."],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_on_the_command_line(quick, monkeypatch, tmp_path, request_line):
    monkeypatch.chdir(tmp_path)
    for name in ("facts.csv", "results.csv"):
        (tmp_path / name).write_text(FACTS)
    done = quick(*request_line)
    assert done.returncode == 2
    assert "give another out=" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.csv", "results.csv"]
    assert (tmp_path / "facts.csv").read_text() == FACTS

"""Plain values for JSON, and files that are written whole; also tests/results/test_folder.py."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.faults import refuse_to_list
from support.markdown import ROOT

from pml_cli.io import (
    all_files,
    expand_home,
    finite_or_none,
    json_text,
    jsonable,
    listed,
    write_csv,
    write_json,
)


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float
    values: tuple[float, ...]


def test_values_become_plain():
    value = {
        1: Point(x=math.nan, values=(1.0, math.inf)),
        "array": np.array([[1.0, np.nan]]),
        "scalar": np.float64(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "path": Path("a/b"),
        "text": "nan",
        "none": None,
    }
    assert jsonable(value) == {
        "1": {"x": None, "values": [1.0, None]},
        "array": [[1.0, None]],
        "scalar": 0.5,
        "count": 3,
        "flag": True,
        "path": "a/b",
        "text": "nan",
        "none": None,
    }
    assert json.loads(json_text(jsonable(value))) == jsonable(value)


def test_numbers_keep_their_last_digit():
    value = 0.1 + 0.2
    assert json.loads(json_text(jsonable([value]))) == [value]
    assert finite_or_none(value) == value


def test_nan_is_not_written_unless_it_was_made_null(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []
    write_json(tmp_path / "x.json", jsonable({"loss": math.nan}))
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": None}


def test_no_text_of_a_table_is_a_formula(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, pd.DataFrame({"model": ["=1+1", "@x", "base"], "loss": [-1.5, 0.0, 2.0]}))
    assert path.read_text() == "model,loss\n'=1+1,-1.5\n'@x,0.0\nbase,2.0\n"


def test_the_documentation_says_how_to_take_the_mark_off_again(tmp_path):
    page = (ROOT / "outputs" / "README.md").read_text("utf-8")
    (pattern,) = re.findall(r'str\.replace\(r"(.+?)", "", regex=True\)', page)
    texts = ["-5", "@anna", "+49", "=SUM(A1)", "\tx", "'quoted'", "plain", "a-b"]
    write_csv(tmp_path / "facts.csv", pd.DataFrame({"answer": texts}))
    written = pd.read_csv(tmp_path / "facts.csv")["answer"]
    assert written.tolist() != texts
    assert written.str.replace(pattern, "", regex=True).tolist() == texts


def test_the_home_of_nobody_is_a_path_like_any_other(monkeypatch):
    assert expand_home("~nosuchuser/x") == Path("~nosuchuser/x")
    monkeypatch.setenv("HOME", "/somewhere")
    assert expand_home("~/x") == Path("/somewhere/x")


def test_a_folder_that_may_not_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("b/2.json", "b/1.json", "b/x", "b/c/3"):
        (tmp_path / name).touch()
    assert listed(tmp_path / "b", "*.json") == [tmp_path / "b/1.json", tmp_path / "b/2.json"]
    assert listed(tmp_path / "nowhere") == listed(tmp_path / "b/x") == []
    names = [path.relative_to(tmp_path).as_posix() for path in all_files(tmp_path)]
    assert names == ["b/1.json", "b/2.json", "b/c/3", "b/x"]

    refuse_to_list(monkeypatch, tmp_path / "b")
    for look in (lambda: listed(tmp_path / "b", "*.json"), lambda: all_files(tmp_path)):
        with pytest.raises(PermissionError) as caught:
            look()
        assert caught.value.filename == str(tmp_path / "b")

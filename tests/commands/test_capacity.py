"""`pml capacity` as a user runs it, and what it leaves."""

import json

import pandas as pd
import pytest
from support.sweeps import result_times

CHEAP = ("rank=2", "seqlen=4", "train.steps=20", "model.device=cpu", "--json")


def grown(quick, *arguments):
    """The one growth of a call."""
    done = quick("capacity", *arguments)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["runs"]
    return row


def test_it_grows_and_goes_on(quick, tmp_path):
    first = grown(quick, *CHEAP, "--passes", "5")
    assert first["ended"] == "budget"
    assert first["passes"] >= 5
    assert first["tokens"] == 4
    out = tmp_path / "outputs" / "capacity"
    before = result_times(out)
    assert len(before) == first["attempts"] == 1

    # With more passes it goes on from there, and nothing is trained twice.
    row = grown(quick, *CHEAP, "--passes", "30")
    assert row["ended"] == "budget"
    assert row["tokens"] > first["tokens"]
    after = result_times(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == row["attempts"]

    # The run that is named recalls what it holds, and began from another one's weights.
    result = json.loads((out / row["run"] / "result.json").read_text("utf-8"))
    tokens = pd.read_parquet(out / row["run"] / "tokens.parquet")
    last = tokens[tokens["step"] == tokens["step"].max()]
    assert last["correct"].to_numpy()[: row["tokens"]].all()
    assert "train.start=" in result["setting"]
    assert "train.start" not in row["setting"]
    for name in ("capacity.json", "capacity.csv", "capacity.png"):
        assert (out / name).is_file()
        assert f"]({name}): " in (out / "index.md").read_text("utf-8")


@pytest.mark.slow
def test_it_ends_at_the_exact_token(quick):
    row = grown(quick, *CHEAP)
    assert row["ended"] == "exact"
    assert 4 <= row["tokens"] == row["failed_at"] - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seqlen=4,8"], "error: seqlen: takes one value, the length to begin with"),
        (["seqlen=all"], "error: seqlen=all: must be a number, the length to begin with"),
        (["data=phonebook"], "error: data=phonebook: is many facts"),
        (["rank=0"], "error: rank=0: must be"),
        (["train.start=nowhere"], "error: train.start=nowhere: no such file"),
    ],
)
def test_bad_input_is_one_line(quick, tmp_path, arguments, message):
    refused = quick("capacity", *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith(message)
    assert len(refused.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing(quick, tmp_path):
    shown = quick("capacity", "rank=4,8", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "rank 8, data=random, data.seed=0, seed=0, loss=sft: begins with" in shown.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_text_that_ends_is_held_whole(quick, tmp_path):
    (tmp_path / "short.txt").write_text("A pump stands in hall 3.", "utf-8")
    text = ("data=text", "data.path=short.txt", "model.device=cpu", "rank=8", "--json")
    row = grown(quick, *text, "seqlen=12", "train.steps=60")
    assert row["ended"] == "whole text"
    assert row["failed_at"] is None

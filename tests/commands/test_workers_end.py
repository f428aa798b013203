"""Workers that end before all is trained, again and again: one line, exit code 1, no new round.

That they do is tested on a Slurm (tests/cluster); here an executor says so.
"""

import json

import pytest

import pml_cli as pml
from pml_cli.launch.executors.base import Ending
from pml_cli.launch.executors.inline import InlineExecutor

REASON = "the workers ended too early; the last line of their logs: no such Python"


@pytest.fixture(autouse=True)
def workers_give_up(tmp_path, monkeypatch):
    logs = tmp_path / "runs" / ".pml" / "logs"

    def run(self, observer, wait):
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "1.err").write_text("no such Python\n")
        return Ending.GAVE_UP

    monkeypatch.setattr(InlineExecutor, "run", run)


@pytest.mark.parametrize(
    "command", [("memorize", "facts.jsonl", "rank=1,2"), ("capacity", "rank=2")], ids=str
)
def test_a_search_ends_and_says_why(tmp_path, quick, command):
    (tmp_path / "facts.jsonl").write_text('{"question": "Which pump?", "answer": "P3"}\n')
    done = quick(*command, "out=runs", "model.device=cpu")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"error: {REASON}")
    assert len(done.stderr.splitlines()) == 1


def test_the_json_of_a_search_says_why_too(tmp_path, quick):
    (tmp_path / "facts.jsonl").write_text('{"question": "Which pump?", "answer": "P3"}\n')
    done = quick("memorize", "facts.jsonl", "out=runs", "model.device=cpu", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["reason"].startswith(REASON)


def test_a_sweep_from_python_raises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="the workers ended too early"):
        pml.sweep(rank=1, seqlen=8, out="runs", quiet=True, settings={"model.device": "cpu"})

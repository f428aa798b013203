"""A run, a checkpoint or a manifest is complete or absent, whenever its writer is killed.

The writer runs in a fork, which ends without any clean-up at its k-th access to the file system;
half of what it was writing is cut off.
"""

import json
import os
import shutil
import sys

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pml_cli.config.dump import to_yaml
from pml_cli.config.load import read_run
from pml_cli.config.schema import Run
from pml_cli.results.folder import REPLACED, RunFolder
from pml_cli.results.read import read_failures, read_runs
from pml_cli.results.samples import read_samples, write_samples
from pml_cli.training.checkpoint import Checkpoints
from pml_cli.training.trainer import TrainerState

RUN = Run(rank=3)
TABLE = pd.DataFrame({"step": [0, 1], "p": [0.5, 0.25]})
SAMPLES = [
    {
        "sample": 0,
        "turns": [],
        "prompt_ids": [1],
        "target": "a",
        "target_ids": [2],
        "decoded": None,
        "decoded_ids": None,
        "whole": True,
        "first_error": None,
    }
]
KILLED = 9
# Events of Python's audit hooks, each before the system is called.
ACCESS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def write_all(folder, tokens):
    """What a trained cell writes, in its order (launch/pack_run.py)."""
    folder.make_room(tokens)
    folder.write_text(folder.config, to_yaml(RUN))
    folder.write_json(folder.env, {"tokens": tokens, "base_weights": "w"})
    folder.write_table(folder.tokens, TABLE)
    folder.write_table(folder.curve, TABLE)
    folder.write_adapter(lambda path: (path / "weights").write_text("w" * 100))
    write_samples(folder, SAMPLES)
    folder.finish({"rank": 3, "target_tokens": 8})


def check_complete(folder, tokens):
    """Everything of a finished run is there and whole."""
    assert read_run(folder.config) == RUN
    assert json.loads(folder.env.read_text())["tokens"] == tokens
    for path in (folder.tokens, folder.curve):
        pd.testing.assert_frame_equal(pd.read_parquet(path), TABLE)
    assert (folder.adapter / "weights").read_text() == "w" * 100
    assert read_samples(folder) == SAMPLES
    assert folder.failure() is None


def killed_at(root, moment, write):
    """Call `write` in a fork that dies at its moment-th access below a folder.

    Returns:
        whether it died; False: it had ended before.
    """
    process = os.fork()
    if not process:
        try:
            _die_at(str(root), moment)
            write()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def _die_at(root, moment):
    accesses = []
    opened = []

    def hook(event, arguments):
        path = str(arguments[0]) if arguments else ""
        if event not in ACCESS or not path.startswith(root):
            return
        accesses.append(event)
        # Cutting off is an access, too.
        if len(accesses) == moment + 1:
            for last in filter(os.path.isfile, opened[-1:]):
                os.truncate(last, os.stat(last).st_size // 2)  # noqa: PTH116
            os._exit(KILLED)
        is_written = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if is_written and "/." in path:
            opened.append(path)

    sys.addaudithook(hook)


def moments(root, write, prepare=None):
    """Kill a writer at every moment in turn, from the same beginning; yields after each."""
    moment = 0
    is_killed = True
    while is_killed:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if prepare is not None:
            prepare()
        is_killed = killed_at(root, moment, write)
        yield moment
        moment += 1


def test_a_run_is_complete_or_absent_at_every_moment(tmp_path):
    root = tmp_path / "runs"
    folder = RunFolder(root, "run-0123456789")
    states = []
    for _ in moments(root, lambda: write_all(folder, "t")):
        states.append(folder.is_done("t"))
        found = read_runs([root])
        assert len(found) == folder.is_done()
        if folder.is_done():
            check_complete(folder, "t")
        # The same command again.
        write_all(folder, "t")
        assert folder.is_done("t")
        check_complete(folder, "t")
    # Absent up to the last write, and complete from there on.
    assert states == sorted(states)
    assert states.count(False) > 20


@pytest.mark.slow
def test_a_finished_run_of_other_tokens_is_kept_at_every_moment(tmp_path):
    root = tmp_path / "runs"
    folder = RunFolder(root, "run-0123456789")
    aside = RunFolder(root / REPLACED, f"{folder.id}-1")
    for _ in moments(root, lambda: write_all(folder, "new"), lambda: write_all(folder, "old")):
        kept = folder if folder.is_done("old") else aside
        assert kept.is_done("old")
        check_complete(kept, "old")
        if folder.is_done("new"):
            check_complete(folder, "new")


@pytest.mark.slow
def test_a_failure_is_told_or_not_yet_at_every_moment(tmp_path):
    root = tmp_path / "runs"
    folder = RunFolder(root, "run-0123456789")
    for _ in moments(root, lambda: folder.fail("no memory", "detail")):
        assert read_failures(root) in ({}, {folder.id: "no memory"})
        assert not folder.is_done()

    # A failed run that is trained again.
    for _ in moments(root, lambda: write_all(folder, "t"), lambda: folder.fail("no memory")):
        if folder.is_done():
            check_complete(folder, "t")


def state(step):
    tables = [pd.DataFrame({"step": [step]}), pd.DataFrame({"step": [step]})]
    tensors = {"A": torch.full((2, 3), float(step))}
    return TrainerState(
        step=step, cells=[0, 1], tensors=tensors, logged=tables, curve=tables, draws=[0, 0]
    )


def test_of_two_checkpoints_one_is_whole_at_every_moment(tmp_path):
    root = tmp_path / "runs"
    store = Checkpoints(root)
    names = ["a", "b"]

    def save(step):
        store.save(store.path(names), dict.fromkeys(names, ""), state(step), seconds=1.0)

    steps = []
    for _ in moments(root, lambda: save(2), lambda: save(1)):
        (header,) = store.find(names)
        steps.append(header.step)
        assert store.load(header, names, names) is not None
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("finished"), "run-0123456789")
    write_all(folder, "t")
    return folder


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_result_that_was_cut_off_is_none(finished, share):
    """Of another program, or of a disk that lost power."""
    content = finished.result.read_bytes()
    # Without the line end at its end it is whole.
    cut = content[: int(share * (len(content) - 1))]
    try:
        finished.result.write_bytes(cut)
        assert not finished.is_done()
    finally:
        finished.result.write_bytes(content)
    assert finished.is_done("t")

"""`pml sweep` as a user runs it, and what it leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pml_cli.cli import main

ROOT = Path(__file__).parents[2]


FEW = ("train.steps=4", "model.device=cpu")


def pml(cwd, *args):
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "COLUMNS": "100", "HOME": str(cwd)}
    env |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env |= {"PML_CACHE": os.environ["PML_CACHE"]}
    return subprocess.run(
        [sys.executable, "-m", "pml_cli", *args],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def quick(tmp_path, monkeypatch, capsys):
    """The same command line without a process of its own, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args):
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(args, ended.value.code, shown.out, shown.err)

    return call


def quick_in(folder, *args):
    """The command line in a folder, in this process; its exit code. For fixtures of a module."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(SystemExit) as ended:
            main(list(args))
    finally:
        os.chdir(before)
    return ended.value.code


def result_times(out):
    return {path.parent.name: path.stat().st_mtime_ns for path in out.rglob("result.json")}

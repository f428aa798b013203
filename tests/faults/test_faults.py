"""A few of the faults of `python -m faults`, and more of them among the slow tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT, environment

from faults.shim import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler, or not Linux")


def play(tmp_path, *options, seconds=240):
    """The last lines of a part of the rounds."""
    search_path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "faults", *options]
    done = subprocess.run(
        command,
        env=environment(PYTHONPATH=search_path, TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_disk_that_refuses_any_call_of_a_cancel(tmp_path):
    kinds = "^(EIO|EACCES while reading|ENOSPC for good)$"
    said = play(tmp_path, "--only", "^cancel$", "--kind", kinds)
    assert "found 0" in said


@pytest.mark.slow
@pytest.mark.parametrize(("command", "every"), [("sweep", 120)])
def test_faults_spread_over_a_command(tmp_path, command, every):
    said = play(
        tmp_path, "--only", f"^{command}$", "--kind", "ENOSPC$|killed", "--every", str(every)
    )
    assert "found 0" in said

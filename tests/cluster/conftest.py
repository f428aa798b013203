"""A Slurm of one machine for the tests of this folder, started by slurm.sh for each kind of site.

A test that takes `slurm` runs on a site without and on one with accounting. One that needs another
site says so:
`@pytest.mark.parametrize("site", ["sigterm"], indirect=True)`.
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SITES = {
    "plain": {},
    "accounting": {"ACCT": "1"},
    "sigterm": {"SIGNAL": "term"},  # preempts with SIGTERM alone
    "short-arrays": {"MAX_ARRAY_SIZE": "3"},
}
SBIN = os.pathsep.join(("/usr/sbin", "/sbin"))


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("cluster")


class Slurm:
    """What a test does to the running Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # logs in log/

    def control(self, verb: str, settings: dict[str, str] | None = None) -> str:
        """slurm.sh's verb; what it printed."""
        env = os.environ | {"PML_SLURM_DIR": str(self.folder)} | (settings or {})
        return _output([HERE / "slurm.sh", verb], env)

    def stop_controller(self) -> None:
        self.control("kill-ctld")

    def start_controller(self) -> None:
        self.control("start-ctld")

    def run(self, *command: object) -> str:
        """The output of one of Slurm's commands."""
        return _output(command).strip()

    def submit(self, script: str, *options: str) -> str:
        """The number of a batch job that runs these shell lines."""
        return self.run("sbatch", "--parsable", *options, "--wrap", script)

    def states(self, job: str = "") -> list[str]:
        """The state of each task of a job (of every job) that waits or runs; empty at the end."""
        return [line for chosen, line in self._queue() if not job or chosen == job]

    def tasks(self, node: str) -> list[str]:
        """The array tasks that run on a node, as JOB_INDEX."""
        return self.run(
            "squeue", "--noheader", "--array", f"--nodelist={node}", "--format=%F_%K"
        ).split()

    def _queue(self) -> list[tuple[str, str]]:
        lines = self.run("squeue", "--noheader", "--array", "--format=%F %T").splitlines()
        return [(job, state) for job, state in map(str.split, lines)]

    def wait(self, true, seconds: float = 60) -> None:
        """Until true() is."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, (
                f"not within {seconds} s; squeue:\n{self.run('squeue')}"
            )
            time.sleep(0.2)

    def cancel_all(self) -> None:
        """And wait until nothing is left of any job."""
        self.run("scancel", f"--user={os.getuid()}")
        self.wait(lambda: not self.states())


@pytest.fixture(scope="session")
def _machine():
    """The machine's one Slurm for this test run alone; another run waits for its turn."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm for the tests is started by root only")
    where = os.pathsep.join((os.environ.get("PATH", os.defpath), SBIN))
    missing = [
        name
        for name in ("slurmctld", "slurmd", "munged", "sbatch")
        if shutil.which(name, path=where) is None
    ]
    if missing:
        pytest.skip(f"no {' or '.join(missing)} here: `tests/cluster/slurm.sh install` gets Slurm")
    folder = Path(os.environ.get("PML_SLURM_DIR") or Path(tempfile.gettempdir()) / "pml-slurm")
    with Path(f"{folder}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield Slurm(folder)


@pytest.fixture(scope="session", params=["plain", "accounting"])
def site(request, _machine):
    """One kind of Slurm, started for the tests that want it and stopped after the last of them."""
    settings = SITES[request.param]
    if "ACCT" in settings and not all(
        shutil.which(name, path=SBIN) for name in ("slurmdbd", "mariadbd")
    ):
        pytest.skip("no slurmdbd or mariadbd here: `tests/cluster/slurm.sh install` gets both")
    _machine.control("stop")  # what an interrupted test run left
    with pytest.MonkeyPatch.context() as patch:
        for name in [
            n for n in os.environ if n.startswith(("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_"))
        ]:
            patch.delenv(name)  # of a job that the tests run in
        try:
            _machine.control("start", settings)
            for name, value in _exports(_machine.control("env")).items():
                patch.setenv(name, value)
            yield _machine
        finally:
            _machine.control("stop")


@pytest.fixture
def slurm(site):
    """The running Slurm, without jobs before and after the test."""
    yield site
    site.start_controller()  # where a test has stopped it
    site.cancel_all()


def _output(command: Sequence[object], env: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def _exports(script: str) -> dict[str, str]:
    """The variables of `export NAME=VALUE` lines."""
    return dict(word.split("=", 1) for word in shlex.split(script) if "=" in word)

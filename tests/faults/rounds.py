"""A command with a fault, in a fork of this process that has imported everything; then without."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.commands import Command
from faults.oracle import (
    Outcome,
    complaints,
    contents,
    differences,
    is_told,
    litter,
    names,
    settled,
)
from faults.shim import NO_FAULT, NO_FAULT_READING, Fault, arm, traced
from pml_cli import commands
from pml_cli.launch.liveness import process_identity

MAX_SECONDS = 150


def import_everything(*, light: bool = False) -> None:
    """What a fork then has: a round takes a second instead of ten.

    Args:
        light: without torch.
    """
    from pml_cli.commands import status  # noqa: F401
    from pml_cli.launch.worker_import import import_trainer

    if light:
        return
    import_trainer()
    for path in Path(commands.__file__).parent.glob("[a-z]*.py"):
        importlib.import_module(f"{commands.__name__}.{path.stem}")


class Rounds:
    """All rounds of one command.

    Attributes:
        code: of the undisturbed command.
        said: by it.
        calls: of an undisturbed command that change a file: `4 rename /path`.
        all_calls: those that only read a file included.
        reference: what it leaves.
        names: of all that it leaves, pml's own files included.
    """

    def __init__(self, command: Command, place: Path) -> None:
        self.command = command
        self.place = place
        folder = self._laid_out("undisturbed")
        undisturbed = self._run(folder, NO_FAULT)
        assert undisturbed.code in (0, 1), undisturbed.said
        self.code, self.said = undisturbed.code, undisturbed.said
        self.calls = traced(self._state(folder))
        self.reference, self.names = contents(folder), names(folder)

        folder = self._laid_out("undisturbed")
        assert self._run(folder, NO_FAULT_READING).code == self.code
        self.all_calls = traced(self._state(folder))

    def play(self, fault: Fault) -> list[str]:
        """What is wrong with a command that meets a fault, and with the same one after it."""
        folder = self._laid_out("round")
        killed = fault.name == "killed"
        # What could not be removed is left over.
        is_removal = re.search(" (unlink|rmdir) ", self.call(fault)) is not None
        stays = killed or fault.for_good or is_removal
        outcome = self._run(folder, fault)
        faults = complaints(outcome, folder, killed=killed, tidy=not stays)

        if fault.reads and outcome.code == self.code:
            faults += self._told_nothing(outcome, folder, fault)

        again = self._run(folder, NO_FAULT)
        if again.code != self.code:
            faults.append(f"again: exit code {again.code}: {again.said.strip()[-300:]}")
        try:
            faults += [f"again: {line}" for line in differences(folder, self.reference)]
        except Exception as error:
            faults.append(f"again: not whole: {error}")
        faults += [f"again: left over: {name}" for name in litter(folder, large=stays)]
        if faults:
            faults.append(f"said: {outcome.said.strip()[-400:]!r}")
        return faults

    def _told_nothing(self, outcome: Outcome, folder: Path, fault: Fault) -> list[str]:
        """Where a command that could not read something gives other results without a word."""
        if is_told(outcome.said, fault):
            return []
        missed = differences(folder, self.reference)
        # What these do is said, and noted among pml's own files.
        if self.command.light:
            missed += ["says something else"] if settled(outcome.said) != settled(self.said) else []
            missed += [f"not noted: {name}" for name in sorted(self.names - names(folder))]
        return [f"without a word: {line}" for line in missed]

    def call(self, fault: Fault) -> str:
        """The call that fails."""
        return (self.all_calls if fault.reads else self.calls)[fault.at - 1]

    def _laid_out(self, name: str) -> Path:
        folder = self.place / name
        for path in (folder, self._state(folder)):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        self.command.before(folder)
        return folder

    def _state(self, folder: Path) -> Path:
        return folder.with_name(f"{folder.name}.state")

    def _run(self, folder: Path, fault: Fault) -> Outcome:
        state = self._state(folder)
        process = forked(
            self.command.argv, folder, output=state / "output", state=state, fault=fault
        )
        code = process.wait(MAX_SECONDS)
        return Outcome(code=code, said=(state / "output").read_bytes().decode("utf-8", "replace"))


@dataclass(frozen=True, kw_only=True)
class Process:
    """A fork that has a session of its own, which its children share."""

    pid: int

    def wait(self, seconds: float = MAX_SECONDS) -> int | None:
        """Its exit code; None where it had to be killed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        self.kill()
        return None

    def kill(self) -> None:
        """SIGKILL, for it and its children."""
        # Right after the fork it may have no session yet.
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def forked(
    argv: Sequence[str],
    folder: Path,
    *,
    output: Path | None = None,
    state: Path | None = None,
    fault: Fault | None = None,
) -> Process:
    """Start a command line in a fork of this process.

    Args:
        argv: the command line.
        folder: to run it in; made where it is missing.
        output: takes what it prints; None: dropped.
        state: for the library that makes calls fail.
        fault: what is to fail; None: that library is not used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if not pid:
        _become(argv, folder, output, state, fault)
    return Process(pid=pid)


def _become(
    argv: Sequence[str], folder: Path, output: Path | None, state: Path | None, fault: Fault | None
) -> None:
    """Be the command line; never returns."""
    code: Any = 1
    try:
        os.setsid()
        written = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        os.chdir(folder)
        os.environ |= {"COLUMNS": "100", "PML_CACHE": str(folder / "cache")}
        # What a folder begins with was trained by the process that is forked.
        process_identity.cache_clear()
        if state is not None and fault is not None:
            arm(folder, state, fault)
        code = _exit_code(list(argv))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _exit_code(argv: list[str]) -> int:
    from pml_cli.cli import main

    try:
        main(argv)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    return 1

"""A case in a fork of this process: as fast as a call, and as alone as a process of its own."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from catalogue.case import Case, Outcome, complaints, contents
from catalogue.folders import copy_base, warm_up

MAX_SECONDS = 40
MAX_MEMORY = 12 * 2**30


def run(case: Case, folder: Path) -> Outcome:
    """Lay a folder out, damage it and run the command line in it."""
    folder.mkdir(parents=True)
    output = folder.with_name(f"{folder.name}.output")
    copy_base(case.base, folder)
    if case.change is not None:
        case.change(folder)

    before = contents(folder)
    process = os.fork()
    if not process:
        _become(case, folder, output)
    code = _wait(process)

    said = output.read_bytes().decode("utf-8", "replace")
    return Outcome(code=code, said=said, before=before, after=contents(folder))


def examine(case: Case, folder: Path) -> tuple[list[str], str]:
    """What is wrong with what pml made of a case, and what it said; the folder is removed."""
    warm_up(case.argv[0])
    outcome = run(case, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return complaints(case, outcome), outcome.said


def failures(cases: Iterable[Case], folder: Path) -> list[str]:
    """A line for each case that is not handled well."""
    lines = []
    for number, case in enumerate(cases):
        faults, _ = examine(case, folder / f"{number:04d}")
        if faults:
            lines.append(f"{case}: {'; '.join(faults)}  $ {case.command}")
    return lines


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """So many of the cases, evenly."""
    step = max(1, -(-len(cases) // count))
    return list(cases[::step])


def _wait(process: int) -> int | None:
    """The exit code; None where the process had to be killed."""
    deadline = time.monotonic() + MAX_SECONDS
    pause = 0.005
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)

    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def _become(case: Case, folder: Path, output: Path) -> None:
    """Be the command line; never returns."""
    code = 1
    try:
        _prepare(case, folder, output)
        code = _exit_code(list(case.argv))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _prepare(case: Case, folder: Path, output: Path) -> None:
    """Output, folder, environment and limits of the new process."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)

    os.chdir(folder)
    os.environ["COLUMNS"] = "100"
    # Whoever runs the tests may have a cache of measured speeds.
    os.environ["PML_CACHE"] = str(folder.parent / "cache")
    os.environ.update({name: text.replace("@", str(folder)) for name, text in case.env})


def _exit_code(argv: list[str]) -> int:
    from pml_cli.cli import main

    try:
        main(argv)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    return 1

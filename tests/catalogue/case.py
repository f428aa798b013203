"""One wrong input, and the verdict on what pml made of it.

A case is handled well when the exit code is one that is documented for it, there is no traceback,
the output is short where the input is refused, it names the culprit, nothing is written where it is
refused, and nothing is half-written wherever it is.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_LINES = 6
# Of a line; longer ones are cut (`errors.cut_line`).
MAX_LETTERS = 1100
TEMPORARY = re.compile(r"(^|/)\.(?!pml$|pml/)[^/]*\.[0-9a-f]{8}$")
# Created by the code that some inputs carry.
TRACE_OF_CODE = "CODE_WAS_RUN"

Change = Callable[[Path], object]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One wrong input.

    Attributes:
        door: what is read: `result.json`, `command line`.
        name: unique within the door.
        argv: the command line.
        base: what the folder holds at first, one of `folders.BASES`; empty: nothing.
        change: damages the folder.
        codes: exit codes that are right.
        says: regular expression for the output where the input is refused.
        always: whether it also has to match where the command goes on.
        writes: whether a refusal may leave something: other results were kept.
        env: environment variables that differ.
    """

    door: str
    name: str
    argv: tuple[str, ...]
    base: str = ""
    change: Change | None = None
    codes: tuple[int, ...] = (2,)
    says: str = ""
    always: bool = False
    writes: bool = False
    env: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.door}: {self.name}"

    @property
    def command(self) -> str:
        """The command line, without the end of a long one."""
        return f"pml {' '.join(self.argv)[:120]}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What pml made of a case; `code` is None where it did not end in time."""

    code: int | None
    said: str
    before: dict[str, tuple[int, int, int]]
    after: dict[str, tuple[int, int, int]]


def contents(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Type, size and time of everything in a folder, by relative path."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            status = path.lstat()
            is_file = stat.S_ISREG(status.st_mode)
            size = status.st_size if is_file else 0
            time = status.st_mtime_ns if is_file else 0
            found[str(path.relative_to(folder))] = (stat.S_IFMT(status.st_mode), size, time)

    return found


def complaints(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome; nothing where the case was handled well."""
    if outcome.code is None:
        return ["does not end"]

    said = outcome.said
    faults = []
    if outcome.code not in case.codes:
        faults.append(f"exit code {outcome.code}, not {' or '.join(map(str, case.codes))}")
    if "Traceback (most recent call last)" in said or "Exception ignored" in said:
        return [*faults, f"traceback: {said.strip().splitlines()[-1][:200]}"]
    if "\x1b" in said:
        faults.append("an escape sequence of the input reaches the terminal")

    faults += _refusal_faults(case, outcome) if outcome.code == 2 else []
    is_silent = outcome.code == 0 and not case.always
    if case.says and not is_silent and not re.search(case.says, said, re.IGNORECASE | re.DOTALL):
        faults.append(f"does not say {case.says!r}")
    return faults + _litter(outcome)


def _refusal_faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with a refusal: its length, and what it has written."""
    faults = []
    lines = [line for line in outcome.said.splitlines() if line.strip()]
    if len(lines) > MAX_LINES:
        faults.append(f"{len(lines)} lines")
    longest = max(map(len, lines), default=0)
    if longest > MAX_LETTERS:
        faults.append(f"a line of {longest} letters")

    changed = set(outcome.before.items()) ^ set(outcome.after.items())
    if changed and not case.writes:
        names = sorted({name for name, _ in changed})
        faults.append(f"written: {', '.join(names[:4])}")
    return faults


def _litter(outcome: Outcome) -> list[str]:
    """Half-written files, and traces of code that was run."""
    new = sorted(outcome.after.keys() - outcome.before.keys())
    half = [name for name in new if TEMPORARY.search(name)]
    faults = [f"half-written: {', '.join(half[:4])}"] if half else []
    if any(name.endswith(TRACE_OF_CODE) for name in new):
        faults.append("code of the input was run")
    return faults

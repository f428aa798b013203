"""A library that makes system calls fail, loaded into a process by LD_PRELOAD."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("fail.c")
KILLED = 0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to the N-th call that changes something below a folder.

    Attributes:
        name: of the error, such as ENOSPC; `killed`: SIGKILL in place of an error.
        at: the number of the call, from 1; 0: none fails.
        for_good: whether every later call fails too, those that only read included.
        reads: whether calls that only read count and fail, too.
    """

    name: str
    at: int
    for_good: bool = False
    reads: bool = False

    @property
    def number(self) -> int:
        """The error number; 0: the process is killed."""
        return KILLED if self.name == "killed" else getattr(errno, self.name)

    def __str__(self) -> str:
        return f"{self.kind} at call {self.at}"

    @property
    def kind(self) -> str:
        """The error, and whether it lasts, or is about reading."""
        lasts = " for good" if self.for_good else ""
        return f"{self.name}{lasts}{' while reading' if self.reads else ''}"


NO_FAULT = Fault(name="killed", at=0)
NO_FAULT_READING = Fault(name="killed", at=0, reads=True)


def compiler() -> str | None:
    """A C compiler of this machine, on Linux."""
    return shutil.which("cc") if sys.platform == "linux" else None


def build(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "fail.so"
    flags = ["-shared", "-fPIC", "-O1", "-w"]
    subprocess.run([str(compiler()), *flags, "-o", library, SOURCE, "-ldl"], check=True)
    return library


def loaded() -> str:
    """The library in this process; empty: it was started without it."""
    return os.environ.get("LD_PRELOAD", "")


def arm(below: Path, state: Path, fault: Fault) -> None:
    """Tell the library of this process, and those it will start, what is to fail.

    Args:
        below: the folder whose files are concerned.
        state: a folder for the count of calls and their trace, outside of `below`.
        fault: what is to fail.
    """
    counter = state / "calls"
    counter.write_bytes(bytes(8))
    os.environ |= {
        "FAIL_BELOW": str(below),
        "FAIL_COUNTER": str(counter),
        "FAIL_TRACE": str(state / "trace"),
        "FAIL_AT": str(fault.at),
        "FAIL_ERRNO": str(fault.number),
        "FAIL_FOR_GOOD": str(int(fault.for_good)),
        "FAIL_READS": str(int(fault.reads)),
    }
    ctypes.CDLL(loaded()).fail_arm()


def traced(state: Path) -> list[str]:
    """The calls so far: `4 rename /path`."""
    trace = state / "trace"
    return trace.read_text("utf-8", "replace").splitlines() if trace.exists() else []

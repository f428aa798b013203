"""What an input must not do: raise anything but UserError, hang, eat memory, write elsewhere, or
bring a number that is none into a result.

Of each kind of fault (its exception, and the innermost line of pml) the first is kept, made small.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pml_cli.errors import UserError

MAX_SECONDS = 20
MAX_GROWTH = 2**30
MAX_LINE = 1500
SHRINKING_TRIES = 300
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.symlink")

Read = Callable[[Path, bytes], Any]


class HangError(BaseException):
    """An input took longer than MAX_SECONDS of computing."""


class NotRefusedError(Exception):
    """An input was accepted, or refused, in a way that is not allowed; the message says in what."""


class Oracle:
    """Reads inputs one by one, counts them, and keeps one of each kind of fault.

    Attributes:
        executions, refused, accepted: how many.
        faults: of each kind, its traceback.
    """

    def __init__(self, read: Read, folder: Path, kept: Path) -> None:
        """
        Args:
            read: of the target.
            folder: where inputs are put; the one place that may be written.
            kept: where inputs with a fault are kept.
        """
        self.read = read
        self.folder = folder
        self.kept = kept
        self.executions = self.refused = self.accepted = 0
        self.faults: dict[str, str] = {}
        self._outside: list[str] = []
        self._reading = False
        sys.addaudithook(self._look)
        signal.signal(signal.SIGVTALRM, self._hang)

    def run(self, data: bytes) -> None:
        """Read one input."""
        self.executions += 1
        kind, detail = self._verdict(data)
        if kind == "refused":
            self.refused += 1
        elif kind == "accepted":
            self.accepted += 1
        elif kind not in self.faults:
            self.faults[kind] = detail
            self._keep(kind, self._smallest(data, kind))

    def _verdict(self, data: bytes) -> tuple[str, str]:
        """refused, accepted, or the kind of fault with its traceback."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._outside.clear()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
        self._reading = True
        try:
            result = self.read(self.folder, data)
            _check_finite(result)
            verdict = ("accepted", "")
        except UserError as error:
            verdict = _refusal_verdict(error)
        except (Exception, HangError) as error:
            verdict = (_kind(error), traceback.format_exc())
        finally:
            self._reading = False
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            shutil.rmtree(self.folder, ignore_errors=True)

        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
        if grown > MAX_GROWTH:
            gc.collect()
            return ("memory", f"{grown / 2**30:.1f} GiB")
        if self._outside:
            return (f"writes outside: {self._outside[0]}", "\n".join(self._outside))
        return verdict

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Audit hook: note whatever is written outside of the folder."""
        if not self._reading or event not in ("open", *WRITES):
            return
        path = str(arguments[0])
        is_ours = path.startswith((str(self.folder), "/dev/null", os.environ["PML_CACHE"]))
        # A number is a file that is open already.
        if not is_ours and not path.isdigit() and (event != "open" or _is_writing(*arguments)):
            self._outside.append(f"{event} {path}")

    def _hang(self, _signal: int, _frame: Any) -> None:
        raise HangError

    def _smallest(self, data: bytes, kind: str) -> bytes:
        """A smaller input of the same kind of fault."""
        smallest = data
        tries = 0
        is_smaller = "HangError" not in kind
        while is_smaller and tries < SHRINKING_TRIES:
            is_smaller = False
            for smaller in _smaller(smallest):
                tries += 1
                is_smaller = len(smaller) < len(smallest) and self._verdict(smaller)[0] == kind
                if is_smaller:
                    smallest = smaller
                if is_smaller or tries >= SHRINKING_TRIES:
                    break
        return smallest

    def _keep(self, kind: str, data: bytes) -> None:
        self.kept.mkdir(parents=True, exist_ok=True)
        stem = "".join(letter if letter.isalnum() else "-" for letter in kind)[:100]
        (self.kept / f"{stem}.input").write_bytes(data)
        (self.kept / f"{stem}.txt").write_text(self.faults[kind], errors="backslashreplace")


def _refusal_verdict(error: UserError) -> tuple[str, str]:
    """Whether a refusal is one that a user can read."""
    lines = str(error).splitlines()
    if not lines or not all(line.strip() for line in lines):
        return ("an empty line of an error", repr(str(error)))
    if max(map(len, lines)) > MAX_LINE or len(lines) > 12:
        return (f"a long error, {_kind(error)}", str(error))
    return ("refused", "")


def _is_writing(_path: Any, mode: str | None, flags: int) -> bool:
    """Whether the arguments of an `open` event ask for more than reading."""
    if mode is None:
        return bool(flags & (os.O_WRONLY | os.O_RDWR))
    return not set("wax+").isdisjoint(mode)


def _kind(error: BaseException) -> str:
    """The exception and the innermost line of pml."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/pml_cli/" in frame.filename] or list(frames)
    frame = ours[-1]
    name = frame.filename.rpartition("/pml_cli/")[2]
    return f"{type(error).__name__} {name}:{frame.lineno}"


def _check_finite(value: Any) -> None:
    """Refuse numbers that are none, anywhere in a result."""
    if isinstance(value, float) and not math.isfinite(value):
        raise NotRefusedError(f"{value} in a result")
    if isinstance(value, Mapping):
        for inner in value.values():
            _check_finite(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_finite(inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _check_finite(vars(value))


def _smaller(data: bytes) -> Iterator[bytes]:
    """Smaller inputs: of JSON without a field or an entry each, of bytes without a part."""
    try:
        paths = _paths(json.loads(data))
    except (ValueError, RecursionError):
        step = len(data) // 2
        while step:
            for begin in range(0, len(data), step):
                yield data[:begin] + data[begin + step :]
            step //= 4
        return

    # Outer values first: most of a tree has nothing to do with a fault.
    for path in paths:
        pruned = json.loads(data)
        inner = pruned
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        yield json.dumps(pruned).encode()


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs: Any = ()
    if isinstance(tree, dict):
        pairs = list(tree.items())
    elif isinstance(tree, list):
        pairs = list(enumerate(tree))
    below = [found for key, inner in pairs for found in _paths(inner, (*path, key))]
    return [(*path, key) for key, _ in pairs] + below

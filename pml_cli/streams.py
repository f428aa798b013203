"""Standard output and error that end no work: a disk that is full, a reader that has gone."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class GuardedStream:
    """A stream that drops what it is given once it was refused.

    Attributes:
        refused: the first refusal; None: there was none.
    """

    def __init__(self, stream: TextIO) -> None:
        self.refused: OSError | None = None
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, unless that was refused before."""
        try:
            if self.refused is None:
                self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush, unless that was refused before."""
        try:
            if self.refused is None:
                self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.refused = error
        # Python flushes what is left when it ends, and complains where that is refused too.
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def forget_no_size() -> None:
    """Take COLUMNS and LINES out of the environment where they are no size.

    Some terminals without a size give 0, with which nothing at all would be printed.
    """
    for name in ("COLUMNS", "LINES"):
        value = os.environ.get(name)
        if value is not None and not re.fullmatch("0*[1-9][0-9]{0,5}", value):
            del os.environ[name]


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Within the block `sys.stdout` and `sys.stderr` raise no OSError."""
    before = sys.stdout, sys.stderr
    # None: they were closed when Python started.
    if sys.stdout is not None:
        sys.stdout = GuardedStream(sys.stdout)
    if sys.stderr is not None:
        sys.stderr = GuardedStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def lost_output() -> str | None:
    """Why standard output is not whole; None: it is, or its reader has left, as `head` does."""
    if not isinstance(sys.stdout, GuardedStream):
        return None
    sys.stdout.flush()
    refused = sys.stdout.refused
    if refused is None or refused.errno == errno.EPIPE:
        return None
    return f"standard output: {refused.strerror}"

"""A time after which what this process trains, or has started workers for, saves and ends.

It ends as by `pml cancel`, but for other processes of the folder, which go on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pml_cli.launch.lease import cancel_processes
from pml_cli.launch.liveness import living_processes, process_identity

# Seconds between two looks, once the time is over: a training may begin just then.
LOOK_SECONDS = 1.0


class TimeLimit:
    """The time that is left.

    Attributes:
        seconds: of the limit; None: there is none.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._started = time.monotonic()

    @property
    def left(self) -> float | None:
        """Seconds left, at least 0; None: there is no limit."""
        if self.seconds is None:
            return None
        return max(0.0, self._started + self.seconds - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether no training may begin any more."""
        return self.left == 0.0


@contextmanager
def time_limit(out: Path, seconds: float | None) -> Iterator[TimeLimit]:
    """Within it, what trains in a folder for this process ends once the time is over.

    Args:
        out: the results folder.
        seconds: None: no limit.
    """
    limit = TimeLimit(seconds)
    if seconds is None:
        yield limit
        return

    left_block = threading.Event()

    def watch() -> None:
        left_block.wait(limit.left)
        while not left_block.is_set():
            _cancel_own(out)
            left_block.wait(LOOK_SECONDS)

    thread = threading.Thread(target=watch, daemon=True, name="pml time limit")
    thread.start()
    try:
        yield limit
    finally:
        left_block.set()
        thread.join()


def _cancel_own(out: Path) -> None:
    """Ask this process, and the workers of its launch, to save a checkpoint and end."""
    place = process_identity()["place"]
    for record in living_processes(out):
        if (record.get("place"), record["pid"]) == (place, os.getpid()):
            names = [record["name"], record.get("launch")]
            cancel_processes(out, filter(None, names))

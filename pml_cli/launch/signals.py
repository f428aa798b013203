"""Signals to a process that trains, obeyed between two training steps.

SIGINT, SIGHUP   save a checkpoint and end
SIGTERM          the same; on Slurm save a checkpoint and go on, because a job that ends by itself
                 is not requeued, and the SIGKILL that follows then costs nothing
SIGUSR2          on Slurm save a checkpoint, end, and requeue the job; elsewhere save one and go on
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Why a process ends whose cells another one has taken over.
FENCED = (
    "another worker considered this process dead (no sign of life) and took over its cells; "
    "run the command again"
)


class Stopped(BaseException):
    """Training was asked to end; everything needed to resume is on disk.

    Attributes:
        signum: the signal that asked for it; None: `pml cancel`, a takeover or a failed cell.
    """

    def __init__(self, reason: str, signum: int | None = None) -> None:
        super().__init__(reason)
        self.signum = signum


class Signals:
    """While entered, turns signals into requests that the training loop looks at between steps.

    Outside of the training loop requests are not polled for a long time. There, a signal that ends
    the process raises `Stopped` at once.

    Attributes:
        save_requested: a checkpoint is wanted.
        stop: to be raised once that checkpoint is written, by whoever waits in a loop; None: the
            work goes on.
        training: set while the training loop looks at the two above, or writes results.
    """

    def __init__(self, on_slurm: bool = False) -> None:
        self.save_requested = False
        self.stop: Stopped | None = None
        self.training = False
        self._on_slurm = on_slurm
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Python allows handlers in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                # nohup wants SIGHUP to stay ignored
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.save_requested = True
        checkpoint_only = signal.SIGTERM if self._on_slurm else signal.SIGUSR2
        if number == checkpoint_only:
            return

        stopped = Stopped(signal.Signals(number).name, number)
        is_second = self.stop is not None
        # Kept in any case: an exception that hits the callbacks of an import is swallowed.
        self.stop = stopped
        # The second request does not wait for the end of a step that may never come.
        if is_second or not self.training:
            raise stopped


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Deliver SIGINT, SIGTERM and SIGHUP at the end of the block.

    An import that is interrupted swallows the signal or leaves modules half initialised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    previous = {}
    for number in DEFERRED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

    # One is enough: whatever arrived first says how this process ends.
    if received:
        signal.raise_signal(received[0])

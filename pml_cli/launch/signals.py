"""Signals: what the outside asks of a process that trains, obeyed between two steps.

SIGINT, SIGHUP and, outside Slurm, SIGTERM: keep a checkpoint and end. SIGUSR2: on Slurm, keep a checkpoint, go back to the
queue and end; elsewhere keep one and go on. SIGTERM on Slurm: keep a checkpoint and go on, since a job that ends by itself
is not requeued, and the kill that follows takes nothing then.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Stopped(BaseException):
    """Training was asked to end; all that is needed to go on is on disk."""

    def __init__(self, reason: str, signum: int | None = None) -> None:
        super().__init__(reason)
        self.signum = signum


class Signals:
    """Turns signals into requests while inside. Outside of the training loop SIGINT and SIGTERM end the process at once."""

    def __init__(self, slurm: bool = False) -> None:
        self.save = False  # a checkpoint is wanted
        self.end: Stopped | None = None  # to be raised after it
        self.training = (
            False  # between two steps requests are looked at; elsewhere they would wait for long
        )
        self._slurm = slurm
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup wants it ignored
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.save = True
        going_on = number == signal.SIGTERM if self._slurm else number == signal.SIGUSR2
        if going_on:
            return
        stopped = Stopped(signal.Signals(number).name, number)
        if self.end is not None or not self.training:
            raise stopped
        self.end = stopped

    def requeue(self, frame: FrameType | None = None) -> None:
        """Hand SIGUSR2 on to whoever handled it before (submitit: back to the queue, and end)."""
        handler: Callable[[int, FrameType | None], Any] | Any = self._before.get(signal.SIGUSR2)
        if callable(handler):
            handler(signal.SIGUSR2, frame)


@contextmanager
def held_back() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP wait until the end of this: interrupted imports swallow them or leave modules half made."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = [
        n
        for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(n) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def import_worker() -> None:
    """Import torch, transformers and the modules that train, which takes seconds."""
    with held_back():
        importlib.import_module("pml_cli.launch.worker")
        transformers = importlib.import_module("transformers")
        for lazy in ("AutoModelForCausalLM", "AutoConfig"):  # else imported when a model is loaded
            getattr(transformers, lazy)

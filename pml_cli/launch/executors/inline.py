"""`launch=inline`: train in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pml_cli.config.registry import register
from pml_cli.config.schema import Launch, Run
from pml_cli.launch.executors.base import Ending, Executor, SweepJob
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.signals import Stopped


@register("launch", "inline")
@dataclass(kw_only=True)
class InlineLaunch(Launch):
    """This process."""

    kind: str = "inline"

    def visible_devices(self, runs: Sequence[Run]) -> list[str | None]:
        return [None]

    def executor(self, job: SweepJob) -> InlineExecutor:
        return InlineExecutor(job, self)


class InlineExecutor(Executor):
    """Trains in this process."""

    def __init__(self, job: SweepJob, settings: InlineLaunch) -> None:
        super().__init__(job)
        self.settings = settings

    def run(self, observer: RunObserver, *, wait: bool) -> Ending:
        # It plans packs and with that imports numpy, which the help does without.
        from pml_cli.launch.worker import train_here

        train_here(
            self.job.out,
            self.job.packs,
            self.settings,
            observer,
            sweep=self.job.manifest.key,
            wait=wait,
            fail_fast=self.job.fail_fast,
        )
        return Ending.COMPLETE

    def interrupted(self, stopped: Stopped) -> str:
        return "interrupted; the same command goes on with what is missing"

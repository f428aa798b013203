"""One attempt to train cells together: checkpoints between steps, the run folders of its cells."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pml_cli.config.dump import to_yaml
from pml_cli.data.cell import CellPlan
from pml_cli.data.opened import tokens_hash
from pml_cli.errors import UserError
from pml_cli.evaluation.adapter_readme import README_FILE, adapter_readme
from pml_cli.evaluation.result import ExtraMeasures, extra_measures, result_of
from pml_cli.evaluation.samples import sample_rows
from pml_cli.io import write_text
from pml_cli.launch.pack import Pack
from pml_cli.launch.signals import FENCED, Stopped
from pml_cli.launch.throughput import Throughput, torch_device_label
from pml_cli.model.gguf import base_path
from pml_cli.model.read_back import loading_of
from pml_cli.model.split_model import SplitModel
from pml_cli.results.folder import RunFolder
from pml_cli.results.samples import write_samples
from pml_cli.training.trainer import (
    Cell,
    StepReport,
    Trainer,
    TrainerState,
    TrainingObserver,
)

if TYPE_CHECKING:
    from pml_cli.launch.pack_trainer import PackTrainer


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Cells to train together.

    Attributes:
        pack: the cells that the pack is built with.
        cells: those of them to train; fewer than the pack only when resuming.
        state: the checkpoint to resume from; None: from the start.
        seconds: spent on each cell before.
        checkpoint: the file of that state, where nothing but these cells is in it.
    """

    pack: list[CellPlan]
    cells: list[CellPlan]
    state: TrainerState | None = None
    seconds: float = 0.0
    checkpoint: Path | None = None

    @property
    def first_step(self) -> int:
        """Number of steps done before."""
        return self.state.step if self.state else 0


class UnusableModelError(Exception):
    """A model that does not load, lacks the modules to adapt, or is not supported; one line."""


@contextmanager
def model_faults() -> Iterator[None]:
    """Turn what is wrong with a model into an UnusableModelError.

    Files that cannot be read here stay a UserError: perhaps this machine alone lacks them, and
    another worker is to try.
    """
    try:
        yield
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise UnusableModelError("; ".join(str(error).splitlines())) from error


class PackRun(TrainingObserver):
    """One attempt on a loaded base model, as the trainer's observer.

    Args:
        owner: whose lease, signals, checkpoints and observer are used.
        attempt: the cells.
        base: their model.

    Raises:
        UnusableModelError: the split forward pass of the model differs from its own.
    """

    def __init__(self, owner: PackTrainer, attempt: Attempt, base: SplitModel) -> None:
        self.owner = owner
        self.lease = owner.lease
        self.signals = owner.signals
        self.attempt = attempt
        self.base = base
        self.checkpoint = owner.checkpoint_path(attempt)

        self.cells: list[Cell] = []
        self._plans: dict[int, CellPlan] = {}
        for plan in attempt.pack:
            cell = Cell(run=plan.run, samples=plan.samples)
            self.cells.append(cell)
            self._plans[id(cell)] = plan

        self._started = time.perf_counter()
        self._last_save = time.monotonic()
        self._announce()
        with model_faults():
            checkpointing = Pack(cells=attempt.pack).checkpointing
            self.trainer = Trainer(base, self.cells, self, checkpointing=checkpointing)
        self.loading = loading_of(base, self.trainer.pack.bank)

    def _announce(self) -> None:
        """Tell `pml status` and the journal what is trained."""
        names = [cell.id for cell in self.attempt.cells]
        step = self.attempt.first_step
        self.lease.activity = {
            "names": names,
            "since": time.time(),
            "step": step,
            "cells": len(names),
            "steps": self.attempt.pack[0].steps,
            "first": step,
        }
        self.lease.log_event("start", cells=names, step=step)

    def train(self) -> None:
        """Train to the end; the folder of each cell is written when it ends.

        Raises:
            Stopped: asked to end; a checkpoint is on disk, or all cells have ended.
        """
        self.signals.training = True
        try:
            self.trainer.train(self.attempt.state)
        finally:
            self.signals.training = False
            # They hold each other, and so the pack's memory until Python looks for circles.
            self.trainer.observer = TrainingObserver()

        # After a takeover the checkpoint belongs to the successor.
        if not self.lease.check_fenced():
            self.checkpoint.unlink(missing_ok=True)
        # A signal that came while the last results were written; no step has looked at it.
        stop = self.signals.stop
        if stop is not None and stop.signum is not None:
            raise stop
        self._record_throughput()

    def _record_throughput(self) -> None:
        """Remember how fast the pack was trained, if it was trained whole and undisturbed."""
        pack = Pack(cells=self.attempt.pack)
        steps = pack.cells[0].steps
        for cell in self.cells:
            if cell.failure is not None or cell.steps_run < steps:
                return
        # The steps before a checkpoint were timed on another machine, perhaps.
        if self.attempt.state is not None:
            return
        # The rates are those of plain layers, without the time of compiling.
        model = pack.cells[0].run.model
        if model.compile:
            return

        device = torch_device_label(self.base.device)
        seconds = time.perf_counter() - self._started
        Throughput().record(device, model.dtype, model.name, pack, seconds)

    def _seconds_per_cell(self) -> float:
        elapsed = time.perf_counter() - self._started
        return self.attempt.seconds + elapsed / len(self.attempt.cells)

    # -- called by the trainer

    def before_step(self, step: int) -> None:
        """Save a checkpoint where one is due, and end where that was requested.

        Args:
            step: number of steps done.

        Raises:
            Stopped: asked to end, or another process took over.
        """
        self.lease.activity["step"] = step
        if self.lease.cancelled and self.signals.stop is None:
            self.signals.stop = Stopped("cancelled")

        # Read once: a signal that comes later is for the next step.
        stop = self.signals.stop
        save_requested = self.signals.save_requested
        is_due = stop is not None or save_requested or self._is_checkpoint_due()
        if self.lease.fenced or (is_due and self.lease.check_fenced()):
            raise Stopped(FENCED)

        # Right after the start, or after resuming, there is nothing new to save.
        if is_due and step > self.attempt.first_step:
            self._save(step)

        if save_requested:
            self.signals.save_requested = False
        if stop is not None:
            raise stop

    def _is_checkpoint_due(self) -> bool:
        return time.monotonic() - self._last_save >= self.owner.checkpoint_seconds

    def _save(self, step: int) -> None:
        hashes = {cell.id: cell.tokens_hash for cell in self.attempt.pack}
        state = self.trainer.state(step)
        seconds = self._seconds_per_cell() * len(hashes)
        self.owner.checkpoints.save(self.checkpoint, hashes, state, seconds)

        self.lease.log_event("checkpoint", step=step)
        self._last_save = time.monotonic()

    def on_logged_step(self, report: StepReport) -> None:
        """Pass a logged step on to the observer of the sweep."""
        self.owner.observer.step_logged(report)

    def on_finished(self, cells: list[Cell]) -> None:
        """Measure cells that have ended, write their folders and report them."""
        # Decoding takes long and looks at no request: meanwhile a signal ends the process at once.
        self.signals.training = False
        measures = extra_measures(self.base, cells)
        # From here on it waits for all results: one that is written is also reported.
        self.signals.training = True
        spent = {"seconds": self._seconds_per_cell(), "pack_size": len(self.attempt.pack)}

        for cell, measured in zip(cells, measures, strict=True):
            plan = self._plans[id(cell)]
            # After a takeover the successor writes the folder.
            if self.lease.holds(plan.id):
                self._write(plan, cell, measured, spent)
                self.owner.end_cell(plan, cell.failure)

    def _write(
        self,
        plan: CellPlan,
        cell: Cell,
        measured: ExtraMeasures,
        spent: Mapping[str, Any],
    ) -> None:
        """Write all files of one run, result.json last.

        Args:
            plan: of the cell.
            cell: with its outcome.
            measured: further fields of result.json, and decoded samples.
            spent: time and the like, also for result.json.
        """
        folder = RunFolder(self.owner.out, plan.id)
        # Two copies of a long table of tokens would take much memory.
        cell.logged = [pd.concat(cell.logged, ignore_index=True)]
        cell.curve = [pd.concat(cell.curve, ignore_index=True)]
        environment = self.owner.environment_of(self.base)
        tokens = tokens_hash(plan.samples)

        folder.begin(tokens)
        folder.write_text(folder.config, to_yaml(cell.run))
        folder.write_json(folder.env, environment | {"tokens": tokens})
        folder.write_table(folder.tokens, cell.logged[0])
        folder.write_table(folder.curve, cell.curve[0])
        if cell.failure is not None:
            folder.fail(cell.failure)
            return

        result = result_of(plan, cell, self.base)
        folder.write_adapter(lambda path: self._save_adapter(path, cell, result))
        assert cell.final is not None
        rows = sample_rows(cell.run.model, plan.samples, cell.final, measured.decoded)
        write_samples(folder, rows)
        folder.finish({**result, **measured.fields, **spent})

    def _save_adapter(self, path: Path, cell: Cell, result: Mapping[str, Any]) -> None:
        """Write the adapter in PEFT's format, and a README.md with a script that asks it."""
        adapter = cell.adapter
        assert adapter is not None
        model = cell.run.model
        adapter.save(
            0,
            path,
            base_path(model),
            revision=model.revision,
            peft_type=self.loading.peft_type,
        )

        write_text(path / README_FILE, adapter_readme(cell.run, result, self.loading))

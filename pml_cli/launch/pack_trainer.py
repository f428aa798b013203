"""From claimed cells to run folders: keeps the base model loaded and trains pack after pack."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pml_cli.config.dump import to_yaml
from pml_cli.data.cell import CellPlan
from pml_cli.data.opened import tokens_hash
from pml_cli.errors import UserError, first_line
from pml_cli.evaluation.environment import environment
from pml_cli.evaluation.result import extra_measures, result_of
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import with_checkpointing
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.launch.throughput import Throughput, torch_device_label
from pml_cli.model.device import out_of_memory, pick_device
from pml_cli.model.gguf import base_path
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.runs.folder import RunFolder
from pml_cli.training.checkpoint import CheckpointHeader, Checkpoints
from pml_cli.training.trainer import (
    Cell,
    StepReport,
    Trainer,
    TrainerState,
    TrainingObserver,
)

CHECKPOINT_SECONDS = 180.0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Cells to train together.

    Attributes:
        pack: the cells that the pack is built with.
        cells: those of them to train; fewer than the pack only when resuming.
        state: the checkpoint to resume from; None: from the start.
        seconds: spent on each cell before.
    """

    pack: list[CellPlan]
    cells: list[CellPlan]
    state: TrainerState | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why an attempt failed.

    Attributes:
        reason: one line.
        detail: the traceback.
        out_of_memory: whether fewer cells at once may succeed.
    """

    reason: str
    detail: str
    out_of_memory: bool


class UnusableModelError(Exception):
    """A model that does not load, has no place for the adapters, or is not supported; one line."""


class PackTrainer:
    """Trains packs one after the other; a base model stays loaded until a pack needs another.

    Attributes:
        plans: every planned cell by id, to rebuild a half-done pack as it began.
        stop_requested: set by a first failure under `fail_fast`.
    """

    def __init__(
        self,
        out: Path,
        lease: WorkerLease,
        signals: Signals | None = None,
        observer: RunObserver | None = None,
        *,
        plans: Mapping[str, CellPlan] | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        fail_fast: bool = False,
    ) -> None:
        """`lease` holds the claims on the cells that are handed to `train`."""
        self.out = out
        self.lease = lease
        self.signals = signals or Signals()
        self.observer = observer or RunObserver()
        self.plans = plans or {}
        self.checkpoints = Checkpoints(out)
        self.checkpoint_seconds = checkpoint_seconds
        self.fail_fast = fail_fast
        self.stop_requested = False

        self._base: tuple[str, SplitModel] | None = None
        self._environment: dict[str, Any] | None = None
        self._device: torch.device | None = None

    @property
    def loaded_model(self) -> str:
        """The repr of the loaded model's settings; empty: none is loaded."""
        return self._base[0] if self._base else ""

    def train(self, cells: Sequence[CellPlan]) -> None:
        """Train claimed cells of one pack; one that fails leaves error.json and harms no other.

        Cells with a checkpoint resume from it. Where memory runs out, the halves are trained one
        after the other, down to a single cell, and that one with activation checkpointing; any
        other error is bisected to the cell that causes it. A model that cannot be used (weights
        that do not load, a split forward pass that differs) fails every cell that needs it.

        Raises:
            UserError: the device is absent or no longer answers.
            OSError: a folder cannot be written.
            Stopped: asked to end; a checkpoint is on disk.
        """
        unstarted = list(cells)
        headers = self.checkpoints.find([cell.id for cell in cells])
        usable = True

        for header in headers:
            resumed = [cell for cell in unstarted if cell.id in header.cells]
            if resumed:
                usable &= self._attempt(self._resumed(header, resumed, cells))
                unstarted = [cell for cell in unstarted if cell not in resumed]
        if unstarted:
            usable &= self._attempt(Attempt(pack=unstarted, cells=unstarted))

        if usable:
            self._remove_finished(headers)

    def _resumed(
        self, header: CheckpointHeader, resumed: list[CellPlan], claimed: Sequence[CellPlan]
    ) -> Attempt:
        """The attempt that goes on from a checkpoint with some of its cells."""
        plans = {**self.plans, **{cell.id: cell for cell in claimed}}
        pack = [plans[name] for name in header.pack if name in plans]
        state = self.checkpoints.load(
            header, [cell.id for cell in pack], [cell.id for cell in resumed]
        )
        # What was spent so far was shared by all cells that the pack began with.
        seconds = header.seconds / len(header.pack)
        return Attempt(pack=pack, cells=resumed, state=state, seconds=seconds)

    def _remove_finished(self, headers: Sequence[CheckpointHeader]) -> None:
        """Remove checkpoints, also those of earlier interruptions, whose cells have all ended."""
        for header in headers:
            if all(RunFolder(self.out, name).has_ended() for name in header.cells):
                header.path.unlink(missing_ok=True)

    # -- one attempt, and smaller ones after a fault

    def _attempt(self, attempt: Attempt) -> bool:
        """Train cells together, or in parts after a fault.

        Returns:
            False where their model cannot be used; its checkpoints stay, a model may be repaired.
        """
        try:
            fault = self._try(attempt)
        except UnusableModelError as error:
            unusable = Fault(reason=str(error), detail=traceback.format_exc(), out_of_memory=False)
            for cell in attempt.cells:
                self._fail(cell, unusable)
            return False

        if fault is None:
            return True

        # what the failed attempt held
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        # its checkpoint would lead to the same fault
        self.checkpoint_path(attempt).unlink(missing_ok=True)
        return self._retry_smaller(attempt, fault)

    def _try(self, attempt: Attempt) -> Fault | None:
        try:
            PackRun(self, attempt, self._usable_base(attempt.pack)).train()
        except (UnusableModelError, UserError, OSError):
            raise
        except Exception as error:
            self._check_device(error)
            return Fault(
                reason=f"{type(error).__name__}: {first_line(error)}",
                detail=traceback.format_exc(),
                out_of_memory=out_of_memory(error),
            )
        return None

    def _retry_smaller(self, attempt: Attempt, fault: Fault) -> bool:
        """Train what is left of a failed attempt in parts; a single cell fails."""
        left = [cell for cell in attempt.cells if not RunFolder(self.out, cell.id).has_ended()]
        if not left:
            return True

        if len(left) > 1:
            size = -(-len(left) // 2) if fault.out_of_memory else 1
            self.lease.log_event("split", cells=len(left), into=size, reason=fault.reason)
            parts = [left[start : start + size] for start in range(0, len(left), size)]
            usable = [self._attempt(Attempt(pack=part, cells=part)) for part in parts]
            return all(usable)

        if fault.out_of_memory:
            checkpointed = with_checkpointing(Pack(left)).cells
            if checkpointed != left:
                self.lease.log_event("checkpointing", cell=left[0].id, reason=fault.reason)
                return self._attempt(Attempt(pack=checkpointed, cells=checkpointed))

        self._fail(left[0], fault)
        return True

    def _fail(self, cell: CellPlan, fault: Fault) -> None:
        if self.lease.holds(cell.id):
            folder = RunFolder(self.out, cell.id)
            folder.write_text(folder.config, to_yaml(cell.run))
            folder.fail(fault.reason, fault.detail)
            self.end_cell(cell, fault.reason)

    def end_cell(self, cell: CellPlan, failure: str | None) -> None:
        """Release a cell whose folder is written, and report it.

        Args:
            failure: why it failed; None: it is done.
        """
        self.lease.log_event("failed" if failure else "done", cell=cell.id)
        self.lease.release(cell.id)
        self.observer.cell_ended(cell, failure)
        if failure is not None and self.fail_fast:
            self.stop_requested = True
            self.signals.stop = Stopped("a cell failed")
            self.lease.cancel_launch()

    def checkpoint_path(self, attempt: Attempt) -> Path:
        """Where the attempt keeps its checkpoint."""
        return self.checkpoints.path([cell.id for cell in attempt.cells])

    # -- the base model and its device

    def _usable_base(self, pack: list[CellPlan]) -> SplitModel:
        # An absent device is no cell's fault, so it is looked at outside of the block below.
        self._device = pick_device(pack[0].run.model.device)
        with model_faults():
            return self.base_for(Pack(pack))

    def base_for(self, pack: Pack) -> SplitModel:
        """The pack's base model, loaded once.

        Raises:
            UserError: it cannot be loaded, or has no place for the pack's adapters.
        """
        run = pack.cells[0].run
        if self._base is None or self._base[0] != repr(run.model):
            # The last one is freed first.
            self._base = None
            self._environment = None
            self._base = (repr(run.model), load_model(run.model))

        base = self._base[1]
        base.sites(run.adapter)
        return base

    def environment_of(self, base: SplitModel) -> dict[str, Any]:
        """The environment with the loaded base; computed once, its hash reads all weights."""
        if self._environment is None:
            self._environment = environment(base)
        return self._environment

    def _check_device(self, error: Exception) -> None:
        """Raise where a GPU no longer answers, which is no cell's fault: others take the cells.

        Raises:
            UserError: names the device and the error after which it was looked at.
        """
        if self._device is None or self._device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self._device)
        except Exception as dead:
            raise UserError(
                f"{self._device}: the GPU no longer answers ({first_line(error)})"
            ) from dead


class PackRun(TrainingObserver):
    """One attempt on a loaded base: what happens between steps, and to cells that end."""

    def __init__(self, owner: PackTrainer, attempt: Attempt, base: SplitModel) -> None:
        self.owner = owner
        self.lease = owner.lease
        self.signals = owner.signals
        self.attempt = attempt
        self.base = base
        self.path = owner.checkpoint_path(attempt)
        self.first_step = attempt.state.step if attempt.state else 0

        self.cells = [Cell(run=plan.run, samples=plan.samples) for plan in attempt.pack]
        self._plans = {id(cell): plan for cell, plan in zip(self.cells, attempt.pack, strict=True)}
        self._started = time.perf_counter()
        self._last_save = time.monotonic()

        self._announce()
        with model_faults():
            checkpointing = Pack(attempt.pack).checkpointing
            self.trainer = Trainer(base, self.cells, self, checkpointing=checkpointing)

    def _announce(self) -> None:
        names = [cell.id for cell in self.attempt.cells]
        self.lease.activity = {
            "names": names,
            "since": time.time(),
            "step": self.first_step,
            "cells": len(names),
            "steps": self.attempt.pack[0].steps,
            "first": self.first_step,
            "work": Pack(self.attempt.cells).tokens,
        }
        self.lease.log_event("start", cells=names, step=self.first_step)

    def train(self) -> None:
        """Train to the end; every cell's folder is written when it ends."""
        self.signals.training = True
        try:
            self.trainer.train(self.attempt.state)
        finally:
            self.signals.training = False

        # After a takeover the checkpoint belongs to the successor.
        if not self.lease.check_fenced():
            self.path.unlink(missing_ok=True)
        self._record_throughput()

    def _record_throughput(self) -> None:
        """Remember how fast the pack was trained, if it was trained whole and undisturbed."""
        pack = Pack(self.attempt.pack)
        steps = pack.cells[0].steps
        whole = all(cell.failure is None and cell.steps_run == steps for cell in self.cells)
        if self.attempt.state is None and whole:
            model = pack.cells[0].run.model
            seconds = time.perf_counter() - self._started
            label = torch_device_label(self.base.device)
            Throughput().record(label, model.dtype, model.name, pack, seconds)

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

        interval = self.owner.checkpoint_seconds
        due = (
            self.signals.save_requested
            or self.signals.stop is not None
            or time.monotonic() - self._last_save >= interval
        )
        if self.lease.fenced or (due and self.lease.check_fenced()):
            raise Stopped("another process took this one for dead")

        # Right after the start, or after resuming, there is nothing new to save.
        if due and step > self.first_step:
            self._save(step)

        self.signals.save_requested = False
        if self.signals.stop is not None:
            raise self.signals.stop

    def _save(self, step: int) -> None:
        names = [cell.id for cell in self.attempt.pack]
        state = self.trainer.state(step)
        seconds = self._seconds_per_cell() * len(names)
        self.owner.checkpoints.save(self.path, names, state, seconds)
        self.lease.log_event("checkpoint", step=step)
        self._last_save = time.monotonic()

    def on_logged_step(self, report: StepReport) -> None:
        """Pass a logged step on to the observer of the sweep."""
        self.owner.observer.step_logged(report)

    def on_finished(self, cells: list[Cell]) -> None:
        """Measure cells that have ended, write their folders and report them."""
        # Decoding takes long and looks at no request: a signal ends the process at once.
        self.signals.training = False
        measures = extra_measures(self.base, cells)
        spent = {"seconds": self._seconds_per_cell(), "pack_size": len(self.attempt.pack)}

        for cell, measured in zip(cells, measures, strict=True):
            plan = self._plans[id(cell)]
            if self.lease.holds(plan.id):
                self._write(plan, cell, measured | spent)
                self.owner.end_cell(plan, cell.failure)
        self.signals.training = True

    def _write(self, plan: CellPlan, cell: Cell, measured: dict[str, Any]) -> None:
        """All files of one run, result.json last."""
        folder = RunFolder(self.owner.out, plan.id)
        cell.logged = [pd.concat(cell.logged, ignore_index=True)]
        cell.curve = [pd.concat(cell.curve, ignore_index=True)]
        env = self.owner.environment_of(self.base) | {"tokens": tokens_hash(plan.samples)}

        folder.write_text(folder.config, to_yaml(cell.run))
        folder.write_json(folder.env, env)
        folder.write_table(folder.tokens, cell.logged[0])
        folder.write_table(folder.curve, cell.curve[0])
        if cell.failure is not None:
            folder.fail(cell.failure)
            return

        adapter = cell.adapter
        assert adapter is not None
        folder.write_adapter(lambda aside: adapter.save(0, aside, base_path(cell.run.model)))
        folder.finish(result_of(plan, cell, self.base) | measured)


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

"""Packs to run folders: keeps the base loaded, trains pack after pack, writes one folder per cell."""

from __future__ import annotations

import dataclasses
import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import with_checkpointing
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.launch.throughput import Throughput, torch_device_label
from pml_cli.model.device import out_of_memory, pick_device
from pml_cli.model.loading import check_weights, load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.runs.folder import RunFolder
from pml_cli.training.checkpoint import Checkpoints
from pml_cli.training.trainer import Cell, StepReport, Trainer, TrainerState, TrainingObserver

CHECKPOINT_SECONDS = 180.0
Report = Callable[
    [CellPlan, str | None], None
]  # told of every ended cell: its plan, and why it failed (None: it did not)


class Worker:
    """Trains packs one after the other; a base model stays loaded until a pack wants another."""

    def __init__(
        self,
        root: Path,
        member: WorkerLease,
        signals: Signals | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        """`member` holds the claims on the cells that are to be trained."""
        self.root, self.member, self.signals = root, member, signals or Signals()
        self.checkpoints, self.checkpoint_seconds = Checkpoints(root), checkpoint_seconds
        self._base: tuple[str, SplitModel] | None = None
        self._env: dict[str, Any] | None = None
        self._device: torch.device | None = None
        self._saved = 0.0  # when the last checkpoint was kept, or the pack was begun

    @property
    def loaded(self) -> str:
        """The model that is loaded, as its settings' repr; empty: none."""
        return self._base[0] if self._base else ""

    def base_for(self, pack: Pack) -> SplitModel:
        """The pack's base model, loaded once.

        Raises:
            UserError: it cannot be loaded, or has no place for the pack's adapters.
        """
        run = pack.cells[0].run
        if self._base is None or self._base[0] != repr(run.model):
            self._base, self._env = None, None  # free the last one first
            self._base = (repr(run.model), load_model(run.model))
        base = self._base[1]
        base.sites(run.adapter)
        return base

    def run(
        self,
        cells: Sequence[CellPlan],
        report: Report,
        observe: Callable[[StepReport], None] | None = None,
        known: Mapping[str, CellPlan] | None = None,
    ) -> None:
        """Train claimed cells of one pack and write their folders; a cell that fails leaves error.json and harms no other.

        Cells that were half done go on from their checkpoint. Where memory does not suffice, the halves are trained one
        after the other, down to one cell, and that one with activation checkpointing; any other fault of a pack is brought
        down to the cell that has it. A model that cannot be used (weights that do not load, a split pass that is not its
        own) is the fault of all cells that want it.

        Args:
            known: all planned cells by id, to rebuild a half-done pack as it began.

        Raises:
            UserError: the device is not there or no longer answers.
            OSError: a folder cannot be written.
            Stopped: asked to end, a checkpoint is on disk.
        """
        waiting, found = list(cells), self.checkpoints.find([cell.id for cell in cells])
        usable = True
        everything = {**(known or {}), **{cell.id: cell for cell in cells}}
        for kept in found:
            if chosen := [cell for cell in waiting if cell.id in kept.cells]:
                pack = [everything[name] for name in kept.pack if name in everything]
                state = self.checkpoints.load(kept, [c.id for c in pack], [c.id for c in chosen])
                usable &= self._attempt(
                    _Attempt(pack, chosen, state, kept.seconds / len(kept.pack)), report, observe
                )
                waiting = [cell for cell in waiting if cell not in chosen]
        if waiting:
            usable &= self._attempt(_Attempt(waiting, waiting), report, observe)
        for kept in found if usable else []:  # those of earlier interruptions lie there too
            if all(RunFolder(self.root, name).has_ended() for name in kept.cells):
                kept.path.unlink(missing_ok=True)

    def _attempt(
        self, attempt: _Attempt, report: Report, observe: Callable[[StepReport], None] | None
    ) -> bool:
        """Train cells together, else in parts; false where their model cannot be used, which may be mended."""
        fault: tuple[str, str, bool] | None = None
        try:
            self._train(attempt, report, observe)
        except _UnusableError as error:
            for cell in attempt.cells:
                self._fail(cell, str(error), traceback.format_exc(), report)
            return False
        except (UserError, OSError):
            raise
        except Exception as error:
            self._check_device(error)
            reason = f"{type(error).__name__}: {first_line(error)}"
            fault = reason, traceback.format_exc(), out_of_memory(error)
        if fault is None:
            return True
        gc.collect()  # what the failed attempt held
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._path(attempt).unlink(missing_ok=True)  # it would lead to the same fault
        left = [cell for cell in attempt.cells if not RunFolder(self.root, cell.id).has_ended()]
        if len(left) > 1:
            size = -(-len(left) // 2) if fault[2] else 1
            self.member.note("split", cells=len(left), into=size, reason=fault[0])
            parts = [left[start : start + size] for start in range(0, len(left), size)]
            usable = [self._attempt(_Attempt(part, part), report, observe) for part in parts]
            return all(usable)
        less = with_checkpointing(Pack(left)).cells if fault[2] and len(left) == 1 else left
        if less != left:
            self.member.note("checkpointing", cell=left[0].id, reason=fault[0])
            return self._attempt(_Attempt(less, less), report, observe)
        if left:
            self._fail(left[0], fault[0], fault[1], report)
        return True

    def _fail(self, cell: CellPlan, reason: str, detail: str, report: Report) -> None:
        if self.member.holds(cell.id):
            folder = RunFolder(self.root, cell.id)
            folder.write_text(folder.config, to_yaml(cell.run))
            folder.fail(reason, detail)
            self._ended(cell, reason, report)

    def _usable_base(self, pack: list[CellPlan]) -> SplitModel:
        self._device = pick_device(
            pack[0].run.model.device
        )  # one that is not there is no cell's fault
        with _blaming_the_model():
            return self.base_for(Pack(pack))

    def _train(
        self, attempt: _Attempt, report: Report, observe: Callable[[StepReport], None] | None
    ) -> None:
        pack, base = attempt.pack, self._usable_base(attempt.pack)
        began, path, first = (
            time.perf_counter(),
            self._path(attempt),
            attempt.state.step if attempt.state else 0,
        )
        cells = [Cell(run=planned.run, samples=planned.samples) for planned in pack]
        plans = {id(cell): planned for cell, planned in zip(cells, pack, strict=True)}
        self._begin(attempt, first)

        def share() -> float:
            """Seconds spent on each cell; what was spent before was shared by all cells that the pack then had."""
            return attempt.seconds + (time.perf_counter() - began) / len(attempt.cells)

        def save(step: int) -> None:
            self.checkpoints.save(
                path, [cell.id for cell in pack], trainer.state(step), share() * len(pack)
            )

        def finished(ended: list[Cell]) -> None:
            self.signals.training = False
            extras = extra_measures(base, ended)
            spent = {"seconds": share(), "pack_size": len(pack)}
            for cell, extra in zip(ended, extras, strict=True):
                planned = plans[id(cell)]
                if self.member.holds(planned.id):
                    self._write(base, planned, cell, extra | spent)
                    self._ended(planned, cell.failure, report)
            self.signals.training = True

        def between(step: int) -> None:
            self._between(step, save if step > first else None)

        again = Pack(pack).checkpointing
        with _blaming_the_model():
            trainer = Trainer(
                base, cells, _Callbacks(between, observe, finished), checkpointing=again
            )
        self.signals.training = True
        try:
            trainer.train(attempt.state)
        finally:
            self.signals.training = False
        if not self.member.is_buried():  # then it is the heir's
            path.unlink(missing_ok=True)
        if attempt.state is None and all(
            cell.failure is None and cell.steps_run == pack[0].steps for cell in cells
        ):
            model, seconds = pack[0].run.model, time.perf_counter() - began
            Throughput().record(
                torch_device_label(base.device), model.dtype, model.name, Pack(pack), seconds
            )

    def _begin(self, attempt: _Attempt, step: int) -> None:
        """Say what is being trained, and from which step on."""
        names = [cell.id for cell in attempt.cells]
        told = {
            "cells": len(names),
            "steps": attempt.pack[0].steps,
            "first": step,
            "work": Pack(attempt.cells).tokens,
        }
        self.member.doing = {"names": names, "since": time.time(), "step": step, **told}
        self.member.note("start", cells=names, step=step)
        self._saved = time.monotonic()

    def _between(self, step: int, save: Callable[[int], None] | None) -> None:
        """Before each step: keep a checkpoint where one is due, and end where asked to.

        Args:
            save: writes the checkpoint; None where there is nothing new since the last.

        Raises:
            Stopped: asked to end, or taken for dead by another process.
        """
        self.member.doing["step"] = step
        if self.member.cancelled and self.signals.end is None:
            self.signals.end = Stopped("cancelled")
        due = (
            self.signals.save
            or self.signals.end
            or time.monotonic() - self._saved >= self.checkpoint_seconds
        )
        if self.member.buried or (due and self.member.is_buried()):
            raise Stopped("another process took this one for dead")
        if due and save:
            save(step)
            self.member.note("checkpoint", step=step)
            self._saved = time.monotonic()
        self.signals.save = False
        if self.signals.end is not None:
            raise self.signals.end

    def _check_device(self, error: Exception) -> None:
        """A GPU that no longer answers is no cell's fault: this process ends, others take its cells."""
        if self._device is None or self._device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self._device)
        except Exception as dead:
            raise UserError(
                f"{self._device}: the GPU no longer answers ({first_line(error)})"
            ) from dead

    def _path(self, attempt: _Attempt) -> Path:
        return self.checkpoints.path([cell.id for cell in attempt.cells])

    def _ended(self, cell: CellPlan, failure: str | None, report: Report) -> None:
        self.member.note("failed" if failure else "done", cell=cell.id)
        self.member.release(cell.id)
        report(cell, failure)

    def _write(
        self, base: SplitModel, planned: CellPlan, cell: Cell, extra: dict[str, Any]
    ) -> None:
        """All files of one run, result.json last."""
        folder = RunFolder(self.root, planned.id)
        cell.logged, cell.curve = (
            [pd.concat(parts, ignore_index=True)] for parts in (cell.logged, cell.curve)
        )
        folder.write_text(folder.config, to_yaml(cell.run))
        folder.write_json(
            folder.env, self._environment(base) | {"tokens": tokens_hash(planned.samples)}
        )
        folder.write_table(folder.tokens, cell.logged[0])
        folder.write_table(folder.curve, cell.curve[0])
        if cell.failure is not None:
            folder.fail(cell.failure)
            return
        assert cell.adapter is not None
        adapter = cell.adapter
        folder.write_adapter(lambda aside: adapter.save(0, aside, cell.run.model.path))
        folder.finish(result_of(planned, cell, base) | extra)

    def _environment(self, base: SplitModel) -> dict[str, Any]:
        """Of the loaded base: its hash takes a pass over the weights."""
        if self._env is None:
            self._env = environment(base)
        return self._env


@dataclasses.dataclass(frozen=True)
class _Callbacks(TrainingObserver):
    """An observer made of functions."""

    before: Callable[[int], None]
    logged: Callable[[StepReport], None] | None
    finished: Callable[[list[Cell]], None]

    def before_step(self, step: int) -> None:
        self.before(step)

    def on_logged_step(self, report: StepReport) -> None:
        if self.logged:
            self.logged(report)

    def on_finished(self, cells: list[Cell]) -> None:
        self.finished(cells)


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """Cells to be trained together, the pack they belong to, and where to go on."""

    pack: list[CellPlan]
    cells: list[CellPlan]  # of the pack; fewer only with a state
    state: TrainerState | None = None
    seconds: float = 0.0  # spent on each cell before


class _UnusableError(Exception):
    """A model that cannot be loaded, has no place for the adapters, or is not supported: one line."""


@contextmanager
def _blaming_the_model() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if isinstance(
            error.__cause__, OSError
        ):  # files that this machine may lack alone: others are to try
            raise
        raise _UnusableError("; ".join(error.faults)) from error


def check_places(packs: Sequence[Pack], here: bool) -> None:
    """Refuse adapters that have no place in their model, before anything is trained; no weights are loaded for it.

    Args:
        here: they are to be trained on this machine, which must have the device that they ask for.

    Raises:
        UserError: all faults at once, one line each.
    """
    runs = {
        repr((pack.cells[0].run.model, pack.cells[0].run.adapter)): pack.cells[0].run
        for pack in packs
    }
    bases: dict[str, SplitModel] = {}
    faults: dict[str, None] = {}
    for run in runs.values():
        key = repr(run.model)
        try:
            if here:
                pick_device(run.model.device)
            check_weights(run.model)
            if key not in bases:
                bases[key] = load_model(
                    dataclasses.replace(run.model, weights="random", device="meta")
                )
            bases[key].sites(run.adapter)
        except UserError as error:
            faults[str(error)] = None
    if faults:
        raise UserError(*faults)

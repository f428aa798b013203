"""From claimed cells to run folders: keeps the base model loaded and trains pack after pack."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pml_cli.config.dump import to_yaml
from pml_cli.data.cell import CellPlan
from pml_cli.errors import UserError, first_line
from pml_cli.evaluation.environment import environment
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.pack import Pack
from pml_cli.launch.pack_run import Attempt, PackRun, UnusableModelError, model_faults
from pml_cli.launch.packing import with_checkpointing
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.model.device import free_memory, out_of_memory, pick_device
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.results.folder import RunFolder
from pml_cli.results.run_folders import RunFolders, run_key
from pml_cli.training.checkpoint import Checkpoints
from pml_cli.training.checkpoint_header import CheckpointHeader

CHECKPOINT_SECONDS = 180.0


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
        """Prepare to train; no model is loaded yet.

        Args:
            out: the results folder.
            lease: holds the claims on the cells that are handed to `train`.
            signals: requests to end or to save; None: there are none.
            observer: receives steps and cells; None: no observer.
            plans: every planned cell by id.
            checkpoint_seconds: between two checkpoints of a pack.
            fail_fast: whether the first failed cell ends the training of the whole launch.
        """
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
            resumed = [cell for cell in unstarted if header.holds(cell.id, cell.tokens_hash)]
            attempt = self._resumed(header, resumed, cells) if resumed else None
            if attempt is not None:
                if not self._attempt(attempt):
                    usable = False
                unstarted = [cell for cell in unstarted if cell not in resumed]
        if unstarted and not self._attempt(Attempt(pack=unstarted, cells=unstarted)):
            usable = False

        if usable:
            self._remove_finished(headers)

    def _resumed(
        self, header: CheckpointHeader, resumed: list[CellPlan], claimed: Sequence[CellPlan]
    ) -> Attempt | None:
        """The attempt that resumes some of a checkpoint's cells; None where they begin anew.

        Cells that have ended since are trained on with them, and not written: what is measured of
        a batch at the end (control_gain) is then the same to the last bit.
        """
        # The claimed ones last: theirs are the names of the folders.
        plans = {run_key(cell.id): cell for cell in [*self.plans.values(), *claimed]}
        pack = [plans[key] for key in header.pack if key in plans]
        trained = [cell for cell in pack if cell in resumed or self._has_ended_since(header, cell)]
        try:
            state = self.checkpoints.load(
                header, [cell.id for cell in pack], [cell.id for cell in trained]
            )
        except (FileNotFoundError, PermissionError):
            # Another process has just removed it, or it is another user's alone.
            return None
        if state is None:
            # Damaged: it is not tried again.
            self.lease.log_event("damaged_checkpoint", file=header.path.name)
            header.path.unlink(missing_ok=True)
            return None
        # What was spent so far was shared by all cells that the pack began with.
        seconds = header.seconds / len(header.pack)
        is_whole = set(header.cells) <= {run_key(cell.id) for cell in trained}
        return Attempt(
            pack=pack,
            cells=trained,
            state=state,
            seconds=seconds,
            checkpoint=header.path if is_whole else None,
        )

    def _has_ended_since(self, header: CheckpointHeader, cell: CellPlan) -> bool:
        """Whether a cell was in training at a checkpoint and is done now."""
        folder = RunFolders(self.out).find(cell.id)
        return header.holds(cell.id, cell.tokens_hash) and folder.is_done(cell.tokens_hash)

    def _remove_finished(self, headers: Sequence[CheckpointHeader]) -> None:
        """Remove checkpoints, also those of earlier interruptions, whose cells have all ended."""
        folders = RunFolders(self.out)
        for header in headers:
            if all(folders.find(key).has_ended() for key in header.cells):
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
            unusable = Fault(
                reason=str(error),
                detail=traceback.format_exc(),
                out_of_memory=False,
            )
            for cell in attempt.cells:
                self._fail(cell, unusable)
            return False

        if fault is None:
            return True

        # what the failed attempt held
        free_memory()
        # Its checkpoints would lead to the same fault. After a takeover they are the successor's.
        if not self.lease.check_fenced():
            self.checkpoint_path(attempt).unlink(missing_ok=True)
            if attempt.checkpoint is not None:
                attempt.checkpoint.unlink(missing_ok=True)
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
        """Train what a failed attempt has not finished, fewer cells at a time."""
        remaining = []
        for cell in attempt.cells:
            if not RunFolder(self.out, cell.id).has_ended(cell.tokens_hash):
                remaining.append(cell)

        if not remaining:
            return True
        if len(remaining) > 1:
            return self._split(remaining, fault)
        return self._retry_cell(remaining[0], fault)

    def _split(self, cells: list[CellPlan], fault: Fault) -> bool:
        """Train the halves where memory ran out, else each cell by itself."""
        # rounded up
        half = -(-len(cells) // 2)
        size = half if fault.out_of_memory else 1
        self.lease.log_event("split", cells=len(cells), into=size, reason=fault.reason)

        usable = True
        for start in range(0, len(cells), size):
            chunk = cells[start : start + size]
            usable &= self._attempt(Attempt(pack=chunk, cells=chunk))
        return usable

    def _retry_cell(self, cell: CellPlan, fault: Fault) -> bool:
        """Train a cell with activation checkpointing where memory ran out; else it has failed."""
        if fault.out_of_memory:
            checkpointed = with_checkpointing(Pack(cells=[cell])).cells
            if checkpointed != [cell]:
                self.lease.log_event("checkpointing", cell=cell.id, reason=fault.reason)
                return self._attempt(Attempt(pack=checkpointed, cells=checkpointed))
            # Torch's own words are of an allocator.
            alone = f"one cell of model={cell.run.model.name} does not fit into memory"
            fault = replace(fault, reason=f"{alone} ({fault.reason})")

        self._fail(cell, fault)
        return True

    def _fail(self, cell: CellPlan, fault: Fault) -> None:
        if self.lease.holds(cell.id):
            folder = RunFolder(self.out, cell.id)
            folder.begin(cell.tokens_hash)
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
        # A missing device is not the cells' fault, so it is checked outside of the block below.
        self._device = pick_device(pack[0].run.model.device)
        try:
            with model_faults():
                return self.base_for(Pack(cells=pack))
        except (UnusableModelError, UserError, OSError):
            raise
        except Exception as error:
            if not out_of_memory(error):
                raise
            # Fewer cells would need as much, and another worker may have the room.
            reason = f"no room for its weights on {self._device} ({first_line(error)})"
            remedy = "model.stream=true, model.dtype=bfloat16 or fewer workers take less"
            name = pack[0].run.model.name
            raise UserError(f"model={name}: {reason}; {remedy}") from error

    def base_for(self, pack: Pack) -> SplitModel:
        """The pack's base model, loaded once.

        Raises:
            UserError: it cannot be loaded, or has no modules for the pack's adapters.
        """
        model = pack.model
        if self._base is None or self._base[0] != repr(model):
            # The previous model is freed first, because both may not fit.
            self.release_base()
            self._base = (repr(model), load_model(model))

        base = self._base[1]
        base.sites(pack.cells[0].run.adapter)
        return base

    def close(self) -> None:
        """Give a GPU's memory back: to what follows in this process, and to others on the GPU."""
        # On a CPU the model goes with this object; free_memory would take as long as a small cell.
        if self._base is not None and self._base[1].device.type == "cuda":
            self.release_base()

    def release_base(self) -> None:
        """Free the loaded model, if there is one."""
        if self._base is None:
            return
        self._base = None
        self._environment = None
        free_memory()

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

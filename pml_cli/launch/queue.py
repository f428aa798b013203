"""The loop that every process runs, whatever started it: claim a pack, train it, until none is free."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.config.schema import FORMAT
from pml_cli.data.cell import CellPlan
from pml_cli.errors import UserError
from pml_cli.io import atomic_write
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.launch.signals import Stopped
from pml_cli.runs.folder import RunFolder

WAIT_SECONDS = 1.0  # between two looks at cells that another process has


@dataclass(frozen=True)
class SweepManifest:
    """One sweep as it was asked for, on disk below `.pml/requests/`: what workers and `pml status` go by."""

    key: str
    cells: dict[
        str, dict[str, Any]
    ]  # by id: what tables show, and `work`, the tokens of its training
    path: Path  # the .json; the runs themselves lie beside it
    asked: float = 0.0  # when, by this machine's clock

    @classmethod
    def write(cls, out: Path, packs: Sequence[Pack], packing: Packing) -> SweepManifest:
        cells = {cell.id: _shown(cell) for pack in packs for cell in pack.cells}
        key = hashlib.sha256(" ".join(sorted(cells)).encode()).hexdigest()[:10]
        path = out / ".pml" / "requests" / f"{key}.json"
        asked = time.time()
        body = {"format": FORMAT, "asked": asked, "cells": cells}
        runs = ([cell.run for pack in packs for cell in pack.cells], packing)
        atomic_write(path.with_suffix(".pkl"), lambda aside: aside.write_bytes(pickle.dumps(runs)))
        atomic_write(path, lambda aside: aside.write_text(json.dumps(body), "utf-8"))
        return cls(key, cells, path, asked)

    @classmethod
    def read(cls, path: Path) -> SweepManifest:
        try:
            body = json.loads(path.read_text("utf-8"))
            return cls(path.stem, body["cells"], path, float(body["asked"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); delete it and run the sweep again"
            ) from error

    def packs(self) -> list[Pack]:
        """The packs, planned anew from the stored runs: the same in every process."""
        runs, packing = pickle.loads(self.path.with_suffix(".pkl").read_bytes())
        return make_packs(check(runs), packing)


class Queue:
    """Packs in the order they are to be trained; hands out what is neither ended nor claimed by a living process."""

    def __init__(self, out: Path, packs: Sequence[Pack], member: WorkerLease) -> None:
        self.out, self.packs, self.member = out, list(packs), member
        self.known = {cell.id: cell for pack in self.packs for cell in pack.cells}
        self._ended: set[str] = set()
        self._seen_busy = False

    def next(self, loaded: str = "") -> list[CellPlan]:
        """Claim a pack's unfinished cells, one of the loaded model if there is such; empty when nothing is free."""
        ordered = (
            sorted(self.packs, key=lambda pack: repr(pack.cells[0].run.model) != loaded)
            if loaded
            else self.packs
        )
        for pack in ordered:
            if claimed := self._claim(pack):
                return claimed
        return []

    def left(self) -> list[CellPlan]:
        """Cells that have not ended: with nothing free, those that other processes have."""
        return [cell for pack in self.packs for cell in pack.cells if not self._has_ended(cell)]

    def _claim(self, pack: Pack) -> list[CellPlan]:
        claimed: list[CellPlan] = []
        for cell in pack.cells:
            if self._has_ended(cell):
                continue
            if not self.member.claim(cell.id):
                # the first cell decides: whoever has it is claiming or training the pack, and nobody splits it
                if not claimed and not self._seen_busy:
                    return []
                continue
            if self._has_ended(cell, fresh=True):
                self.member.release(cell.id)
                continue
            claimed.append(cell)
        return claimed

    def patient(self) -> list[CellPlan]:
        """`next` after nothing was free: also what is left of packs that others have taken in part (of another grid)."""
        self._seen_busy = True
        try:
            return self.next()
        finally:
            self._seen_busy = False

    def _has_ended(self, cell: CellPlan, fresh: bool = False) -> bool:
        if cell.id not in self._ended and RunFolder(self.out, cell.id).has_ended(fresh):
            self._ended.add(cell.id)
        return cell.id in self._ended


def work(
    queue: Queue,
    train: Callable[[list[CellPlan]], None],
    loaded: Callable[[], str],
    *,
    wait: bool,
    ended: Callable[[], bool],
    waiting: Callable[[list[CellPlan]], None] | None = None,
) -> None:
    """Claim and train until nothing is left, or (without `wait`) nothing is free.

    Args:
        train: trains claimed cells and writes their results.
        ended: asked between packs; true ends the loop (a first failure under --fail-fast).
        waiting: told of the cells of other processes while waiting for them.

    Raises:
        Stopped: asked to end.
    """
    member = queue.member
    while not ended():
        cells = queue.next(loaded())
        if not cells and queue.left():
            if waiting:
                waiting(queue.left())
            time.sleep(WAIT_SECONDS)
            cells = queue.patient()
        if member.cancelled or member.buried:
            for cell in cells:
                member.release(cell.id)
            raise Stopped(
                "cancelled" if member.cancelled else "another process took this one for dead"
            )
        if cells:
            try:
                train(cells)
            finally:
                for cell in cells:
                    member.release(cell.id)
                member.doing = {}
        elif not wait or not queue.left():
            return


def _shown(cell: CellPlan) -> dict[str, Any]:
    run = cell.run
    return {
        "model": run.model.name,
        "data": run.data.source,
        "loss": run.loss.kind,
        "rank": run.rank,
        "seqlen": run.seqlen,
        "seed": run.seed,
        "work": cell.step_tokens * cell.steps,
    }

"""The queue of packs, and the loop of every worker over it: claim a pack, train it, repeat."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pml_cli.data.cell import CellPlan
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.pack import Pack, as_found
from pml_cli.launch.signals import FENCED, Stopped
from pml_cli.results.run_folders import RunFolders

# Seconds between two looks at cells that another process trains.
WAIT_SECONDS = 1.0


class Trainer(Protocol):
    """What the loop needs of the code that trains (pack_trainer.PackTrainer)."""

    @property
    def loaded_model(self) -> str:
        """The repr of the loaded model's settings; empty: none is loaded."""

    @property
    def stop_requested(self) -> bool:
        """Whether to end between packs, after a first failure under --fail-fast."""

    def train(self, cells: list[CellPlan]) -> None:
        """Train claimed cells of one pack and write their run folders."""


def model_key(pack: Pack) -> str:
    """Equal for packs that use one loaded model; one string for all of them."""
    return sys.intern(repr(pack.model))


class PackQueue:
    """Hands out, in their order, the packs that have not ended and that no living process holds.

    Attributes:
        plans: every cell of the sweep by id.
    """

    def __init__(self, out: Path, packs: Sequence[Pack], lease: WorkerLease) -> None:
        self.out = out
        self.lease = lease
        self.plans = {cell.id: cell for pack in packs for cell in pack.cells}
        # Thousands of packs are gone through for each claim: what has ended leaves the list.
        self._open = [(model_key(pack), pack) for pack in packs]
        self._folders = RunFolders(out)
        self._ended: set[str] = set()

    def next_pack(self, loaded_model: str = "") -> list[CellPlan]:
        """Claim the unfinished cells of the next free pack.

        Args:
            loaded_model: packs of this model come first, since loading another takes time.

        Returns:
            the claimed cells; empty where no pack is free.
        """
        return self._claim_next(loaded_model, partly_held=False)

    def next_remainder(self) -> list[CellPlan]:
        """Claim what is left of a pack of which other processes hold the first cells.

        Only another grid in the same folder cuts packs differently, so this comes last.
        """
        return self._claim_next("", partly_held=True)

    def unfinished(self) -> list[CellPlan]:
        """Cells that have not ended: with no pack free, those that other processes hold."""
        return [cell for cell in self.plans.values() if not self._has_ended(cell)]

    def _claim_next(self, loaded_model: str, partly_held: bool) -> list[CellPlan]:
        self._open = [(model, pack) for model, pack in self._open if not self._all_ended(pack)]
        packs = self._open
        if loaded_model:
            # False sorts before True, and sorting keeps the order of equals.
            packs = sorted(packs, key=lambda entry: entry[0] != loaded_model)

        for _, pack in packs:
            claimed = self._claim(pack, partly_held)
            if claimed:
                return claimed
        return []

    def _all_ended(self, pack: Pack) -> bool:
        return all(cell.id in self._ended for cell in pack.cells)

    def _claim(self, pack: Pack, partly_held: bool) -> list[CellPlan]:
        claimed: list[CellPlan] = []
        for cell in pack.cells:
            if self._has_ended(cell):
                continue

            if not self.lease.claim(cell.id):
                # The first cell decides: its holder is claiming or training the whole pack, and
                # two processes of one grid never split a pack.
                if not claimed and not partly_held:
                    return []
                continue

            # Its last holder may have written the result between the first look and the claim,
            # and into a folder of another name.
            if not claimed:
                self._folders.refresh()
            if self._has_ended(cell, fresh=True):
                self.lease.release(cell.id)
                continue
            claimed.append(as_found(cell, self._folders))
        return claimed

    def _has_ended(self, cell: CellPlan, fresh: bool = False) -> bool:
        # An ended cell stays ended, so that it is looked up on disk only once.
        if cell.id in self._ended:
            return True
        folder = self._folders.find(cell.id)
        has_ended = folder.has_ended(cell.tokens_hash, fresh=fresh)
        if has_ended:
            self._ended.add(cell.id)
        return has_ended


def run_until_empty(
    queue: PackQueue, trainer: Trainer, observer: RunObserver, *, wait: bool
) -> None:
    """Claim and train packs until every cell has ended.

    Args:
        queue: the packs of the sweep.
        trainer: trains what was claimed.
        observer: hears of packs, and of cells of other processes while waiting for them.
        wait: whether to stay for the cells of other processes, and take over what they leave;
            False: return once nothing is free, nor held by a process that seems to be dead.

    Raises:
        Stopped: this process was asked to end.
    """
    lease = queue.lease
    while not trainer.stop_requested:
        cells = queue.next_pack(trainer.loaded_model)
        if not cells and queue.unfinished():
            observer.waiting(queue.unfinished())
            time.sleep(WAIT_SECONDS)
            # What they hold may have been freed, by themselves or by their death.
            cells = queue.next_remainder()

        try:
            if lease.cancelled or lease.fenced:
                raise Stopped("cancelled" if lease.cancelled else FENCED)
            if cells:
                # Before the model is loaded, which may take minutes.
                lease.activity = {"names": [cell.id for cell in cells]}
                observer.pack_started(cells)
                trainer.train(cells)
                observer.pack_ended(cells)
        finally:
            for cell in cells:
                lease.release(cell.id)
            lease.activity = {}

        stays = wait or lease.is_watching()
        if not cells and not (stays and queue.unfinished()):
            return

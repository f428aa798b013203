"""What a sweep reports while it runs: the events of training, in the order in which they happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pml_cli.data.cell import CellPlan

if TYPE_CHECKING:
    from pml_cli.launch.status import Snapshot
    from pml_cli.training.trainer import StepReport

# A StepReport is what the trainer tells of a logged step; displays need not import the trainer.
__all__ = ["RunObserver", "StepReport"]


class RunObserver:
    """Receives the events of a sweep. Every method does nothing here: override those of interest.

    A process that trains calls loading, pack_started, step_logged, cell_ended, pack_ended and
    waiting; one that started workers calls workers_started and snapshot_taken instead.
    """

    def loading(self) -> None:
        """Torch and the base model are about to be loaded, which takes seconds."""

    def pack_started(self, cells: Sequence[CellPlan]) -> None:
        """The cells of a pack were claimed and are about to be trained."""

    def step_logged(self, report: StepReport) -> None:
        """A logged training step of the current pack is done."""

    def cell_ended(self, cell: CellPlan, failure: str | None) -> None:
        """A cell is finished (failure: None) or has failed; its folder is written."""

    def pack_ended(self, cells: Sequence[CellPlan]) -> None:
        """Every cell of a pack has ended."""

    def waiting(self, cells: Sequence[CellPlan]) -> None:
        """Nothing is free: these cells are trained by other processes."""

    def workers_started(self, count: int, kind: str) -> None:
        """Workers were started for the sweep: `2 processes`, `4 Slurm jobs`."""

    def snapshot_taken(self, snapshot: Snapshot) -> None:
        """The driver has looked at its workers."""

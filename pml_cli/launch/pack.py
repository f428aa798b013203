"""A pack: cells that are trained as one batch.

Not to be confused with packed rows (sequence packing, model/packed_rows.py), where several samples
of one cell share a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pml_cli.config.schema import Model
from pml_cli.data.cell import CellPlan, PackedSize
from pml_cli.results.run_folders import RunFolders


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Cells with the same model, adapter kind and number of steps, and of similar lengths."""

    cells: list[CellPlan]

    @property
    def model(self) -> Model:
        """The base model as it is to be loaded, with what was planned for `stream`.

        The runs keep their own setting: their adapters may be asked on another device.
        """
        cell = self.cells[0]
        return replace(cell.run.model, stream=cell.stream)

    @property
    def checkpointing(self) -> bool:
        """Whether activation checkpointing is on for the layers above the adapter."""
        return any(cell.checkpointing for cell in self.cells)

    @property
    def packed(self) -> PackedSize | None:
        """The packed rows of a cell in one step; None: not packed.

        Each size is the largest of any cell.
        """
        sizes = [cell.packed for cell in self.cells if cell.packed is not None]
        if len(sizes) < len(self.cells):
            return None
        return PackedSize(
            rows=max(size.rows for size in sizes),
            tokens=max(size.tokens for size in sizes),
            queries=max(size.queries for size in sizes),
        )

    @property
    def step_tokens(self) -> int:
        """Input tokens of one training step, padding included."""
        packed = self.packed
        if packed is not None:
            return len(self.cells) * packed.rows * packed.tokens
        rows = max(cell.rows for cell in self.cells)
        tokens = max(cell.tokens for cell in self.cells)
        return len(self.cells) * rows * tokens

    @property
    def tokens(self) -> int:
        """Input tokens of the whole training, padding included."""
        return self.step_tokens * self.cells[0].steps


def as_found(cell: CellPlan, folders: RunFolders) -> CellPlan:
    """The cell under the name of the folder that it has already, whatever the front of its id."""
    name = folders.name(cell.id)
    return cell if name == cell.id else replace(cell, id=name)

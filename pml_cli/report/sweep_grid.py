"""The cells of a sweep as a grid that fills in: a row a rank, a column a length.

Every cell is a character. Cells of one rank and length (of several seeds, texts or losses) stand
side by side.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import Enum

from rich.text import Text

from pml_cli.data.cell import CellPlan
from pml_cli.results.run_folders import run_key

# Lines that the terminal keeps for the legend, the bar and the prompt.
OTHER_LINES = 4


class CellState(Enum):
    """A character for each state, distinguishable without colour, and its style."""

    WAITING = ("·", "dim")
    TRAINING = ("▒", "dark_orange")
    DONE = ("█", "dodger_blue1")
    FAILED = ("×", "bold red")


class SweepGrid:
    """The state of every cell of a sweep.

    Args:
        cells: all of them.
        done: ids of those that were done before.
    """

    def __init__(self, cells: Sequence[CellPlan], done: Collection[str] = ()) -> None:
        self._ranks = sorted({cell.run.rank for cell in cells})
        self._lengths = sorted({int(cell.run.seqlen) for cell in cells})
        self._states = {run_key(cell.id): CellState.WAITING for cell in cells}
        self._places: dict[tuple[int, int], list[str]] = {}
        for cell in cells:
            place = self._places.setdefault((cell.run.rank, int(cell.run.seqlen)), [])
            place.append(run_key(cell.id))
        self.mark(done, CellState.DONE)

        # A column holds its heading and the largest number of cells of a place.
        widest = max((len(keys) for keys in self._places.values()), default=0)
        self._widths = [max(len(str(length)), widest) for length in self._lengths]
        self._label = max(len("rank"), *(len(str(rank)) for rank in self._ranks or [0]))

    def mark(self, names: Iterable[str], state: CellState) -> None:
        """Set the state of cells, by id; ids of other sweeps are passed over."""
        for name in names:
            key = run_key(name)
            if key in self._states:
                self._states[key] = state

    def follow(self, done: Iterable[str], failed: Iterable[str], training: Iterable[str]) -> None:
        """Set the states of all cells; those that are not named wait."""
        self._states = dict.fromkeys(self._states, CellState.WAITING)
        self.mark(training, CellState.TRAINING)
        self.mark(failed, CellState.FAILED)
        self.mark(done, CellState.DONE)

    def stopped_training(self, names: Iterable[str]) -> None:
        """Cells of a pack that has ended; those that have not ended themselves wait again."""
        for name in names:
            if self._states.get(run_key(name)) is CellState.TRAINING:
                self.mark([name], CellState.WAITING)

    def render(self, width: int, height: int) -> Text | None:
        """The grid and its legend; None where it does not fit, or is a single place.

        Args:
            width, height: of the terminal, in characters.
        """
        columns = self._label + sum(1 + width for width in self._widths)
        lines = len(self._ranks) + 1 + OTHER_LINES
        if len(self._places) < 2 or columns > width or lines > height:
            return None

        text = Text()
        heading = " ".join(
            str(length).ljust(column)
            for length, column in zip(self._lengths, self._widths, strict=True)
        )
        text.append(f"{'rank'.rjust(self._label)} {heading.rstrip()}\n", "bold")
        for rank in self._ranks:
            text.append(str(rank).rjust(self._label))
            for length, column in zip(self._lengths, self._widths, strict=True):
                keys = self._places.get((rank, length), [])
                text.append(" ")
                for key in keys:
                    text.append(*self._states[key].value)
                text.append(" " * (column - len(keys)))
            text.append("\n")
        for state in CellState:
            text.append(*state.value)
            text.append(f" {state.name.lower()}  ", "dim")
        return text

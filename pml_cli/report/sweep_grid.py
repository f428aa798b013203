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
        self._states = {run_key(cell.id): CellState.WAITING for cell in cells}
        self.mark(done, CellState.DONE)

        self._keys_by_place: dict[tuple[int, int], list[str]] = {}
        for cell in cells:
            place = (cell.run.rank, int(cell.run.seqlen))
            self._keys_by_place.setdefault(place, []).append(run_key(cell.id))
        self._ranks = sorted({rank for rank, _ in self._keys_by_place})
        lengths = sorted({length for _, length in self._keys_by_place})

        self._label_width = max(len(str(label)) for label in ["rank", *self._ranks])
        # A column has room for its heading, and for the cells of the fullest place.
        most_cells = max(map(len, self._keys_by_place.values()), default=0)
        self._column_widths = {length: max(len(str(length)), most_cells) for length in lengths}

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
        # A space before each column.
        columns = self._label_width + sum(1 + column for column in self._column_widths.values())
        lines = len(self._ranks) + 1 + OTHER_LINES
        if len(self._keys_by_place) < 2 or columns > width or lines > height:
            return None

        text = Text()
        headings = [str(length).ljust(column) for length, column in self._column_widths.items()]
        heading_line = f"{'rank'.rjust(self._label_width)} {' '.join(headings)}"
        text.append(f"{heading_line.rstrip()}\n", "bold")

        for rank in self._ranks:
            text.append(str(rank).rjust(self._label_width))
            for length, column in self._column_widths.items():
                keys = self._keys_by_place.get((rank, length), [])
                text.append(" ")
                for key in keys:
                    character, style = self._states[key].value
                    text.append(character, style)
                text.append(" " * (column - len(keys)))
            text.append("\n")

        for state in CellState:
            character, style = state.value
            text.append(character, style)
            text.append(f" {state.name.lower()}  ", "dim")
        return text

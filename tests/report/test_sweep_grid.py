"""The grid of a sweep: a character a cell, by rank and length, and none where it does not fit."""

import io

import pytest
from rich.console import Console

from pml_cli.config.schema import Model, Run
from pml_cli.launch.packing import check
from pml_cli.report.progress import SweepDisplay
from pml_cli.report.sweep_grid import CellState, SweepGrid


@pytest.fixture(scope="module")
def cells():
    """Ranks 1 and 16, lengths 8 and 128, two seeds; rank 16 at 8 tokens alone has one."""
    runs = [
        Run(rank=rank, seqlen=length, seed=seed, model=Model(device="cpu"))
        for rank in (1, 16)
        for length in (8, 128)
        for seed in (0, 1)
    ]
    return check([run for run in runs if (run.rank, run.seqlen, run.seed) != (16, 8, 1)])


def rows(grid):
    """The lines of the ranks."""
    return grid.render(80, 24).plain.splitlines()[1:-1]


def test_a_cell_is_a_character_that_tells_its_state(cells):
    grid = SweepGrid(cells, done=[cells[0].id])
    assert grid.render(80, 24).plain.splitlines()[0] == "rank 8  128"
    assert rows(grid) == ["   1 █· ·· ", "  16 ·  ·· "]

    grid.mark([cell.id for cell in cells[1:4]], CellState.TRAINING)
    grid.mark([cells[1].id], CellState.FAILED)
    assert rows(grid)[0] == "   1 █× ▒▒ "

    # Cells that were cut off go back into the queue, those that have ended stay.
    grid.stopped_training([cell.id for cell in cells[:4]])
    assert rows(grid)[0] == "   1 █× ·· "

    grid.follow(
        done=[cells[6].id], failed=[], training=[cells[5].id, "of-another-sweep-0123456789"]
    )
    assert rows(grid) == ["   1 ·· ·· ", "  16 ·  ▒█ "]
    assert "× failed" in grid.render(80, 24).plain


def test_no_grid_where_it_does_not_fit_or_tells_nothing(cells):
    grid = SweepGrid(cells)
    assert grid.render(12, 24) is not None
    assert grid.render(10, 24) is None
    assert grid.render(80, 6) is None
    assert SweepGrid(cells[:2]).render(80, 24) is None
    assert SweepGrid([]).render(80, 24) is None


def test_it_stands_above_the_bar_on_a_terminal_and_in_no_log(cells):
    shown = {}
    for is_terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, force_terminal=is_terminal, width=80, height=24)
        display = SweepDisplay(console, len(cells), 100, grid=SweepGrid(cells))
        with display:
            display.pack_started(cells)
            display.cell_ended(cells[0], None)
            display.pack_ended(cells)
        shown[is_terminal] = out.getvalue()
    assert "█" in shown[True] and "1/7 cells" in shown[True]
    assert shown[False] == ""

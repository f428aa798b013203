"""Live displays. On a terminal they redraw themselves; piped, they print plain lines at times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pml_cli.data.cell import CellPlan
from pml_cli.format import counted
from pml_cli.launch.observer import RunObserver
from pml_cli.report.sweep_grid import CellState, SweepGrid

if TYPE_CHECKING:
    from typing_extensions import Self

    from pml_cli.launch.driver import SweepPlan
    from pml_cli.launch.observer import StepReport
    from pml_cli.launch.status import Snapshot

BLOCKS = " ▁▂▃▄▅▆▇█"

# Distinguishable without colour vision.
BELOW_HALF_COLOUR = "dark_orange"
ABOVE_HALF_COLOUR = "dodger_blue1"

# At least this long between the plain lines of a piped display, and at least this share of the time
# so far: the log of a week has some hundred lines.
PLAIN_LINE_SECONDS = 10.0
PLAIN_LINE_SHARE = 0.01
# Plain lines of a whole piped probe
PIPED_PROBE_LINES = 10
# Below this fraction of the work, the time left is not estimated
MIN_PROGRESS_FOR_ESTIMATE = 0.02


class _BarBelow(Progress):
    """A progress bar below something that changes.

    Args:
        above: what stands above the bar at the moment; None: nothing.
    """

    def __init__(
        self,
        *columns: ProgressColumn,
        above: Callable[[], RenderableType | None],
        **options: Any,
    ) -> None:
        self._above = above
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        above = self._above()
        if above is not None:
            yield above
        yield from super().get_renderables()


class _ProgressDisplay:
    """A progress bar on a terminal; piped, plain lines with some seconds between them."""

    def __init__(self, console: Console, *columns: ProgressColumn, total: float | None) -> None:
        self.console = console
        self._started = time.monotonic()
        self._last_line = self._started
        self._progress = _BarBelow(
            *columns,
            above=self._above_bar,
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def _above_bar(self) -> RenderableType | None:
        """What stands above the bar; nothing."""
        return None

    def _print_piped(self, line: str) -> None:
        """Print a plain line, unless there is a terminal or the last line is too recent."""
        moment = time.monotonic()
        pause = max(PLAIN_LINE_SECONDS, PLAIN_LINE_SHARE * (moment - self._started))
        if self.console.is_terminal or moment - self._last_line < pause:
            return
        self._last_line = moment
        self.console.print(line, highlight=False)


class CountDisplay(_ProgressDisplay):
    """How many of some items are done, such as bootstrap draws.

    Args:
        console: where to.
        activity: what is being done: `reading`.
        unit: what is counted, in the plural: `runs`.
        total: how many there are, where that is known at the start.
        piped_line: what follows the count in a plain line, as in `12/40 runs read`; None for no
            plain lines.
    """

    def __init__(
        self,
        console: Console,
        activity: str,
        unit: str,
        total: int | None = None,
        piped_line: str | None = None,
    ) -> None:
        super().__init__(
            console,
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            total=total,
        )
        self._activity = activity
        self._done = 0
        self._total = total
        self._piped_line = piped_line
        self._progress.update(self._task, description=activity)

    def show(self, done: int, total: int) -> None:
        """Set the number of items done, and of all items."""
        self._done = done
        self._total = total
        self._progress.update(self._task, completed=done, total=total)
        if self._piped_line is not None:
            self._print_piped(f"{done}/{total} {self._piped_line}")

    def stage(self, name: str) -> None:
        """Say what is being done to the present items."""
        self._progress.update(self._task, description=f"{self._activity}: {name}")
        if self._piped_line is not None and self._total is not None:
            self._print_piped(f"{self._done}/{self._total} {self._piped_line} (now: {name})")

    def advance(self) -> None:
        """One more item is done; the total must be known."""
        assert self._total is not None
        self.show(self._done + 1, self._total)


class SweepDisplay(_ProgressDisplay, RunObserver):
    """Cells done, the progress of the current pack, time left; above, a grid of the cells.

    Args:
        console: where to.
        cells: how many cells are to be trained.
        work: tokens of all training steps, the measure of progress.
        title: what stands in front of the number of cells.
        grid: of all cells, shown where it fits into the terminal.
    """

    def __init__(
        self,
        console: Console,
        cells: int,
        work: int,
        title: str = "",
        grid: SweepGrid | None = None,
    ) -> None:
        self.title = title
        self.grid = grid or SweepGrid([])
        self.cells = cells
        self.work = max(work, 1)
        self.ended = 0
        self.failed = 0
        self._done = 0.0
        self._in_pack = 0.0
        self._pack_work = 0
        super().__init__(
            console,
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            total=self.work,
        )

    @classmethod
    def of(cls, plan: SweepPlan, console: Console, title: str = "") -> SweepDisplay:
        """The display of a sweep, perhaps with a title."""
        cells = sum(len(pack.cells) for pack in plan.todo)
        work = sum(cell.work for pack in plan.todo for cell in pack.cells)
        return cls(console, cells, work, title, SweepGrid(plan.cells, plan.done))

    def __enter__(self) -> Self:
        # The bar appears with the first event: a sweep that only starts workers has none.
        return self

    def loading(self) -> None:
        self._show("loading the base model")

    def pack_started(self, cells: Sequence[CellPlan]) -> None:
        self._pack_work = sum(cell.work for cell in cells)
        self.grid.mark([cell.id for cell in cells], CellState.TRAINING)

    def step_logged(self, report: StepReport) -> None:
        self._in_pack = report.step / report.steps * self._pack_work
        self._show()

    def cell_ended(self, cell: CellPlan, failure: str | None) -> None:
        self.ended += 1
        if failure is not None:
            self.failed += 1
        self.grid.mark([cell.id], CellState.DONE if failure is None else CellState.FAILED)
        self._show()

    def pack_ended(self, cells: Sequence[CellPlan]) -> None:
        self._done += self._pack_work
        self._in_pack = 0.0
        self.grid.stopped_training(cell.id for cell in cells)
        self._show()

    def waiting(self, cells: Sequence[CellPlan]) -> None:
        self._show(f"waiting for {counted(cells, 'cell')} of other processes")

    def workers_started(self, count: int, kind: str) -> None:
        line = f"{kind} started"
        if not count:
            line += "; those of this folder that are queued or running go on"
        self.console.print(line, highlight=False, soft_wrap=True)

    def snapshot_taken(self, snapshot: Snapshot) -> None:
        # Cells that were done before these workers began count for neither number.
        unfinished = len(snapshot.work) - len(snapshot.done) - len(snapshot.failed)
        work_left = (1 - snapshot.share_done) * snapshot.total_work
        self.ended = self.cells - unfinished
        self.failed = len(snapshot.failed)
        self._done = max(self.work - work_left, 0.0)
        self._in_pack = 0.0
        training = [name for process in snapshot.training for name in process.cells]
        self.grid.follow(snapshot.done, snapshot.failed, training)
        self._show()

    def _above_bar(self) -> RenderableType | None:
        return self.grid.render(self.console.width, self.console.height)

    @property
    def completed(self) -> float:
        """Share of the work that is done, 0..1."""
        return (self._done + self._in_pack) / self.work

    def _show(self, message: str = "") -> None:
        """Redraw, with a message or the number of cells."""
        self._progress.start()
        title = f"{self.title}: " if self.title else ""
        cells = f"{title}{self.ended}/{self.cells} cells"
        if self.failed:
            cells += f", {self.failed} failed"
        self._progress.update(
            self._task, completed=self.completed * self.work, description=message or cells
        )

        progress = self.completed
        elapsed = time.monotonic() - self._started
        line = f"{cells}, {100 * progress:.0f} % of the work, {elapsed:.0f} s"
        if progress > MIN_PROGRESS_FOR_ESTIMATE:
            line += f", about {elapsed * (1 - progress) / progress:.0f} s left"
        self._print_piped(line)


class ProbeDisplay(RunObserver):
    """p of every target token while it is learned, the loss, and how many tokens have p > 0.5.

    Args:
        console: where to.
        title: what is trained, in one line.
        steps: training steps in all.
    """

    def __init__(self, console: Console, title: str, steps: int) -> None:
        self.console = console
        self.title = title
        self.steps = steps
        self._losses: list[float] = []
        self._lines_printed = -1
        # Redrawn at each logged step: nothing moves in between.
        self._live = Live(
            console=console, refresh_per_second=12, transient=False, auto_refresh=False
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        else:
            self.console.print(self.title, highlight=False, soft_wrap=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def step_logged(self, report: StepReport) -> None:
        scores = report.scores[0]
        self.update(report.step, float(scores.nll.mean()), scores.nll, scores.correct)

    def update(self, step: int, loss: float, nll: NDArray[Any], correct: NDArray[Any]) -> None:
        """Show one logged step.

        Args:
            step: steps run.
            loss: mean loss, nats per token.
            nll: negative log-likelihood of each target token in order, nats, (tokens,).
            correct: whether each is the argmax, (tokens,).
        """
        self._losses.append(loss)
        p = np.exp(-nll)
        fractions = f"p > 0.5 {np.mean(p > 0.5):>6.1%}  recalled {correct.mean():>6.1%}"
        line = f"step {step:>5}/{self.steps}  loss {loss:7.4f} nats/token  {fractions}"

        if self.console.is_terminal:
            self._live.update(self._render(line, p), refresh=True)
            return
        # Evenly over the steps, the first and the last among them.
        lines_due = step * PIPED_PROBE_LINES // self.steps
        if lines_due > self._lines_printed:
            self._lines_printed = lines_due
            self.console.print(line, highlight=False)

    def _render(self, line: str, p: NDArray[Any]) -> RenderableType:
        """The display on a terminal. p: (tokens,)."""
        width = max(20, min(self.console.width, 140) - 2)
        losses = Text("loss ", style="dim")
        losses.append(sparkline(self._losses, width - 5), style="cyan")
        legend = Text.assemble(
            ("p of each target token, in order: ", "dim"),
            ("at most 0.5", BELOW_HALF_COLOUR),
            ("  above 0.5", ABOVE_HALF_COLOUR),
        )
        return Group(
            Text(self.title, style="bold"),
            Text(line),
            losses,
            legend,
            *probability_strip(p, width, rows=6),
            Text(""),
        )


def probability_strip(p: NDArray[Any], width: int, rows: int) -> list[Text]:
    """p by position as coloured blocks.

    Args:
        p: (tokens,); where there are more tokens than blocks, a block shows the smallest p of its
            tokens.
        width: blocks in a line.
        rows: lines, at most.
    """
    # Rounded up.
    tokens_a_block = -(-len(p) // (width * rows))
    starts = range(0, len(p), tokens_a_block)
    smallest = [float(p[start : start + tokens_a_block].min()) for start in starts]

    lines = []
    for start in range(0, len(smallest), width):
        line = Text()
        for value in smallest[start : start + width]:
            line.append(_block(value), ABOVE_HALF_COLOUR if value > 0.5 else BELOW_HALF_COLOUR)
        lines.append(line)
    return lines


def sparkline(values: Sequence[float], width: int) -> str:
    """A row of values as blocks from 0 to the largest; `?` where one is not finite.

    Args:
        values: of more than `width`, neighbours are averaged.
        width: characters, at most.
    """
    heights = np.asarray(values, float)
    if len(heights) > width:
        chunks = np.array_split(heights, width)
        heights = np.array([chunk.mean() for chunk in chunks])
    largest = 1.0
    if np.isfinite(heights).any():
        largest = max(np.nanmax(heights), 1e-9)

    characters = []
    for height in heights:
        if np.isfinite(height):
            characters.append(_block(max(height, 0) / largest))
        else:
            characters.append("?")
    return "".join(characters)


def _block(fraction: float) -> str:
    """One of eight heights for a value in 0..1."""
    return BLOCKS[1 + min(7, int(8 * fraction))]

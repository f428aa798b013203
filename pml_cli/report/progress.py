"""Live displays. On a terminal they redraw themselves; piped, they print plain lines now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from pml_cli.launch.status import Snapshot

BLOCKS = " ▁▂▃▄▅▆▇█"
BELOW, ABOVE = (
    "dark_orange",
    "dodger_blue1",
)  # p at most one half, and above: told apart by colour-blind eyes too
QUIET_SECONDS = 10.0  # between the plain lines of a long sweep
PLAIN_LINES = 10  # of a piped probe


class DrawsDisplay:
    """How far a bootstrap, or another count of things, is; nothing when piped."""

    def __init__(
        self, console: Console, doing: str = "fitting", things: str = "bootstrap draws"
    ) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(things),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(doing, total=None)

    def __enter__(self) -> DrawsDisplay:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)


class FilesDisplay:
    """How many runs have been read; piped, a plain line now and then."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self._said = time.monotonic()
        self._progress = Progress(
            TextColumn("reading runs"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> FilesDisplay:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self) -> None:
        self.done += 1
        self._progress.update(self._task, completed=self.done)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said >= QUIET_SECONDS:
            self._said = now
            self.console.print(f"{self.done}/{self.total} runs read", highlight=False)


class SweepDisplay:
    """Cells done, the steps of the current pack, time left."""

    def __init__(self, console: Console, cells: int, work: int) -> None:
        """`work`: tokens of all training steps, the measure of progress."""
        self.console, self.cells, self.work = console, cells, max(work, 1)
        self.ended = self.failed = 0
        self._done = self._in_pack = 0.0
        self._began = self._said = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=self.work)

    def __enter__(self) -> SweepDisplay:
        self._progress.start()
        self._show("loading the base model")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, share: float, tokens: int) -> None:
        """A pack of so many tokens has come to a share of its steps."""
        self._in_pack = share * tokens
        self._show()

    def end_pack(self, tokens: int) -> None:
        self._done, self._in_pack = self._done + tokens, 0.0
        self._show()

    def end_cell(self, failure: str | None) -> None:
        self.ended += 1
        self.failed += failure is not None
        self._show()

    def wait_for(self, cells: Sequence[object]) -> None:
        """Nothing is free: so many cells are with other processes."""
        self._show(f"waiting for {len(cells)} cells of other processes")

    def follow(self, seen: Snapshot) -> None:
        """Show what workers have come to."""
        total = sum(cell["work"] for cell in seen.cells.values())
        self.ended = self.cells - (len(seen.cells) - len(seen.done) - len(seen.failed))
        self.failed, self._done, self._in_pack = (
            len(seen.failed),
            max(self.work - (1 - seen.share) * total, 0.0),
            0.0,
        )
        self._show()

    def _show(self, words: str = "") -> None:
        told = f"{self.ended}/{self.cells} cells" + (
            f", {self.failed} failed" if self.failed else ""
        )
        self._progress.update(
            self._task, completed=self._done + self._in_pack, description=words or told
        )
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said >= QUIET_SECONDS:
            self._said, spent = now, now - self._began
            share = (self._done + self._in_pack) / self.work
            left = f", about {spent * (1 - share) / share:.0f} s left" if share > 0.02 else ""
            self.console.print(
                f"{told}, {100 * share:.0f} % of the work, {spent:.0f} s{left}", highlight=False
            )


class ProbeDisplay:
    """p of every target token as it is learned, the loss, and how many tokens are above the threshold."""

    def __init__(self, console: Console, title: str, steps: int) -> None:
        self.console, self.title, self.steps = console, title, steps
        self._losses: list[float] = []
        self._live = Live(
            console=console, refresh_per_second=12, transient=False, auto_refresh=False
        )
        self._printed = -1

    def __enter__(self) -> ProbeDisplay:
        if self.console.is_terminal:
            self._live.start()
        else:
            self.console.print(self.title, highlight=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def update(self, step: int, loss: float, nll: NDArray[Any], correct: NDArray[Any]) -> None:
        """Show one logged step: mean loss, and nll (nats) and recall of each target token in order."""
        self._losses.append(loss)
        p = np.exp(-nll)
        shares = f"p > 0.5 {np.mean(p > 0.5):>6.1%}  recalled {correct.mean():>6.1%}"
        told = f"step {step:>5}/{self.steps}  loss {loss:7.4f} nats/token  {shares}"
        if self.console.is_terminal:
            self._live.update(self._render(told, p), refresh=True)
        elif step * PLAIN_LINES // self.steps > self._printed:
            self._printed = step * PLAIN_LINES // self.steps
            self.console.print(told, highlight=False)

    def _render(self, told: str, p: NDArray[Any]) -> RenderableType:
        width = max(20, min(self.console.width, 140) - 2)
        lines: list[RenderableType] = [Text(self.title, style="bold"), Text(told)]
        lines.append(
            Text("loss ", style="dim") + Text(sparkline(self._losses, width - 5), style="cyan")
        )
        lines.append(
            Text.assemble(
                ("p of each target token, in order: ", "dim"),
                ("at most 0.5", BELOW),
                ("  above 0.5", ABOVE),
            )
        )
        return Group(*lines, *strip(p, width, rows=6), Text(""))


def strip(p: NDArray[Any], width: int, rows: int) -> list[Text]:
    """p by position as coloured blocks, at most `rows` lines; of many tokens a block shows the least p."""
    per_block = -(-len(p) // (width * rows))
    least = [float(p[i : i + per_block].min()) for i in range(0, len(p), per_block)]
    out = []
    for start in range(0, len(least), width):
        line = Text()
        for value in least[start : start + width]:
            line.append(BLOCKS[1 + min(7, int(value * 8))], ABOVE if value > 0.5 else BELOW)
        out.append(line)
    return out


def sparkline(values: Sequence[float], width: int) -> str:
    """A row of values as blocks from 0 to the largest, at most `width` characters."""
    kept = np.asarray(values, float)
    if len(kept) > width:
        kept = np.array([part.mean() for part in np.array_split(kept, width)])
    top = np.nanmax(kept) if np.isfinite(kept).any() else 1.0
    return "".join(
        BLOCKS[1 + min(7, int(8 * max(v, 0) / max(top, 1e-9)))] if np.isfinite(v) else "?"
        for v in kept
    )

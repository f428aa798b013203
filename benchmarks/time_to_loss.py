"""Time until a loss is reached: pml at its best optimiser against the paper's loop and PEFT.

    python benchmarks/time_to_loss.py --path MODEL --lengths 64 --ranks 1,4,16

The paper's loop (A) and PEFT + Trainer (B) train with AdamW, at the best of several rates; as they
end with pml's losses at equal steps (asserted), their curve is that of pml's pack under AdamW, and
only the time of a step is theirs. pml (C) trains with L-BFGS until the mean of its cells' lowest
losses is AdamW's final mean. The time of A and B is their number of steps times the time of one;
that of C is what its training took up to that pass, line searches included.

--path: a folder of pretrained weights, or random ones of --model. CPU time of all threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cases
import numpy as np
import pandas as pd
import transformers
import ways
from numpy.typing import NDArray

from pml_cli.config.schema import Model, Train
from pml_cli.data.cell import CellPlan
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.training.trainer import Cell, Trainer, TrainingObserver

HEADINGS = (
    "l",
    "AdamW: rate, steps, mean loss",
    "passes of L-BFGS",
    "seconds a cell: A",
    "B",
    "C",
    "A/C: min, median, max",
    "B/C",
)

# Steps of A and B that are timed, and how often.
TIMED = 3
REPEATS = 3


class Passes(TrainingObserver):
    """When each pass began, seconds."""

    def __init__(self) -> None:
        self.began: list[float] = []

    def before_step(self, step: int) -> None:
        self.began.append(time.process_time())


def main() -> None:
    options = arguments()
    transformers.utils.logging.set_verbosity_error()
    ways.Clock.kind = "cpu"
    settings = cases.model(options.model, device="cpu")
    if options.path:
        settings = Model(name=options.model, path=str(options.path), device="cpu")
    base = load_model(settings)
    ranks = [int(rank) for rank in options.ranks.split(",")]
    rates = [float(rate) for rate in options.rates.split(",")]

    print(f"| {' | '.join(HEADINGS)} |\n{'|---' * len(HEADINGS)}|")
    for length in map(int, options.lengths.split(",")):
        print(row(base, ranks, length, rates, options.steps), flush=True)


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", default="smollm2_135m", help="an option of the group model")
    options.add_argument("--path", type=Path)
    options.add_argument("--lengths", default="64")
    options.add_argument("--ranks", default="1,4,16")
    options.add_argument("--rates", default="1e-2,3e-2,1e-1", help="of AdamW")
    options.add_argument("--steps", type=int, default=200, help="of AdamW, and most passes")
    return options.parse_args()


def row(
    base: SplitModel, ranks: Sequence[int], length: int, rates: Sequence[float], steps: int
) -> str:
    """Train everything for one length; a row of the table."""
    losses: dict[float, float] = {}
    for rate in rates:
        cells, _ = train(base, ranks, length, Train(steps=steps, lr=rate))
        losses[rate] = mean_final_loss(cells)
        print(f"l = {length}: AdamW {rate:g} ends at {losses[rate]:.4f}", file=sys.stderr)
    best = min(losses, key=lambda rate: losses[rate])

    searching = Train(steps=steps, optimizer="lbfgs", lr=None)
    cells, began = train(base, ranks, length, searching)
    mean_curve = np.mean([lowest_so_far(cell) for cell in cells], 0)
    reached = np.flatnonzero(mean_curve <= losses[best])
    if not len(reached):
        return f"| {length} | {best:g}, {steps}, {losses[best]:.4f} | more than {steps} | | | | | |"
    # The loss of a pass is known when the next one begins.
    passes = int(reached[0]) + 1
    seconds = (began[min(passes, len(began) - 1)] - began[0]) / len(cells)

    timed = Train(steps=ways.WARM + TIMED + 1, lr=best, decode=False)
    planned = cases.cells(base.settings, ranks, length, timed)
    of_step: dict[str, list[float]] = {"A": [], "B": []}
    for _ in range(REPEATS):
        ended: dict[str, ways.Losses] = {"A": {}, "B": {}}
        of_step["A"].append(ways.paper(base, planned[-1], ended["A"]) / TIMED)
        of_step["B"].append(ways.peft(base, planned[-1], ended["B"]) / TIMED)
        assert_equal(base, planned, ended)

    values = [
        f"{length}",
        f"{best:g}, {steps}, {losses[best]:.4f}",
        f"{passes}",
        *(f"{steps * np.median(times):.0f}" for times in of_step.values()),
        f"{seconds:.1f}",
        *(", ".join(f"{steps * t / seconds:.1f}" for t in spread(x)) for x in of_step.values()),
    ]
    return f"| {' | '.join(values)} |"


def train(
    base: SplitModel, ranks: Sequence[int], length: int, settings: Train
) -> tuple[list[Cell], list[float]]:
    """A pack trained by pml, and when each pass began."""
    settings = dataclasses.replace(settings, log_every=settings.steps, decode=False)
    planned = cases.cells(base.settings, ranks, length, settings)
    cells = [Cell(run=cell.run, samples=cell.samples) for cell in planned]
    observer = Passes()
    Trainer(base, cells, observer).train()
    return cells, [*observer.began, time.process_time()]


def mean_final_loss(cells: Sequence[Cell]) -> float:
    return float(np.mean([cell.final.nll.mean() for cell in cells if cell.final is not None]))


def lowest_so_far(cell: Cell) -> NDArray[np.float64]:
    """The lowest loss up to each pass: what a search goes back to."""
    curve = pd.concat(cell.curve, ignore_index=True)
    return np.fmin.accumulate(curve["loss"].to_numpy())


def assert_equal(
    base: SplitModel, planned: Sequence[CellPlan], ended: dict[str, ways.Losses]
) -> None:
    """A, B and pml's AdamW end with the same loss at equal steps."""
    (plan,) = planned[-1:]
    cell = Cell(run=plan.run, samples=plan.samples)
    Trainer(base, [cell]).train()
    for way, losses in ended.items():
        expected = mean_final_loss([cell])
        close = abs(losses[plan.id] - expected) <= ways.TOLERANCE["float32"] * expected
        assert close, (way, losses[plan.id], expected)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), float(np.median(values)), max(values)


if __name__ == "__main__":
    main()

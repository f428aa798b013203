"""What `pml memft` and `pml memorize` cost beside PEFT + Trainer in a shell loop.

    python benchmarks/by_hand.py memft -f memft rank=4,6 seqlen=64 data.seed=0,1
    python benchmarks/by_hand.py memorize facts.jsonl model=hf model.path=MODEL

First pml's command runs, with all that it makes: for memorize two seeds, up to three rounds of
ranks, harm, proof and script. Then the same cells one by one, each a process of its own that loads
the model, trains the same adapter on the same tokens for as many steps by cross-entropy, saves it
and decodes every sample by transformers' generate:

memft: a cell of each length, trained by sft; the other losses would take as long, so its time is
    scaled to all cells of the length. Its final loss must be pml's.
memorize, of at most 25 facts (which take part in every step): ranks 1, 2, 4, ... up to the one
    that pml answers, one seed, each for as many steps as pml's cell of the nearest rank. Ranks that
    are too small never stop early; a user without pml would not know when to stop either.

Wall and CPU seconds, start and imports included; the second are not disturbed by other work.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pml_cli.launch.openmp import share_cores

# As pml does, before torch is imported.
share_cores()

import numpy as np
import transformers
from ways import ROWS_AT_ONCE, Losses, peft, seconds_used

from pml_cli.config.load import read_run
from pml_cli.launch.packing import check
from pml_cli.model.loading import load_model

# Largest relative difference between the final losses of both.
TOLERANCE = 1e-2


def main(command: str, *arguments: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        # memorize ends with 1 where no rank keeps the limits.
        pml = [sys.executable, "-m", "pml_cli", command, *arguments, f"out={out}"]
        of_pml = timed(pml, check=command != "memorize")
        cells = finished(out)
        print(f"pml {command}: {len(cells)} cells, {shown(of_pml)}", flush=True)
        if command == "memft":
            of_loop = memft_by_hand(cells)
        else:
            report = json.loads((out / "memorize.json").read_text("utf-8"))
            of_loop = memorize_by_hand(cells, report)
    wall, cpu = of_loop / of_pml
    print(f"by hand: {shown(of_loop)}; times pml: wall {wall:.1f}, CPU {cpu:.1f}")


def timed(command: Sequence[str], *, check: bool = True) -> np.ndarray:
    """Wall and CPU seconds of a process, (2,)."""
    start = seconds_used()
    subprocess.run(command, check=check, stdout=subprocess.DEVNULL)
    return seconds_used() - start


def shown(seconds: np.ndarray) -> str:
    return f"{seconds[0]:.1f} s wall, {seconds[1]:.1f} s CPU"


def finished(out: Path) -> list[dict[str, Any]]:
    """result.json of every cell, and its folder."""
    cells = []
    for path in sorted(out.glob("*/result.json")):
        cells.append(json.loads(path.read_text("utf-8")) | {"folder": path.parent})
    return cells


def memft_by_hand(cells: Sequence[dict[str, Any]]) -> np.ndarray:
    """Seconds of all cells, (2,), from one of each length."""
    total = np.zeros(2)
    for length in sorted({cell["seqlen"] for cell in cells}):
        of_length = [cell for cell in cells if cell["seqlen"] == length]
        plain = next(cell for cell in of_length if cell["loss"] == "sft")
        seconds, loss = one_cell(plain["folder"], plain["steps_run"])
        difference = abs(loss - plain["final_loss"])
        assert difference <= TOLERANCE * plain["final_loss"], (loss, plain["final_loss"])
        print(f"{length} tokens, rank {plain['rank']}: {shown(seconds)}, the same loss", flush=True)
        total += seconds * len(of_length)
    return total


def memorize_by_hand(cells: Sequence[dict[str, Any]], report: dict[str, Any]) -> np.ndarray:
    """Seconds of the ranks 1, 2, 4, ... up to the one answered, (2,)."""
    rank = report["answer"]["rank"]
    doubled = [2**i for i in range(rank.bit_length()) if 2**i < rank]
    total = np.zeros(2)
    for tried in [*doubled, rank]:
        # The cell of pml that is nearest: it tries other ranks.
        nearest = min(cells, key=lambda cell: abs(cell["rank"] - tried))
        seconds, loss = one_cell(nearest["folder"], nearest["steps_run"], rank=tried)
        steps = nearest["steps_run"]
        print(f"rank {tried}: {shown(seconds)}, {steps} steps, loss {loss:.3f}", flush=True)
        total += seconds
    return total


def one_cell(folder: Path, steps: int, rank: int = 0) -> tuple[np.ndarray, float]:
    """Seconds of a process that trains a cell, (2,), and its final loss."""
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, __file__, "cell", str(folder), str(steps), str(rank), target]
        seconds = timed(command)
        loss = float((Path(target) / "loss").read_text("utf-8"))
    return seconds, loss


def cell(folder: str, steps: str, rank: str, target: str) -> None:
    """What one process of the loop does; `rank` 0: as in the folder."""
    transformers.utils.logging.set_verbosity_error()
    run = read_run(Path(folder) / "config.yaml")
    run = replace(run, rank=int(rank) or run.rank)
    train = replace(run.train, steps=int(steps), epochs=None, batch=0, stop="none", curriculum=[])
    (planned,) = check([replace(run, train=train)])
    if run.train.batch or len(planned.samples) > ROWS_AT_ONCE:
        sys.exit(f"{folder}: at most {ROWS_AT_ONCE} facts, all of them in every step")

    losses: Losses = {}
    peft(load_model(run.model), planned, losses, Path(target) / "adapter")
    (loss,) = losses.values()
    (Path(target) / "loss").write_text(str(loss), "utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "cell":
        cell(*sys.argv[2:])
    else:
        main(*sys.argv[1:])

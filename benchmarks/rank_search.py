"""Does the search of `pml memorize` find the least rank of the full grid, and at which cost?

Ten small data sets on the embedded model. Of each the full grid is trained first: all ranks from 1
to 16 with both seeds, every cell that knows all facts measured on held-out text. Then the search
runs in the same folder: its cells are the grid's, bit for bit, so that it costs nothing but tells
which cells it would have trained. A cell costs the tokens of the steps that it ran.

    python benchmarks/rank_search.py FOLDER [NAME ...]

writes benchmarks/rank_search.csv, of named data sets their rows; finished cells are kept in FOLDER.
"""

import itertools
import json
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from pml_cli.analysis.rank_search import Limits, Trial
from pml_cli.commands.memorize import Search
from pml_cli.config.memorize import Limits as Asked
from pml_cli.config.request import load_memorize
from pml_cli.launch.time_limit import TimeLimit
from pml_cli.report.output import consoles
from pml_cli.results.run_folders import RunFolders

HERE = Path(__file__).parent
RANKS = range(1, 17)
SEEDS = (0, 1)
LIMIT = 0.1

# Small, so that the grid is cheap: least ranks between 2 and 12.
SHARED = [
    "model.device=cpu",
    "adapter=mlp_block",
    "train.steps=200",
    "train.lr=0.08",
    "train.stop_margin=1",
    "loss.keep_harm=0.07",
]
FACTS = HERE / "memorize"
DATA = {
    "phonebook, 4": ["data=phonebook", "data.samples=4"],
    "phonebook, 6": ["data=phonebook", "data.samples=6", "data.seed=2"],
    "phonebook, 8": ["data=phonebook", "data.samples=8", "data.seed=1"],
    "town, 4": [str(FACTS / "town.jsonl"), "data.samples=4"],
    "town, 3": [str(FACTS / "town.jsonl"), "data.samples=3", "data.seed=1"],
    "almanac, 3": [str(FACTS / "almanac.jsonl"), "data.samples=3"],
    "documentation, 32 tokens": ["data=text", "seqlen=32"],
    "documentation, 48 tokens": ["data=text", "seqlen=48", "data.seed=1"],
    "documentation, 40 tokens": ["data=text", "seqlen=40", "data.seed=2"],
    "random, 16 tokens": ["data=random", "seqlen=16"],
}
ORDER = {name: place for place, name in enumerate(DATA)}


def grid_trials(search):
    """Every cell of the grid, with its harm where it knows all."""
    cells = list(itertools.product(RANKS, SEEDS))
    if search.train(cells, TimeLimit(None), "grid").stopped is not None:
        sys.exit("stopped; the same command goes on")
    return search.trials(cells)


def least_rank(trials, limits):
    """The least rank at which both seeds keep the limits."""
    for rank in RANKS:
        if all(limits.passes(trial) for trial in trials if trial.rank == rank):
            return rank
    return None


def cost(search, trials: list[Trial]) -> float:
    """Tokens of the training of some cells."""
    folders = RunFolders(search.out)
    tokens = 0.0
    for trial in trials:
        cell = search.cells[trial.rank, trial.seed]
        result = json.loads(folders.find(cell.id).result.read_text("utf-8"))
        tokens += result["steps_run"] * cell.step_tokens
    return tokens


def row(name: str, folder: Path) -> dict:
    """Grid and search of one data set."""
    out = folder / name.replace(", ", "-").replace(" ", "-")
    asked = load_memorize([*DATA[name], *SHARED, f"out={out}"], Asked(max_forgetting=LIMIT))
    output = consoles(Console(stderr=True, markup=False))

    grid = Search.begin(asked, output, out)
    trials = grid_trials(grid)
    limits = Limits(max_forgetting=LIMIT)

    search = Search.begin(asked, output, out)
    search.run(TimeLimit(None))
    found = search.answer()
    inside = [trial for trial in search.state.trials if trial.rank in RANKS]
    return {
        "data": name,
        "grid": least_rank(trials, limits),
        "search": found.rank if found.reached else None,
        "low": found.low,
        "rounds": search.state.rounds,
        "cells": len(search.state.trials),
        "beyond": len(search.state.trials) - len(inside),
        "grid_cells": len(trials),
        "cost": cost(search, search.state.trials),
        "grid_cost": cost(grid, trials),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    names = sys.argv[2:] or list(DATA)
    table = pd.DataFrame([row(name, folder) for name in names])
    table["share"] = (table["cost"] / table["grid_cost"]).round(3)

    path = HERE / "rank_search.csv"
    known = pd.read_csv(path) if path.exists() else table
    others = known[~known["data"].isin(names)]
    table = pd.concat([others, table]).sort_values("data", key=lambda data: data.map(ORDER))
    table.to_csv(path, index=False)
    print(table.to_string(index=False))
    print(f"in all: {table['cost'].sum() / table['grid_cost'].sum():.3f} of the cost")


if __name__ == "__main__":
    main()

"""Do the exponents of the law settle? By rank and by effective parameters, on parts of the cells.

    pml sweep -f scan_converged launch=local
    python benchmarks/exponents.py outputs/scan_converged --save exponents
    python benchmarks/exponents.py benchmarks/scan_converged.csv      # the same cells, as a table
    python benchmarks/exponents.py benchmarks/scan.csv --save exponents_adamw
    python benchmarks/exponents.py benchmarks/law.csv
    python benchmarks/exponents.py benchmarks/scan_converged.csv --widths

For every kind of data, each law on all cells, without rank 1, and then without rank 1 on parts:
from rank 3 on, the shorter and the longer half of the lengths, each text, cells that had converged.
Of the first two also the errors on cells left out: the largest ranks and longest lengths, and each
text in turn. --save writes NAME.csv, and NAME.png of random tokens. --widths instead compares other
counts in the place of the effective parameters, and a law of these for each token alone.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pml_cli.law.findings import OK
from pml_cli.law.fit_groups import with_columns
from pml_cli.law.fit_result import FitResult
from pml_cli.law.forms import FORMS
from pml_cli.law.mle import fit_saturating
from pml_cli.law.model_selection import EDGE, TEXT, Estimator, aicc_differences, checks, saturating
from pml_cli.law.observations import EFFECTIVE, PARAMETERS, RANK, Observations, SizeAxis
from pml_cli.law.power_law import fit_paper
from pml_cli.report.figures.style import MARKERS, save, sequential_colours
from pml_cli.results.read import read_runs

HERE = Path(__file__).parent
ALL = "all cells"
WITHOUT_RANK_1 = "without rank 1"


def read_cells(path: Path) -> pd.DataFrame:
    """One row a cell, of a folder of runs or of a table."""
    if path.is_dir():
        return with_columns(read_runs([path]))
    cells = pd.read_csv(path)
    if "data" not in cells:
        cells["data"] = "random"
    return with_columns(cells.assign(target_tokens=cells["seqlen"], adapter="mlp_block"))


def parts(cells: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All cells of one kind of data, and the parts that are looked at."""
    yield ALL, cells
    cells = cells[cells["rank"] > 1]
    yield WITHOUT_RANK_1, cells
    yield "from rank 3 on", cells[cells["rank"] > 2]

    lengths = np.unique(cells["target_tokens"])
    middle = lengths[len(lengths) // 2]
    yield "shorter half of the lengths", cells[cells["target_tokens"] <= middle]
    yield "longer half of the lengths", cells[cells["target_tokens"] >= middle]
    for text, of_text in cells.groupby("data_seed"):
        yield f"text {text} alone", of_text
    if "converged" in cells and cells["converged"].eq(False).any():
        yield "cells that had converged", cells[cells["converged"].ne(False)]


def observations(cells: pd.DataFrame, axis: SizeAxis) -> Observations:
    """The cells as a law takes them."""
    return Observations.of(
        cells[axis.column],
        cells["target_tokens"],
        cells["delta_loss"],
        cells["base_loss"],
        final=cells["final_loss"],
        text=cells["data_seed"].astype(str).to_numpy(str),
        grid_size=cells[axis.grid.column],
    )


def laws(cells: Observations) -> Iterator[tuple[FitResult, float, Estimator]]:
    """The paper's law and each form, with its AICc above the least and its estimator."""
    yield fit_paper(cells), np.nan, fit_paper
    fits = [fit_saturating(cells, form) for form in FORMS]
    for form, fit, difference in zip(FORMS, fits, aicc_differences(fits), strict=True):
        yield fit, difference, saturating(form)


def rows_of(data: str, axis: SizeAxis, cells: pd.DataFrame) -> Iterator[dict]:
    """A row for each part and law that is identified on it."""
    for part, of_part in parts(cells):
        seen = observations(of_part, axis)
        for fit, difference, estimator in laws(seen):
            if fit.status != OK:
                continue
            row = {
                "data": data,
                "size": axis.name,
                "part": part,
                "cells": len(of_part),
                "law": fit.name,
                "aicc": difference,
                **fit.parameters,
                "mape": fit.mape,
            }
            if part in (ALL, WITHOUT_RANK_1):
                held_out = checks(seen, estimator)
                row["unseen"] = held_out[EDGE].mape
                row["unseen_all"] = held_out[EDGE].mape_all
                if TEXT in held_out:
                    row["unseen_text"] = held_out[TEXT].mape
            yield row


def draw(cells: pd.DataFrame) -> Figure:
    """Final loss against parameters for each target token: all of them, and those in effect."""
    page = Figure(figsize=(9, 4), layout="constrained")
    panels = page.subplots(1, 2, sharey=True)
    ranks = sorted(cells["rank"].unique())
    colours = sequential_colours(len(ranks))
    sizes = {"trainable": PARAMETERS, "effective": EFFECTIVE}
    for axes, (name, axis) in zip(panels, sizes.items(), strict=True):
        for i, rank in enumerate(ranks):
            of_rank = cells[cells["rank"] == rank]
            load = of_rank[axis.column] / of_rank["target_tokens"]
            marker = MARKERS[i % len(MARKERS)]
            axes.plot(load, of_rank["final_loss"], marker, ms=4, color=colours[i], label=rank)
        axes.set_xlim(0, 45)
        axes.set_xlabel(f"{name} parameters for each target token")
    panels[0].set_ylabel("final loss, nats per token")
    panels[1].legend(title="rank", fontsize=8, ncols=2)
    return page


def widths(cells: pd.DataFrame) -> pd.DataFrame:
    """AICc of exp + level with r (min(T, m) + n - r) as the size, a row an m and a column an n.

    The model's width is 128. Below, the law of the effective parameters for each token alone, in
    which alpha and beta are one.
    """
    cells = cells[(cells["data"] == "random") & (cells["rank"] > 1)]
    (form,) = (form for form in FORMS if form.name == "exp + level")
    rank, tokens = cells["rank"], cells["target_tokens"]
    seen = observations(cells, EFFECTIVE)

    table = pd.DataFrame()
    for m in (64, 96, 112, 128, 144, 160, 192):
        for n in (64, 96, 128, 160, 192):
            size = (rank * (np.minimum(tokens, m) + n - rank)).to_numpy(float)
            table.loc[m, n] = fit_saturating(replace(seen, rank=size), form).aicc

    # A beta of nearly 0: the length stands in the size.
    alone = replace(seen, rank=seen.rank / seen.length)
    fit = fit_saturating(alone, replace(form, beta=0.01))
    table.loc["for each token", 128] = fit.aicc
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=Path, help="folder of runs, or a table of cells")
    parser.add_argument("--save", metavar="NAME", help="write NAME.csv and NAME.png here")
    parser.add_argument("--widths", action="store_true", help="compare other counts")
    args = parser.parse_args()

    runs = read_cells(args.cells)
    if args.widths:
        print(widths(runs).round(0).to_string())
        return

    rows = []
    for data, cells in runs.groupby("data"):
        for axis in (RANK, EFFECTIVE):
            rows += rows_of(str(data), axis, cells)
    table = pd.DataFrame(rows)
    # The paper's law, the best of the others, and the one that most parts prefer.
    is_shown = table["law"].isin(["paper", "exp + level"]) | (table["aicc"] == 0)
    print(table[is_shown].round(3).to_string(index=False))

    if args.save:
        table.to_csv(HERE / f"{args.save}.csv", index=False, float_format="%.4g")
        random = runs[runs["data"] == "random"]
        save(draw(random), HERE / f"{args.save}.png", "png")


if __name__ == "__main__":
    main()

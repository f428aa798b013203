"""What keeping the rest costs: recall against harm, and the rank for each weight of the penalty.

    pml sweep -f keep && pml forgetting outputs/keep
    pml sweep -f keep_law
    python benchmarks/keep.py outputs/keep outputs/keep_law

It prints the tables of README.md and writes keep.csv, keep_law.csv and keep.png beside itself. A
text is the unit: its seeds are averaged first, and intervals are t intervals over texts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pml_cli.analysis.rank_thresholds import rank_table
from pml_cli.report.figures.style import log_axis, save, sequential_colours
from pml_cli.results.read import read_runs
from pml_cli.stats import t_half_width

HERE = Path(__file__).parent

CONDITION = ["data", "rank", "loss", "lr"]
KINDS = ["prose", "docs", "code", "chat"]

# Ticks of the figure.
RANKS = [1, 2, 3, 4, 6, 8, 12, 16]

# Least share of the texts recalled whole with which a loss counts as recalling.
RECALLS = 0.9


def measured_runs(folder: Path) -> pd.DataFrame:
    """The runs of a folder with their harm: `harm`, and `harm_prose` and so on by kind of text."""
    entries = json.loads((folder / "forgetting.json").read_text("utf-8"))["runs"]
    rows = []
    for entry in entries:
        row = {"id": entry["id"], "harm": entry["harm"]}
        for kind in KINDS:
            row[f"harm_{kind}"] = entry["kinds"][kind]["harm"]
        row["changed"] = np.mean([entry["kinds"][kind]["changed"] for kind in KINDS])
        rows.append(row)
    return read_runs([folder]).merge(pd.DataFrame(rows), on="id")


def front(runs: pd.DataFrame) -> pd.DataFrame:
    """Recall and harm of every condition: means over texts, and half the width of t intervals."""
    values = [
        "exact_match",
        "token_accuracy",
        "harm",
        *(f"harm_{kind}" for kind in KINDS),
        "changed",
    ]
    by_text = runs.groupby([*CONDITION, "data_seed"])[values].mean().reset_index()

    rows = []
    for condition, texts in by_text.groupby(CONDITION):
        row = dict(zip(CONDITION, condition, strict=True))
        row["texts"] = len(texts)
        for value in values:
            row[value] = texts[value].mean()
        row["harm_half_width"] = t_half_width(texts["harm"])
        rows.append(row)
    return pd.DataFrame(rows)


def shares_of_sft(runs: pd.DataFrame) -> pd.DataFrame:
    """The harm of each condition as a share of that of sft, at its gentlest rate that recalls.

    Ratios are taken within a text; the mean and the interval are those of their logs.
    """
    rows = []
    for _, of_data in runs.groupby("data"):
        by_text = of_data.groupby([*CONDITION, "data_seed"])[["exact_match", "harm"]].mean()
        means = by_text.groupby(CONDITION).mean()
        recalling = means[means["exact_match"] >= RECALLS]
        plain = recalling[recalling.index.get_level_values("loss") == "sft"]
        gentlest = plain["harm"].idxmin()
        reference = np.log(by_text["harm"].loc[gentlest])

        for condition in recalling.index:
            logs = np.log(by_text["harm"].loc[condition]) - reference
            middle = logs.mean()
            half = t_half_width(logs)
            row = dict(zip(CONDITION, condition, strict=True))
            row |= {"share": np.exp(middle)}
            row |= {"share_low": np.exp(middle - half), "share_high": np.exp(middle + half)}
            rows.append(row | {"sft_lr": gentlest[CONDITION.index("lr")]})
    return pd.DataFrame(rows)


def law(runs: pd.DataFrame) -> pd.DataFrame:
    """The rank of verbatim recall under each weight: geometric means over texts, t intervals."""
    table = rank_table(runs)
    columns = ["data", "seqlen", "method", "texts", "rank", "low", "high", "outside"]
    return table.loc[table["seqlen"].notna(), columns]


def draw(conditions: pd.DataFrame, ranks: pd.DataFrame) -> Figure:
    """Above, recall against harm; below, the rank that recall takes against length."""
    # By what they cost; a loss has one colour in both panels.
    methods = ranks.groupby("method")["rank"].median().sort_values().index
    colours = dict(zip(methods, sequential_colours(len(methods)), strict=True))

    page = Figure(figsize=(9.5, 7.5), layout="constrained")
    panels = page.subplots(2, 2)
    for column, data in enumerate(["text", "random"]):
        _front_panel(panels[0, column], conditions[conditions["data"] == data])
        _law_panel(panels[1, column], ranks[ranks["data"] == data], colours)
    return page


def _front_panel(axes: Axes, conditions: pd.DataFrame) -> None:
    families = conditions["loss"].str.partition("(")[0]
    for family, marker in (("sft", "s"), ("memft_ot", "^"), ("memft_margin", "o")):
        points = conditions[families == family]
        axes.errorbar(
            points["harm"],
            100 * points["exact_match"],
            xerr=points["harm_half_width"],
            fmt=marker,
            alpha=0.8,
            label=family,
        )
    first = conditions.iloc[0]
    axes.set_title(f"{first['data']}: 64 tokens, rank {first['rank']}")
    axes.set_xscale("log")
    axes.set_xlabel("harm: nats per token added to other text")
    axes.set_ylabel("texts recalled whole, %")
    axes.legend()


def _law_panel(axes: Axes, ranks: pd.DataFrame, colours: dict[str, Any]) -> None:
    for method, colour in colours.items():
        points = ranks[ranks["method"] == method].sort_values("seqlen")
        if points.empty:
            continue
        axes.plot(points["seqlen"], points["rank"], "o-", color=colour, label=method)
    log_axis(axes, ranks["seqlen"])
    axes.set_yscale("log")
    axes.set_yticks(RANKS, [str(rank) for rank in RANKS])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("tokens of the text")
    axes.set_ylabel("rank for verbatim recall")
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("keep", type=Path, help="folder of pml sweep -f keep")
    parser.add_argument("law", type=Path, help="folder of pml sweep -f keep_law")
    arguments = parser.parse_args()

    runs = measured_runs(arguments.keep)
    conditions = front(runs)
    shares = shares_of_sft(runs)
    ranks = law(read_runs([arguments.law]))

    conditions = conditions.merge(shares, on=CONDITION, how="left")
    conditions.round(4).to_csv(HERE / "keep.csv", index=False)
    ranks.round(4).to_csv(HERE / "keep_law.csv", index=False)
    save(draw(conditions, ranks), HERE / "keep.png", "png")
    print(conditions.round(3).to_string(index=False))
    print(ranks.round(2).to_string(index=False))


if __name__ == "__main__":
    main()

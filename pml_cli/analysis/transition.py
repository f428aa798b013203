"""Everything that `pml transition` says of one group of runs, from their result.json and tokens.parquet.

Cells are runs; sequences are samples of runs at the last logged step; a cluster is the cells of one text and length.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pml_cli.analysis import trajectories
from pml_cli.analysis.first_failures import Agreement, FailureConcentration, Ints, agree, gather
from pml_cli.analysis.survival import waits
from pml_cli.analysis.trajectories import BINS, HALF, IrregularError, TokenPaths
from pml_cli.io import finite_or_none
from pml_cli.runs.folder import RunFolder
from pml_cli.stats import LN2, Array, Mask, Proportion, clustered_proportion

DTYPE = re.compile(r"\bmodel\.dtype=(\w+)")
GRIDS = 4  # lengths of one text that the figure of the stubborn grid shows
TALLIES = (
    "tokens", "above", "ever", "fell", "falls", "lost", "forgot", "logged", "logged_above", "violations", "early_right",
    "stubborn", "wrong",
)  # fmt: skip


@dataclass
class Reading:
    """What was read of one group, run by run."""

    cells: list[dict[str, Any]] = field(default_factory=list)
    sequences: list[pd.DataFrame] = field(default_factory=list)
    stubborn: list[Ints] = field(default_factory=list)  # positions, a list a sequence
    crossings: list[pd.DataFrame] = field(default_factory=list)
    bins: dict[Any, NDArray[np.int64]] = field(
        default_factory=dict
    )  # cluster -> (tokens, right) x BINS
    offenders: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Grid:
    """Final p of one text at one length: a row a rank, a column a target token (samples side by side)."""

    text: Any  # data_seed
    length: int
    seed: Any
    ranks: Array  # (R,) ascending
    p_RS: Array
    correct_RS: Mask
    samples: int


@dataclass(frozen=True)
class Phases:
    """One group of comparable runs and what its tokens show."""

    name: str
    slug: str
    key: dict[str, Any]
    cells: (
        pd.DataFrame
    )  # a run each: result.json's columns and TALLIES, highest_wrong, lowest_right, first/last step
    sequences: pd.DataFrame
    above: Proportion  # logged tokens with p > 0.5 that are decoded rightly
    below: Proportion  # and those with p <= 0.5
    recall: pd.DataFrame  # a bin of p each: low_p, high_p, tokens, right, share, low, high
    agreement: Agreement
    gathering: FailureConcentration
    crossings: pd.DataFrame  # rank, target_tokens, step, crossed, left
    by_rank: pd.DataFrame  # `waiting.waits`
    by_cell: pd.DataFrame  # the same by rank and length
    misled: dict[str, Proportion]  # loss against recall
    rest: dict[
        str, Proportion
    ]  # accuracy behind the first failure: free (decoded), forced (teacher-forced)
    offenders: list[dict[str, Any]]
    grids: list[Grid]  # of one text; the first is the one that shows most


def dtype(setting: Any) -> str:
    """Of the model's weights, from what a result says of its settings: float32 where it says nothing."""
    found = DTYPE.search(setting) if isinstance(setting, str) else None
    return found.group(1) if found else "float32"


def read(runs: pd.DataFrame, seen: Callable[[], None]) -> Reading:
    """The tokens of every run, one file at a time. Runs without a readable file are left out, with the reason.

    Args:
        runs: rows of result.json with `folder` and `cluster`.
        seen: called after each run.
    """
    reading = Reading()
    for record in runs.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        try:
            paths = trajectories.read(_tokens(row["folder"]))
        except FileNotFoundError:
            reading.left_out.append({"folder": row["folder"], "reason": "no tokens.parquet"})
        except (IrregularError, OSError) as error:
            reading.left_out.append({"folder": row["folder"], "reason": f"tokens.parquet: {error}"})
        else:
            _take(reading, row, paths)
        seen()
    return reading


def _tokens(folder: str) -> Path:
    path = Path(folder)
    return RunFolder(path.parent, path.name).tokens


def _take(reading: Reading, row: dict[str, Any], paths: TokenPaths) -> None:
    bins = np.stack([paths.tokens_B, paths.right_B])
    reading.bins[row["cluster"]] = reading.bins.get(row["cluster"], 0) + bins
    above = paths.since_S >= 0
    tallies = {
        "tokens": len(above), "above": above.sum(), "ever": paths.ever_S.sum(), "fell": (paths.falls_S > 0).sum(),
        "falls": paths.falls_S.sum(), "lost": (paths.ever_S & ~above).sum(), "forgot": (paths.losses_S > 0).sum(),
        "logged": paths.tokens_B.sum(), "logged_above": paths.tokens_B[HALF:].sum(), "violations": paths.violations,
        "early_right": paths.right_B[:HALF].sum(), "stubborn": (~above).sum(), "wrong": (~paths.correct_S).sum(),
    }  # fmt: skip
    reading.cells.append(
        row
        | {name: int(value) for name, value in tallies.items()}
        | {
            "highest_wrong": paths.highest_wrong,
            "lowest_right": paths.lowest_right,
            "logged_steps": len(paths.steps),
        }
        | {"first_step": int(paths.steps[0]), "last_step": int(paths.steps[-1])}
    )
    common = {
        name: row[name] for name in ("id", "rank", "target_tokens", "data_seed", "seed", "cluster")
    }
    table, stubborn = sequences(paths)
    reading.sequences.append(table.assign(**common))
    reading.stubborn += stubborn
    crossed = np.bincount(
        np.searchsorted(paths.steps, paths.since_S[above]), minlength=len(paths.steps)
    )
    left = np.zeros(len(paths.steps), np.int64)
    left[-1] = int((~above).sum())
    reading.crossings.append(
        pd.DataFrame({"rank": row["rank"], "target_tokens": row["target_tokens"], "step": paths.steps, "crossed": crossed,
                      "left": left})
    )  # fmt: skip
    reading.offenders += [
        {"id": row["id"], "folder": row["folder"], **bad} for bad in paths.offenders
    ]


def sequences(paths: TokenPaths) -> tuple[pd.DataFrame, list[Ints]]:
    """Each sample at the last logged step: sample, length, wrong, earliest_stubborn, first_failure (nan: none).

    Returns also the stubborn positions of each, ascending.
    """
    names, which = np.unique(paths.sample_S, return_inverse=True)
    which = which.ravel()
    position = paths.position_S.astype(np.int64)
    stubborn, wrong = ~(paths.p_S > 0.5), ~paths.correct_S
    found = {
        "sample": names,
        "length": np.bincount(which),
        "wrong": np.bincount(which, wrong).astype(np.int64),
    }
    for name, flags in (("earliest_stubborn", stubborn), ("first_failure", wrong)):
        first = np.full(len(names), np.inf)
        np.minimum.at(first, which[flags], position[flags].astype(float))
        found[name] = np.where(np.isfinite(first), first, np.nan)
    order = np.lexsort((position[stubborn], which[stubborn]))
    ends = np.cumsum(np.bincount(which[stubborn], minlength=len(names)))[:-1]
    return pd.DataFrame(found), list(np.split(position[stubborn][order], ends))


def phases(
    name: str, slug: str, key: dict[str, Any], reading: Reading, *, draws: int, text: int | None
) -> Phases:
    """Everything about one group.

    Args:
        reading: with at least one run.
        draws: of the bootstrap of Spearman's rho.
        text: data.seed of the stubborn grid's text; None: the lowest.
    """
    cells = pd.DataFrame(reading.cells)
    found = pd.concat(reading.sequences, ignore_index=True)
    crossings = (
        pd.concat(reading.crossings)
        .groupby(["rank", "target_tokens", "step"], as_index=False)
        .sum()
    )
    counts_C2B = np.stack(list(reading.bins.values()))
    above, below = (
        clustered_proportion(*part.sum(-1).T[::-1])
        for part in (counts_C2B[..., HALF:], counts_C2B[..., :HALF])
    )
    return Phases(
        name, slug, key, cells, found, above, below, recall_table(counts_C2B),
        agree(found, reading.stubborn, draws), gather(found),
        crossings, waits(cells, crossings, ["rank"]), waits(cells, crossings, ["rank", "target_tokens"]),
        misled(cells), rest(cells, found), reading.offenders, grids(cells, text),
    )  # fmt: skip


def recall_table(counts_C2B: NDArray[np.int64]) -> pd.DataFrame:
    """The share decoded rightly in each bin of p, all logged steps; bins exclude their lower end.

    Args:
        counts_C2B: of each cluster the logged tokens and the right ones in each bin.
    """
    rows = []
    for k in range(BINS):
        share = clustered_proportion(counts_C2B[:, 1, k], counts_C2B[:, 0, k])
        rows.append({"low_p": k / BINS, "high_p": (k + 1) / BINS, "tokens": share.trials, "right": share.successes,
                     "share": share.value, "low": share.low, "high": share.high})  # fmt: skip
    return pd.DataFrame(rows)


def precision(cells: pd.DataFrame) -> pd.DataFrame:
    """Violations by the model's dtype: runs, logged tokens, those above 0.5, the tightest cases on both sides."""
    table = cells.assign(dtype=cells["setting"].map(dtype)).groupby("dtype", as_index=False).agg(
        runs=("id", "size"), logged=("logged", "sum"), above=("logged_above", "sum"), violations=("violations", "sum"),
        below_right=("early_right", "sum"), highest_wrong=("highest_wrong", "max"), lowest_right=("lowest_right", "min"),
    )  # fmt: skip
    return pd.DataFrame(table.assign(below=table["logged"] - table["above"]))


def misled(cells: pd.DataFrame) -> dict[str, Proportion]:
    """Where the mean loss and recall disagree, over cells.

    `low_loss_not_verbatim`: of the cells with a mean loss below ln 2, those that are not recalled whole;
    `high_loss_verbatim`: of the others, those that are; `either`: both, of all cells; `stubborn_verbatim`: of the cells
    recalled whole, those with a stubborn token.
    """
    numbers = cells[["final_loss", "exact_match"]].apply(pd.to_numeric, errors="coerce")
    low, whole = numbers["final_loss"] < LN2, numbers["exact_match"] == 1
    known = numbers.notna().all(axis=1)
    cases = {
        "low_loss_not_verbatim": (low & ~whole, low),
        "high_loss_verbatim": (~low & whole, ~low),
        "either": (low != whole, low | ~low),
        "stubborn_verbatim": (whole & (cells["stubborn"] > 0), whole),
    }
    return {
        name: _by_cluster(cells, found & known, of & known) for name, (found, of) in cases.items()
    }


def rest(cells: pd.DataFrame, found: pd.DataFrame) -> dict[str, Proportion]:
    """Accuracy behind the first failure: of tokens decoded freely, and teacher-forced in the same cells.

    Up to the first failure both are right, and at it both are wrong; so what result.json says of all tokens leaves the rest.
    """
    free = pd.to_numeric(cells["free_accuracy"], errors="coerce")
    behind = (found["length"] - found["first_failure"] - 1).fillna(0)
    proven = found["first_failure"].fillna(found["length"])  # tokens before it, or all
    sums = (
        pd.DataFrame({"id": found["id"], "behind": behind, "proven": proven})
        .groupby("id")
        .sum()
        .reindex(cells["id"])
    )
    known = free.notna()
    after = sums["behind"].set_axis(cells.index).where(known, 0.0)
    before = sums["proven"].set_axis(cells.index)
    decoded = (free * cells["tokens"] - before).clip(lower=0).fillna(0).round()
    forced = (cells["tokens"] - cells["wrong"] - before).where(known, 0.0)
    counts = pd.DataFrame(
        {"cluster": cells["cluster"], "free": decoded, "forced": forced, "of": after}
    )
    sums = counts[counts["of"] > 0].groupby("cluster").sum()
    return {name: clustered_proportion(sums[name], sums["of"]) for name in ("free", "forced")}


def _by_cluster(cells: pd.DataFrame, found: pd.Series[bool], of: pd.Series[bool]) -> Proportion:
    sums = (
        pd.DataFrame({"cluster": cells["cluster"], "found": found, "of": of})
        .groupby("cluster")
        .sum()
    )
    return clustered_proportion(sums["found"], sums["of"])


def grids(cells: pd.DataFrame, text: int | None) -> list[Grid]:
    """The final p of one text by position and rank, at up to four lengths, the most telling one first.

    That is the length with the most ranks, and of several the one whose share of tokens above 0.5 is nearest to a half.
    Of repeats of a rank the lowest seed is shown.
    """
    texts = cells["data_seed"].dropna()
    chosen = text if text is not None else texts.min() if len(texts) else None
    mine = cells if chosen is None else cells[cells["data_seed"] == chosen]
    if mine.empty:
        return []
    lengths = mine.groupby("target_tokens").agg(
        ranks=("rank", "nunique"), above=("above", "sum"), of=("tokens", "sum")
    )
    full = lengths[lengths["ranks"] == lengths["ranks"].max()]
    telling = (full["above"] / full["of"] - 0.5).abs().idxmin()
    spread = full.index[np.unique(np.linspace(0, len(full) - 1, GRIDS).round().astype(int))]
    shown = [telling, *[length for length in spread if length != telling][: GRIDS - 1]]
    found = [_grid(mine[mine["target_tokens"] == length], chosen, int(length)) for length in shown]
    return [grid for grid in found if grid is not None]


def _grid(cells: pd.DataFrame, text: Any, length: int) -> Grid | None:
    rows = cells.sort_values(["rank", "seed"]).drop_duplicates("rank")
    last = [trajectories.last_step(_tokens(folder)) for folder in rows["folder"]]
    size = len(last[0])
    kept = [k for k, table in enumerate(last) if len(table) == size]
    return Grid(
        text, length, rows["seed"].min(), rows["rank"].to_numpy(float)[kept],
        np.stack([last[k]["p"].to_numpy(float) for k in kept]), np.stack([last[k]["correct"].to_numpy(bool) for k in kept]),
        int(last[0]["sample"].nunique()),
    )  # fmt: skip


def group_dict(group: Phases) -> dict[str, Any]:
    """One group for transition.json; its tables are in the CSV files."""
    return {
        "name": group.name, "slug": group.slug, "key": group.key,
        "cells": len(group.cells), "sequences": len(group.sequences),
        "logged_tokens": int(group.cells["logged"].sum()), "violations": int(group.cells["violations"].sum()),
        "recalled_above_half": group.above.to_dict(), "recalled_below_half": group.below.to_dict(),
        "stubborn_against_failure": group.agreement.to_dict(), "gathering": group.gathering.to_dict(),
        "loss_against_recall": {name: share.to_dict() for name, share in group.misled.items()},
        "behind_first_failure": {name: share.to_dict() for name, share in group.rest.items()},
        "by_rank": [{k: finite_or_none(v) if isinstance(v, float) else v for k, v in row.items()}
                    for row in group.by_rank.to_dict("records")],
        "recall_by_p": [{k: finite_or_none(v) if isinstance(v, float) else v for k, v in row.items()}
                        for row in group.recall.to_dict("records")],
    }  # fmt: skip

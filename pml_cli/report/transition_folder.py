"""The files of a transition report: transition.json, tables as CSV, and figures as PNG and SVG.

- `transition.json`, format 1: `versions`, `inputs` {runs, logged_tokens, left_out}, `by_dtype` (`phases.precision`), and
  of each of `groups` what `phases.group_dict` says. Shares are {found, of, share, low, high}; what is not known is null.
- `cells.csv`: a run each: loss, recall, and of its tokens: `tokens`; `above` 0.5 at the last logged step, `ever`, `fell`
  back at least once, `falls` in all, `lost` (ever above, not at the end), `forgot` (once decoded, later not); over all
  logged steps `logged`, `logged_above`, `violations`, `early_right` (decoded at p <= 0.5), `highest_wrong`, `lowest_right`
- `sequences.csv`: a sample of a run each, at the last logged step: `earliest_stubborn`, `first_failure` (empty: none)
- `recall.csv` (a bin of p each), `gathering.csv` (a text each), `waits.csv` (rank and length), `survival.csv` (rank, length,
  step: share of tokens not above p = 0.5 for good), `violations.csv` (a token each, with p, margin and nll)

Figures: `transition`, the page of a group, stands beside the tables; with several groups it is `transition-<slug>`. Its
panels by themselves, as wide as a column of print, are in figures/ (figures/<slug>/; with more than MANY_GROUPS groups not
drawn).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pml_cli import __version__
from pml_cli import io as io_
from pml_cli.analysis.survival import survival
from pml_cli.analysis.transition import Phases, group_dict, precision
from pml_cli.config.reports import Transition
from pml_cli.errors import UserError
from pml_cli.io import finite_or_none

FORMAT = 1  # of transition.json
CELLS = (
    "id", "rank", "seqlen", "target_tokens", "data_seed", "seed", "base_loss", "final_loss", "token_accuracy", "exact_match",
    "free_accuracy", "first_step", "last_step", "logged_steps", "tokens", "above", "ever", "fell", "falls", "lost", "forgot",
    "stubborn", "wrong", "logged", "logged_above", "violations", "early_right", "highest_wrong", "lowest_right", "folder",
)  # fmt: skip
SEQUENCES = (
    "id", "rank", "target_tokens", "data_seed", "seed", "sample", "length", "wrong", "earliest_stubborn", "first_failure"
)  # fmt: skip
OFFENDERS = (
    "id",
    "step",
    "sample",
    "position",
    "token_id",
    "argmax_id",
    "p",
    "margin",
    "nll",
    "folder",
)


def write(
    out: Path, groups: list[Phases], settings: Transition, left_out: Sequence[dict[str, str]]
) -> list[str]:
    """Every file of the report folder, each complete or absent; returns their names.

    Raises:
        UserError: the folder cannot be written.
    """
    tables = {
        "cells": _joined(groups, lambda group: group.cells[list(CELLS)]),
        "sequences": _joined(groups, lambda group: group.sequences[list(SEQUENCES)]),
        "recall": _joined(groups, lambda group: group.recall),
        "gathering": _joined(groups, lambda group: group.gathering.texts),
        "waits": _joined(groups, lambda group: group.by_cell),
        "survival": _joined(groups, _survival),
        "violations": _joined(
            groups, lambda group: pd.DataFrame(group.offenders, columns=list(OFFENDERS))
        ),
    }
    text = json.dumps(_content(groups, left_out), indent=1, allow_nan=False) + "\n"
    try:
        io_.atomic_write(out / "transition.json", lambda aside: aside.write_text(text, "utf-8"))
        for name, table in tables.items():
            io_.atomic_write(
                out / f"{name}.csv", lambda aside, table=table: table.to_csv(aside, index=False)
            )  # type: ignore[misc]
        drawn = _draw(out, groups) if settings.figures else []
    except OSError as error:
        raise UserError(f"out={out}: cannot write the report ({error.strerror})") from error
    return ["transition.json", *(f"{name}.csv" for name in tables), *drawn]


def _content(groups: list[Phases], left_out: Sequence[dict[str, str]]) -> dict[str, Any]:
    cells = pd.concat([group.cells for group in groups])
    dtypes = [
        {str(k): finite_or_none(v) if isinstance(v, float) else v for k, v in row.items()}
        for row in precision(cells).to_dict("records")
    ]
    return {
        "format": FORMAT,
        "versions": {"pml": __version__, "numpy": np.__version__},
        "inputs": {
            "runs": len(cells),
            "logged_tokens": int(cells["logged"].sum()),
            "left_out": list(left_out),
        },
        "by_dtype": dtypes,
        "groups": [group_dict(group) for group in groups],
    }


def _joined(groups: list[Phases], table: Callable[[Phases], pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table(group).assign(group=group.slug) for group in groups], ignore_index=True)


def _survival(group: Phases) -> pd.DataFrame:
    parts = []
    for _, part in group.crossings.groupby(["rank", "target_tokens"]):
        curve = survival(part)
        for name in ("rank", "target_tokens"):
            curve[name] = part[name].iloc[0]
        parts.append(curve)
    return pd.concat(parts)


def _draw(out: Path, groups: list[Phases]) -> list[str]:
    """Draw every figure of every group; returns the names of the files (`write_group_figures`)."""
    from pml_cli.report.figures.registry import write_group_figures

    return write_group_figures(out, "transition", {group.slug: group for group in groups})

"""Which finished runs a transition report covers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.config.reports import Transition
from pml_cli.errors import UserError
from pml_cli.law.observations import text_names
from pml_cli.results.folder import RESULT
from pml_cli.results.groups import split_groups, with_key_columns
from pml_cli.results.read import finished_runs
from pml_cli.stats import MIN_CLUSTERS

# Columns of the report; an older result.json may lack some of them.
COLUMNS = [
    "id",
    "folder",
    "rank",
    "seqlen",
    "target_tokens",
    "data_seed",
    "seed",
    "base_loss",
    "final_loss",
    "token_accuracy",
    "exact_match",
    "free_accuracy",
    "free_exact_match",
]


def transition_runs(
    paths: Sequence[Path], settings: Transition, notes: list[str] | None = None
) -> pd.DataFrame:
    """The finished runs below `paths` that the settings select.

    Args:
        paths: folders of runs, searched at any depth.
        notes: takes a line about runs that lie there twice.

    Returns:
        A row for each run: the fields of result.json, its folder, and its cluster (`_clusters`).

    Raises:
        UserError: no finished run, none that is selected, or one without its rank or length.
    """
    runs = finished_runs(paths, "`pml sweep -f transition`", notes)
    columns = list(dict.fromkeys([*runs.columns, *COLUMNS]))
    runs = with_key_columns(runs.reindex(columns=columns))

    # An older or damaged result.json may lack them, and grouping would drop such a run.
    sizes = runs[["rank", "target_tokens"]].apply(pd.to_numeric, errors="coerce")
    without_size = runs[~(sizes > 0).all(axis=1)]
    if len(without_size):
        result = Path(without_size["folder"].iloc[0]) / RESULT
        raise UserError(f"{result}: rank or target_tokens is missing or not positive")

    for name in sizes:
        runs[name] = sizes[name].astype(np.int64)
    selected = _select(runs, settings, paths).reset_index(drop=True)

    # Of each group by itself: another one may have more texts, or lengths that are not selected.
    clusters = pd.concat([_clusters(group) for _, group in split_groups(selected)])
    return selected.assign(cluster=clusters)


def _clusters(runs: pd.DataFrame) -> pd.Series[str]:
    """The unit of every interval that each run of one group belongs to: its text.

    Intervals need some texts. Where a group has fewer than MIN_CLUSTERS, text and length together
    are the units; such intervals do not say how texts differ.
    """
    text = text_names(runs)
    if text.nunique() >= MIN_CLUSTERS:
        return text
    return text + "/" + runs["target_tokens"].astype(str)


def _select(
    runs: pd.DataFrame,
    settings: Transition,
    paths: Sequence[Path],
) -> pd.DataFrame:
    """The runs of the ranks and lengths that the settings name."""
    folders = shlex.join(str(path) for path in paths)
    selections = {"rank": settings.rank, "seqlen": settings.seqlen}
    for name, selected in selections.items():
        if not selected:
            continue
        available = _distinct_integers(runs[name])
        runs = runs[runs[name].isin(selected)]
        if runs.empty:
            asked = ",".join(map(str, selected))
            raise UserError(
                f"{name}={asked}: no finished run has it; {folders} has "
                f"{', '.join(map(str, available))}"
            )

    texts = _distinct_integers(runs["data_seed"])
    if settings.text is not None and settings.text not in texts:
        available_texts = ", ".join(map(str, texts)) or "none"
        raise UserError(
            f"text={settings.text}: no finished run has it as data.seed; {folders} has "
            f"{available_texts}"
        )
    return runs


def _distinct_integers(values: pd.Series[Any]) -> list[int]:
    return sorted({int(value) for value in values.dropna()})

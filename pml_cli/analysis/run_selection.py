"""Which finished runs a transition report covers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pml_cli.config.reports import Transition
from pml_cli.errors import UserError
from pml_cli.runs.folder import RESULT
from pml_cli.runs.groups import with_key_columns
from pml_cli.runs.read import finished_runs

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


def transition_runs(paths: Sequence[Path], settings: Transition) -> pd.DataFrame:
    """The finished runs below `paths` that the settings select.

    Args:
        paths: folders of runs, searched at any depth.

    Returns:
        A row for each run: the fields of result.json, its folder, and its cluster (the text and
        length).

    Raises:
        UserError: no finished run, none that is selected, or one without its rank or length.
    """
    runs = finished_runs(paths, "`pml sweep -f transition`")
    columns = list(dict.fromkeys([*runs.columns, *COLUMNS]))
    runs = _distinct(with_key_columns(runs.reindex(columns=columns)))

    sizes = runs[["rank", "target_tokens"]].apply(pd.to_numeric, errors="coerce")
    without_size = runs[~(sizes > 0).all(axis=1)]
    if len(without_size):
        result = Path(without_size["folder"].iloc[0]) / RESULT
        raise UserError(f"{result}: rank or target_tokens is missing or not positive")
    sizes = sizes.astype(np.int64)

    text = runs["data_seed"].fillna(-1).astype(str)
    cluster = text + "/" + runs["target_tokens"].astype(str)
    runs = runs.assign(cluster=cluster, rank=sizes["rank"], target_tokens=sizes["target_tokens"])
    return _select(runs, settings, paths)


def _distinct(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run once: a folder may hold copies of another folder's runs."""
    is_copy = runs["id"].notna() & runs.duplicated("id")
    return runs[~is_copy]


def _select(runs: pd.DataFrame, settings: Transition, paths: Sequence[Path]) -> pd.DataFrame:
    for name, selected in (("rank", settings.rank), ("seqlen", settings.seqlen)):
        if not selected:
            continue
        available = sorted({int(value) for value in runs[name].dropna()})
        runs = runs[runs[name].isin(selected)]
        if runs.empty:
            asked = ",".join(map(str, selected))
            folders = shlex.join(str(path) for path in paths)
            raise UserError(
                f"{name}={asked}: no finished run has it; {folders} has "
                f"{', '.join(map(str, available))}"
            )

    texts = sorted({int(seed) for seed in runs["data_seed"].dropna()})
    if settings.text is not None and settings.text not in texts:
        available_texts = ", ".join(map(str, texts)) or "none"
        raise UserError(
            f"text={settings.text}: no finished run has this data.seed; there are {available_texts}"
        )
    return runs

"""`pml transition`: finished runs token by token: did p > 0.5 suffice, what stayed stubborn, where did recall break.

Groups are those of `pml fit` (`groups`). `transition_files` writes transition.json, tables and figures.

Exit codes: 0 when a report was written; 2 (a `UserError`) when there is nothing to read or nowhere to write.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from pml_cli.analysis.transition import Phases, Reading, phases, read
from pml_cli.config.reports import Transition
from pml_cli.errors import UserError
from pml_cli.report import transition_folder
from pml_cli.report.progress import CountDisplay
from pml_cli.report.tables import transition as transition_report
from pml_cli.runs.folder import RESULT, writable_folder
from pml_cli.runs.groups import (
    differing_settings,
    group_name,
    group_slug,
    key_for_json,
    split_groups,
    unique_slugs,
    with_key_columns,
)
from pml_cli.runs.read import finished_runs

COLUMNS = (
    "id", "folder", "rank", "seqlen", "target_tokens", "data_seed", "seed", "base_loss", "final_loss",
    "token_accuracy", "exact_match", "free_accuracy", "free_exact_match",
)  # fmt: skip


def run(paths: list[Path], settings: Transition, console: Console) -> int:
    """Read every group of runs below `paths`, show it on `console`, write the report folder.

    Args:
        paths: folders of runs, searched at any depth; the report goes to settings.out or transition/ inside the first.

    Returns:
        The exit code (above).

    Raises:
        UserError: a missing folder, no finished run that is asked for, no readable tokens.parquet, a report folder that
            cannot be written.
    """
    runs = _asked(_finished(paths), settings, paths)
    parts = list(split_groups(runs))
    told = [(group_name(key), group_slug(key)) for key, _ in parts]
    out = writable_folder(Path(settings.out) if settings.out else paths[0] / "transition")
    with CountDisplay(console, "reading", "runs", len(runs), "runs read") as display:
        readings = [read(group, display.advance) for _, group in parts]
    left_out = [gone for reading in readings for gone in reading.left_out]
    groups = [
        phases(name, slug, key_for_json(key), reading, draws=settings.draws, text=settings.text)
        for (key, _), (name, _), slug, reading in zip(
            parts, told, unique_slugs([s for _, s in told]), readings, strict=True
        )
        if reading.cells
    ]
    if not groups:
        raise UserError(_unreadable(readings))
    _show(groups, left_out, console)
    names = transition_folder.write(out, groups, settings, left_out)
    console.print(Text(f"written to {out}: {', '.join(names)}"))
    return 0


def _finished(paths: list[Path]) -> pd.DataFrame:
    """Every finished run once, with its group's and cluster's columns."""
    runs = finished_runs(paths, "`pml sweep -f transition`")
    runs = with_key_columns(runs.reindex(columns=list(dict.fromkeys([*runs.columns, *COLUMNS]))))
    runs = runs[~(runs["id"].notna() & runs.duplicated("id"))]  # a copy of another folder's run
    sizes = runs[["rank", "target_tokens"]].apply(pd.to_numeric, errors="coerce")
    bad = runs[~(sizes > 0).all(axis=1)]
    if len(bad):
        raise UserError(
            f"{Path(bad['folder'].iloc[0]) / RESULT}: rank or target_tokens is missing or not positive"
        )
    text = runs["data_seed"].fillna(-1).astype(str) + "/" + runs["target_tokens"].astype(str)
    return runs.assign(cluster=text, **{name: sizes[name].astype(np.int64) for name in sizes})


def _asked(runs: pd.DataFrame, settings: Transition, paths: Sequence[Path]) -> pd.DataFrame:
    for name, wanted in (("rank", settings.rank), ("seqlen", settings.seqlen)):
        if wanted:
            there = sorted({int(value) for value in runs[name].dropna()})
            runs = runs[runs[name].isin(wanted)]
            if runs.empty:
                asked, has = ",".join(map(str, wanted)), ", ".join(map(str, there))
                raise UserError(
                    f"{name}={asked}: no finished run has it; {shlex.join(map(str, paths))} has {has}"
                )
    if settings.text is not None and settings.text not in set(runs["data_seed"]):
        has = ", ".join(str(int(value)) for value in sorted(set(runs["data_seed"].dropna())))
        raise UserError(
            f"text={settings.text}: no finished run has this data.seed; there are {has or 'none'}"
        )
    return runs


def _unreadable(readings: Sequence[Reading]) -> str:
    gone = [one for reading in readings for one in reading.left_out]
    more = f" (and {len(gone) - 1} more runs)" if len(gone) > 1 else ""
    return f"{gone[0]['folder']}: {gone[0]['reason']}{more}; nothing is left to report on"


def _show(groups: list[Phases], left_out: Sequence[dict[str, str]], console: Console) -> None:
    if len(groups) > 1:
        words = f"{len(groups)} groups that differ in {differing_settings([group.key for group in groups])}: each is shown by itself."
        console.print(Text(words), end="\n\n")
    console.print(transition_report.precision_table(groups))
    console.print()
    for group in groups:
        console.print(transition_report.group_view(group))
        console.print()
    if left_out:
        first = f"{left_out[0]['folder']}: {left_out[0]['reason']}"
        console.print(Text(f"warning: {len(left_out)} runs left out; {first}", style="yellow"))
    console.print(Text(transition_report.BETWEEN, style="dim"), end="\n\n")

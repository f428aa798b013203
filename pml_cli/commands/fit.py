"""`pml fit`: read finished runs, say which cells count and why, fit the law, say what it does and does not show.

Which cells are fitted together: `groups`.

Shown first is the paper's own estimator, then the law chosen among all, then all of them side by side. `law_files` writes
law.json, cells.csv and law.png, law.svg (one pair a group) into the report folder.

Exit codes: 0 when a table was written, also when no law can be told from the cells (status NOT_IDENTIFIED says why);
2 (a `UserError`) when there is nothing to read or nowhere to write.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from pml_cli.config.reports import Fit
from pml_cli.errors import UserError, did_you_mean
from pml_cli.law import capacity, power_law
from pml_cli.law.analysis import Analysis, analyse
from pml_cli.law.group_comparison import Comparison, compare
from pml_cli.law.group_fit import GroupFit
from pml_cli.law.model_selection import FORMS
from pml_cli.law.observations import SIZES, Observations, of_size
from pml_cli.law.recall_law import DRAWS, fit_recall
from pml_cli.report import law_folder
from pml_cli.report.progress import CountDisplay
from pml_cli.report.tables import law as law_report
from pml_cli.runs.folder import writable_folder
from pml_cli.runs.groups import (
    KEY,
    SCHEDULE,
    common_key,
    comparison_names,
    differing_settings,
    format_value,
    group_name,
    group_slug,
    key_for_json,
    split_groups,
    unique_slugs,
    with_key_columns,
)
from pml_cli.runs.read import finished_runs

NUMBERS = ("rank", "target_tokens", "base_loss", "final_loss", "delta_loss")
REPEATS = ("rank", "target_tokens", "data_seed", "seed")
OTHERS = (
    "id",
    "folder",
    "token_accuracy",
    "exact_match",
    "stopped_early",
    "trainable_parameters",
    "bits_memorised",
    "control_gain",
)


def run(paths: list[Path], settings: Fit, console: Console, by: Sequence[str] = ()) -> int:
    """Fit every group of cells below `paths`, show it on `console`, write the report folder.

    Args:
        paths: folders of runs, searched at any depth; the report goes to settings.out or fit/ inside the first.
        by: settings (of KEY and SCHEDULE) in which groups are compared; those that agree in all others.

    Returns:
        The exit code (above).

    Raises:
        UserError: a missing folder, no finished run, a report folder that cannot be written, nothing to compare.
    """
    _check_by(by)
    runs = _read(paths)
    out = writable_folder(Path(settings.out) if settings.out else paths[0] / "fit")
    cells = audit(runs, settings.saturated_below, SIZES[settings.x])
    parts = list(split_groups(cells))
    sets = _comparable([key for key, _ in parts], by) if by else []
    groups = [_fit_shown(key, group, settings, console) for key, group in parts]
    told = unique_slugs([group.slug for group in groups])
    groups = [
        dataclasses.replace(group, slug=slug) for group, slug in zip(groups, told, strict=True)
    ]
    if len(groups) > 1:
        console.print(
            Text(
                f"{len(groups)} groups that differ in {differing_settings([g.key for g in groups])}: each is fitted by itself."
            ),
            end="\n\n",
        )
    for group in groups:
        _show(group, console)
    comparisons = [
        _compared([groups[k] for k in places], tuple(by), min(settings.draws, DRAWS), console)
        for places in sets
    ]
    for comparison in comparisons:
        console.print(law_report.comparison_table(comparison, settings.x), end="\n\n")
    console.print(
        Text(f"written to {out}: {', '.join(law_folder.write(out, groups, settings, comparisons))}")
    )
    return 0


def _check_by(by: Sequence[str]) -> None:
    for name in by:
        if name not in (*KEY, *SCHEDULE):
            raise UserError(f"--by {name}: {did_you_mean(name, (*KEY, *SCHEDULE))}")


def _comparable(keys: list[dict[str, Any]], by: Sequence[str]) -> list[list[int]]:
    """Places of groups that differ in the settings `by` and agree in all others; sets of two and more."""
    sets: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        sets.setdefault(repr(common_key(key, by)), []).append(place)
    found = [places for places in sets.values() if len(places) > 1]
    if not found:
        differ = [k for k in (*KEY, *SCHEDULE) if len({str(key.get(k)) for key in keys}) > 1]
        has = (
            f"the groups differ in {', '.join(differ)}; try --by {','.join(differ)}"
            if differ
            else "these cells are one group"
        )
        raise UserError(f"--by {','.join(by)}: no two groups differ in that alone; {has}")
    return found


def _compared(
    groups: list[GroupFit], by: tuple[str, ...], draws: int, console: Console
) -> Comparison:
    common = common_key(groups[0].key, by)
    names = comparison_names([group.key for group in groups], by)
    cells = dict(zip(names, (group.observed for group in groups), strict=True))
    forms = [form for form in FORMS if form.link != "none"]
    with CountDisplay(console, "fitting", "bootstrap draws") as display:
        return compare(
            cells,
            forms,
            by,
            common=", ".join(f"{k} {format_value(v)}" for k, v in common.items()),
            draws=draws,
            progress=display.show,
        )


def _read(paths: list[Path]) -> pd.DataFrame:
    sweep = f"pml sweep rank=2,4,8,16 seqlen=64,128,256,512 out={shlex.quote(str(paths[0]))}"
    folders = shlex.join(str(path) for path in paths)
    runs = finished_runs(paths, f"`{sweep}`, then `pml fit {folders}`")
    runs = with_key_columns(
        runs.reindex(columns=list(dict.fromkeys([*runs.columns, *NUMBERS, *REPEATS, *OTHERS])))
    )
    runs[list(NUMBERS)] = runs[list(NUMBERS)].apply(pd.to_numeric, errors="coerce")
    return runs


def audit(runs: pd.DataFrame, saturated_below: float, size: str = "rank") -> pd.DataFrame:
    """Add `kept` and `reason` to the runs: the first fault of each cell, or saturation, or nothing.

    Args:
        runs: one row a run, with the columns of result.json.
        saturated_below: final loss (nats per token) at or below which a cell is saturated.
        size: the column that the law is about.
    """
    sizes = pd.to_numeric(runs[size], errors="coerce")
    values = runs[list(NUMBERS)].to_numpy(float)
    gap = (runs["delta_loss"] - (runs["base_loss"] - runs["final_loss"])).abs()
    early = runs["stopped_early"].eq(True)
    is_saturated = pd.Series(power_law.saturated(runs["final_loss"], saturated_below), runs.index)
    checks = (
        (
            "a number is missing or not finite",
            pd.Series(~np.isfinite(values).all(axis=1), runs.index),
        ),
        ("rank or length is not positive", (runs["rank"] <= 0) | (runs["target_tokens"] <= 0)),
        ("a copy of another folder's run", runs["id"].notna() & runs.duplicated("id")),
        ("gain is not base loss minus final loss", gap > 1e-4 * (1 + runs["base_loss"].abs())),
        (
            "diverged: the final loss is not below the base loss",
            (runs["final_loss"] >= runs["base_loss"]) | (runs["delta_loss"] <= 0),
        ),
        (f"{size.replace('_', ' ')} missing or not positive", ~(sizes > 0) | ~np.isfinite(sizes)),
        ("base loss is not positive", runs["base_loss"] <= 0),
        ("saturated", is_saturated),
        ("stopped early, before its loss was saturated", early & ~is_saturated),
    )
    reason = pd.Series("", runs.index)
    for words, found in checks:
        reason = reason.mask((reason == "") & found, words)
    return runs.assign(kept=reason == "", reason=reason)


def _fit_shown(
    key: dict[str, Any], cells: pd.DataFrame, settings: Fit, console: Console
) -> GroupFit:
    with CountDisplay(console, "fitting", "bootstrap draws") as display:
        return fit_group(
            key, cells, settings.saturated_below, settings.draws, display.show, x=settings.x
        )


def fit_group(
    key: dict[str, Any],
    cells: pd.DataFrame,
    saturated_below: float,
    draws: int = 4000,
    progress: Callable[[int, int], None] | None = None,
    *,
    x: str = "rank",
) -> GroupFit:
    """Fit every law to one group, and check each on its largest ranks and longest lengths.

    Args:
        key: the settings that the cells share.
        cells: from `audit`.
        draws, progress: of the bootstrap, as for `analysis.analyse`.
        x: the size that the law is about: rank or parameters.
    """
    usable = cells[cells["kept"] | (cells["reason"] == "saturated")]
    rank, length, delta, final = (
        usable[name].to_numpy(float)
        for name in (SIZES[x], "target_tokens", "delta_loss", "final_loss")
    )
    fit = power_law.fit_paper(rank, length, delta, final, saturated_below)
    held = power_law.held_out(rank, length, delta, final, saturated_below)
    text = usable["data_seed"].fillna(-1).to_numpy(float)
    observed = Observations.of(rank, length, delta, usable["base_loss"].to_numpy(float), text=text)
    analysis = analyse(observed, saturated_below, draws, progress)
    cells = _with_predictions(cells, usable.index, observed, analysis)
    return GroupFit(
        group_name(key),
        group_slug(key),
        key_for_json(key),
        cells,
        fit,
        held,
        observed,
        analysis,
        [of_size(words, x) for words in fit.warnings + analysis.warnings] + _warnings(cells),
        law_report.conclusions(fit, held, usable, analysis, x),
        x,
        fit_recall(
            observed,
            pd.to_numeric(usable["exact_match"], errors="coerce").to_numpy(float),
            min(draws, DRAWS),
        ),
        capacity.held(usable),
        capacity.unseen(usable),
    )


def _with_predictions(
    cells: pd.DataFrame, usable: pd.Index[Any], observed: Observations, analysis: Analysis
) -> pd.DataFrame:
    """Add each law's prediction and residual: predicted_<law>, residual_<law>, and those of the paper's without a suffix."""
    columns: dict[str, pd.Series[float]] = {}
    for entry in analysis.entries:
        if entry.fit.status == power_law.NOT_IDENTIFIED and entry.name != "paper":
            continue
        suffix = "" if entry.name == "paper" else f"_{entry.slug}"
        predicted = pd.Series(np.nan, cells.index)
        predicted[usable] = entry.fit.predict(observed.rank, observed.length, observed.base)
        columns |= {
            f"predicted{suffix}": predicted,
            f"residual{suffix}": cells["delta_loss"] - predicted,
        }
    return cells.assign(**columns)


def _warnings(cells: pd.DataFrame) -> list[str]:
    """What the cells themselves say against a fit."""
    found = [
        f"{len(rows)} cell{'s' if len(rows) > 1 else ''} excluded: {reason}"
        for reason, rows in cells.groupby("reason")
        if reason not in ("", "saturated")
    ]
    for name in SCHEDULE:
        values = cells[name].dropna().unique()
        if len(values) > 1:
            shown = ", ".join(f"{v:g}" for v in sorted(values)[:6])
            found.append(
                f"{name} is not the same in all cells ({shown}): its effect is mixed with that of rank and length"
            )
    alike = int(cells[cells["kept"]].duplicated(list(REPEATS)).sum())
    if alike:
        found.append(
            f"{alike} cells repeat another's rank, length and seeds but differ in some other setting (see their config.yaml)"
        )
    return found


def _show(group: GroupFit, console: Console) -> None:
    console.print(
        law_report.law_table(group.name, group.fit, group.held, len(group.cells), group.x)
    )
    if (
        group.analysis.chosen or group.fit.status != power_law.NOT_IDENTIFIED
    ):  # a chosen law needs no other, and is never hidden
        console.print()
        console.print(law_report.chosen_table(group.analysis, group.observed, group.x))
        if group.analysis.chosen:
            console.print()
            console.print(law_report.laws_table(group.analysis, group.x))
        console.print()
    for line in (
        *capacity.words(group.held_bits, group.control),
        *law_report.recall_lines(group.recall, group.observed, group.x),
    ):
        console.print(Text(line))
    console.print()
    for words in group.warnings:
        console.print(Text(f"warning: {words}", style="yellow"))
    for words in group.conclusions:
        console.print(Text(words))
    console.print()

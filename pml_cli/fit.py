"""`pml fit`: read finished runs, say which cells count and why, fit the law, say what it does and does not show.

Cells are fitted together when they share model, data, adapter, loss and layer. Learning rate and steps split a group only
where one (rank, length) was run under several values; where each length has its own (the paper's PhoneBook), they do not.

Writes law.json, cells.csv and law.png, law.svg (one pair a group) into the report folder.

Exit codes: 0 when a table was written, also when no law can be told from the cells (status NOT_IDENTIFIED says why);
2 (a `UserError`) when there is nothing to read or nowhere to write.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from rich.console import Console
from rich.text import Text

from . import __version__, law, records, report
from .config import Fit
from .errors import UserError

FORMAT = 1  # of law.json
KEY = ("model", "data", "adapter", "loss", "layer", "setting")
TIED = ("lr", "steps")
NUMBERS = ("rank", "target_tokens", "base_loss", "final_loss", "delta_loss")
REPEATS = ("rank", "target_tokens", "data_seed", "seed")
OTHERS = ("id", "folder", "token_accuracy", "exact_match", "stopped_early")


@dataclass(frozen=True)
class GroupFit:
    """One group of comparable cells and what was found on it."""

    name: str
    slug: str
    key: dict[str, Any]
    cells: pd.DataFrame  # every cell: as read, and predicted, residual, kept, reason
    fit: law.LawFit
    held: law.HeldOut
    warnings: list[str]
    conclusions: list[str]


def run(paths: list[Path], settings: Fit, console: Console) -> int:
    """Fit every group of cells below `paths`, show it on `console`, write the report folder.

    Args:
        paths: folders of runs, searched at any depth; the report goes to settings.out or fit/ inside the first.

    Returns:
        The exit code (above).

    Raises:
        UserError: a missing folder, no finished run, or a report folder that cannot be written.
    """
    runs = _read(paths)
    out = _writable(Path(settings.out) if settings.out else paths[0] / "fit")
    cells = audit(runs, settings.saturated_below)
    groups = [fit_group(key, group, settings.saturated_below) for key, group in split(cells)]
    if len({group.slug for group in groups}) < len(groups):  # names that differ only in signs
        groups = [dataclasses.replace(group, slug=f"{group.slug}-{k}") for k, group in enumerate(groups)]
    if len(groups) > 1:
        console.print(
            Text(f"{len(groups)} groups that differ in {_differing(groups)}: each is fitted by itself."), end="\n\n"
        )
    for group in groups:
        _show(group, console)
    console.print(Text(f"written to {out}: {', '.join(_write(out, groups, settings))}"))
    return 0


def _read(paths: list[Path]) -> pd.DataFrame:
    runs = records.read_runs(paths)
    places = shlex.join(str(path) for path in paths)
    if runs.empty:
        failed = sum(len(records.read_failures(path)) for path in paths)
        seen = f" ({failed} failed; error.json in their folders says why)" if failed else ""
        sweep = f"pml sweep rank=2,4,8,16 seqlen=64,128,256,512 out={shlex.quote(str(paths[0]))}"
        raise UserError(f"{places}: no finished runs{seen}; make some with `{sweep}`, then `pml fit {places}`")
    wanted = [*KEY, *TIED, *NUMBERS, *REPEATS, *OTHERS]
    runs = runs.reindex(columns=list(dict.fromkeys([*runs.columns, *wanted])))
    for name in KEY:  # a list of layers is a value like any other
        runs[name] = runs[name].map(lambda value: str(value) if isinstance(value, list) else value)
    runs[list(NUMBERS)] = runs[list(NUMBERS)].apply(pd.to_numeric, errors="coerce")
    return runs


def _writable(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot make this folder ({error.strerror})") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"out={out}: no permission to write there")
    return out


def audit(runs: pd.DataFrame, saturated_below: float) -> pd.DataFrame:
    """Add `kept` and `reason` to the runs: the first fault of each cell, or saturation, or nothing.

    Args:
        runs: one row a run, with the columns of result.json.
        saturated_below: final loss (nats per token) at or below which a cell is saturated.
    """
    values = runs[list(NUMBERS)].to_numpy(float)
    gap = (runs["delta_loss"] - (runs["base_loss"] - runs["final_loss"])).abs()
    early = runs["stopped_early"].eq(True)
    is_saturated = pd.Series(law.saturated(runs["final_loss"], saturated_below), runs.index)
    checks = (
        ("a number is missing or not finite", pd.Series(~np.isfinite(values).all(axis=1), runs.index)),
        ("rank or length is not positive", (runs["rank"] <= 0) | (runs["target_tokens"] <= 0)),
        ("a copy of another folder's run", runs["id"].notna() & runs.duplicated("id")),
        ("gain is not base loss minus final loss", gap > 1e-4 * (1 + runs["base_loss"].abs())),
        (
            "diverged: the final loss is not below the base loss",
            (runs["final_loss"] >= runs["base_loss"]) | (runs["delta_loss"] <= 0),
        ),
        ("saturated", is_saturated),
        ("stopped early, before its loss was saturated", early & ~is_saturated),
    )
    reason = pd.Series("", runs.index)
    for words, found in checks:
        reason = reason.mask((reason == "") & found, words)
    return runs.assign(kept=reason == "", reason=reason)


def split(cells: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Comparable cells: a key of settings and their rows, in a stable order."""
    for values, group in cells.groupby(list(KEY), dropna=False, sort=True):
        key = dict(zip(KEY, values, strict=True))
        apart = [name for name in TIED if (group.groupby(["rank", "target_tokens"])[name].nunique() > 1).any()]
        if not apart:
            yield key, group
            continue
        for tied, part in group.groupby(apart, dropna=False, sort=True):
            yield key | dict(zip(apart, tied, strict=True)), part


def fit_group(key: dict[str, Any], cells: pd.DataFrame, saturated_below: float) -> GroupFit:
    """Fit the paper's law to one group, and check it on its largest ranks and longest lengths."""
    usable = cells[cells["kept"] | (cells["reason"] == "saturated")]
    rank, length, delta, final = (
        usable[name].to_numpy(float) for name in ("rank", "target_tokens", "delta_loss", "final_loss")
    )
    fit = law.fit_paper(rank, length, delta, final, saturated_below)
    held = law.held_out(rank, length, delta, final, saturated_below)
    predicted = pd.Series(np.nan, cells.index)
    predicted[usable.index] = fit.predict(rank, length)
    cells = cells.assign(predicted=predicted, residual=cells["delta_loss"] - predicted)
    named = ("layer", *TIED)  # values that say nothing without their name
    parts = {k: f"{k} {_short(v)}" if k in named else str(v) for k, v in key.items() if not pd.isna(v) and v != ""}
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts.values())).strip("-")[:150]
    plain = {name: None if pd.isna(value) else value for name, value in key.items()}
    return GroupFit(
        ", ".join(parts.values()),
        slug,
        plain,
        cells,
        fit,
        held,
        fit.warnings + _warnings(cells),
        report.conclusions(fit, held, usable),
    )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _warnings(cells: pd.DataFrame) -> list[str]:
    """What the cells themselves say against a fit."""
    found = [
        f"{len(rows)} cell{'s' if len(rows) > 1 else ''} excluded: {reason}"
        for reason, rows in cells.groupby("reason")
        if reason not in ("", "saturated")
    ]
    for name in TIED:
        values = cells[name].dropna().unique()
        if len(values) > 1:
            shown = ", ".join(f"{v:g}" for v in sorted(values)[:6])
            found.append(f"{name} is not the same in all cells ({shown}): its effect is mixed with that of rank and length")
    alike = int(cells[cells["kept"]].duplicated(list(REPEATS)).sum())
    if alike:
        found.append(
            f"{alike} cells repeat another's rank, length and seeds but differ in some other setting (see their config.yaml)"
        )
    return found


def _differing(groups: list[GroupFit]) -> str:
    names = list(dict.fromkeys(name for group in groups for name in group.key))
    return ", ".join(name for name in names if len({str(group.key.get(name)) for group in groups}) > 1)


def _show(group: GroupFit, console: Console) -> None:
    console.print(report.law_table(group.name, group.fit, group.held, len(group.cells)))
    for words in group.warnings:
        console.print(Text(f"warning: {words}", style="yellow"))
    for words in group.conclusions:
        console.print(Text(words))
    console.print()


def _write(out: Path, groups: list[GroupFit], settings: Fit) -> list[str]:
    """Every file of the report folder, each complete or absent; returns their names."""
    cells = pd.concat([group.cells.assign(group=group.slug) for group in groups])
    first = ["group", "id", "rank", "target_tokens", "data_seed", "seed", "base_loss", "final_loss", "delta_loss"]
    table = cells[[*first, "predicted", "residual", "kept", "reason", "token_accuracy", "exact_match", "folder"]]
    content = {
        "format": FORMAT,
        "versions": {"pml": __version__, "numpy": np.__version__, "scipy": scipy.__version__},
        "inputs": {"cells": len(cells), "sha256": _hash(table)},
        "saturated_below": settings.saturated_below,
        "groups": [_group_dict(group) for group in groups],
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    try:
        records.write_whole(out / "cells.csv", lambda aside: table.to_csv(aside, index=False))
        records.write_whole(out / "law.json", lambda aside: aside.write_text(text, "utf-8"))
        stems = [f"law-{group.slug}" if len(groups) > 1 else "law" for group in groups if settings.figures]
        for stem, group in zip(stems, groups, strict=False):
            _draw(out, group, stem)
    except OSError as error:
        raise UserError(f"out={out}: cannot write the report ({error.strerror})") from error
    return ["law.json", "cells.csv", *(f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg"))]


def _draw(out: Path, group: GroupFit, stem: str) -> None:
    from .plots import law_figure, save

    figure = law_figure(group.cells, group.fit, group.name)
    for suffix in ("png", "svg"):
        write: Callable[[Path], object] = partial(save, figure, form=suffix)
        records.write_whole(out / f"{stem}.{suffix}", write)


def _group_dict(group: GroupFit) -> dict[str, Any]:
    """One group for law.json. The mask of kept cells is in cells.csv, beside their ids."""
    fitted = {name: value for name, value in group.fit.to_dict().items() if name not in ("kept", "warnings")}
    texts = {"warnings": group.warnings, "conclusions": group.conclusions}
    size = {"cells": len(group.cells)}
    key = {name: value.item() if isinstance(value, np.generic) else value for name, value in group.key.items()}
    return {
        "name": group.name,
        "slug": group.slug,
        "key": key,
        **size,
        "fit": fitted,
        "held_out": group.held.to_dict(),
        **texts,
    }


def _hash(table: pd.DataFrame) -> str:
    """Of what the fit saw, whatever the order and place of the folders."""
    seen = table[["group", "id", *NUMBERS, "kept", "reason"]].sort_values(["group", "id", *NUMBERS])
    return hashlib.sha256(seen.to_csv(index=False).encode()).hexdigest()

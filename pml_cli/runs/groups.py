"""Which runs are comparable: those that share model, data, adapter, loss, layer and setting.

Learning rate and steps split a group only where one (rank, length) was run under several values;
where each length has its own (the paper's PhoneBook), they do not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from pml_cli.errors import UserError

KEY = ("model", "data", "adapter", "loss", "layer", "setting")
"""Columns of result.json that comparable runs share."""

SCHEDULE = ("lr", "steps")
"""Columns that comparable runs share where one rank and length has several values."""

PREFIXES = {
    "model": ("model.",),
    "data": ("data.",),
    "adapter": ("adapter.", "model.layer="),
    "layer": ("model.layer=", "adapter.layers="),
}
"""Which entries of the column `setting` belong to another column of the key."""

ENTRY_BREAK = re.compile(r" (?=(?:model|data|adapter|train)\.\w+=)")
"""Between two entries of `setting`; a value may contain spaces."""

MAX_SLUG = 150
"""Characters of a file name for a group."""


def with_key_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with every column of a group's key, and hashable values: a list becomes text."""
    columns = dict.fromkeys([*runs.columns, *KEY, *SCHEDULE])
    runs = runs.reindex(columns=list(columns))
    for name in KEY:
        runs[name] = runs[name].map(lambda value: str(value) if isinstance(value, list) else value)
    return runs


def split_groups(runs: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Groups of comparable runs: the key of each and its rows, in a stable order.

    Args:
        runs: one row a run, from `with_key_columns`.
    """
    for values, group in runs.groupby(list(KEY), dropna=False, sort=True):
        key = dict(zip(KEY, values, strict=True))
        by_cell = group.groupby(["rank", "target_tokens"])
        varying = [name for name in SCHEDULE if (by_cell[name].nunique() > 1).any()]
        if not varying:
            yield key, group
            continue
        for schedule, rows in group.groupby(varying, dropna=False, sort=True):
            yield key | dict(zip(varying, schedule, strict=True)), rows


def group_name(key: dict[str, Any]) -> str:
    """A group's name: the values of its key."""
    return ", ".join(_key_parts(key))


def group_slug(key: dict[str, Any]) -> str:
    """A group's name for file names; see `unique_slugs`."""
    joined = "-".join(_key_parts(key))
    return re.sub(r"[^A-Za-z0-9.]+", "-", joined).strip("-")[:MAX_SLUG]


def _key_parts(key: dict[str, Any]) -> list[str]:
    parts = []
    for name, value in key.items():
        if pd.isna(value) or value == "":
            continue
        # A bare number says nothing without its name.
        is_number = name in ("layer", *SCHEDULE)
        parts.append(f"{name} {format_value(value)}" if is_number else str(value))
    return parts


def unique_slugs(slugs: list[str]) -> list[str]:
    """The slugs, all numbered where two are equal."""
    if len(set(slugs)) == len(slugs):
        return slugs
    return [f"{slug}-{number}" for number, slug in enumerate(slugs)]


def key_for_json(key: dict[str, Any]) -> dict[str, Any]:
    """The key with None in place of nan."""
    return {name: None if pd.isna(value) else value for name, value in key.items()}


def common_key(key: dict[str, Any], by: Sequence[str]) -> dict[str, Any]:
    """The settings that groups must share where they are compared `by` some others.

    Entries of `setting` that belong to those are removed: two sources differ in data.text too, two
    placements in model.layer.
    """
    common = {
        name: value
        for name, value in key.items()
        if name not in by and not pd.isna(value) and value != ""
    }
    if "setting" in common:
        entries = _setting_entries(common.pop("setting"), by, belonging=False)
        if entries:
            common["setting"] = entries
    return common


def comparison_names(keys: Sequence[dict[str, Any]], by: Sequence[str]) -> list[str]:
    """A name for each group that is compared `by` some settings.

    Groups with equal values of these also show the entries of `setting` that belong to them.

    Raises:
        UserError: two groups would have the same name.
    """
    names = []
    for key in keys:
        shown = [name for name in by if not pd.isna(key.get(name))]
        names.append(", ".join(f"{name} {format_value(key[name])}" for name in shown))

    counts = Counter(names)
    for i, key in enumerate(keys):
        if counts[names[i]] > 1 and not pd.isna(key.get("setting")):
            entries = _setting_entries(key["setting"], by, belonging=True)
            names[i] = f"{names[i]} {entries}".strip()

    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        groups = f"{len(names)} groups are compared, and several are {repeated[0]!r}"
        differences = differing_settings(list(keys))
        raise UserError(f"by={','.join(by)}: {groups}; they differ in {differences}")
    return names


def _setting_entries(setting: str, by: Sequence[str], *, belonging: bool) -> str:
    """The entries of `setting` that belong to the columns `by`, or the others."""
    prefixes = tuple(prefix for name in by for prefix in PREFIXES.get(name, ()))
    entries = ENTRY_BREAK.split(setting)
    return " ".join(entry for entry in entries if entry.startswith(prefixes) == belonging)


def differing_settings(keys: Sequence[dict[str, Any]]) -> str:
    """The settings in which groups differ, as a list for a sentence."""
    names = dict.fromkeys(name for key in keys for name in key)
    differing = [name for name in names if len({str(key.get(name)) for key in keys}) > 1]
    return ", ".join(differing)


def format_value(value: Any) -> str:
    """A value of a key for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)

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

from pml_cli.data.stream import SINK_PROMPT
from pml_cli.errors import UserError

# Columns of result.json that comparable runs share.
KEY = ("model", "data", "adapter", "loss", "layer", "setting")

# Columns that comparable runs share where one rank and length has several values.
SCHEDULE = ("lr", "steps")

# Which entries of the column `setting` belong to another column of the key.
PREFIXES = {
    # Whether there is a prompt by itself depends on the model.
    "model": ("model.", f"data.prompt={SINK_PROMPT}"),
    "data": ("data.",),
    "adapter": ("adapter.", "model.layer="),
    "layer": ("model.layer=", "adapter.layers="),
}

# Between two entries of `setting`; a value may contain spaces.
ENTRY_BREAK = re.compile(r" (?=(?:model|data|adapter|train)\.\w+=)")

# Characters of a file name for a group.
MAX_SLUG = 150


def with_key_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with every column of a group's key, and hashable values: a list becomes text."""
    columns = dict.fromkeys([*runs.columns, *KEY, *SCHEDULE])
    runs = runs.reindex(columns=list(columns))
    for name in KEY:
        runs[name] = runs[name].map(_hashable)
    return runs


def _hashable(value: Any) -> Any:
    return str(value) if isinstance(value, list) else value


def split_groups(runs: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Groups of comparable runs: the key of each and its rows, in a stable order.

    Args:
        runs: one row a run, from `with_key_columns`.
    """
    for values, group in runs.groupby(list(KEY), dropna=False):
        key = dict(zip(KEY, values, strict=True))

        values_by_cell = group.groupby(["rank", "target_tokens"])[list(SCHEDULE)].nunique()
        varying = [name for name in SCHEDULE if values_by_cell[name].max() > 1]
        if not varying:
            yield key, group
            continue
        for schedule, rows in group.groupby(varying, dropna=False):
            schedule_key = dict(zip(varying, schedule, strict=True))
            yield key | schedule_key, rows


def group_name(key: dict[str, Any]) -> str:
    """A group's name: the values of its key."""
    return ", ".join(_key_texts(key))


def group_slug(key: dict[str, Any]) -> str:
    """A group's name for file names; of several groups see `group_slugs`."""
    return _slug(_key_texts(key))


def group_slugs(keys: Sequence[dict[str, Any]]) -> list[str]:
    """Names of all groups of a report for file names: of several only what tells them apart."""
    texts = []
    for key in keys:
        # Groups often differ in one entry of many.
        texts.append([part for text in _key_texts(key) for part in ENTRY_BREAK.split(text)])
    shared = set.intersection(*map(set, texts)) if len(texts) > 1 else set()

    slugs = []
    for key, parts in zip(keys, texts, strict=True):
        own = [part for part in parts if part not in shared]
        # A group that has less than the others, and nothing of its own, keeps its name.
        slugs.append(_slug(own) or group_slug(key))
    return unique_slugs(slugs)


def _slug(texts: Sequence[str]) -> str:
    joined = "-".join(texts)
    # Dots alone would be a folder above.
    return re.sub(r"[^A-Za-z0-9.]+", "-", joined).strip("-.")[:MAX_SLUG]


def _key_texts(key: dict[str, Any]) -> list[str]:
    texts = []
    for name, value in key.items():
        if pd.isna(value) or value == "":
            continue
        # A bare number says nothing without its name.
        if name in ("layer", *SCHEDULE):
            texts.append(f"{name} {format_value(value)}")
        else:
            texts.append(str(value))
    return texts


def file_stems(report: str, values: Sequence[Sequence[object]]) -> list[str]:
    """Names, without suffix, of the files of several groups of a report.

    What a result.json says may hold slashes, dots and any number of characters: none of the names
    leads out of a folder, and each fits into one.

    Args:
        report: the first word of each.
        values: of each group what tells it apart; one group alone needs no name.
    """
    if len(values) == 1:
        return [report]
    # Default settings have no text.
    joined = ["-".join([report, *filter(None, map(str, texts))]) for texts in values]
    return unique_slugs([re.sub(r"[^A-Za-z0-9._=-]+", "-", text)[:MAX_SLUG] for text in joined])


def unique_slugs(slugs: list[str]) -> list[str]:
    """The slugs, all numbered where two are equal."""
    if len(set(slugs)) == len(slugs):
        return slugs
    return [f"{slug}-{number}" for number, slug in enumerate(slugs)]


def key_for_json(key: dict[str, Any]) -> dict[str, Any]:
    """The key with None in place of nan."""
    present = {name: value for name, value in key.items() if not pd.isna(value)}
    return dict.fromkeys(key) | present


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
        values = {name: key.get(name) for name in by}
        texts = [f"{k} {format_value(v)}" for k, v in values.items() if not pd.isna(v)]
        names.append(", ".join(texts))

    counts = Counter(names)
    for i, key in enumerate(keys):
        setting = key.get("setting")
        if counts[names[i]] > 1 and not pd.isna(setting):
            entries = _setting_entries(setting, by, belonging=True)
            names[i] = f"{names[i]} {entries}".strip()

    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        differences = differing_settings(keys)
        raise UserError(
            f"by={','.join(by)}: {count} groups are {name!r}; they differ in {differences}"
        )
    return names


def _setting_entries(setting: str, by: Sequence[str], *, belonging: bool) -> str:
    """The entries of `setting` that belong to the columns `by`, or the others."""
    prefixes: tuple[str, ...] = sum((PREFIXES.get(name, ()) for name in by), ())
    entries = ENTRY_BREAK.split(setting)
    return " ".join(entry for entry in entries if entry.startswith(prefixes) == belonging)


def differing_settings(keys: Sequence[dict[str, Any]]) -> str:
    """The settings in which groups differ, as a list for a sentence."""
    values: dict[str, set[str]] = {}
    for name in dict.fromkeys(name for key in keys for name in key):
        values[name] = {str(key.get(name)) for key in keys}
    return ", ".join(name for name in values if len(values[name]) > 1)


def format_value(value: Any) -> str:
    """A value of a key for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)

"""Which runs belong together: those that share model, data, adapter, loss, layer and setting.

Learning rate and steps split a group only where one (rank, length) was run under several values; where each length has its
own (the paper's PhoneBook), they do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

KEY = ("model", "data", "adapter", "loss", "layer", "setting")
TIED = ("lr", "steps")
PARTS = {  # words of `setting` that belong to another one
    "model": ("model.",),
    "data": ("data.",),
    "adapter": ("adapter.", "model.layer="),
    "layer": ("model.layer=", "adapter.layers="),
}
WORDS = re.compile(
    r" (?=(?:model|data|adapter|train)\.\w+=)"
)  # between two words of `setting`; a value may have spaces


def plain_keys(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with every column of a key, and values that can be grouped by: a list of layers is a value like any other."""
    runs = runs.reindex(columns=list(dict.fromkeys([*runs.columns, *KEY, *TIED])))
    for name in KEY:
        runs[name] = runs[name].map(lambda value: str(value) if isinstance(value, list) else value)
    return runs


def split(cells: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Comparable cells: a key of settings and their rows, in a stable order."""
    for values, group in cells.groupby(list(KEY), dropna=False, sort=True):
        key = dict(zip(KEY, values, strict=True))
        apart = [
            name
            for name in TIED
            if (group.groupby(["rank", "target_tokens"])[name].nunique() > 1).any()
        ]
        if not apart:
            yield key, group
            continue
        for tied, part in group.groupby(apart, dropna=False, sort=True):
            yield key | dict(zip(apart, tied, strict=True)), part


def label(key: dict[str, Any]) -> tuple[str, str]:
    """A group's name, and a slug of it for names of files."""
    named = ("layer", *TIED)  # values that say nothing without their name
    parts = {
        k: f"{k} {short(v)}" if k in named else str(v)
        for k, v in key.items()
        if not pd.isna(v) and v != ""
    }
    return ", ".join(parts.values()), re.sub(
        r"[^A-Za-z0-9.]+", "-", "-".join(parts.values())
    ).strip("-")[:150]


def slugs(names: list[str]) -> list[str]:
    """The slugs, told apart by a number where names differ only in signs."""
    return (
        [f"{name}-{k}" for k, name in enumerate(names)] if len(set(names)) < len(names) else names
    )


def plain_key(key: dict[str, Any]) -> dict[str, Any]:
    """The key with None in place of nan."""
    return {name: None if pd.isna(value) else value for name, value in key.items()}


def shared(key: dict[str, Any], by: Sequence[str]) -> dict[str, Any]:
    """What is left of a key where groups are compared `by` some of its settings.

    Of `setting` the words go that are part of those: two sources differ in data.text too, two placements in model.layer.
    """
    left = {
        name: value
        for name, value in key.items()
        if name not in by and not pd.isna(value) and value != ""
    }
    if "setting" in left:
        words = _words(left.pop("setting"), by, theirs=False)
        left |= {"setting": words} if words else {}
    return left


def names_by(keys: Sequence[dict[str, Any]], by: Sequence[str]) -> list[str]:
    """A name for each group that is compared `by` some settings; alike ones say what else of these differs."""
    names = [
        ", ".join(f"{k} {short(key[k])}" for k in by if not pd.isna(key.get(k))) for key in keys
    ]
    more = [
        "" if pd.isna(key.get("setting")) else _words(key["setting"], by, theirs=True)
        for key in keys
    ]
    told = [
        f"{name} {words}".strip() if names.count(name) > 1 else name
        for name, words in zip(names, more, strict=True)
    ]
    assert len(set(told)) == len(told), told
    return told


def _words(setting: str, by: Sequence[str], theirs: bool) -> str:
    """The words of `setting` that belong to the settings `by`, or the others."""
    prefixes = tuple(prefix for name in by for prefix in PARTS.get(name, ()))
    return " ".join(word for word in WORDS.split(setting) if word.startswith(prefixes) == theirs)


def differing(keys: list[dict[str, Any]]) -> str:
    """The settings in which groups differ, as a list in words."""
    names = list(dict.fromkeys(name for key in keys for name in key))
    return ", ".join(name for name in names if len({str(key.get(name)) for key in keys}) > 1)


def short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

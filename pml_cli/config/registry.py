"""What may be written after a command: the groups, their options, the keys of an option.

Imports neither hydra nor omegaconf, so that help and shell completion are quick.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pml_cli.config.schema import ADAPTERS, DATA, LAUNCHES, LOSSES, Model, Train
from pml_cli.errors import UserError, did_you_mean

SCHEMAS: dict[str, Mapping[str, type[Any]] | type[Any]] = {
    "model": Model,
    "data": DATA,
    "adapter": ADAPTERS,
    "loss": LOSSES,
    "train": Train,
    "launch": LAUNCHES,
}
GROUPS = tuple(SCHEMAS)
SHORT = ("rank", "seqlen", "seed", "out")
DISCRIMINATORS = (
    "source",
    "kind",
)  # name the dataclass of an option: chosen with group=option, never set by themselves

WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list: [a,b]",
    dict: "a mapping: {a:b}",
}


def shipped(name: str) -> Path:
    """The folder `conf` or `sweeps`: the wheel's copy, else the checkout's."""
    inside = Path(__file__).parents[1] / name
    return inside if inside.is_dir() else Path(__file__).parents[2] / name


def option_file(group: str, option: str, config_dir: Path | None = None) -> Path | None:
    """The YAML file of an option; the user's folder comes first."""
    candidates = [
        folder / group / f"{option}.yaml"
        for folder in (config_dir, shipped("conf"))
        if folder is not None
    ]
    return next((c for c in candidates if c.is_file()), None)


def options(group: str, config_dir: Path | None = None) -> list[str]:
    """The names that `group=` takes, in alphabetical order."""
    folders = [folder / group for folder in (config_dir, shipped("conf")) if folder is not None]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def schema(group: str, fields: Mapping[str, Any]) -> type[Any]:
    """The dataclass that declares an option's settings, found by its `source` or `kind` where the group has several.

    Raises:
        UserError: `source` or `kind` is missing or unknown.
    """
    declared = SCHEMAS[group]
    if isinstance(declared, type):
        return declared
    discriminator = "source" if group == "data" else "kind"
    name = str(fields.get(discriminator, ""))
    if name not in declared:
        raise UserError(f"{group}.{discriminator}={name}: {did_you_mean(name, declared)}")
    return declared[name]


def keys(declared: type[Any]) -> list[str]:
    """The settings of a dataclass that a user may override."""
    return [f.name for f in dataclasses.fields(declared) if f.name not in DISCRIMINATORS]


def annotation(declared: type[Any], field: str) -> tuple[type[Any], bool]:
    """The type of a setting (`list` for `list[int]`), and whether it takes null."""
    hint = typing.get_type_hints(declared)[field]
    if not isinstance(hint, types.UnionType):
        return typing.get_origin(hint) or hint, False
    kinds = [k for k in typing.get_args(hint) if k is not type(None)]
    return typing.get_origin(kinds[0]) or kinds[0], True


def wording(declared: type[Any], field: str) -> str:
    """What a setting takes, in words: `null or an integer`."""
    kind, optional = annotation(declared, field)
    return ("null or " if optional else "") + WORDS.get(kind, kind.__name__)


def unknown_key(key: str, valid: Iterable[str]) -> str:
    """The line about a key that does not exist: the nearest one of all, and those of its own group."""
    names = list(valid)
    group = key.split(".", maxsplit=1)[0]
    near = [n for n in names if n.endswith(f".{key}")] or difflib.get_close_matches(
        key, names, n=1, cutoff=0.5
    )
    allowed = (
        sorted(n for n in names if n.startswith(f"{group}."))
        if group in GROUPS and "." in key
        else []
    )
    if not allowed:
        allowed = [n for n in names if "." not in n]
    return f"{key}: no such key; {f'did you mean {near[0]!r}? ' if near else ''}allowed: {', '.join(allowed)}"

"""Every declared setting with values of every wrong kind, made from its declaration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from catalogue.case import Case
from pml_cli.config.registry import declared
from pml_cli.config.reports import REPORTS
from pml_cli.config.schema import Run
from pml_cli.config.setting import Declaration, annotation, declaration_of, keys

DOOR = "settings"
GROUPS = ("model", "data", "adapter", "loss", "train", "launch")

# Else what is missing is said first.
NEEDED = {"hf": ("data.path=nobody/nothing",), "jsonl": ("data.path=/etc/hostname",)}

# Values that no setting of a type takes.
WRONG_TYPES: dict[Any, dict[str, str]] = {
    int: {
        "a word": "word",
        "a half": "1.5",
        "a list": "[1,2]",
        "a mapping": "{a:1}",
        "true": "true",
    },
    float: {
        "a word": "word",
        "a list": "[1,2]",
        "a mapping": "{a:1}",
        "NaN": "nan",
        "an integer that no float holds": f"1{'0' * 400}",
    },
    bool: {"a word": "word", "a list": "[true]", "a number": "7"},
    str: {"a list": "[a,b]", "a mapping": "{a:1}"},
    list: {
        "a number": "5",
        "a word": "word",
        "a mapping": "{a:1}",
        "an integer that no float holds": f"[1{'0' * 400}]",
    },
    dict: {"a number": "5", "a word": "word", "a list": "[a]"},
}


def cases() -> Iterator[Case]:
    """One case a setting and wrong kind."""
    yield from _of_run()
    for group in GROUPS:
        for option, owner in declared(group).items():
            yield from _of_option(group, option, owner)
    for command, owner in REPORTS.items():
        yield from _of_report(command, owner)


def _of_run() -> Iterator[Case]:
    for name in ("rank", "seqlen", "seed"):
        declaration = declaration_of(Run, name)
        for kind, text in _wrong(Run, name, declaration):
            yield _case(f"{name}: {kind}", ("sweep", f"{name}={text}", "--dry-run"), name)


def _of_option(group: str, option: str, owner: type[Any]) -> Iterator[Case]:
    chosen = () if group in ("train", "model") else (f"{group}={option}",)
    for name in keys(owner):
        key = f"{group}.{name}"
        for kind, text in _wrong(owner, name, declaration_of(owner, name)):
            needed = NEEDED.get(option, ()) if key != "data.path" else ()
            argv = ("sweep", *chosen, *needed, f"{key}={text}", "--dry-run")
            yield _case(f"{group}={option} {key}: {kind}", argv, key)


def _of_report(command: str, owner: type[Any]) -> Iterator[Case]:
    for name in keys(owner):
        declaration = declaration_of(owner, name)
        if declaration is None:
            continue
        for kind, text in _wrong(owner, name, declaration):
            # The numbers asked about are a list, of one as well.
            if kind == "a number" and annotation(owner, name)[0] is list and name != "kinds":
                continue
            argv = (command, "nowhere", f"{name}={text}")
            yield _case(f"{command} {name}: {kind}", argv, name)


def _case(name: str, argv: tuple[str, ...], key: str) -> Case:
    return Case(door=DOOR, name=name, argv=argv, says=re.escape(key))


def _wrong(
    owner: type[Any], name: str, declaration: Declaration | None
) -> Iterator[tuple[str, str]]:
    """Wrong values of a setting, as a user would type them, by kind."""
    kind, optional = annotation(owner, name)
    yield from WRONG_TYPES.get(kind, {}).items()
    if not optional:
        yield "null", "null"
    if declaration is None:
        return

    if kind in (int, float):
        yield from _out_of_bounds(kind, declaration)
    if kind is str and declaration.choices:
        yield "no such choice", "nosuchchoice"
        yield "capitals", declaration.choices[0].upper() + "X"
    if kind is str and declaration.pattern:
        yield "not of the pattern", "'%%%'"
    if declaration.required and not declaration.path:
        yield "empty", "[]" if kind is list else "''"
    if declaration.path == "existing file":
        yield "no such file", "/nowhere/at/all"
        yield "a folder", "/"
        yield "a text in place of its path", "a" * 5000


def _out_of_bounds(kind: type, declaration: Declaration) -> Iterator[tuple[str, str]]:
    if declaration.minimum is not None:
        yield "below its minimum", f"{declaration.minimum - 1:g}"

    if declaration.above is not None:
        yield "at its open bound", f"{declaration.above:g}"
        yield "below its open bound", f"{declaration.above - 1:g}"

    if declaration.maximum is not None:
        yield "above its maximum", f"{declaration.maximum + 1:.0f}"

    if declaration.below is not None:
        yield "at its upper open bound", f"{declaration.below:.0f}"

    if kind is float and declaration.finite:
        yield "infinite", "inf"

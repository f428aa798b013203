"""The options of the groups: the YAML files of conf/ and of a user's folder.

Read without a YAML library, so that help and shell completion are quick.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pml_cli.config.registry import GROUPS
from pml_cli.config.setting import value_text
from pml_cli.errors import did_you_mean, nearest
from pml_cli.io import listed

# Keys of a run that belong to no group.
SHORT_KEYS = ("rank", "seqlen", "seed", "out")


def shipped(name: str) -> Path:
    """The folder `conf` or `sweeps`: the wheel's copy, else the checkout's."""
    inside = Path(__file__).parents[1] / name
    return inside if inside.is_dir() else Path(__file__).parents[2] / name


def _folders(config_dir: Path | None) -> list[Path]:
    """Where options are looked up, the user's folder first."""
    ours = shipped("conf")
    return [ours] if config_dir is None else [config_dir, ours]


def option_file(group: str, option: str, config_dir: Path | None = None) -> Path | None:
    """The YAML file of an option; the user's folder comes first."""
    for folder in _folders(config_dir):
        file = folder / group / f"{option}.yaml"
        if file.is_file():
            return file
    return None


def root_file(command: str, config_dir: Path | None = None) -> Path | None:
    """The YAML file with the defaults of a command; the user's folder comes first."""
    for folder in _folders(config_dir):
        file = folder / f"{command}.yaml"
        if file.is_file():
            return file
    return None


def run_commands() -> list[str]:
    """The commands that take the settings of runs: each has a root file in conf/."""
    return sorted(file.stem for file in shipped("conf").glob("*.yaml"))


def options(group: str, config_dir: Path | None = None) -> list[str]:
    """The names that `group=` takes, in alphabetical order."""
    names: set[str] = set()
    for folder in _folders(config_dir):
        names |= {file.stem for file in listed(folder / group, "*.yaml")}
    return sorted(names)


def split_known(
    group: str, values: Iterable[Any], config_dir: Path | None = None
) -> tuple[list[Any], list[str]]:
    """The values that are options of a group, and a line for each of the others."""
    names = options(group, config_dir)
    known_options: list[Any] = []
    lines: list[str] = []

    for value in values:
        if value in names:
            known_options.append(value)
        else:
            text = value_text(value)
            lines.append(f"{group}={text}: no such option; {did_you_mean(text, names)}")
    return known_options, lines


def unknown_key(key: str, valid: Iterable[str]) -> str:
    """The line about a key that does not exist: the nearest key, and those of its own group."""
    names = list(valid)
    near = nearest_key(key, names)

    allowed: list[str] = []
    group, dot, _ = key.partition(".")
    if dot and group in GROUPS:
        allowed = sorted(name for name in names if name.startswith(f"{group}."))
    if not allowed:
        allowed = [name for name in names if "." not in name]

    hint = f"did you mean {near!r}? " if near else ""
    return f"{key}: no such key; {hint}allowed: {', '.join(allowed)}"


def nearest_key(key: str, names: Sequence[str]) -> str:
    """The name that a misspelt key is nearest to; empty: to none."""
    # `steps` is more likely meant as `train.steps` than as a misspelt short key.
    ending = [name for name in names if name.endswith(f".{key.lower()}")]
    return ending[0] if ending else nearest(key, names) or ""


@cache
def default_options(command: str) -> dict[str, str]:
    """The option of each group that a command's shipped root file chooses."""
    # The list `defaults:` of a Hydra root file.
    text = (shipped("conf") / f"{command}.yaml").read_text("utf-8")
    return dict(re.findall(r"^  - (\w+): (\w+)$", text, re.MULTILINE))


def summary(file: Path) -> str:
    """What an option is: the first line of its YAML file, a comment."""
    with file.open(encoding="utf-8") as lines:
        first = lines.readline()
    return first.lstrip("#").strip() if first.startswith("#") else ""

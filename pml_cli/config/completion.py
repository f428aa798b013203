"""Shell completion of `key=` and `group=option`, also after a comma (`model=tiny,q`).

Bash splits words at "=", so it sends the pieces and takes back what follows the "="; the other shells pass whole words.
Neither hydra nor a YAML reader is imported: a keystroke should cost little.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from pml_cli.config.option_files import SHORT_KEYS, option_file, options, shipped
from pml_cli.config.registry import GROUPS, settings_class
from pml_cli.config.reports import Fit, Lasting, Transition
from pml_cli.config.schema import DTYPES, SCHEDULES, InlineLaunch, Run
from pml_cli.config.setting import annotation, keys
from pml_cli.errors import UserError

VALUES: dict[str, tuple[str, ...]] = {
    "model.dtype": DTYPES,
    "model.weights": ("pretrained", "random"),
    "model.device": ("auto", "cpu", "cuda"),
    "device": ("auto", "cpu", "cuda"),
    "model.stream": ("true", "false", "null"),
    "model.checkpointing": ("true", "false", "null"),
    "train.schedule": SCHEDULES,
    "train.stop": ("none", "recalled"),
    "loss.when_done": ("mean", "zero"),
}


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Candidates for an override of probe, sweep or memft."""
    given, word = _words(ctx, incomplete)
    folder = ctx.params.get("config_dir")
    settings = _settings(given, Path(folder) if folder else None)
    return _answer(word, given, settings, Path(folder) if folder else None)


def complete_fit(ctx: typer.Context, incomplete: str) -> list[str]:
    """Candidates for `pml fit`; none for an empty word, so that the shell offers folders."""
    given, word = _words(ctx, incomplete)
    return _answer(word, given, dict.fromkeys(keys(Fit), Fit), None) if word else []


def complete_lasting(ctx: typer.Context, incomplete: str) -> list[str]:
    """Candidates for `pml lasting`; none for an empty word, so that the shell offers folders."""
    given, word = _words(ctx, incomplete)
    return _answer(word, given, dict.fromkeys(keys(Lasting), Lasting), None) if word else []


def complete_transition(ctx: typer.Context, incomplete: str) -> list[str]:
    """Candidates for `pml transition`, as `complete_fit`."""
    given, word = _words(ctx, incomplete)
    return _answer(word, given, dict.fromkeys(keys(Transition), Transition), None) if word else []


def complete_sweep_file(incomplete: str) -> list[str]:
    """Names of the shipped sweeps; where none fits, the shell offers files."""
    return sorted(
        path.stem for path in shipped("sweeps").glob("*.yaml") if path.stem.startswith(incomplete)
    )


def _words(ctx: typer.Context, incomplete: str) -> tuple[list[str], str]:
    """The overrides before the cursor and the word at it, whole also in bash."""
    pieces = [str(word) for word in ctx.params.get("overrides") or ()]
    here = "=" if _in_bash() and _at_equals() else incomplete
    words: list[str] = []
    for piece in [*pieces, here]:
        joins = bool(words) and _in_bash() and (piece == "=" or words[-1].endswith("="))
        words[-1:] = [words[-1] + piece] if joins else [*words[-1:], piece]
    return words[:-1], words[-1]


def _in_bash() -> bool:
    return "COMP_WORDS" in os.environ


def _at_equals() -> bool:
    """Whether bash's cursor stands right behind "=": typer hands on an empty word then, as after a space."""
    words, here = os.environ["COMP_WORDS"].split("\n"), int(os.environ.get("COMP_CWORD", "0"))
    return here < len(words) and words[here] == "="


def _settings(given: list[str], folder: Path | None) -> dict[str, type[Any]]:
    """Every plain key that fits the options given so far, with the dataclass that declares it."""
    found: dict[str, type[Any]] = dict.fromkeys(SHORT_KEYS, Run)
    for group in GROUPS:
        chosen = next(
            (word.partition("=")[2].split(",") for word in given if word.startswith(f"{group}=")),
            [],
        )
        default = InlineLaunch if group == "launch" else type(getattr(Run(), group))
        for declared in [_declared(group, option, folder) or default for option in chosen] or [
            default
        ]:
            found |= {f"{group}.{name}": declared for name in keys(declared)}
    return found


def _declared(group: str, option: str, folder: Path | None) -> type[Any] | None:
    file = option_file(group, option, folder)
    try:
        named = (
            re.findall(r"^(source|kind): *(\w+)", file.read_text("utf-8"), re.MULTILINE)
            if file
            else []
        )
        return settings_class(group, dict(named))
    except (UserError, OSError, ValueError):
        return None  # a broken file: the command itself will say so


def _answer(
    word: str, given: list[str], settings: dict[str, type[Any]], folder: Path | None
) -> list[str]:
    key, equals, value = word.partition("=")
    if not equals:
        return _keys(word, {g.partition("=")[0] for g in given}, settings)
    before, comma, last = value.rpartition(",")
    front = before + comma if _in_bash() else f"{key}={before}{comma}"
    if key in ("out", "text") or key.endswith(
        ".path"
    ):  # bash completes files by itself: to it this is a word of its own
        return [] if _in_bash() else [front + path for path in _paths(last)]
    taken = before.split(",")
    return [
        front + v for v in _values(key, settings, folder) if v.startswith(last) and v not in taken
    ]


def _paths(start: str) -> list[str]:
    """Files and folders whose path starts like this; of a folder alone, what is in it."""
    found = sorted(glob.glob(f"{glob.escape(start)}*"))  # noqa: PTH207  Path.glob takes no absolute pattern
    if len(found) == 1 and Path(found[0]).is_dir() and (inside := _paths(f"{found[0]}/")):
        return inside
    return [f"{path}/" if Path(path).is_dir() else path for path in found]


def _keys(word: str, taken: set[str], settings: dict[str, type[Any]]) -> list[str]:
    groups = (
        GROUPS if "seed" in settings else ()
    )  # `pml fit`, `pml lasting` and `pml transition` have none
    names = (
        [*groups, *settings] if word else [*groups, *(name for name in settings if "." not in name)]
    )
    found = [name for name in dict.fromkeys(names) if name.startswith(word) and name not in taken]
    if (
        len(found) == 1
    ):  # a second candidate keeps the shell from adding a space after "=", and shows the default
        return [f"{found[0]}=", f"{found[0]}={_default(found[0], settings)}"]
    return [f"{name}=" for name in found]


def _default(key: str, settings: dict[str, type[Any]]) -> str:
    declared = settings.get(key)
    default = getattr(declared(), key.rpartition(".")[2], None) if declared else None
    plain = isinstance(default, str | int | float) and default != ""
    return str(default).lower() if isinstance(default, bool) else str(default) if plain else "..."


def _values(key: str, settings: dict[str, type[Any]], folder: Path | None) -> Iterable[str]:
    if key in GROUPS:
        return options(key, folder)
    declared, name = settings.get(key), key.rpartition(".")[2]
    if (
        declared
        and name in {f.name for f in dataclasses.fields(declared)}
        and annotation(declared, name)[0] is bool
    ):
        return ("true", "false")
    return VALUES.get(key, ())

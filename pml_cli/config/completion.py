"""Shell completion of `key=` and `group=option`, also after a comma (`model=tiny,q`).

Bash splits words at "=", so it sends the pieces and takes back what follows the "="; the other
shells pass whole words. Neither hydra nor a YAML reader is imported, as every keystroke pays.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from pml_cli.config.option_files import (
    SHORT_KEYS,
    default_options,
    option_file,
    options,
    run_commands,
    shipped,
)
from pml_cli.config.registry import GROUPS, settings_class, with_kind_of_name
from pml_cli.config.reports import section_names
from pml_cli.config.schema import Run
from pml_cli.config.setting import Settings, annotation, declaration_of, dotted_keys, keys
from pml_cli.errors import UserError

Completer = Callable[[typer.Context, str], list[str]]

# The settings class that declares each plain key.
Owners = dict[str, type[Any]]


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Candidates for an override of probe, sweep and memft, which have the same defaults.

    Args:
        ctx: of the command line.
        incomplete: the word at the cursor.
    """
    return _overrides(ctx, incomplete, "sweep")


def complete_memorize(ctx: typer.Context, incomplete: str) -> list[str]:
    """Candidates for a setting of memorize; for an empty word none: the shell offers files."""
    _, word = _words(ctx, incomplete)
    return _overrides(ctx, incomplete, "memorize") if word else []


def complete_measure(ctx: typer.Context, incomplete: str) -> list[str]:
    """Candidates for a setting of measure; for an empty word none: the shell offers files."""
    _, word = _words(ctx, incomplete)
    return _overrides(ctx, incomplete, "measure") if word else []


# Typer gives a completer a value for each of its arguments, so that it has no others.
def _overrides(ctx: typer.Context, incomplete: str, command: str) -> list[str]:
    """Candidates for an override, by the defaults of a command."""
    typed, word = _words(ctx, incomplete)
    config_dir = ctx.params.get("config_dir")
    folder = Path(config_dir) if config_dir else None
    owners = _owners(typed, word, folder, command)
    vocabulary = Vocabulary(owners=owners, groups=GROUPS, config_dir=folder)
    return _candidates(word, typed, vocabulary)


def report_completer(settings: type[Settings]) -> Completer:
    """The completer of a command that reads finished runs, from the class of its settings.

    It offers nothing for an empty word, so that the shell offers folders.
    """

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        typed, word = _words(ctx, incomplete)
        if not word:
            return []
        vocabulary = Vocabulary(owners=dotted_keys(settings))
        return _candidates(word, typed, vocabulary)

    return complete


def complete_settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """Groups, their options and settings, and the commands, for `pml settings`."""
    _, word = _words(ctx, incomplete)
    group, equals, _ = word.partition("=")
    config_dir = ctx.params.get("config_dir")
    folder = Path(config_dir) if config_dir else None
    if equals and group in GROUPS:
        return _candidates(word, [], Vocabulary(groups=GROUPS, config_dir=folder))

    names = [*section_names(), *run_commands()]
    if "." in word:
        names = list(_owners([], word, folder, "sweep"))
    return [name for name in names if name.startswith(word)]


def complete_sweep_file(incomplete: str) -> list[str]:
    """Names of the shipped sweeps; where none fits, the shell offers files."""
    names = sorted(path.stem for path in shipped("sweeps").glob("*.yaml"))
    return [name for name in names if name.startswith(incomplete)]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What may be typed at one point of a command line.

    Attributes:
        owners: the plain keys, with the class that declares each.
        groups: the groups, where the command has them.
        config_dir: the user's folder of options.
    """

    owners: Owners = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    config_dir: Path | None = None

    def keys(self, *, nested: bool) -> list[str]:
        """The keys, groups first; with or without those inside of groups."""
        plain = [key for key in self.owners if nested or "." not in key]
        return list(dict.fromkeys([*self.groups, *plain]))

    def values(self, key: str) -> Sequence[str]:
        """The values that a key is known to take, where they can be listed."""
        if key in self.groups:
            return options(key, self.config_dir)
        owner = self._owner(key)
        if owner is None:
            return ()

        kind, optional = annotation(owner, field_name(key))
        if kind is bool:
            return ("true", "false", "null") if optional else ("true", "false")
        declared = declaration_of(owner, field_name(key))
        return declared.suggestions or declared.choices if declared else ()

    def default(self, key: str) -> str:
        """The default of a key as one types it, `...` where that is not a plain value."""
        owner = self._owner(key)
        value = getattr(owner(), field_name(key)) if owner else None
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int | float) and value != "":
            return str(value)
        return "..."

    def is_path(self, key: str) -> bool:
        """Whether the values of a key are paths."""
        owner = self._owner(key)
        # The results folder is not a setting of the run.
        if owner is None:
            return key == "out"
        declared = declaration_of(owner, field_name(key))
        return declared is not None and bool(declared.path)

    def _owner(self, key: str) -> type[Any] | None:
        """The class that declares a key; None for an unknown key, and for a run's `out`."""
        owner = self.owners.get(key)
        if owner is None or field_name(key) not in keys(owner):
            return None
        return owner


def field_name(key: str) -> str:
    """The field of a key: `lr` of `train.lr`."""
    return key.rpartition(".")[2]


def _words(ctx: typer.Context, incomplete: str) -> tuple[list[str], str]:
    """The overrides before the cursor and the word at it, whole also in bash."""
    overrides = ctx.params.get("overrides") or ()
    pieces = [str(override) for override in overrides]
    last = "=" if _in_bash() and _cursor_is_at_equals() else incomplete
    # The other shells pass whole words.
    if not _in_bash():
        return pieces, last

    joined: list[str] = []
    for piece in [*pieces, last]:
        # The pieces of a word meet at its "=".
        if joined and (piece == "=" or joined[-1].endswith("=")):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined[:-1], joined[-1]


def _in_bash() -> bool:
    return "COMP_WORDS" in os.environ


def _cursor_is_at_equals() -> bool:
    """Whether bash's cursor stands right behind "="."""
    # Typer passes an empty word then, as after a space.
    pieces = os.environ["COMP_WORDS"].split("\n")
    index = int(os.environ.get("COMP_CWORD", "0"))
    return index < len(pieces) and pieces[index] == "="


def _owners(typed: Sequence[str], word: str, config_dir: Path | None, command: str) -> Owners:
    """The plain keys that fit the options typed so far and may complete a word."""
    owners: Owners = dict.fromkeys(SHORT_KEYS, Run)
    for group in GROUPS:
        # Only the groups that the word may belong to: others need not be imported.
        if not word or not (group.startswith(word) or word.startswith(f"{group}.")):
            continue
        for option in _options_typed(typed, group, command):
            owner = _option_class(group, option, config_dir)
            owners |= {f"{group}.{name}": owner for name in keys(owner)} if owner else {}
    return owners


def _options_typed(typed: Sequence[str], group: str, command: str) -> list[str]:
    """The options of a group on the command line, else its default."""
    for word in typed:
        key, equals, value = word.partition("=")
        if equals and key == group:
            return value.split(",")
    return [default_options(command)[group]]


def _option_class(group: str, option: str, config_dir: Path | None) -> type[Any] | None:
    """The class of an option's settings; the default option's where its file cannot be read.

    A broken file is named by the command itself.
    """
    default = default_options("sweep")[group]
    for name in (option, default):
        file = option_file(group, name, config_dir)

        try:
            # One line is looked for; a YAML library would take longer to import than all the rest.
            text = file.read_text("utf-8") if file else ""
            fields = dict(re.findall(r"^(source|kind): *(\w+)", text, re.MULTILINE))
            return settings_class(group, with_kind_of_name(group, name, fields))
        except (UserError, OSError, ValueError):
            continue
    return None


def _candidates(word: str, typed: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """What may replace a word."""
    key, equals, value = word.partition("=")
    if not equals:
        typed_keys = [text.partition("=")[0] for text in typed]
        return _key_candidates(word, typed_keys, vocabulary)

    # Several values: what stands before the last comma is kept as it is.
    earlier, comma, last = value.rpartition(",")
    prefix = f"{earlier}{comma}" if _in_bash() else f"{key}={earlier}{comma}"
    if vocabulary.is_path(key):
        # Bash completes files by itself: to it this is a word of its own.
        return [] if _in_bash() else [f"{prefix}{path}" for path in _paths(last)]

    chosen = earlier.split(",")
    values = [value for value in vocabulary.values(key) if value not in chosen]
    return [f"{prefix}{value}" for value in values if value.startswith(last)]


def _key_candidates(word: str, typed_keys: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """The keys that begin with a word, those inside of groups only once it has a letter."""
    names = [name for name in vocabulary.keys(nested=bool(word)) if name not in typed_keys]
    matching = [name for name in names if name.startswith(word)]
    if len(matching) != 1:
        return [f"{name}=" for name in matching]

    # A second candidate keeps the shell from adding a space after "=", and shows the default.
    (name,) = matching
    return [f"{name}=", f"{name}={vocabulary.default(name)}"]


def _paths(start: str) -> list[str]:
    """Files and folders whose path starts like this; of a folder alone, what is in it."""
    # Path.glob takes no absolute pattern.
    matching = sorted(glob.glob(f"{glob.escape(start)}*"))  # noqa: PTH207
    if len(matching) == 1 and Path(matching[0]).is_dir():
        inside = _paths(f"{matching[0]}/")
        if inside:
            return inside
    return [f"{path}/" if Path(path).is_dir() else path for path in matching]

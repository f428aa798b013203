"""Settings that were given to no effect: nothing reads them beside the others.

What is read is declared with the settings (`Settings.unread`). Cells that differ in nothing else
would be one training under several ids, and count as several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pml_cli.config.option_files import SHORT_KEYS
from pml_cli.config.registry import GROUPS
from pml_cli.config.schema import ONLY_OF_PENALTIES, Run, Train
from pml_cli.config.setting import Settings, value_text

# Run ids leave them out where nothing reads them, so that such cells are one run by themselves.
NOT_IN_IDS = tuple(f"loss.{name}" for name in ONLY_OF_PENALTIES)

STEPS = "train.steps"


class _Unread(NamedTuple):
    """A setting that nothing reads."""

    text: str
    """Its value."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The settings of one group of a cell."""

    read: str
    """Those that something reads, as text."""

    unread: dict[str, _Unread]
    """The others, by key."""


def unread_faults(
    cells: Sequence[Run], given: Collection[str], typed: Collection[str]
) -> Iterator[str]:
    """A line for each setting that was given, and that nothing reads.

    That is one with several values in cells that are equal otherwise. The steps are one of two ways
    to say how long a training is: where no cell reads them, not even one value.

    Args:
        cells: of a sweep, one or more, each once.
        given: keys that the user gave.
        typed: those of them on the command line, where each value is meant.
    """
    unread_of_copies = list(_copies(cells).values())
    unread_by_all = set.intersection(*(set(copies[0]) for copies in unread_of_copies))

    # Of each key the values that change nothing, and the reason.
    idle: dict[str, list[_Unread]] = {}
    for copies in unread_of_copies:
        for key in copies[0]:
            values = list(dict.fromkeys(unread[key] for unread in copies))
            if len(values) > 1:
                idle.setdefault(key, []).extend(values)

    if STEPS in given and STEPS in unread_by_all:
        steps = [unread[STEPS] for copies in unread_of_copies for unread in copies]
        if STEPS not in typed:
            # A file of all settings lists the default too.
            steps = [value for value in steps if value.text != value_text(Train().steps)]
        if steps:
            idle.setdefault(STEPS, steps)

    for key, values in idle.items():
        if key in NOT_IN_IDS and key not in unread_by_all:
            continue
        texts = ",".join(dict.fromkeys(value.text for value in values))
        yield f"{key}={texts}: {values[0].reason}; {_advice(key, key in unread_by_all)}"


def _advice(key: str, is_unread_by_all: bool) -> str:
    if not is_unread_by_all:
        return "give each case a grid of its own in a sweep file"
    if key == STEPS:
        return "leave one of the two out, or give train.epochs=null"
    return "give one value"


def _copies(cells: Sequence[Run]) -> dict[tuple[Any, ...], list[dict[str, _Unread]]]:
    """What nothing reads in each cell, for all cells with equal settings beside it."""
    groups_by_id: dict[int, _Group] = {}
    copies: dict[tuple[Any, ...], list[dict[str, _Unread]]] = {}
    for cell in cells:
        read: list[Any] = [getattr(cell, name) for name in SHORT_KEYS]
        unread: dict[str, _Unread] = {}
        for name in GROUPS:
            settings = getattr(cell, name)
            # Most cells share their groups.
            if id(settings) not in groups_by_id:
                groups_by_id[id(settings)] = _group(name, settings)
            group = groups_by_id[id(settings)]
            read.append(group.read)
            unread |= group.unread
        copies.setdefault(tuple(read), []).append(unread)
    return copies


def _group(name: str, settings: Settings) -> _Group:
    reasons = settings.unread()
    defaults = type(settings)()
    plain = {field: getattr(defaults, field) for field in reasons}
    read = dataclasses.replace(settings, **plain)

    unread = {}
    for field, reason in reasons.items():
        unread[f"{name}.{field}"] = _Unread(value_text(getattr(settings, field)), reason)
    return _Group(read=f"{type(settings).__name__}{read}", unread=unread)

"""The cells of a grid: every combination of the values given to the keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pml_cli.config import registry
from pml_cli.config.option_files import SHORT_KEYS, unknown_key
from pml_cli.config.option_set import OptionSet, RootSettings
from pml_cli.config.registry import GROUPS
from pml_cli.config.setting import DISCRIMINATORS, faults, keys, own_faults
from pml_cli.errors import UserError

MAX_CELLS = 100_000

# A key to its values. A group without values has had a fault, which is reported already.
Grid = dict[str, list[Any]]

# From the options given to the settings of one option for each group.
OptionSetOf = Callable[[dict[str, str]], OptionSet]


def expand_grid(
    grids: list[Grid], option_set_of: OptionSetOf
) -> tuple[list[RootSettings], list[str]]:
    """The cells of all grids, in the order asked for, each once.

    Where a group is given several options, a key that only some of them have applies to those.

    Args:
        grids: each the product of its values.
        option_set_of: composes the options of a combination; a group not named has its default.

    Returns:
        The cells, and the faults of all of them: unknown keys, values of another type or out of
        range, missing ones. Where there is a fault, the cells are of no use.
    """
    count = sum(_count_cells(grid) for grid in grids)
    if count > MAX_CELLS:
        return [], [f"{count} cells: at most {MAX_CELLS} in one sweep"]

    lines: list[str] = []
    groups = _SharedGroups()
    cells: dict[Any, RootSettings] = {}
    for grid in grids:
        for cell in _cells(grid, option_set_of, lines):
            lines += groups.share(cell)
            # Equal groups are one object by now, so that hashing a cell is quick.
            short = [getattr(cell, key) for key in SHORT_KEYS]
            identities = [id(getattr(cell, group)) for group in GROUPS]
            cell_key = (*short, *identities)
            if cell_key not in cells:
                cells[cell_key] = cell
                lines += own_faults(cell)
    return list(cells.values()), lines


def _count_cells(grid: Grid) -> int:
    """The combinations of a grid; a key whose values were all refused counts as one value."""
    return math.prod(max(1, len(values)) for values in grid.values())


class _SharedGroups:
    """Equal settings of a group become one object.

    So each is checked once, and cells are compared by the identity of their groups.
    """

    def __init__(self) -> None:
        self._by_text: dict[str, Any] = {}

    def share(self, cell: RootSettings) -> list[str]:
        """Replace a cell's groups by equal ones of earlier cells; the faults of the new ones."""
        lines: list[str] = []
        for group in GROUPS:
            settings = getattr(cell, group)
            text = f"{type(settings).__name__}{settings}"
            if text not in self._by_text:
                self._by_text[text] = settings
                lines += faults(settings, f"{group}.")
            setattr(cell, group, self._by_text[text])
        return lines


def _cells(grid: Grid, option_set_of: OptionSetOf, lines: list[str]) -> Iterator[RootSettings]:
    """The cells of one grid; faults are appended to `lines`."""
    # A group whose option is unknown takes its default, so that the rest can be checked.
    # Without its option, the keys of a group cannot be judged.
    options = {key: values for key, values in grid.items() if key in GROUPS}
    failed = [group for group, values in options.items() if not values]
    chosen = {group: values for group, values in options.items() if values}
    plain = {
        key: values
        for key, values in grid.items()
        if key not in GROUPS and key.split(".")[0] not in failed
    }

    option_sets = list(_option_sets(chosen, option_set_of, lines))
    lines += _unknown_keys(list(plain), option_sets)
    for option_set in option_sets:
        typed = _typed_values(plain, option_set, lines)
        for combination in itertools.product(*typed.values()):
            values = dict(zip(typed, combination, strict=True))
            try:
                yield option_set.build(values)
            except UserError as error:
                lines += error.faults


def _option_sets(
    chosen: Mapping[str, list[str]], option_set_of: OptionSetOf, lines: list[str]
) -> Iterator[OptionSet]:
    """The option sets of all combinations of options; faults are appended to `lines`."""
    for combination in itertools.product(*chosen.values()):
        options = dict(zip(chosen, combination, strict=True))
        try:
            yield option_set_of(options)
        except UserError as error:
            lines += error.faults


def _typed_values(
    plain: Mapping[str, list[Any]], option_set: OptionSet, lines: list[str]
) -> dict[str, list[Any]]:
    """The values of the keys that an option set has, converted; faults are appended to `lines`."""
    typed: dict[str, list[Any]] = {}
    for key, values in plain.items():
        if not option_set.has(key):
            continue

        converted, key_lines = option_set.typed(key, values)
        lines += key_lines
        # Where every value is refused, the default lets the other keys be checked.
        if converted:
            typed[key] = converted
    return typed


def _unknown_keys(given_keys: list[str], option_sets: list[OptionSet]) -> list[str]:
    """A line for each key that none of the option sets has."""
    if not option_sets:
        return []
    # A key is fine where one of the options has it; the message lists the keys of all of them.
    # Each once, in the order of the option sets.
    valid: dict[str, None] = {}
    for option_set in option_sets:
        valid |= dict.fromkeys(option_set.valid_keys())

    return [
        _unknown_key(key, list(valid), option_sets[0])
        for key in given_keys
        if not any(options.has(key) for options in option_sets)
    ]


def _unknown_key(key: str, valid: list[str], option_set: OptionSet) -> str:
    """The line about a key that does not exist with the options chosen."""
    group, _, name = key.partition(".")
    if group not in GROUPS:
        return unknown_key(key, valid)
    if name in DISCRIMINATORS:
        return f"{key}: chosen by the option, give {group}=..."

    options_with_key = [
        f"{group}={option}"
        for option, owner in registry.declared(group).items()
        if option and name in keys(owner)
    ]
    no_such_key = f"no such key (of {group}={option_set.chosen[group]});"
    # Then it is the option that is wrong, not the key.
    if options_with_key:
        return f"{key}: {no_such_key} {', '.join(options_with_key)} has it"
    return unknown_key(key, valid).replace("no such key;", no_such_key, 1)

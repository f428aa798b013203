"""From values to typed runs: the settings of one option for each group, and the cells of a grid.

Values pass through the settings dataclasses once for each value and not for each cell: 10,000 cells take a second.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pml_cli.config import registry
from pml_cli.config.convert import convert_all
from pml_cli.config.option_files import SHORT_KEYS, unknown_key
from pml_cli.config.registry import GROUPS, settings_class
from pml_cli.config.schema import Launch, Run
from pml_cli.config.setting import (
    DISCRIMINATORS,
    annotation,
    faults,
    keys,
    own_faults,
    setting,
    type_text,
    written,
)
from pml_cli.config.sweep_file import one_line
from pml_cli.errors import UserError, raise_all

MAX_CELLS = 100_000

# An interpolation of another group's value, such as ${rank}; one of its own group begins with a dot.
CROSS_REFERENCE = re.compile(r"\$\{\s*[A-Za-z_][\w.]*\s*\}")

# A key to its values; the cells are all combinations. A group without values has had a fault, reported already.
Grid = dict[str, list[Any]]


@dataclass(kw_only=True)
class RootSettings(Run):
    """A run, the folder of its results and how it is launched: everything that a YAML root file may hold."""

    out: str = setting("outputs", help="folder of the results", path="any")
    launch: Launch = field(default_factory=partial(registry.create, "launch", "inline"))


class OptionSet:
    """The typed settings of one option for each group; builds the runs that differ from them in plain values."""

    def __init__(self, tree: Mapping[str, Any], chosen: Mapping[str, str]) -> None:
        """
        Args:
            tree: the composed YAML files, by short key and group.
            chosen: the option of each group.

        Raises:
            UserError: faults of the YAML files.
        """
        self.chosen = dict(chosen)
        self.root = OmegaConf.structured(RootSettings)
        self.classes: dict[str, type[Any]] = {}
        # Each group as written, to look for interpolations.
        self._texts: dict[str, str] = {}
        self._cache: dict[tuple[str, str], Any] = {}

        known = [*SHORT_KEYS, *GROUPS]
        raise_all(unknown_key(key, known) for key in tree if key not in known)
        for group in GROUPS:
            self._declare(group, tree.get(group) or {})
        for key in SHORT_KEYS:
            if key in tree:
                raise_all(self.typed(key, [tree[key]])[1])
                self.root[key] = tree[key]

    def _declare(self, group: str, fields: Any) -> None:
        """Take over the settings that an option's YAML file names."""
        file = f"{group}/{self.chosen[group]}.yaml"
        if not isinstance(fields, dict):
            raise UserError(f"{file}: must be a mapping of settings")
        try:
            owner = settings_class(group, fields)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error

        node = OmegaConf.structured(owner)
        valid = [f"{group}.{name}" for name in keys(owner)]
        lines: list[str] = []
        for name, value in fields.items():
            if name not in node:
                lines.append(f"{file}: {unknown_key(f'{group}.{name}', valid)}")
                continue
            try:
                OmegaConf.update(node, name, value)
            except OmegaConfBaseException:
                allowed = type_text(owner, name)
                lines.append(f"{file}: {group}.{name}={written(value)}: must be {allowed}")
        raise_all(lines)

        self.classes[group] = owner
        self.root[group] = node
        self._texts[group] = repr(OmegaConf.to_container(node, resolve=False))

    def valid_keys(self) -> list[str]:
        """Every key that may be overridden with these options."""
        settings = [f"{group}.{name}" for group in GROUPS for name in keys(self.classes[group])]
        return [*SHORT_KEYS, *GROUPS, *settings]

    def has(self, key: str) -> bool:
        """Whether a plain key exists here; below a mapping, such as model.architecture, every name does."""
        group, _, path = key.partition(".")
        if not path:
            return key in SHORT_KEYS
        name, _, below = path.partition(".")
        if group not in GROUPS or name not in keys(self.classes[group]):
            return False
        return not below or annotation(self.classes[group], name)[0] is dict

    def typed(self, key: str, values: list[Any]) -> tuple[list[Any], list[str]]:
        """Values as the dataclass declares them, and a line for each that is of another type."""
        group, _, path = key.partition(".")
        if not path:
            # The short keys are what other settings refer to, so they refer to none.
            lines = [
                f"{key}={value}: must be {type_text(RootSettings, key)}"
                for value in values
                if "${" in repr(value)
            ]
            plain = [value for value in values if "${" not in repr(value)]
            converted, more_lines = convert_all(RootSettings, key, plain, key)
            return converted, [*lines, *more_lines]

        name, _, below = path.partition(".")
        if below:
            return values, []
        return convert_all(self.classes[group], name, values, key)

    def build(self, values: Mapping[str, Any]) -> RootSettings:
        """One run: these options, with plain values set. Groups that do not differ are shared between runs.

        Raises:
            UserError: a setting that an option needs is missing, or an interpolation cannot be resolved.
        """
        short = {key: values.get(key, self.root[key]) for key in SHORT_KEYS}
        groups = {group: self._group(group, values) for group in GROUPS}
        return RootSettings(**short, **groups)

    def _group(self, group: str, values: Mapping[str, Any]) -> Any:
        """The settings of a group with values set, built once for equal values."""
        of_group = {key: value for key, value in values.items() if key.startswith(f"{group}.")}
        crosses = bool(CROSS_REFERENCE.search(f"{of_group}{self._texts[group]}"))
        relevant = values if crosses else of_group

        cache_key = (group, repr(sorted(relevant.items())))
        if cache_key not in self._cache:
            build = self._build_in_tree if crosses else self._build_alone
            self._cache[cache_key] = build(group, relevant)
        return self._cache[cache_key]

    def _build_in_tree(self, group: str, values: Mapping[str, Any]) -> Any:
        """A group within the whole tree, whose other values it refers to."""
        root = copy.deepcopy(self.root)
        for key, value in values.items():
            OmegaConf.update(root, key, value)
        return self._to_object(group, root[group])

    def _build_alone(self, group: str, values: Mapping[str, Any]) -> Any:
        """A group that refers to no other one."""
        fields = {key.partition(".")[2]: value for key, value in values.items()}
        if fields and self._is_plain(group, fields):
            # Ten times as fast as OmegaConf below.
            return dataclasses.replace(self._group(group, {}), **fields)

        node = copy.deepcopy(self.root[group])
        for name, value in fields.items():
            OmegaConf.update(node, name, value)
        return self._to_object(group, node)

    def _is_plain(self, group: str, fields: Mapping[str, Any]) -> bool:
        """Whether values can be set without OmegaConf: no interpolation, nothing missing, nothing below a mapping."""
        text = self._texts[group]
        if "${" in f"{fields}{text}" or "???" in text:
            return False
        return not any("." in name or isinstance(value, dict) for name, value in fields.items())

    def _to_object(self, group: str, node: DictConfig) -> Any:
        fields: Any = OmegaConf.to_container(node, resolve=False)
        needs = f"needed by {group}={self.chosen[group]}"
        raise_all(
            f"{group}.{name}: {needs}, give {group}.{name}=..."
            for name, value in fields.items()
            if value == "???"
        )
        try:
            return OmegaConf.to_object(node)
        except OmegaConfBaseException as error:
            raise UserError(f"{group}: {one_line(error)}") from error


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
        The cells, and the faults of all cells: unknown keys, values of another type or out of range, missing ones.
        Where there is a fault, the cells are of no use.
    """
    count = sum(math.prod(max(1, len(values)) for values in grid.values()) for grid in grids)
    if count > MAX_CELLS:
        return [], [f"{count} cells: at most {MAX_CELLS} in one sweep"]

    lines: list[str] = []
    groups = _SharedGroups()
    cells: dict[Any, RootSettings] = {}
    for grid in grids:
        for cell in _cells(grid, option_set_of, lines):
            lines += groups.share(cell)
            short = [getattr(cell, key) for key in SHORT_KEYS]
            cell_key = (*short, *(id(getattr(cell, group)) for group in GROUPS))
            if cell_key not in cells:
                cells[cell_key] = cell
                lines += own_faults(cell)
    return list(cells.values()), lines


class _SharedGroups:
    """Equal settings of a group become one object: cells compare by identity, and each is checked once."""

    def __init__(self) -> None:
        self._by_text: dict[str, Any] = {}

    def share(self, cell: RootSettings) -> list[str]:
        """Replace the cell's groups by the objects seen first; the faults of those that are new."""
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
    failed = [key for key, values in grid.items() if key in GROUPS and not values]
    chosen = {key: values for key, values in grid.items() if key in GROUPS and values}
    plain = {
        key: values
        for key, values in grid.items()
        if key not in GROUPS and key.split(".")[0] not in failed
    }

    option_sets = list(_option_sets(chosen, option_set_of, lines))
    lines += _unknown_keys(list(plain), option_sets)
    for option_set in option_sets:
        typed: dict[str, list[Any]] = {}
        for key, values in plain.items():
            if option_set.has(key):
                converted, key_lines = option_set.typed(key, values)
                lines += key_lines
                # With every value refused, the default lets the other keys be checked.
                if converted:
                    typed[key] = converted

        for combination in itertools.product(*typed.values()):
            try:
                yield option_set.build(dict(zip(typed, combination, strict=True)))
            except UserError as error:
                lines += error.faults


def _option_sets(
    chosen: Mapping[str, list[str]], option_set_of: OptionSetOf, lines: list[str]
) -> Iterator[OptionSet]:
    for combination in itertools.product(*chosen.values()):
        try:
            yield option_set_of(dict(zip(chosen, combination, strict=True)))
        except UserError as error:
            lines += error.faults


def _unknown_keys(given: list[str], option_sets: list[OptionSet]) -> list[str]:
    """A line for each key that none of the option sets has."""
    if not option_sets:
        return []
    valid = list(dict.fromkeys(key for options in option_sets for key in options.valid_keys()))
    return [
        _unknown_key(key, valid, option_sets[0])
        for key in given
        if not any(options.has(key) for options in option_sets)
    ]


def _unknown_key(key: str, valid: list[str], option_set: OptionSet) -> str:
    group, _, name = key.partition(".")
    if group not in GROUPS:
        return unknown_key(key, valid)
    if name in DISCRIMINATORS:
        return f"{key}: chosen by the option, give {group}=..."

    no_such_key = f"no such key (of {group}={option_set.chosen[group]});"
    options_with_key = [
        f"{group}={option}"
        for option, owner in registry.declared(group).items()
        if option and name in keys(owner)
    ]
    # Then it is the option that is wrong, not the key.
    if options_with_key:
        return f"{key}: {no_such_key} {', '.join(options_with_key)} has it"
    return unknown_key(key, valid).replace("no such key;", no_such_key, 1)

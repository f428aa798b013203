"""From values to typed runs: the settings of one choice of options, and the cells of a grid.

What a user gives passes through the dataclasses of config.py, once per value and not per cell: 10,000 cells take a second.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pml_cli.config import registry
from pml_cli.config.option_files import SHORT_KEYS, unknown_key
from pml_cli.config.registry import GROUPS, settings_class
from pml_cli.config.reports import ReportSettings
from pml_cli.config.schema import InlineLaunch, Launch, Run
from pml_cli.config.setting import annotation, keys, type_text
from pml_cli.config.setting import faults as setting_faults
from pml_cli.config.sweep_file import one_line
from pml_cli.errors import UserError, raise_all

MAX_CELLS = 100_000
CROSS = re.compile(
    r"\$\{\s*[A-Za-z_][\w.]*\s*\}"
)  # an interpolation of another group's value, such as ${rank}

Grid = dict[str, list[Any]]  # key to its values; the cells are all combinations
Asked = TypeVar("Asked", bound=ReportSettings)


@dataclass(kw_only=True)
class Settings(Run):
    """A run and what surrounds it: everything a YAML root file may hold."""

    out: str = "outputs"
    launch: Launch = field(default_factory=InlineLaunch)


def refuse(faults: list[str]) -> None:
    """Raise all faults at once, each kept to its line.

    Raises:
        UserError: there is a fault.
    """
    raise_all(" ".join(fault.split()) for fault in faults)


class OptionSet:
    """The typed settings of one choice of options; builds the runs that differ from it in plain values."""

    def __init__(self, tree: Mapping[str, Any], chosen: Mapping[str, str]) -> None:
        self.chosen = dict(chosen)
        self.root = OmegaConf.structured(Settings)
        self.schemas: dict[str, type[Any]] = {}
        self._built: dict[Any, Any] = {}
        self._texts: dict[str, str] = {}  # each group as written, to look for interpolations
        refuse(
            [
                unknown_key(key, [*SHORT_KEYS, *GROUPS])
                for key in tree
                if key not in (*SHORT_KEYS, *GROUPS)
            ]
        )
        for group in GROUPS:
            self._declare(group, tree.get(group) or {})
        for key in SHORT_KEYS:
            if key in tree:
                refuse(self.typed(key, [tree[key]])[1])
                self.root[key] = tree[key]

    def _declare(self, group: str, fields: Any) -> None:
        file = f"{group}/{self.chosen[group]}.yaml"
        if not isinstance(fields, dict):
            raise UserError(f"{file}: must be a mapping of settings")
        try:
            declared = settings_class(group, fields)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        self.schemas[group] = declared
        node = OmegaConf.structured(declared)
        valid = [f"{group}.{name}" for name in keys(declared)]
        refuse([f"{file}: {unknown_key(f'{group}.{f}', valid)}" for f in fields if f not in node])
        for name, value in fields.items():
            try:
                OmegaConf.update(node, name, value)
            except OmegaConfBaseException:
                refuse([f"{file}: {group}.{name}={value}: must be {type_text(declared, name)}"])
        self.root[group] = node
        self._texts[group] = repr(OmegaConf.to_container(node, resolve=False))

    def valid(self) -> list[str]:
        """Every key that may be overridden with these options."""
        return [
            *SHORT_KEYS,
            *GROUPS,
            *(f"{g}.{name}" for g, declared in self.schemas.items() for name in keys(declared)),
        ]

    def knows(self, key: str) -> bool:
        """Whether a plain key exists here. Below a mapping, such as model.architecture, every name does."""
        group, _, rest = key.partition(".")
        if not rest:
            return key in SHORT_KEYS
        name, _, deeper = rest.partition(".")
        if group not in GROUPS or name not in keys(self.schemas[group]):
            return False
        return not deeper or annotation(self.schemas[group], name)[0] is dict

    def typed(self, key: str, values: list[Any]) -> tuple[list[Any], list[str]]:
        """Values as the dataclass declares them, and a line for each that is of another type."""
        group, _, name = key.partition(".")
        declared, name = (self.schemas[group], name) if name else (Settings, key)
        name, _, deeper = name.partition(".")
        if deeper:  # below a mapping anything goes
            return values, []
        kind, _ = annotation(declared, name)
        scratch, good, faults = OmegaConf.structured(declared), [], []
        for value in values:
            try:
                good.append(
                    value if kind is int and type(value) is int else _convert(scratch, name, value)
                )
            except (OmegaConfBaseException, ValueError):
                faults.append(f"{key}={_shown(value)}: must be {type_text(declared, name)}")
        return good, faults

    def build(self, values: Mapping[str, Any]) -> Settings:
        """One run: these options, with plain values set. Groups that do not differ are shared between runs."""
        top = {key: values.get(key, self.root[key]) for key in SHORT_KEYS}
        return Settings(**top, **{group: self._group(group, values) for group in GROUPS})

    def _group(self, group: str, values: Mapping[str, Any]) -> Any:
        mine = {key: value for key, value in values.items() if key.startswith(f"{group}.")}
        crossing = CROSS.search(f"{mine}{self._texts[group]}")
        known = (group, repr(sorted((values if crossing else mine).items())))
        if known not in self._built:
            self._built[known] = self._with(
                group, values if crossing else mine, whole=bool(crossing)
            )
        return self._built[known]

    def _with(self, group: str, values: Mapping[str, Any], whole: bool) -> Any:
        """One group with values set; within the whole tree where one of them refers to another group's."""
        fields = {key.partition(".")[2]: value for key, value in values.items()}
        plain = (
            not whole
            and "${" not in f"{fields}{self._texts[group]}"
            and "???" not in self._texts[group]
        )
        if (
            fields
            and plain
            and not any("." in name or isinstance(value, dict) for name, value in fields.items())
        ):
            return dataclasses.replace(
                self._group(group, {}), **fields
            )  # ten times as fast as the way below
        root = copy.deepcopy(self.root) if whole else self.root
        node = root[group] if whole else copy.deepcopy(root[group])
        for key, value in values.items():
            OmegaConf.update(*((root, key) if whole else (node, key.partition(".")[2])), value)
        return self._object(group, root[group] if whole else node)

    def _object(self, group: str, node: DictConfig) -> Any:
        fields: Any = OmegaConf.to_container(node, resolve=False)
        missing = [name for name, value in fields.items() if value == "???"]
        if missing:
            needs = f"needed by {group}={self.chosen[group]}"
            raise UserError(
                *(f"{group}.{name}: {needs}, give {group}.{name}=..." for name in missing)
            )
        try:
            return OmegaConf.to_object(node)
        except OmegaConfBaseException as error:
            raise UserError(f"{group}: {one_line(error)}") from error


def _convert(scratch: DictConfig, name: str, value: Any) -> Any:
    OmegaConf.update(scratch, name, value)
    if "${" in repr(value):
        if name in SHORT_KEYS:
            raise ValueError("the short keys are what others refer to")
        return value
    kept = scratch[name]
    return OmegaConf.to_container(kept) if OmegaConf.is_config(kept) else kept


def _shown(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def typed_report(declared: type[Asked], tree: Mapping[str, Any], given: Grid) -> Asked:
    """Settings of a verb that trains nothing: those of its YAML root, then those given; a list takes several values.

    Raises:
        UserError: an unknown key, several values for one, a value of another type or out of range.
    """
    settings, faults = OmegaConf.structured(declared), []
    for key, values in [*((key, [value]) for key, value in tree.items()), *given.items()]:
        if key not in keys(declared):
            faults.append(unknown_key(key, keys(declared)))
        elif annotation(declared, key)[0] is list:
            try:
                settings[key] = values[0] if isinstance(values[0], list) else values
            except OmegaConfBaseException:
                faults.append(f"{key}={','.join(map(str, values))}: must be numbers")
        elif len(values) > 1:
            faults.append(f"{key}: takes one value, not {len(values)}")
        else:
            try:
                settings[key] = values[0]
            except OmegaConfBaseException:
                faults.append(f"{key}={_shown(values[0])}: must be {type_text(declared, key)}")
    typed = OmegaConf.to_object(settings)
    assert isinstance(typed, declared)
    refuse([*faults, *setting_faults(typed)])
    return typed


def expand_grid(
    grids: list[Grid], template: Callable[[dict[str, str]], OptionSet]
) -> list[Settings]:
    """The cells of all grids, in the order asked for, each once.

    Where a group is given several options, a key that only some of them have applies to those.

    Raises:
        UserError: all faults of all cells: unknown keys, wrong types, values out of range, missing ones, too many cells.
    """
    count = sum(math.prod(len(values) for values in grid.values()) for grid in grids)
    if count > MAX_CELLS:
        raise UserError(f"{count} cells: at most {MAX_CELLS} in one sweep")
    cells: dict[Any, Settings] = {}
    shared: dict[str, Any] = {}
    faults: list[str] = []
    for grid in grids:
        for settings in _cells(grid, template, faults):
            for (
                group
            ) in GROUPS:  # equal groups become one object, so that equal cells have equal keys
                mine = getattr(settings, group)
                setattr(settings, group, shared.setdefault(f"{type(mine).__name__}{mine}", mine))
            same = (
                *(getattr(settings, key) for key in SHORT_KEYS),
                *(id(getattr(settings, g)) for g in GROUPS),
            )
            if same not in cells:
                cells[same] = settings
                faults.extend(setting_faults(settings))
    refuse(faults)
    return list(cells.values())


def _cells(
    grid: Grid, template: Callable[[dict[str, str]], OptionSet], faults: list[str]
) -> Iterator[Settings]:
    chosen = {key: values for key, values in grid.items() if key in GROUPS}
    plain = {key: values for key, values in grid.items() if key not in GROUPS}
    templates = [
        template(dict(zip(chosen, combo, strict=True)))
        for combo in itertools.product(*chosen.values())
    ]
    valid = list(dict.fromkeys(key for t in templates for key in t.valid()))
    for key in plain:
        if not any(t.knows(key) for t in templates):
            faults.append(_unknown(key, valid, templates[0]))
    for one in templates:
        typed = {key: one.typed(key, values) for key, values in plain.items() if one.knows(key)}
        faults.extend(line for _, lines in typed.values() for line in lines)
        for values in itertools.product(*(good for good, _ in typed.values())):
            try:
                yield one.build(dict(zip(typed, values, strict=True)))
            except UserError as error:
                faults.extend(error.faults)


def _unknown(key: str, valid: list[str], template: OptionSet) -> str:
    group, _, name = key.partition(".")
    if name in ("source", "kind") and group in GROUPS:
        return f"{key}: chosen by the option, give {group}=..."
    if group not in GROUPS:
        return unknown_key(key, valid)
    having = [
        f"{group}={name_}"
        for name_, owner in registry.declared(group).items()
        if name_ and name in keys(owner)
    ]
    if having:  # then the option is the slip, not the key
        return (
            f"{key}: no such key (of {group}={template.chosen[group]}); {', '.join(having)} has it"
        )
    return unknown_key(key, valid).replace(
        "such key;", f"such key (of {group}={template.chosen[group]});", 1
    )

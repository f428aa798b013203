"""The settings of one option for each group, and the runs that differ from them in single values.

A value passes through the settings dataclasses once, and not for each cell that has it: 10,000
cells take a second.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pml_cli.config import registry
from pml_cli.config.convert import convert_all, is_unfit
from pml_cli.config.option_files import SHORT_KEYS, unknown_key
from pml_cli.config.registry import GROUPS, settings_class
from pml_cli.config.schema import Launch, Run
from pml_cli.config.setting import annotation, has_type, keys, setting, type_fault, type_text
from pml_cli.config.sweep_file import one_line
from pml_cli.errors import UserError, raise_all

# An interpolation of another group's value, such as ${rank}; one of the same group is ${.path}.
CROSS_REFERENCE = re.compile(r"\$\{\s*[A-Za-z_][\w.]*\s*\}")

# How a YAML file of options says that a setting must be given.
MISSING = "???"


@dataclass(kw_only=True)
class RootSettings(Run):
    """Everything that a YAML root file may hold: a run, its folder and how it is launched."""

    out: str = setting(
        "outputs", help="folder of the results", path="any", required=True, allowed="a folder"
    )
    launch: Launch = field(default_factory=partial(registry.create, "launch", "inline"))


class OptionSet:
    """The typed settings of one option for each group.

    Attributes:
        chosen: the option of each group.
        classes: the dataclass of each group's settings.
    """

    def __init__(self, tree: Mapping[str, Any], chosen: Mapping[str, str]) -> None:
        """
        Args:
            tree: the composed YAML files, by short key and group.
            chosen: the option of each group.

        Raises:
            UserError: faults of the YAML files.
        """
        self.chosen = dict(chosen)
        self.classes: dict[str, type[Any]] = {}
        # From an instance: made by OmegaConf, it would hide which module does not import.
        self._root = OmegaConf.structured(RootSettings())
        # Each group as written, to look for interpolations.
        self._texts: dict[str, str] = {}
        self._built: dict[tuple[str, str], Any] = {}

        allowed = [*SHORT_KEYS, *GROUPS]
        raise_all(unknown_key(key, allowed) for key in tree if key not in allowed)
        for group in GROUPS:
            self._take_group(group, tree.get(group) or {})
        # The short keys are converted here as those of an override are.
        for key in SHORT_KEYS:
            if key in tree:
                converted, lines = self.typed(key, [tree[key]])
                raise_all(lines)
                self._root[key] = converted[0]

    def _take_group(self, group: str, fields: Any) -> None:
        """Take over the settings that an option's YAML file names."""
        file = f"{group}/{self.chosen[group]}.yaml"
        if not isinstance(fields, dict):
            raise UserError(f"{file}: must be a mapping of settings")
        fields = registry.with_kind_of_name(group, self.chosen[group], fields)
        try:
            owner = settings_class(group, fields)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error

        # The class's defaults, then what the file says.
        node = OmegaConf.structured(owner)
        valid = [f"{group}.{name}" for name in keys(owner)]
        lines: list[str] = []
        for name, value in fields.items():
            key = f"{group}.{name}"
            if name not in node:
                lines.append(f"{file}: {unknown_key(key, valid)}")
                continue
            if is_unfit(value, annotation(owner, name)[0]):
                lines.append(f"{file}: {type_fault(owner, name, value, key)}")
                continue
            try:
                OmegaConf.update(node, name, value)
            except OmegaConfBaseException:
                lines.append(f"{file}: {type_fault(owner, name, value, key)}")
        raise_all(lines)

        self.classes[group] = owner
        self._root[group] = node
        self._texts[group] = repr(OmegaConf.to_container(node, resolve=False))

    def valid_keys(self) -> list[str]:
        """Every key that may be overridden with these options."""
        nested = [f"{group}.{name}" for group in GROUPS for name in keys(self.classes[group])]
        return [*SHORT_KEYS, *GROUPS, *nested]

    def has(self, key: str) -> bool:
        """Whether a plain key exists with these options.

        Below a mapping, such as model.architecture, every name does.
        """
        group, _, path = key.partition(".")
        if not path:
            return key in SHORT_KEYS

        name, _, below = path.partition(".")
        # `train.lr.`: a mapping without a name in place of a value.
        if "" in key.split("."):
            return False
        if group not in GROUPS or name not in keys(self.classes[group]):
            return False
        return not below or annotation(self.classes[group], name)[0] is dict

    def typed(self, key: str, values: list[Any]) -> tuple[list[Any], list[str]]:
        """Values as the dataclass declares them, and a line for each that is of another type."""
        group, _, path = key.partition(".")
        if not path:
            return _typed_short(key, values)

        name, _, below = path.partition(".")
        # A mapping takes what it is given: its fields are declared by transformers or Slurm.
        if below:
            return values, []
        return convert_all(self.classes[group], name, values, key)

    def build(self, values: Mapping[str, Any]) -> RootSettings:
        """One run: these options, with single values set.

        Groups that do not differ are shared between runs.

        Raises:
            UserError: a setting that an option needs is missing, or an interpolation has no value.
        """
        short = {key: values.get(key, self._root[key]) for key in SHORT_KEYS}
        groups = {group: self._group(group, values) for group in GROUPS}
        return RootSettings(**short, **groups)

    def _group(self, group: str, values: Mapping[str, Any]) -> Any:
        """The settings of a group with values set, built once for equal values."""
        prefix = f"{group}."
        of_group = {key: value for key, value in values.items() if key.startswith(prefix)}
        # A group that refers to others depends on all values.
        crosses = bool(CROSS_REFERENCE.search(f"{of_group}{self._texts[group]}"))
        relevant = values if crosses else of_group

        # By their text, because settings may hold lists.
        cache_key = (group, repr(sorted(relevant.items())))
        if cache_key not in self._built:
            build = self._build_in_tree if crosses else self._build_alone
            self._built[cache_key] = build(group, relevant)
        return self._built[cache_key]

    def _build_in_tree(self, group: str, values: Mapping[str, Any]) -> Any:
        """A group within the whole tree, whose other values it refers to."""
        # The root is shared by all runs of these options.
        root = copy.deepcopy(self._root)
        for key, value in values.items():
            OmegaConf.update(root, key, value)
        return self._to_object(group, root[group])

    def _build_alone(self, group: str, values: Mapping[str, Any]) -> Any:
        """A group that refers to no other one."""
        fields = {key.partition(".")[2]: value for key, value in values.items()}
        if fields and self._is_plain(group, fields):
            # Ten times as fast as OmegaConf below.
            return dataclasses.replace(self._group(group, {}), **fields)

        node = copy.deepcopy(self._root[group])
        for name, value in fields.items():
            OmegaConf.update(node, name, value)
        return self._to_object(group, node)

    def _is_plain(self, group: str, fields: Mapping[str, Any]) -> bool:
        """Whether values can be set without OmegaConf.

        Not with an interpolation, a missing value, or a value below a mapping.
        """
        text = self._texts[group]
        if "${" in f"{fields}{text}" or MISSING in text:
            return False
        is_below_mapping = any("." in name for name in fields)
        return not is_below_mapping and not any(isinstance(v, dict) for v in fields.values())

    def _to_object(self, group: str, node: DictConfig) -> Any:
        """The settings dataclass of a group, interpolations resolved."""
        fields: Any = OmegaConf.to_container(node, resolve=False)
        needs = f"needed by {group}={self.chosen[group]}"
        missing = [name for name, value in fields.items() if value == MISSING]
        raise_all(f"{group}.{name}: {needs}, give {group}.{name}=..." for name in missing)

        try:
            settings: Any = OmegaConf.to_object(node)
        except OmegaConfBaseException as error:
            raise UserError(f"{group}: {one_line(error)}") from error

        # OmegaConf checks no value that an interpolation puts in place of a list or a mapping.
        owner = type(settings)
        raise_all(
            type_fault(owner, field.name, value, f"{group}.{field.name}")
            for field in dataclasses.fields(owner)
            if not has_type(owner, field.name, value := getattr(settings, field.name))
        )
        return settings


def _typed_short(key: str, values: list[Any]) -> tuple[list[Any], list[str]]:
    """`OptionSet.typed` for a key that belongs to no group."""
    allowed = type_text(RootSettings, key)
    plain: list[Any] = []
    lines: list[str] = []

    for value in values:
        # Other settings refer to the short keys, so these refer to none.
        if "${" in repr(value):
            lines.append(f"{key}={value}: must be {allowed}")
        else:
            plain.append(value)
    converted, more_lines = convert_all(RootSettings, key, plain, key)
    return converted, [*lines, *more_lines]

"""Values from the command line or YAML to the types that a settings dataclass declares.

By OmegaConf's rules: `1` becomes 1.0 for a float, `4.5` is refused for an integer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pml_cli.config.option_files import unknown_key
from pml_cli.config.setting import (
    Settings,
    annotation,
    declaration_of,
    dotted_keys,
    faults,
    type_fault,
    value_text,
)

S = TypeVar("S", bound=Settings)

# What OmegaConf takes for a value that is not there.
MISSING = "???"


def convert_all(
    owner: type[Any], name: str, values: list[Any], key: str
) -> tuple[list[Any], list[str]]:
    """Convert the values of one setting.

    Args:
        owner: the dataclass that declares it.
        name: its field.
        values: as read; an interpolation such as `${rank}` stays as it is.
        key: its name in messages, `train.lr`.

    Returns:
        The converted values, and a line for each value of another type.
    """
    kind = annotation(owner, name)[0]
    declared = declaration_of(owner, name)
    meanings = declared.words if declared else {}
    scratch: DictConfig | None = None
    converted: list[Any] = []
    lines: list[str] = []

    for value in values:
        if isinstance(value, str) and value in meanings:
            converted.append(meanings[value])
            continue
        # Most values are, and OmegaConf is slow.
        if _is_plain(value, kind):
            converted.append(value)
            continue
        if is_unfit(value, kind):
            lines.append(type_fault(owner, name, value, key))
            continue
        scratch = scratch or OmegaConf.structured(owner())
        try:
            converted.append(_convert(scratch, name, value))
        except OmegaConfBaseException:
            lines.append(type_fault(owner, name, value, key))
    return converted, lines


def _is_plain(value: Any, kind: type[Any]) -> bool:
    """Whether a value is of a type that OmegaConf would leave as it is."""
    if type(value) is not kind:
        return False
    if kind is str:
        return "${" not in value and value != MISSING
    return kind in (int, float, bool)


def is_unfit(value: Any, kind: type[Any]) -> bool:
    """Whether OmegaConf would accept or fail on this value although its type is wrong.

    OmegaConf takes any number but 0 for true, accepts lists within a list of numbers, and fails on
    an integer beyond the range of a float.
    """
    if kind is list and isinstance(value, list | tuple):
        return any(
            isinstance(element, dict | list | tuple) or _is_huge(element) for element in value
        )
    if kind in (float, list) and _is_huge(value):
        return True
    return kind is bool and isinstance(value, int | float) and value not in (0, 1)


def _is_huge(value: Any) -> bool:
    """Whether a value is an integer above the largest float."""
    return isinstance(value, int) and value.bit_length() > sys.float_info.max_exp


def _convert(scratch: DictConfig, name: str, value: Any) -> Any:
    # The scratch node checks the type; an interpolation has one only within its run.
    OmegaConf.update(scratch, name, value)
    if "${" in repr(value):
        return value
    stored = scratch[name]
    return OmegaConf.to_container(stored) if OmegaConf.is_config(stored) else stored


def typed_settings(owner: type[S], given: Mapping[str, list[Any]]) -> tuple[S, list[str]]:
    """Settings without groups, checked; a list takes several values, everything else one.

    Args:
        owner: the dataclass.
        given: the values of each key.

    Returns:
        The settings, and a line for each fault: an unknown key, several values for one, a value of
        another type or out of range. A value of another type leaves the default.
    """
    node = OmegaConf.structured(owner)
    owners = dotted_keys(owner)
    lines: list[str] = []
    for key, values in given.items():
        if key not in owners:
            lines.append(unknown_key(key, list(owners)))
            continue
        field = key.rpartition(".")[2]
        takes_list = annotation(owners[key], field)[0] is list
        if takes_list and isinstance(values[0], dict):
            lines.append(type_fault(owners[key], field, values[0], key))
            continue
        if len(values) > 1 and not takes_list:
            lines.append(f"{key}: takes one value, not {len(values)}")
            continue
        if is_unfit(values[0], annotation(owners[key], field)[0]):
            lines.append(type_fault(owners[key], field, values[0], key))
            continue

        # rank=4,8 and rank=[4,8] are the same list.
        is_plain_list = takes_list and not isinstance(values[0], list)
        try:
            OmegaConf.update(node, key, values if is_plain_list else values[0])
            # An interpolation is resolved here, so that it fails for this key alone.
            OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException:
            if takes_list:
                text = ",".join(map(value_text, values))
                lines.append(f"{key}={text}: must be numbers")
            else:
                lines.append(type_fault(owners[key], field, values[0], key))
            default = OmegaConf.select(OmegaConf.structured(owner), key)
            OmegaConf.update(node, key, default)

    settings = OmegaConf.to_object(node)
    assert isinstance(settings, owner)
    return settings, [*lines, *faults(settings)]

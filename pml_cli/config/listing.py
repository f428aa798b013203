"""The settings that may be given, with default, meaning, unit and allowed values.

All of it is read off the declarations (`setting.py`) and the YAML files of the options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.config.load import typed_values
from pml_cli.config.option_files import SHORT_KEYS, option_file, options, split_known
from pml_cli.config.option_set import MISSING, RootSettings
from pml_cli.config.registry import GROUPS, settings_class
from pml_cli.config.reports import REPORTS, RUN, section_names
from pml_cli.config.setting import (
    Settings,
    declaration_of,
    dotted_keys,
    keys,
    type_text,
    value_text,
)
from pml_cli.errors import UserError, did_you_mean, raise_all
from pml_cli.validation import read_yaml

# Every command has a folder of its own.
DEFAULT_OUT = "outputs/COMMAND"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A setting as one option of a group declares it.

    Attributes:
        key: as on the command line: `train.lr`.
        default: its value where the command line does not give it; null where it must.
        required: whether it must be given.
        type: in words: `null or an integer`.
        unit: of the value; empty: none.
        allowed: the values allowed; empty: all of the type.
        special: values with a meaning of their own, as one types them.
        help: what it is.
    """

    key: str
    default: Any
    required: bool
    type: str
    unit: str
    allowed: str
    special: Mapping[str, str]
    help: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """The settings that some options of a group have in common, defaults included.

    Attributes:
        name: one of `section_names`.
        options: those of the group; none of a command.
        settings: in the order of their declaration.
    """

    name: str
    options: list[str]
    settings: list[Listed]


def sections(asked: str = "", config_dir: Path | None = None) -> list[Section]:
    """The settings of everything, of a group or a command, or of one option of a group.

    Args:
        asked: empty, `data` or `data=jsonl`.
        config_dir: a user's folder of options.

    Raises:
        UserError: no such group or option; a YAML file of options that cannot be used.
    """
    name, equals, option = asked.partition("=")
    names = section_names()
    if asked and name not in names:
        raise UserError(f"{name}: no group of settings; {did_you_mean(name, names)}")
    if equals and name not in GROUPS:
        raise UserError(f"{asked}: {name} has no options; pml settings {name} lists its settings")
    if equals:
        _, lines = split_known(name, [option], config_dir)
        raise_all(lines)
        return [_option_section(name, option, config_dir)]

    listed_names = [name] if name else names
    return [section for each in listed_names for section in _sections_of(each, config_dir)]


def _sections_of(name: str, config_dir: Path | None) -> list[Section]:
    if name == RUN:
        return [Section(name=RUN, options=[], settings=_short_settings())]
    if name in REPORTS:
        return [Section(name=name, options=[], settings=_report_settings(REPORTS[name]))]
    return _group_sections(name, config_dir)


def _short_settings() -> list[Listed]:
    """The keys of a run that belong to no group."""
    root = RootSettings()
    values = {key: getattr(root, key) for key in SHORT_KEYS} | {"out": DEFAULT_OUT}
    return [_listed(RootSettings, key, key, value) for key, value in values.items()]


def _report_settings(owner: type[Settings]) -> list[Listed]:
    entries = []
    for key, declaring in dotted_keys(owner).items():
        name = key.rpartition(".")[2]
        entries.append(_listed(declaring, name, key, getattr(declaring(), name)))
    return entries


def _group_sections(group: str, config_dir: Path | None) -> list[Section]:
    """The settings of a group, each once for the options that agree in it."""
    names = options(group, config_dir)
    holders: dict[str, list[str]] = {}
    listed: dict[str, Listed] = {}
    for option in names:
        for entry in _option_section(group, option, config_dir).settings:
            # Settings hold lists and mappings, which cannot be hashed.
            text = repr(entry)
            listed[text] = entry
            holders.setdefault(text, []).append(option)

    by_options: dict[tuple[str, ...], list[Listed]] = {}
    for text, holding in holders.items():
        by_options.setdefault(tuple(holding), []).append(listed[text])

    # What all options have comes first.
    ordered = sorted(by_options.items(), key=lambda item: -len(item[0]))
    return [
        Section(name=group, options=list(holding), settings=entries) for holding, entries in ordered
    ]


def _option_section(group: str, option: str, config_dir: Path | None) -> Section:
    """The settings of one option: the defaults of its class, then what its YAML file says."""
    fields = _option_fields(group, option, config_dir)
    owner = settings_class(group, fields)
    # The others have no value before a run is composed.
    plain = {
        name: value
        for name, value in fields.items()
        if value != MISSING and "${" not in repr(value)
    }
    typed = typed_values(owner, plain, prefix=f"{group}.")

    entries = []
    for name in keys(owner):
        value = getattr(typed, name) if name in plain else fields.get(name, getattr(typed, name))
        entries.append(_listed(owner, name, f"{group}.{name}", value))
    return Section(name=group, options=[option], settings=entries)


def _option_fields(group: str, option: str, config_dir: Path | None) -> dict[str, Any]:
    """What the YAML file of an option says.

    Raises:
        UserError: it cannot be read.
    """
    file = option_file(group, option, config_dir)
    assert file is not None
    try:
        fields = read_yaml(file) or {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({error})") from error
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise UserError(f"{file}: must be a mapping of settings")
    return fields


def _listed(owner: type[Any], name: str, key: str, value: Any) -> Listed:
    declared = declaration_of(owner, name)
    assert declared is not None
    required = value == MISSING
    return Listed(
        key=key,
        default=None if required else declared.as_typed(value),
        required=required,
        type=type_text(owner, name),
        unit=declared.unit,
        allowed=declared.range_text(),
        special={value_text(special): text for special, text in declared.special.items()},
        help=declared.help,
    )

"""The settings that may be given, with default, meaning, unit and allowed values.

All of it is read off the declarations (`setting.py`) and the YAML files of the options.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pml_cli.config.load import typed_values
from pml_cli.config.memorize import FACTS, MANY_FACTS, SEEDS, TEXTS
from pml_cli.config.option_files import (
    SHORT_KEYS,
    nearest_key,
    option_file,
    options,
    root_file,
    run_commands,
    split_known,
    unknown_key,
)
from pml_cli.config.option_set import MISSING, RootSettings
from pml_cli.config.registry import GROUPS, settings_class, with_kind_of_name
from pml_cli.config.reports import FLAGS_ONLY, REPORTS, RUN, section_names
from pml_cli.config.schema import ALL_TOKENS
from pml_cli.config.setting import (
    Settings,
    declaration_of,
    dotted_keys,
    keys,
    type_text,
    value_text,
)
from pml_cli.config.sweep_file import mapping_under, read_mapping
from pml_cli.errors import UserError, raise_all
from pml_cli.validation import read_yaml

# Every command has a folder of its own.
DEFAULT_OUT = "outputs/COMMAND"

# What YAML files say of the settings of an option.
FieldsOf: TypeAlias = Callable[[str, str], dict[str, Any]]


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
        name: one of `section_names`, or of `run_commands` for what belongs to no group there.
        options: those of the group; none of a command.
        settings: in the order of their declaration.
    """

    name: str
    options: list[str]
    settings: list[Listed]


def sections(asked: str = "", config_dir: Path | None = None) -> list[Section]:
    """The settings of everything, of a group, an option or a command, or one setting alone.

    Args:
        asked: empty, `data`, `data=jsonl`, `memorize` or `train.lr`.
        config_dir: a user's folder of options.

    Returns:
        Of a setting every section that has it.

    Raises:
        UserError: no such group, option, command or key; a command without settings; a YAML file of
            options that cannot be used.
    """
    name, equals, option = asked.partition("=")
    if equals and name in GROUPS:
        _, lines = split_known(name, [option], config_dir)
        raise_all(lines)
        return [_option_section(name, option, partial(_option_fields, config_dir=config_dir))]

    listed = _sections_named(name, config_dir)
    if equals:
        raise UserError(f"{asked}: {name} has no options; pml settings {name} lists its settings")
    return listed


def _sections_named(name: str, config_dir: Path | None) -> list[Section]:
    """`sections` for everything except a single option of a group."""
    if name in section_names():
        return _sections_of(name, config_dir)
    if name in run_commands():
        return _command_sections(name, config_dir)
    if name in FLAGS_ONLY:
        raise UserError(f"{name}: takes flags and no settings; pml {name} --help lists them")

    everything = [section for each in section_names() for section in _sections_of(each, config_dir)]
    return _with_key(everything, name) if name else everything


def _with_key(listed: list[Section], key: str) -> list[Section]:
    """The sections that have a key, with nothing else.

    Raises:
        UserError: there is none; the nearest name is in it.
    """
    of_key = []
    for section in listed:
        entries = [entry for entry in section.settings if entry.key == key]
        if entries:
            of_key.append(dataclasses.replace(section, settings=entries))
    if of_key:
        return of_key

    keys_listed = list(dict.fromkeys(entry.key for each in listed for entry in each.settings))
    if "." in key:
        raise UserError(unknown_key(key, keys_listed))
    names = [*section_names(), *run_commands()]
    near = nearest_key(key, [*names, *FLAGS_ONLY, *keys_listed])
    hint = f"did you mean {near!r}? " if near else ""
    allowed = f"allowed: {', '.join(sorted(names))}, or a key such as train.lr"
    raise UserError(f"{key}: not a group, command or key; {hint}{allowed}")


def _sections_of(name: str, config_dir: Path | None) -> list[Section]:
    if name == RUN:
        values = {key: getattr(RootSettings(), key) for key in SHORT_KEYS} | {"out": DEFAULT_OUT}
        return [_short_section(RUN, values)]
    if name in REPORTS:
        return [Section(name=name, options=[], settings=_report_settings(REPORTS[name]))]
    names = options(name, config_dir)
    return _group_sections(name, names, partial(_option_fields, config_dir=config_dir))


def _command_sections(command: str, config_dir: Path | None) -> list[Section]:
    """What a command takes that has the settings of runs, with the defaults it has."""
    # Imported here: it imports hydra, which takes longer than the list to print.
    from pml_cli.config import measure

    short_keys: tuple[str, ...] = SHORT_KEYS
    groups: tuple[str, ...] = GROUPS
    if command == "measure":
        short_keys, groups = measure.KEYS, measure.GROUPS

    file = root_file(command, config_dir)
    assert file is not None
    root = read_mapping(file)
    own_values = _own_values(command, root, file)

    def fields_of(group: str, option: str) -> dict[str, Any]:
        # The list `defaults` of a root file ends with `_self_`: what it says itself wins.
        fields = _option_fields(group, option, config_dir) | mapping_under(root, group, file)
        return fields | _of_group(group, own_values)

    of_groups = [_group_sections(each, options(each, config_dir), fields_of) for each in groups]
    defaults = vars(RootSettings()) | root | own_values
    short = _short_section(command, {key: defaults[key] for key in short_keys})
    return [short, *itertools.chain.from_iterable(of_groups)]


def _of_group(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What values by dotted key say of a group, by the names of its settings."""
    prefix = f"{group}."
    of_group = {key: value for key, value in values.items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in of_group.items()}


def _own_values(command: str, root: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What a command chooses by itself, by dotted key: null where that depends on the rest."""
    if command == "measure":
        return {"seqlen": ALL_TOKENS}
    if command == "capacity":
        return {"seqlen": None}
    if command != "memorize":
        return {}

    # What every kind of data is trained with; the rest differs between them.
    kinds = [mapping_under(root, kind, file) for kind in (FACTS, MANY_FACTS, TEXTS)]
    common = {
        key: value
        for key, value in kinds[0].items()
        if all(kind.get(key) == value for kind in kinds)
    }
    return common | {"rank": None, "seed": SEEDS}


def _short_section(name: str, values: Mapping[str, Any]) -> Section:
    """The keys of a run that belong to no group."""
    entries = [_listed(RootSettings, key, key, value) for key, value in values.items()]
    return Section(name=name, options=[], settings=entries)


def _report_settings(owner: type[Settings]) -> list[Listed]:
    entries = []
    for key, declaring in dotted_keys(owner).items():
        name = key.rpartition(".")[2]
        entries.append(_listed(declaring, name, key, getattr(declaring(), name)))
    return entries


def _group_sections(group: str, names: list[str], fields_of: FieldsOf) -> list[Section]:
    """The settings of a group, each once for the options that agree in it."""
    holders: dict[str, list[str]] = {}
    listed: dict[str, Listed] = {}
    for option in names:
        for entry in _option_section(group, option, fields_of).settings:
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


def _option_section(group: str, option: str, fields_of: FieldsOf) -> Section:
    """The settings of one option: the defaults of its class, then what its YAML file says."""
    fields = with_kind_of_name(group, option, fields_of(group, option))
    owner = settings_class(group, fields)
    # Interpolations and missing values have no value before a run is composed.
    plain = {
        name: value
        for name, value in fields.items()
        if value != MISSING and "${" not in repr(value)
    }
    typed = typed_values(owner, plain, prefix=f"{group}.")
    # Missing fields are read from fresh defaults, not from `typed`: there they would take the value
    # that they have in old runs (`absent`).
    defaults = owner()

    entries = []
    for name in keys(owner):
        value = fields.get(name, getattr(defaults, name))
        if name in plain:
            value = getattr(typed, name)
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

"""The settings that may be given, for `pml settings`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType

from pml_cli.config.listing import Listed, Section
from pml_cli.config.option_files import option_file, options, summary
from pml_cli.config.registry import GROUPS
from pml_cli.config.reports import RUN
from pml_cli.config.setting import value_text
from pml_cli.errors import printable
from pml_cli.report.tables.layout import plain_table, titled

# Letters of a default; --json has all of it.
MAX_DEFAULT = 24


def settings_view(listed: Sequence[Section]) -> RenderableType:
    """A table for each section, below what it belongs to."""
    return Group(*(titled(_title(section), _table(section.settings)) for section in listed))


def _title(section: Section) -> str:
    if section.name == RUN:
        return "every run"
    if section.name not in GROUPS:
        return f"pml {section.name}"
    if len(section.options) == 1:
        (option,) = section.options
        file = option_file(section.name, option)
        text = f": {summary(file)}" if file else ""
        return f"{section.name}={option}{text}"
    if set(section.options) >= set(options(section.name)):
        return f"every {section.name}="
    return f"{section.name}={','.join(section.options)}"


def _table(settings: Sequence[Listed]) -> RenderableType:
    columns = ("setting", "default", "meaning")
    table = plain_table(*columns, text=columns, folded=columns[1:])
    for setting in settings:
        table.add_row(setting.key, _default(setting), printable(_meaning(setting)))
    return table


def _default(setting: Listed) -> str:
    if setting.required:
        return "(give it)"
    default = setting.default
    # What a command finds out where the command line does not say it.
    if default is None and not setting.type.startswith("null"):
        return "(by itself)"
    if default == "":
        return "''"
    # ln 2 in six digits, not in sixteen.
    text = f"{default:g}" if isinstance(default, float) else value_text(default)
    text = printable(text)
    return text if len(text) <= MAX_DEFAULT else f"{text[:MAX_DEFAULT]}..."


def _meaning(setting: Listed) -> str:
    """The help, then type, allowed values, unit and special values."""
    special = [f"{value}: {meaning}" for value, meaning in setting.special.items()]
    notes = filter(None, [setting.type, setting.allowed, setting.unit, *special])
    return f"{setting.help} ({'; '.join(notes)})"

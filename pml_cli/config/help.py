"""Help texts made from what is declared: the options of the groups, the settings of a command.

Imports neither hydra nor a YAML library, so that help is quick. A paragraph that begins with \\b is
printed as it is.
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from pml_cli.config.option_files import SHORT_KEYS, default_options, option_file, options, summary
from pml_cli.config.registry import GROUPS
from pml_cli.config.setting import Declaration, Settings, dotted_keys, value_text

# Of 80 columns, with the two that Typer indents by.
WIDTH = 77
OPTION_COLUMN = 26
LONGEST_SETTING = 22


def groups_help(command: str = "sweep") -> str:
    """The options of every group with a line about each, and the keys that belong to none.

    Args:
        command: whose defaults are marked; probe, sweep and memft have the same.
    """
    defaults = default_options(command)
    lines = ["\b", "OPTIONS OF THE GROUPS (* is the default)"]
    for group in GROUPS:
        lines.append(f"  {group}=")
        for option in options(group):
            file = option_file(group, option)
            mark = " *" if option == defaults[group] else ""
            text = summary(file) if file else ""
            lines += _entry(f"    {option}{mark}", text, OPTION_COLUMN)

    more = (
        f"Keys without a group: {' '.join(SHORT_KEYS)}. Any other setting: group.name=value, "
        "such as train.steps=2000. --print-config shows and explains them all."
    )
    lines += ["", "\b", *textwrap.wrap(more, WIDTH)]
    return "\n".join(lines)


def settings_help(owner: type[Settings]) -> str:
    """The settings of a command with their defaults and meaning."""
    lines = ["\b", "SETTINGS"]
    entries = []
    for key, declaring in dotted_keys(owner).items():
        name = key.rpartition(".")[2]
        (field,) = [field for field in dataclasses.fields(declaring) if field.name == name]
        entries.append((f"  {key}={_default(field)}", _help(field)))
    # One long label must not narrow all texts.
    widths = [len(label) for label, _ in entries]
    column = max(width for width in widths if width <= LONGEST_SETTING) + 2
    for label, text in entries:
        lines += _entry(label, text, column)
    return "\n".join(lines)


def _help(field: dataclasses.Field[Any]) -> str:
    declaration: Declaration = field.metadata["declaration"]
    return declaration.help_text()


def _default(field: dataclasses.Field[Any]) -> str:
    """The default as one would type it; nothing for null, and for an empty text or list."""
    if field.default is dataclasses.MISSING or field.default in (None, ""):
        return ""
    if isinstance(field.default, float):
        # ln 2 in six digits, not in sixteen.
        return f"{field.default:g}"
    return value_text(field.default)


def _entry(label: str, text: str, column: int) -> list[str]:
    """A label and its text in a column of its own; below the label where that is too long."""
    wrapped = textwrap.wrap(text, WIDTH - column) or [""]
    below = [f"{'':{column}}{line}" for line in wrapped]
    if len(label) >= column:
        return [label, *below]
    return [f"{label:{column}}{wrapped[0]}".rstrip(), *below[1:]]

"""`key=value` in Hydra's grammar, from values of Python and names of files."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from pml_cli.config.grid import MAX_CELLS
from pml_cli.errors import UserError, short_repr

PLAIN_NUMBERS = (bool, int, float)
FIELD_NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)


def override_of(key: str, value: Any) -> str:
    """One override; a list, a range, an array or a column of a table means several values.

    Raises:
        UserError: a value that no setting can have.
    """
    if not isinstance(key, str):
        raise UserError(f"{short_repr(key)}: the name of a setting must be a text")
    plain = _plain(key, value)
    try:
        return f"{key}={_values_text(key, plain)}"
    # A list that holds itself.
    except RecursionError as error:
        raise UserError(f"{key}: nested too deep") from error


def _values_text(key: str, plain: Any) -> str:
    if not isinstance(plain, list | tuple | range):
        return _text_of(key, plain)

    if not plain:
        raise UserError(f"{key}=[]: no values")
    if len(plain) > MAX_CELLS:
        raise UserError(f"{key}: {len(plain)} values; at most {MAX_CELLS} cells in one sweep")
    return ",".join(_text_of(key, one) for one in plain)


def quoted_text(text: str) -> str:
    """A text that Hydra and OmegaConf take as it is, whatever is in it.

    Hydra's grammar reads a backslash as itself, but before a quote. OmegaConf looks up what
    stands in `${}`, but after a backslash.
    """
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", literal)
    closed = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"'{closed}'"


def typed_override(key: str, value: str) -> str:
    """An override as one types it, so that a shell and Hydra leave the value as it is."""
    # Quotes of the other kind are easier to read than what escapes them.
    is_plain = not re.search(r'["\\]|\$\{', value)
    literal = f'"{value}"' if is_plain else quoted_text(value)
    return shlex.quote(f"{key}={literal}")


def _text_of(key: str, value: Any) -> str:
    """One value as Hydra's grammar writes it."""
    plain = _plain(key, value)
    if plain is None:
        return "null"
    if isinstance(plain, bool):
        return str(plain).lower()
    if isinstance(plain, Enum):
        return _text_of(key, plain.value)
    if isinstance(plain, str | os.PathLike):
        path = os.fspath(plain)
        if isinstance(path, str):
            return quoted_text(path)
    if isinstance(plain, list | tuple | range):
        return "[" + ",".join(_text_of(key, one) for one in plain) + "]"
    if isinstance(plain, Mapping):
        fields = (f"{_field_name(key, name)}:{_text_of(key, one)}" for name, one in plain.items())
        return "{" + ",".join(fields) + "}"
    if isinstance(plain, int | float):
        return _digits(key, plain)
    raise UserError(f"{key}={short_repr(value)}: must be a number, a text, a list or a mapping")


def _field_name(key: str, name: Any) -> str:
    """The name of a field of a mapping, which the grammar takes without quotes alone."""
    if isinstance(name, str) and FIELD_NAME.fullmatch(name):
        return name
    raise UserError(f"{key}: {short_repr(name)} is no name of a field: letters, digits, . _ -")


def _plain(key: str, value: Any) -> Any:
    """An array, a column of a table or one of their numbers as plain Python."""
    if not isinstance(value, PLAIN_NUMBERS) and hasattr(value, "tolist"):
        return value.tolist()
    is_ordered = isinstance(value, str | bytes | list | tuple | range | Mapping)
    if isinstance(value, Iterable) and not is_ordered and not isinstance(value, os.PathLike):
        kind = type(value).__name__
        raise UserError(f"{key}: a {kind} has no order or can be read once; give a list")
    return value


def _digits(key: str, number: int | float) -> str:
    try:
        return str(number)
    # Python writes no integer of more than 4,300 digits.
    except ValueError as error:
        raise UserError(f"{key}: a number of too many digits") from error

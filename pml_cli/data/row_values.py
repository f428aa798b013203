"""The values of a file's rows: by the names of keys, as text, and as messages show them."""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pml_cli.config.override_text import typed_override
from pml_cli.data.facts_file import Row
from pml_cli.errors import UserError, and_n_more

# What Hydra's grammar reads without quotes.
PLAIN_KEY = re.compile(r"[A-Za-z_][\w.$%*@?|/-]*")

# Letters of a key, and keys, in a message: a file may have thousands of either.
MAX_KEY = 100
MAX_KEYS = 40
MAX_LONG_KEYS = 8

# What a table's cell may hold beside text: shown as Python shows it.
PRINTABLE = (int, float, decimal.Decimal, datetime.date, datetime.time)


def text_of(row: Row, key: str, value: Any, setting: str | None = "prompt_key") -> str:
    """A value as text.

    Args:
        row: that it belongs to.
        key: its key, or path of keys.
        value: as it was read.
        setting: that names such values; None: none does.

    Raises:
        UserError: it is null, a list or an object, or holds an unpaired surrogate.
    """
    name = printable(key)
    if value is None:
        raise UserError(f"{row.where}: {name} is null")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{row.where}: {name} is NaN")
    if isinstance(value, dict):
        inner = key_list(value) or "no keys"
        remedy = ""
        if setting is not None:
            flag = override(setting, f"{key}.{next(iter(value), 'KEY')}")
            remedy = f"; give {flag}"
        raise UserError(f"{row.where}: {name} is an object ({inner}), not text{remedy}")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, PRINTABLE):
        return str(value)
    if not isinstance(value, str):
        kind = "a list" if isinstance(value, list) else type(value).__name__
        raise UserError(f"{row.where}: {name} is {kind}, not text")

    # A text may have been cut between the two surrogates of a character, such as an emoji.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = f"\\u{ord(value[error.start]):04x}"
        reason = f"an unpaired surrogate ({surrogate}, half of a cut emoji): not valid Unicode"
        raise UserError(f"{row.where}: {name} holds {reason}") from error
    return str(value)


def written_key(
    fields: Mapping[str, Any], names: Sequence[str], taken: Sequence[str | None]
) -> str | None:
    """The first of some names among the keys, as it is written there; capitals do not count."""
    written = {key.strip().lower(): key for key in fields if key not in taken}
    return next((written[name] for name in names if name in written), None)


def override(name: str, key: str) -> str:
    """The override that names a key, as one types it; one that is too long stands as KEY."""
    if len(key) > MAX_KEY:
        key = "KEY"
    if PLAIN_KEY.fullmatch(key):
        return f"data.{name}={key}"
    return typed_override(f"data.{name}", printable(key))


def printable(key: str | None) -> str:
    """A key for a message: on one line, not too long, and without halves of characters."""
    text = " ".join(str(key).split())
    text = text if len(text) <= MAX_KEY else f"{text[:MAX_KEY]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def key_list(keys: Iterable[str]) -> str:
    """Keys for a message: the first of them."""
    names = list(map(printable, keys))
    are_short = sum(map(len, names[:MAX_KEYS])) <= 10 * MAX_KEY
    return ", ".join(and_n_more(names, MAX_KEYS if are_short else MAX_LONG_KEYS))

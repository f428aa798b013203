"""The one exception for what a user can mend, and its wording."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. Its message is one line; the command line prints it and exits with code 2."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`allowed: a, b, c` with the nearest name in front, for the end of an error line."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that is not empty, else the name of its type."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__

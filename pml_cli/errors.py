"""The one exception for what a user can fix, and the wording of error lines."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

MAX_LISTED = 10
# Names in a line: a file may have thousands of columns.
MAX_NAMES = 60

# Letters of a file's name in a message.
MAX_NAME = 200

# Letters of a line, and how many of them are its end, where the reason is.
MAX_LINE = 1000
LINE_END = 400

# Control characters such as ESC, and unpaired surrogates, which no stream can encode.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class UserError(Exception):
    """Something the user can fix. The command line prints it, one fault a line, and exits with 2.

    Attributes:
        args: the faults, each one line: the option, its value and what is allowed. A line that
            quotes something as long as a file is without its middle.
    """

    def __init__(self, *faults: object) -> None:
        super().__init__(*(cut_line(str(fault)) for fault in faults))

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.args)

    @property
    def faults(self) -> list[str]:
        """The lines of the message."""
        return str(self).splitlines()


class WorkersError(RuntimeError):
    """Workers ended before all was trained, again and again.

    The command line prints why, and exits with 1.
    """


def raise_all(faults: Iterable[str], limit: int = MAX_LISTED) -> None:
    """Report all faults in one error; return where there are none.

    Args:
        faults: one line each; repeated lines count once.
        limit: lines printed before "and N more".

    Raises:
        UserError: there is at least one fault.
    """
    distinct = list(dict.fromkeys(faults))
    if distinct:
        raise UserError(*and_n_more(distinct, limit))


def and_n_more(items: Sequence[str], limit: int, noun: str = "") -> list[str]:
    """The first `limit` items, followed by "and N more" where there are more of them.

    Args:
        items: texts for a list or for lines.
        limit: items before the cut.
        noun: what they are, appended to the last entry: "and 3 more packs".
    """
    if len(items) <= limit:
        return list(items)

    rest_count = f"and {len(items) - limit} more {noun}".rstrip()
    return [*items[:limit], rest_count]


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's message, else the name of its type."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__


def cut_line(line: str) -> str:
    """A line of an error without its middle, where it quotes something as long as a file."""
    if len(line) <= MAX_LINE:
        return line
    return f"{line[: MAX_LINE - LINE_END]} ... {line[-LINE_END:]}"


def printable(text: str) -> str:
    """A text of a file or of a user, its control characters as codes: it must not steer a terminal.

    Line breaks stay.
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shortened(name: str) -> str:
    """The name of a file, of one that is too long its beginning."""
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."


def short_repr(value: object) -> str:
    """A value of Python as code shows it, on one line and cut off where it is long."""
    try:
        text = repr(value)
    # Python writes no integer of more than 4,300 digits.
    except ValueError:
        text = type(value).__name__
    return shortened(printable(" ".join(text.split())))


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """`allowed: a, b, c` with the nearest name in front, for the end of an error line.

    Args:
        name: of a file, also a number or null where a text belongs.
        allowed: the names that there are.
    """
    names = sorted(allowed)
    near = nearest(str(name), names)
    hint = f"did you mean {near!r}? " if near else ""
    return f"{hint}allowed: {', '.join(and_n_more(names, MAX_NAMES))}"


def nearest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The name that is most like another one, capitals apart; None where none is.

    Args:
        cutoff: least ratio of `difflib`, 0 to 1.
    """
    by_lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None

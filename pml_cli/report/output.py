"""Where a command prints: its result, its progress, and JSON."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console


class Consoles(NamedTuple):
    """What a command prints to, besides JSON."""

    console: Console
    """For tables, remarks and warnings."""
    progress: Console
    """For what is only of interest while it works."""


def consoles(stdout: Console, *, as_json: bool = False, quiet: bool = False) -> Consoles:
    """Where a command prints.

    Args:
        stdout: standard output.
        as_json: standard output is for JSON alone, all else goes to standard error.
        quiet: progress is not shown.
    """
    console = Console(stderr=True, markup=False, emoji=False) if as_json else stdout
    progress = Console(quiet=True, markup=False, emoji=False) if quiet else console
    return Consoles(console, progress)


def print_json(stdout: Console, text: str) -> None:
    """Print a JSON document, as it is.

    Args:
        stdout: standard output.
        text: with a newline at its end, as of `io.json_text` or of a file.
    """
    # `out` does not wrap lines, and ends them itself.
    stdout.out(text.rstrip("\n"), highlight=False)

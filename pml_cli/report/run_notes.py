"""Lines about the runs that a report reads, on standard error."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console


def print_notes(notes: Sequence[str]) -> None:
    """Print a warning for each line."""
    stderr = Console(stderr=True, markup=False)
    for line in notes:
        stderr.print(f"warning: {line}", style="yellow", highlight=False, soft_wrap=True)

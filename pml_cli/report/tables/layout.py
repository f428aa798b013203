"""How every table is laid out: without frames, so that a pipe gets plain aligned text."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def plain_table(
    *columns: str,
    text: Collection[str] = (),
    folded: Collection[str] | None = None,
    gap: int = 2,
) -> Table:
    """A table without a frame: text left-aligned, numbers right-aligned and never cut.

    Args:
        columns: headings, from left to right; none for a table that gets its columns later.
        text: headings of the left-aligned columns.
        folded: headings of the columns whose cells may take several lines; by default those of
            text.
        gap: blanks between columns.
    """
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, gap, 0, 0),
        header_style="bold",
    )
    may_fold = text if folded is None else folded
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in text else "right",
            no_wrap=column not in may_fold,
            # The default cuts what does not fit and ends it with a sign that is not ASCII.
            overflow="fold",
        )
    return table


def key_value_table(rows: Iterable[tuple[str, str]]) -> Table:
    """Two columns of text without headings: a short key, and its text."""
    table = Table(
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column(justify="left", no_wrap=True)
    table.add_column(justify="left", overflow="fold")
    for key, value in rows:
        table.add_row(key, value)
    return table


def titled(title: str, table: RenderableType) -> RenderableType:
    """A table below its title, and an empty line."""
    return Group(Text(title, style="bold"), table, Text(""))

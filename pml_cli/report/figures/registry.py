"""The figures that pml writes, by file name.

Each is one function under `@figure("law-rank", "what it shows")`. A new figure is one file in this
package, with a decorated function that takes what the report of its group holds and returns a
matplotlib Figure, or None where the cells do not carry one. The reports of `pml fit` (law) and of
`pml transition` draw all of theirs that are registered; a test looks for those of `pml fit` in the
table of docs/law.md. The figures of other commands differ in their arguments: their writers call
them.

A report's figures share the first word of their name. The one named by that word alone, as `law`,
is the page of a group and is written beside the tables; the others, as `law-rank`, go to figures/.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pml_cli import io
from pml_cli.report import figures as package
from pml_cli.report.figures.style import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# With more groups than this, only their pages are drawn; fit fewer to see the other figures.
MANY_GROUPS = 4

# Formats of every figure.
SUFFIXES = ("png", "svg", "pdf")

Draw = TypeVar("Draw", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """One registered figure."""

    name: str
    """File name without suffix: `law-rank`."""
    meaning: str
    """What the figure shows, in one line, as docs/law.md prints it."""
    draw: Callable[..., Figure | None]
    """Draws it; None where the data do not carry it."""


# Filled by `figure` when a module of this package is imported
_registered: dict[str, FigureSpec] = {}


def figure(name: str, meaning: str) -> Callable[[Draw], Draw]:
    """Register the decorated function as the one that draws a figure.

    Args:
        name: file name without suffix; its first word is that of the report.
        meaning: what the figure shows, in one line.

    Raises:
        ValueError: another function draws a figure of that name.
    """

    def register(draw: Draw) -> Draw:
        if name in _registered:
            raise ValueError(f"two figures are named {name}")
        _registered[name] = FigureSpec(name=name, meaning=meaning, draw=draw)
        return draw

    return register


def registered() -> dict[str, FigureSpec]:
    """Every figure by name; imports each module of this package once."""
    # A module registers its figures when it is imported.
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_registered.items()))


def of_report(report: str) -> dict[str, FigureSpec]:
    """The figures of one report, by name.

    Args:
        report: their first word, as `law`.
    """
    return {
        name: spec
        for name, spec in registered().items()
        if name == report or name.startswith(f"{report}-")
    }


def write_figure(stem: Path, drawn: Figure | None) -> list[str]:
    """Write a figure in every format, or remove the files of an earlier report where there is none.

    Args:
        stem: path without suffix.

    Returns:
        The names of the files, without their folder.
    """
    names = [f"{stem.name}.{suffix}" for suffix in SUFFIXES]
    for name, suffix in zip(names, SUFFIXES, strict=True):
        path = stem.with_name(name)
        if drawn is None:
            # An earlier report in this folder may have had cells that carry it.
            path.unlink(missing_ok=True)
        else:
            io.atomic_write(path, _saver(drawn, suffix))
    return [] if drawn is None else names


def _saver(drawn: Figure, suffix: str) -> Callable[[Path], None]:
    return lambda path: save(drawn, path, suffix)


def write_group_figures(out: Path, report: str, groups: Mapping[str, Any]) -> list[str]:
    """Draw the figures of a report for each of its groups.

    The page of a group stands in `out`: `law`, or `law-<slug>` where there are several groups. The
    others are in figures/, or figures/<slug>/, and are not drawn for more than MANY_GROUPS groups.

    Args:
        report: the first word of the names of its figures.
        groups: by slug, what the functions of that report draw.

    Returns:
        The names of the pages, and one entry that says how many files there are in figures/.
    """
    specs = of_report(report)
    page = specs.pop(report)
    # One group needs no name in its files.
    several = len(groups) > 1
    names: list[str] = []
    detail_files = 0

    for slug, group in groups.items():
        name = f"{report}-{slug}" if several else report
        names += write_figure(out / name, page.draw(group))

        if len(groups) > MANY_GROUPS:
            continue
        folder = io.without_links(out, "figures", *([slug] if several else []))
        for spec in specs.values():
            detail_files += len(write_figure(folder / spec.name, spec.draw(group)))

    if detail_files:
        names.append(f"figures/ ({detail_files} files)")
    return names

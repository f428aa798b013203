"""Forest plot: exponents of groups side by side, and the value that they would share."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pml_cli.law.group_comparison import Comparison, Group, Tie

EXPONENTS = ("alpha", "beta")

# Characters of a line of a group's name, beside the panels.
NAME_WIDTH = 32

# Inches of a line of a name.
LINE_HEIGHT = 0.17


@figure("comparison", "exponents of compared groups with 95 % intervals and the shared value")
def forest_figure(comparison: Comparison) -> Figure:
    """Draw the exponents of each group with 95 % intervals, and the tests of their equality."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    lines = [_name(group).count("\n") + 1 for group in comparison.groups]
    height = 1.7 + sum(max(0.4, LINE_HEIGHT * (count + 1)) for count in lines)
    figure = Figure(figsize=(8.2, height), layout=ConstrainedLayoutEngine())
    panels = figure.subplots(1, len(EXPONENTS), sharey=True)
    for axes, name in zip(panels, EXPONENTS, strict=True):
        _draw_exponent(axes, comparison, name)
    return figure


def _draw_exponent(axes: Axes, comparison: Comparison, name: str) -> None:
    labels = []
    for row, group in enumerate(comparison.groups):
        low, high = group.interval(name)
        axes.plot([low, high], [row, row], color=PURPLE, lw=2)
        # Hollow: the exponents of a law that a group rejects mean little.
        face = "white" if group.rejects else PURPLE
        value = group.fit.parameters[name]
        axes.plot(
            value,
            row,
            "o",
            mec=PURPLE,
            mfc=face,
            mew=1.5,
            ms=6,
        )
        labels.append(_name(group))

    axes.set_title(name, fontsize=9)
    for tie in comparison.ties:
        # The tie of both exponents at once has other shared values.
        if tie.what == name:
            axes.axvline(
                tie.shared[name],
                color=ORANGE,
                ls="--",
                lw=1.2,
                zorder=0,
            )
            axes.set_title(_tie_text(tie), fontsize=9)

    # The first group on top
    rows = len(comparison.groups)
    axes.set(xlabel=f"{name}, 95 % interval", ylim=(rows - 0.5, -0.5))
    axes.set_yticks(range(rows), labels)
    axes.grid(axis="x", color="0.9")


def _name(group: Group) -> str:
    """The label of a group, broken where it would leave no room for the panels."""
    name = textwrap.fill(group.name, NAME_WIDTH)
    return f"{name}\n(rejects the common law)" if group.rejects else name


def _tie_text(tie: Tie) -> str:
    """Whether the exponent may be shared, with both p-values."""
    shared = f"{tie.shared[tie.what]:.3f}"
    p_values = f"p = {tie.p:.2g} (likelihood ratio)"
    if math.isfinite(tie.p_clustered):
        p_values += f", {tie.p_clustered:.2g} (clusters)"
    verdict = "differ" if tie.differ else "may be shared"
    return f"{tie.what}: {verdict} (shared: {shared}, dashed)\n{p_values}"

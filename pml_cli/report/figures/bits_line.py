"""The figure of parameters against bits: thresholds of all groups, and one line."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pml_cli.law.bits_line import CLOSE, BitsLine
from pml_cli.law.half_recall import WITHIN
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import GREY, MARKERS, round_log_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Characters of a line of the legend.
LEGEND_WIDTH = 46

# Inches of a line of the legend, the space between names included.
LEGEND_LINE = 0.15


@figure("bits", "parameters at which half is recalled against bits of the target, every group")
def bits_figure(line: BitsLine, points: pd.DataFrame) -> Figure:
    """Effective parameters against bits, log-log: a marker a group, geometric means over texts.

    Args:
        line: of these groups.
        points: from `threshold_points`, of every group of the line.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = [textwrap.fill(group.name, LEGEND_WIDTH) for group in line.groups]
    lines = sum(name.count("\n") + 1 for name in names)
    page = Figure(figsize=(9.0, max(5.0, 1.0 + LEGEND_LINE * lines)), layout="constrained")
    axes = page.subplots()
    bits = np.geomspace(line.least_bits, line.most_bits, 50)
    parameters = line.c * bits**line.s
    axes.plot(bits, parameters, color=GREY, label=f"N = {line.c:.3g} bits^{line.s:.2f}")
    axes.fill_between(
        bits,
        parameters * (1 - CLOSE),
        parameters * (1 + CLOSE),
        color=GREY,
        alpha=0.15,
        linewidth=0,
        label=f"within {100 * CLOSE:.0f} %",
    )

    within = points[points["outside"] == WITHIN]
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(line.groups)))
    for index, group in enumerate(line.groups):
        rows = within[within["group"] == group.name]
        logs = rows[["bits", "parameters"]].apply(np.log)
        means = logs.groupby(rows["length"]).mean().apply(np.exp)
        axes.plot(
            means["bits"],
            means["parameters"],
            MARKERS[index % len(MARKERS)],
            color=colours[index],
            label=names[index],
        )

    round_log_axis(axes, "x")
    round_log_axis(axes, "y")
    axes.set_xlabel("bits of the target: l min(base loss, entropy of the source) / ln 2")
    axes.set_ylabel("effective parameters at even chance of exact recall")
    axes.set_title(f"Parameters against bits under {line.loss}", fontsize=10)
    page.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return page

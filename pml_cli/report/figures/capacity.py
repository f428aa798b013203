"""The figure of `pml capacity`: bits held exactly against trainable parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pml_cli.analysis.capacity import KIND
from pml_cli.analysis.rank_search import PARAMETER_EXPONENT, PARAMETER_SCALE
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    GREY,
    MARKERS,
    legend_below,
    log_axis,
    page_title,
    round_log_axis,
    sequential_colours,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@figure("capacity", "bits held exactly against trainable parameters, a point an adapter")
def capacity_figure(held: pd.DataFrame) -> Figure:
    """A point for each adapter that has grown; dashed, the line of plain training on grids.

    Args:
        held: `KIND`, parameters, bits of each adapter.
    """
    from matplotlib.figure import Figure

    page = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = page.subplots()
    shown = held[held["bits"] > 0]
    groups = list(shown.groupby(KIND, dropna=False, sort=False))
    colours = sequential_colours(len(groups))
    for index, (key, group) in enumerate(groups):
        name = ", ".join(str(value) for value in np.take(np.asarray(key, object), [0, 1, 3]))
        axes.scatter(
            group["parameters"],
            group["bits"],
            s=34,
            marker=MARKERS[index % len(MARKERS)],
            facecolors="none",
            edgecolors=colours[index],
            linewidths=1.3,
            zorder=3,
            label=name,
        )

    parameters = np.unique(held["parameters"].to_numpy(float))
    bits = (parameters / PARAMETER_SCALE) ** (1 / PARAMETER_EXPONENT)
    line = f"N = {PARAMETER_SCALE} bits^{PARAMETER_EXPONENT}: sft on grids"
    axes.plot(parameters, bits, "--", color=GREY, lw=1, label=line, zorder=0)

    round_log_axis(axes, "y")
    log_axis(axes, parameters)
    axes.set(xlabel="trainable parameters N", ylabel="bits held exactly")
    axes.grid(color="0.9", lw=0.6)
    page_title(page, "The longest prefix recalled whole, a point an adapter", fontsize=11)
    legend_below(page, axes, columns=2, fontsize=9)
    return page

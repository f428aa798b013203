"""The figure of `pml lasting`: recall under each deployment condition, and forgetting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pml_cli.evaluation.conditions import BY_NAME, TRAINED
from pml_cli.format import counted
from pml_cli.report.figures.methods import (
    MORE_MARKERS,
    colour_and_marker,
    sft_first,
)
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import add_legend_below, empty_panel, page_title
from pml_cli.stats import Array, t_half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Token accuracies that differ by less than this would tell nothing as an axis.
MIN_ACCURACY_RANGE = 0.01

LABELS = {
    TRAINED: "as trained",
    "adapter_bf16": "adapter\nbf16",
    "adapter_int8": "adapter\nint8",
    "adapter_int4": "adapter\nint4",
    "base_bf16": "base\nbf16",
    "base_int8": "base\nint8",
    "bf16": "all in\nbf16",
    "merged": "merged",
    "merged_bf16": "merged,\nbf16",
    "merged_int8": "merged,\nint8",
    "bf16_merged": "merged,\nall bf16",
}


@figure(
    "lasting",
    "recall under each deployment condition, fall of margins, forgetting against recall",
)
def lasting_figure(table: pd.DataFrame) -> Figure:
    """Left: token accuracy under each condition. Middle: fall of margins. Right: forgetting.

    Args:
        table: `deployment.measurement_table` of one model, kind of data and adapter.
    """
    from matplotlib.figure import Figure

    measured = table[table["status"] == "measured"]
    trained = measured[measured["condition"] == TRAINED]
    methods = sft_first(measured["method"])

    # Inches of the panels that have a column for each condition.
    width = 0.62 * measured["condition"].nunique()
    page = Figure(figsize=(2 * width + 5.6, 5.4), layout="constrained")
    width_ratios = [width, width, 3.8]
    recall, margins, forgetting = page.subplots(1, 3, width_ratios=width_ratios)
    _recall_panel(recall, measured, methods)
    _margin_panel(margins, measured[measured["condition"] != TRAINED], methods)
    _forgetting_panel(forgetting, trained, methods)

    page_title(page, _title(trained), fontsize=11)
    handles, labels = recall.get_legend_handles_labels()
    add_legend_below(page, handles, labels, columns=min(len(methods), 6))
    return page


def _title(trained: pd.DataFrame) -> str:
    first = trained.iloc[0]
    lengths = ", ".join(f"{length:g}" for length in sorted(trained["seqlen"].unique()))
    ranks = ", ".join(f"{rank:g}" for rank in sorted(trained["rank"].unique()))
    return (
        "What rounding and merging leave of what an adapter remembers, and what it makes the model "
        f"forget\n{first['model']}, {first['data']}, adapter {first['adapter']}; "
        f"{counted(len(trained), 'run')}: {lengths} tokens, ranks {ranks}"
    )


def _offsets(methods: list[str]) -> Array:
    """Where each method stands beside the middle of a condition, (methods,)."""
    step = min(0.8 / len(methods), 0.16)
    middle = (len(methods) - 1) / 2
    index = np.arange(len(methods), dtype=float)
    offsets: Array = (index - middle) * step
    return offsets


def _label_conditions(axes: Axes, measured: pd.DataFrame) -> list[str]:
    """A column for each condition that was measured; returns their names."""
    occurring = set(measured["condition"])
    names = [name for name in BY_NAME if name in occurring]
    labels = [LABELS[name] for name in names]
    axes.set_xticks(range(len(names)), labels, fontsize=8)

    # Every other column is shaded, so that the eye keeps to one.
    for column in range(0, len(names), 2):
        start = column - 0.5
        axes.axvspan(start, start + 1, color="0.95", lw=0, zorder=0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(axis="y", color="0.88", lw=0.6)
    return names


def _recall_panel(
    axes: Axes,
    measured: pd.DataFrame,
    methods: list[str],
) -> None:
    """Token accuracy under each condition, with 95 % intervals."""
    names = _label_conditions(axes, measured)
    offsets = _offsets(methods)
    for index, method in enumerate(methods):
        colour, marker = colour_and_marker(index, MORE_MARKERS)
        of_method = measured[measured["method"] == method]
        mean, half_width = _accuracy_by_condition(of_method, names)
        # No accuracy is above 100 %.
        above = np.minimum(half_width, 100 - mean)
        bars = np.stack([half_width, above])
        axes.errorbar(
            np.arange(len(names)) + offsets[index],
            mean,
            yerr=np.nan_to_num(bars).clip(0),
            color=colour,
            marker=marker,
            ms=6,
            lw=0,
            elinewidth=1.2,
            label=method,
        )

    axes.set_ylabel("token accuracy, %")
    # From the lowest value, so that small differences near 100 % can be seen.
    low = float(np.clip(axes.dataLim.y0, 0, 95))
    # Room for a marker is a share of the axis: the values may be close together, far from 100.
    margin = 0.03 * (100 - low)
    axes.set_ylim(low - margin, 100 + margin)
    axes.set_title(
        "recall: mean over ranks, lengths, texts and seeds\n"
        "(bar: 95 % interval over texts and seeds)",
        fontsize=9,
    )


def _accuracy_by_condition(
    runs: pd.DataFrame,
    names: list[str],
) -> tuple[Array, Array]:
    """Mean token accuracy and half its 95 % interval, %, for each condition.

    A unit is a text and seed: the mean over ranks and lengths.
    """
    mean = np.full(len(names), np.nan)
    half_width = np.zeros(len(names))

    for column, name in enumerate(names):
        cells = runs[runs["condition"] == name]
        units = cells.groupby(["data_seed", "seed"])["token_accuracy"].mean()
        percent = 100 * units.to_numpy(float)
        if len(percent):
            mean[column] = percent.mean()
            half_width[column] = np.nan_to_num(t_half_width(percent))
    return mean, half_width


def _margin_panel(
    axes: Axes,
    rounded: pd.DataFrame,
    methods: list[str],
) -> None:
    """How far margins fall under each condition: rms of the change, and the worst fall."""
    names = _label_conditions(axes, rounded)
    offsets = _offsets(methods)
    for index, method in enumerate(methods):
        colour, marker = colour_and_marker(index, MORE_MARKERS)
        of_method = rounded[rounded["method"] == method]
        for column, name in enumerate(names):
            cells = of_method[of_method["condition"] == name]
            rms = cells["shift_rms"].mean()
            worst = cells["fall_worst"].clip(lower=0).max()
            x = column + offsets[index]
            style: dict[str, Any] = {"color": colour, "lw": 0}
            axes.vlines(x, rms, worst, color=colour, lw=1.2)
            axes.plot(x, rms, marker=marker, ms=6, **style)
            axes.plot(x, worst, marker="_", ms=8, mew=1.5, **style)

    # Falls span orders of magnitude, and some are 0.
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("fall of a margin that was above 0, logits")
    axes.set_title(
        "rounding: a token is lost where its margin falls by more\n"
        "than it was (marker: rms, bar: worst of all)",
        fontsize=9,
    )


def _forgetting_panel(
    axes: Axes,
    trained: pd.DataFrame,
    methods: list[str],
) -> None:
    """KL to the base model on unseen text, by recall, or by rank where all recall equally."""
    if trained["text_kl"].isna().all():
        empty_panel(axes, "no text measured")
        return

    accuracies = trained.groupby(["method", "rank"])["token_accuracy"].mean()
    by_rank = bool(np.ptp(accuracies) < MIN_ACCURACY_RANGE)
    for index, method in enumerate(methods):
        colour, marker = colour_and_marker(index, MORE_MARKERS)
        of_method = trained[trained["method"] == method]
        means = of_method.groupby("rank")[["token_accuracy", "text_kl"]].mean().sort_index()
        x = means.index.to_series() if by_rank else 100 * means["token_accuracy"]
        # Larger ranks have larger markers.
        sizes = 24 + 10 * np.arange(len(means))
        y = means["text_kl"]
        axes.plot(x, y, color=colour, lw=0.8, alpha=0.6, zorder=1)
        axes.scatter(x, y, s=sizes, color=colour, marker=marker, zorder=2)

    if by_rank:
        ticks = sorted(trained["rank"].unique())
        axes.set_xticks(ticks, [f"{rank:g}" for rank in ticks])
    axes.set_xlabel("rank of the adapter" if by_rank else "token accuracy, %")
    axes.set_ylabel("KL(base || adapted) on unseen text, nats per token")
    axes.margins(0.12)
    axes.grid(color="0.88", lw=0.6)
    note = "all recall equally" if by_rank else "larger marker: larger rank"
    axes.set_title(f"forgetting: mean of each rank\n({note})", fontsize=9)

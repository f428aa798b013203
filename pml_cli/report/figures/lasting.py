"""The figure of `pml lasting`: what is left of recall under each condition, and damage elsewhere against recall.

Colours are Okabe and Ito's, told apart without colour vision; each loss has a marker of its own besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pml_cli.evaluation.conditions import BY_NAME, TRAINED
from pml_cli.report.figures.memft import STYLES
from pml_cli.report.figures.registry import figure
from pml_cli.stats import Array, t_half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = [
    *(marker for _, marker in STYLES),
    "<",
    ">",
]  # more than colours, so that no two of the first 63 are alike
ALIKE = 0.01  # share of the tokens: recall that differs by less tells nothing as an axis
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
    """Left: tokens right under each condition. Middle: how far margins fall. Right: damage against recall.

    Where all recall alike, damage stands against rank.

    Args:
        table: lasting.csv's rows of one model, kind of data and adapter.
    """
    from matplotlib.figure import Figure

    measured = table[table["status"] == "measured"]
    losses = sorted(measured["method"].unique(), key=lambda loss: (loss != "sft", loss))
    wide = (
        0.62 * measured["condition"].nunique()
    )  # inches of the panels that have a place for each condition
    figure = Figure(figsize=(2 * wide + 5.6, 5.4), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[wide, wide, 3.8])
    _recall(panels[0], measured, losses)
    _falls(panels[1], measured, losses)
    _damage(panels[2], measured[measured["condition"] == TRAINED], losses)
    runs = measured[measured["condition"] == TRAINED]
    lengths, ranks = (
        ", ".join(f"{v:g}" for v in sorted(runs[name].unique())) for name in ("seqlen", "rank")
    )
    figure.suptitle(
        "What rounding and merging leave of what an adapter remembers, and what it damages elsewhere\n"
        f"{runs['model'].iloc[0]}, {runs['data'].iloc[0]}, adapter {runs['adapter'].iloc[0]}; {len(runs)} runs: "
        f"{lengths} tokens, ranks {ranks}",
        fontsize=11,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(losses), 6),
        fontsize=9,
        frameon=False,
    )
    return figure


def _spread(losses: list[str]) -> Array:
    """Where each loss stands beside the middle of a condition."""
    middle = (len(losses) - 1) / 2
    return np.array([(i - middle) * min(0.8 / len(losses), 0.16) for i in range(len(losses))])


def _conditions(axes: Axes, measured: pd.DataFrame) -> list[str]:
    names = [name for name in BY_NAME if name in set(measured["condition"])]
    axes.set_xticks(range(len(names)), [LABELS[name] for name in names], fontsize=8)
    for i in range(0, len(names), 2):
        axes.axvspan(i - 0.5, i + 0.5, color="0.95", lw=0, zorder=0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(axis="y", color="0.88", lw=0.6)
    return names


def _recall(axes: Axes, measured: pd.DataFrame, losses: list[str]) -> None:
    names = _conditions(axes, measured)
    for (colour, marker), loss, shift in zip(_styles(losses), losses, _spread(losses), strict=True):
        means, halves = [], []
        for name in names:
            cells = measured[(measured["condition"] == name) & (measured["method"] == loss)]
            units = 100 * cells.groupby(["data_seed", "seed"])["token_accuracy"].mean().to_numpy(
                float
            )
            means.append(units.mean() if len(units) else np.nan)
            halves.append(np.nan_to_num(t_half_width(units)) if len(units) else 0.0)
        x, y, half = np.arange(len(names)) + shift, np.array(means), np.array(halves)
        bars = np.stack([half, np.minimum(half, 100 - y)])  # no share is above 100 %
        axes.errorbar(
            x,
            y,
            yerr=np.nan_to_num(bars).clip(0),
            color=colour,
            marker=marker,
            ms=6,
            lw=0,
            elinewidth=1.2,
            label=loss,
        )
    axes.set_ylabel("tokens predicted right, %")
    low = float(np.clip(axes.dataLim.y0, 0, 95))
    room = 0.03 * (
        100 - low
    )  # a marker's; of the axis, not of the values, which may lie close together far from 100
    axes.set_ylim(low - room, 100 + room)
    axes.set_title(
        "recall: mean over ranks, lengths, texts and seeds\n(bar: 95 % interval over texts and seeds)",
        fontsize=9,
    )


def _falls(axes: Axes, measured: pd.DataFrame, losses: list[str]) -> None:
    names = _conditions(axes, measured[measured["condition"] != TRAINED])
    for (colour, marker), loss, shift in zip(_styles(losses), losses, _spread(losses), strict=True):
        for i, name in enumerate(names):
            cells = measured[(measured["condition"] == name) & (measured["method"] == loss)]
            worst, rms = cells["fall_worst"].clip(lower=0), cells["shift_rms"]
            axes.plot([i + shift] * 2, [rms.mean(), worst.max()], color=colour, lw=1.2)
            axes.plot(i + shift, rms.mean(), color=colour, marker=marker, ms=6, lw=0)
            axes.plot(i + shift, worst.max(), color=colour, marker="_", ms=8, mew=1.5, lw=0)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("fall of a margin that was above 0, logits")
    axes.set_title(
        "rounding: a token is lost where its margin falls by more\nthan it was (marker: rms, bar: worst of all)",
        fontsize=9,
    )


def _damage(axes: Axes, trained: pd.DataFrame, losses: list[str]) -> None:
    if trained["text_kl"].isna().all():
        axes.text(0.5, 0.5, "no text measured", transform=axes.transAxes, ha="center", color="0.4")
        axes.set(xticks=[], yticks=[])
        return
    alike = bool(np.ptp(trained.groupby(["method", "rank"])["token_accuracy"].mean()) < ALIKE)
    for (colour, marker), loss in zip(_styles(losses), losses, strict=True):
        means = (
            trained[trained["method"] == loss]
            .groupby("rank")[["token_accuracy", "text_kl"]]
            .mean()
            .sort_index()
        )
        x, y = means.index.to_series() if alike else 100 * means["token_accuracy"], means["text_kl"]
        axes.plot(x, y, color=colour, lw=0.8, alpha=0.6, zorder=1)
        axes.scatter(x, y, s=24 + 10 * np.arange(len(means)), color=colour, marker=marker, zorder=2)
    axes.set_xlabel("rank of the adapter" if alike else "tokens predicted right, %")
    if alike:
        ticks = sorted(trained["rank"].unique())
        axes.set_xticks(ticks, [f"{rank:g}" for rank in ticks])
    axes.set_ylabel("KL(base || adapted) on unseen text, nats per token")
    axes.margins(0.12)
    axes.grid(color="0.88", lw=0.6)
    words = "all recall alike" if alike else "larger marker: larger rank"
    axes.set_title(f"damage elsewhere: mean of each rank\n({words})", fontsize=9)


def _styles(losses: list[str]) -> list[tuple[str, str]]:
    return [(STYLES[i % len(STYLES)][0], MARKERS[i % len(MARKERS)]) for i in range(len(losses))]

"""The figure of one run: p of every target token over training, orange to 0.5 and purple above."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import GREY, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Up to this number of samples, lines mark where each ends
MAX_MARKED_SAMPLES = 24

# Columns of a heat map that a screen can show; of more tokens, neighbours are averaged.
MAX_COLUMNS = 1000

# Labels of the axis of steps.
MAX_STEP_LABELS = 9

PROBABILITY_TICKS = [0, 0.25, 0.5, 0.75, 1]


@figure("recall", "probability of every target token over training, and at its end")
def recall_figure(tokens: pd.DataFrame) -> Figure:
    """Draw the probability of each target token over training, and which end at or below p = 0.5.

    Args:
        tokens: one row a logged step, sample and position: step, sample, position, p (0..1),
            correct (the argmax is the token). Several samples stand side by side.

    Raises:
        ValueError: no rows.
    """
    from matplotlib.figure import Figure

    if tokens.empty:
        raise ValueError("no token was logged")
    p_by_step = tokens.pivot_table(
        index="step", columns=["sample", "position"], values="p", sort=True
    )
    last_step = tokens[tokens["step"] == tokens["step"].max()]
    last_step = last_step.sort_values(["sample", "position"])

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[1.7, 1], sharex=True)
    _trajectories(top, p_by_step)
    _final_step(bottom, last_step)
    _label_samples(top, bottom, last_step)
    figure.legend(
        *bottom.get_legend_handles_labels(),
        loc="outside lower right",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    return figure


def _trajectories(axes: Axes, p_by_step: pd.DataFrame) -> None:
    """A heat map of p with its colour bar.

    Args:
        p_by_step: logged steps x tokens.
    """
    p = p_by_step.to_numpy(float)
    steps, tokens = p.shape
    averaged, tokens_a_column = _averaged_neighbours(p)
    image = axes.imshow(
        averaged,
        aspect="auto",
        origin="lower",
        cmap=_diverging_at_half(),
        vmin=0,
        vmax=1,
        # Anything else would blur the jump at 0.5.
        interpolation="none",
        extent=(-0.5, tokens - 0.5, -0.5, steps - 0.5),
    )

    ticks = range(0, steps, math.ceil(steps / MAX_STEP_LABELS))
    axes.set_yticks(ticks, [f"{p_by_step.index[k]:g}" for k in ticks])
    axes.set_ylabel("training step")

    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(image, ax=axes, pad=0.01, ticks=PROBABILITY_TICKS)
    label = "p of the right token"
    if tokens_a_column > 1:
        label += f" (mean of {tokens_a_column} neighbours)"
    bar.set_label(label)


def _final_step(axes: Axes, last_step: pd.DataFrame) -> None:
    """p of every token at the last step; stubborn ones in orange, first failures marked."""
    p = last_step["p"].to_numpy(float)
    correct = last_step["correct"].to_numpy(bool)
    x = np.arange(len(p))
    stubborn = p <= 0.5
    # Markers of many tokens would run into each other.
    size = float(np.clip(900 / len(p), 1.5, 6))

    axes.axhline(0.5, color=GREY, lw=1, ls="--")
    width = min(1.0, size / 3)
    axes.vlines(x[stubborn], p[stubborn], 0.5, color=ORANGE, lw=width)
    axes.plot(
        x[~stubborn],
        p[~stubborn],
        "o",
        ms=size,
        color=PURPLE,
        mec="none",
        label=f"p > 0.5: {(~stubborn).sum()}",
    )
    axes.plot(
        x[stubborn],
        p[stubborn],
        "o",
        # A few among many must be visible.
        ms=size + 1,
        color=ORANGE,
        mec="none",
        label=f"stubborn, p <= 0.5: {stubborn.sum()}",
    )

    if not correct.all():
        wrong = last_step.assign(x=x)[~correct]
        first_failures = wrong.groupby("sample")["x"].min()
        axes.plot(
            first_failures,
            # Below all values of p
            np.full(len(first_failures), -0.09),
            "^",
            ms=7 if len(first_failures) <= MAX_MARKED_SAMPLES else 3,
            color="black",
            clip_on=False,
            label="first failure",
            zorder=5,
        )
    axes.set(
        ylim=(-0.14, 1.05),
        yticks=PROBABILITY_TICKS,
        ylabel="final p",
        xlim=(-0.5, len(p) - 0.5),
    )


def _averaged_neighbours(p: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Average neighbouring tokens where there are more tokens than columns on a screen.

    Args:
        p: (steps, tokens).

    Returns:
        p (steps, columns), and the number of tokens in a column.
    """
    tokens_a_column = math.ceil(p.shape[1] / MAX_COLUMNS)
    # The last column is filled up with copies of the last token.
    padding = -p.shape[1] % tokens_a_column
    padded = np.pad(p, ((0, 0), (0, padding)), mode="edge")
    grouped = padded.reshape(len(p), -1, tokens_a_column)
    return grouped.mean(axis=2), tokens_a_column


def _label_samples(top: Axes, bottom: Axes, last_step: pd.DataFrame) -> None:
    """Write the title and the x axis: positions of one sample, or the borders of several."""
    lengths = last_step.groupby("sample").size()
    above = int((last_step["p"] > 0.5).sum())
    title = f"{above} of {len(last_step)} tokens end above p = 0.5"

    if len(lengths) == 1:
        top.set_title(f"{title}; {_first_failure_text(last_step)}", fontsize=11)
        bottom.set_xlabel("position in the target, tokens")
        return

    recalled = int(last_step.groupby("sample")["correct"].all().sum())
    title = f"{title}; {recalled} of {len(lengths)} samples recalled exactly"
    top.set_title(title, fontsize=11)
    if len(lengths) > MAX_MARKED_SAMPLES:
        bottom.set_xlabel(f"target tokens of {len(lengths)} samples, side by side")
        return

    # A border lies between the last token of a sample and the first of the next.
    ends = np.cumsum(lengths.to_numpy())
    for end in ends[:-1]:
        for panel in (top, bottom):
            panel.axvline(end - 0.5, color="black", lw=1.0)
    middles = ends - lengths.to_numpy() / 2 - 0.5
    bottom.set_xticks(middles, [f"{sample}" for sample in lengths.index])
    bottom.set_xlabel("sample (its tokens from left to right)")


def _first_failure_text(last_step: pd.DataFrame) -> str:
    wrong = last_step[~last_step["correct"].astype(bool)]
    if wrong.empty:
        return "every token is the first choice"
    return f"first failure at position {int(wrong['position'].min())}"


def _diverging_at_half() -> Colormap:
    """Orange to p = 0.5, purple above, with a jump at 0.5 so that the border shows."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    ramp = colormaps["PuOr"]
    below = ramp(np.linspace(0.1, 0.42, 128))
    above = ramp(np.linspace(0.60, 0.97, 128))
    return ListedColormap(np.concatenate([below, above]).tolist())

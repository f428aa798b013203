"""The picture of one run: p of every target token while it is learned, orange below one half and purple above."""

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

FEW_SAMPLES = 24  # up to here each sample's end is drawn
WIDEST = 1000  # columns of a heat map that a screen can show


@figure("recall", "probability of every target token over training, and at its end")
def recall_figure(tokens: pd.DataFrame) -> Figure:
    """How the probability of every target token grows in training, and which tokens stay at or below p = 0.5.

    Args:
        tokens: one row a logged step, sample and position: step, sample, position, p (0..1), correct (argmax is the token).
            Several samples stand side by side.

    Raises:
        ValueError: no rows.
    """
    from matplotlib.figure import Figure

    if tokens.empty:
        raise ValueError("no token was logged")
    table = tokens.pivot_table(index="step", columns=["sample", "position"], values="p", sort=True)
    p = table.to_numpy(float)
    last = tokens[tokens["step"] == tokens["step"].max()].sort_values(["sample", "position"])
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[1.7, 1], sharex=True)
    shown, together = _thinned(p)
    extent = (-0.5, p.shape[1] - 0.5, -0.5, p.shape[0] - 0.5)
    image = top.imshow(
        shown,
        aspect="auto",
        origin="lower",
        cmap=_around_half(),
        vmin=0,
        vmax=1,
        interpolation="none",
        extent=extent,
    )
    ticks = range(0, p.shape[0], math.ceil(p.shape[0] / 9))
    top.set_yticks(ticks, [f"{table.index[k]:g}" for k in ticks])
    top.set_ylabel("training step")
    bar = figure.colorbar(image, ax=top, pad=0.01, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.set_label(
        "p of the right token" + (f" (mean of {together} neighbours)" if together > 1 else "")
    )
    _final_strip(bottom, last)
    _sample_ends(top, bottom, last)
    figure.legend(
        *bottom.get_legend_handles_labels(),
        loc="outside lower right",
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    return figure


def _final_strip(axes: Axes, last: pd.DataFrame) -> None:
    """p of every token at the last step; stubborn ones in orange, the first failure marked."""
    p, correct = last["p"].to_numpy(float), last["correct"].to_numpy(bool)
    x = np.arange(len(p))
    stubborn = p <= 0.5
    size = float(np.clip(900 / len(p), 1.5, 6))
    axes.axhline(0.5, color=GREY, lw=1, ls="--")
    axes.vlines(x[stubborn], p[stubborn], 0.5, color=ORANGE, lw=min(1.0, size / 3))
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
        ms=size + 1,
        color=ORANGE,
        mec="none",
        label=f"stubborn, p <= 0.5: {stubborn.sum()}",
    )
    if not correct.all():
        first = last.assign(x=x)[~correct].groupby("sample")["x"].min()
        axes.plot(
            first,
            np.full(len(first), -0.09),
            "^",
            ms=7 if len(first) <= FEW_SAMPLES else 3,
            color="black",
            clip_on=False,
            label="first failure",
            zorder=5,
        )
    axes.set(
        ylim=(-0.14, 1.05),
        yticks=[0, 0.25, 0.5, 0.75, 1],
        ylabel="final p",
        xlim=(-0.5, len(p) - 0.5),
    )


def _thinned(p: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """p (steps, tokens) with neighbours averaged where there are more tokens than pixels, and how many together."""
    together = math.ceil(p.shape[1] / WIDEST)
    padded = np.pad(p, ((0, 0), (0, -p.shape[1] % together)), mode="edge")
    return padded.reshape(len(p), -1, together).mean(axis=2), together


def _sample_ends(top: Axes, bottom: Axes, last: pd.DataFrame) -> None:
    """Heading, and the x axis: positions of one sample, or samples side by side with their borders."""
    sizes = last.groupby("sample").size()
    wrong, stubborn = int((~last["correct"].astype(bool)).sum()), int((last["p"] <= 0.5).sum())
    share = f"{len(last) - stubborn} of {len(last)} tokens end above p = 0.5"
    if len(sizes) == 1:
        bottom.set_xlabel("position in the target, tokens")
        failure = (
            f"; first failure at position {_first_failure(last)}"
            if wrong
            else "; every token is the first choice"
        )
        top.set_title(share + failure, fontsize=11)
        return
    whole = int(last.groupby("sample")["correct"].all().sum())
    top.set_title(f"{share}; {whole} of {len(sizes)} samples recalled whole", fontsize=11)
    ends = np.cumsum(sizes.to_numpy())
    if len(sizes) <= FEW_SAMPLES:
        for panel in (top, bottom):
            for end in ends[:-1]:
                panel.axvline(end - 0.5, color="black", lw=1.0)
        bottom.set_xticks(
            ends - sizes.to_numpy() / 2 - 0.5, [f"{sample}" for sample in sizes.index]
        )
        bottom.set_xlabel("sample (its tokens from left to right)")
    else:
        bottom.set_xlabel(f"target tokens of {len(sizes)} samples, side by side")


def _first_failure(last: pd.DataFrame) -> int:
    return int(last.loc[~last["correct"].astype(bool), "position"].min())


def _around_half() -> Colormap:
    """Orange below p = 0.5, purple above, with a jump at 0.5 so that the border shows."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    ramp = colormaps["PuOr"]
    below, above = ramp(np.linspace(0.1, 0.42, 128)), ramp(np.linspace(0.60, 0.97, 128))
    return ListedColormap(np.concatenate([below, above]).tolist())

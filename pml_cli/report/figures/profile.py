"""How sure the parameters are: profile likelihoods beside the bootstrap's draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from pml_cli.format import three_digits
from pml_cli.law.bootstrap import Profile
from pml_cli.law.findings import OK
from pml_cli.law.parameters import NATURAL_NAMES
from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    GREY,
    ORANGE,
    PAGE,
    PURPLE,
    column_figure,
    legend_below,
    style_for_column,
)
from pml_cli.report.law_text import meaning
from pml_cli.stats import CONFIDENCE, Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# End of the deviance axis; the 95 % line is at 3.84.
MAX_DEVIANCE = 12.0

# The bootstrap's histogram: its bins, and the fraction of the panel's height that it takes.
HISTOGRAM_BINS = 40
HISTOGRAM_HEIGHT = 0.45

# The axis of k ends at this many times its value, because a profile may have no end.
MAX_K_RATIO = 20.0

# The axis of k is logarithmic where its ends differ by more than this factor.
LOG_AXIS_RATIO = 4


@figure(
    "law-profile",
    "profile deviance of alpha, beta, b and k, the bootstrap's draws and interval",
)
def profile_figure(view: View) -> Figure | None:
    """Draw the deviance of the law with one parameter fixed; None where there is no profile."""
    profiles = [
        profile
        for profile in view.analysis.profiles.values()
        # A parameter that no fixed value suits has a profile of one point.
        if len(profile.values) > 1
    ]
    if not profiles or view.chosen is None:
        return None

    figure = column_figure(min(PAGE, 2.4 * len(profiles)), 2.4)
    panels = figure.subplots(1, len(profiles), squeeze=False, sharey=True)[0]
    for axes, profile in zip(panels, profiles, strict=True):
        _draw_profile(axes, view, profile)
        style_for_column(axes)
    panels[0].set_ylabel("profile deviance", fontsize=7.5)

    # In the width of two panels, four labels do not fit side by side.
    columns = 4 if len(profiles) > 2 else 2
    legend_below(figure, panels[0], columns=columns, fontsize=6.5)
    figure.suptitle(
        "Profile deviance (dashed: 95 %, independent cells) and bootstrap interval", fontsize=8
    )
    return figure


def _draw_profile(axes: Axes, view: View, profile: Profile) -> None:
    """One parameter: its deviance, the 95 % line, and the bootstrap where there is one."""
    assert view.chosen is not None
    name = profile.name
    estimate = view.chosen.parameters[name]
    interval = view.analysis.intervals.get(name, (math.nan, math.nan))
    draws = _bootstrap_draws(view, name)
    x_limits = _x_limits(profile, estimate, interval, draws)
    is_log = name == "k" and x_limits[1] > LOG_AXIS_RATIO * x_limits[0]

    if draws is not None:
        _draw_bootstrap(axes, draws, interval, x_limits, is_log=is_log)
    axes.plot(
        profile.values,
        profile.deviance,
        color=PURPLE,
        lw=1.2,
        label="profile deviance",
        zorder=3,
    )
    limit = float(stats.chi2.ppf(CONFIDENCE, 1))
    axes.axhline(
        limit,
        color="black",
        lw=0.8,
        ls="--",
        label=f"95 % line, {limit:.2f}",
        zorder=2,
    )
    axes.axvline(estimate, color=GREY, lw=0.7, zorder=1)

    if is_log:
        axes.set_xscale("log")
        ticks = np.geomspace(*x_limits, 5)
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.set_xticks([], minor=True)
    axes.set(
        xlim=x_limits,
        ylim=(0, MAX_DEVIANCE),
        xlabel=f"{name} ({meaning(name, view.axis)})",
    )
    title = three_digits(estimate)
    if math.isfinite(sum(interval)):
        title += f" ({three_digits(interval[0])} to {three_digits(interval[1])})"
    axes.set_title(title)


def _bootstrap_draws(view: View, name: str) -> Array | None:
    """(D,) draws of a parameter; None where the bootstrap gave none."""
    bootstrap = view.analysis.bootstrap
    if bootstrap is None or bootstrap.status != OK:
        return None
    return np.asarray(bootstrap.draws[:, NATURAL_NAMES.index(name)])


def _x_limits(
    profile: Profile, estimate: float, interval: tuple[float, float], draws: Array | None
) -> tuple[float, float]:
    """The range of a parameter that holds its profile, and almost all draws."""
    start = float(profile.values.min())
    end = float(profile.values.max())
    if draws is None:
        return start, end

    quantiles = np.quantile(draws, [0.005, 0.995]).tolist()
    start = min(start, *quantiles, *interval)
    end = max(end, *quantiles, *interval)
    if profile.name == "k":
        start = max(start, estimate / MAX_K_RATIO)
        end = min(end, estimate * MAX_K_RATIO)
    return start, end


def _draw_bootstrap(
    axes: Axes,
    draws: Array,
    interval: tuple[float, float],
    limits: tuple[float, float],
    *,
    is_log: bool,
) -> None:
    """Draw a histogram of the draws (D,), and their interval as a band."""
    spaced = np.geomspace if is_log else np.linspace
    count, edges = np.histogram(draws, spaced(*limits, HISTOGRAM_BINS + 1))
    height = count / max(1, count.max()) * HISTOGRAM_HEIGHT * MAX_DEVIANCE
    axes.stairs(
        height,
        edges,
        fill=True,
        color="0.8",
        label="bootstrap draws",
        zorder=0,
    )
    axes.axvspan(
        *interval,
        color=ORANGE,
        alpha=0.13,
        lw=0,
        zorder=0.5,
        label="bootstrap 95 % interval",
    )
    for end in interval:
        axes.axvline(
            end,
            color=ORANGE,
            lw=0.7,
            ls=":",
            zorder=1,
        )

"""How sure the parameters are: profile likelihoods, 95 % intervals and the bootstrap's draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from pml_cli.format import three_digits
from pml_cli.law.bootstrap import Profile
from pml_cli.law.findings import OK
from pml_cli.law.parameters import NATURAL_NAMES, Interval
from pml_cli.report.figures.law_view import View
from pml_cli.report.figures.registry import figure
from pml_cli.report.figures.style import (
    GREY,
    ORANGE,
    PAGE,
    PURPLE,
    add_legend_below,
    column_figure,
    page_title,
    style_for_column,
)
from pml_cli.report.law_text import interval_method, meaning
from pml_cli.stats import CONFIDENCE, Array

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# End of the deviance axis; the 95 % line is at 3.84.
MAX_DEVIANCE = 12.0

# The bootstrap's histogram: its bins, and the fraction of the panel's height that it takes.
HISTOGRAM_BINS = 40
HISTOGRAM_HEIGHT = 0.45

# Of the range of a parameter, what is added at either end; of k, which is above 0, none.
X_MARGIN = 0.03

# The axis of k ends at this many times its value, because a profile may have no end.
MAX_K_RATIO = 20.0

# The axis of k is logarithmic where its ends differ by more than this factor.
LOG_AXIS_RATIO = 4


UNKNOWN: Interval = (math.nan, math.nan)


@figure(
    "law-profile",
    "profile deviance of alpha, beta, b and k, their 95 % intervals, the bootstrap's draws",
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
    add_legend_below(figure, *_legend_of(panels), columns=columns, fontsize=6.5)
    # The intervals of the exponents are not from where those of the others are.
    title = "Profile deviance (dashed: 95 %, independent cells)"
    page_title(figure, f"{title}\n95 % {interval_method(view.analysis)}", fontsize=7.5)
    return figure


def _legend_of(panels: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    """Each label of any panel once: one of them may have no interval."""
    by_label: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            by_label.setdefault(label, handle)
    return list(by_label.values()), list(by_label)


def _draw_profile(axes: Axes, view: View, profile: Profile) -> None:
    """One parameter: its deviance, the 95 % line, and what there is of interval and bootstrap."""
    assert view.chosen is not None
    name = profile.name
    estimate = view.chosen.parameters[name]
    interval = view.analysis.intervals.get(name, UNKNOWN)
    draws = _bootstrap_draws(view, name)
    x_limits = _x_limits(profile, estimate, interval, draws)
    is_log = name == "k" and x_limits[1] > LOG_AXIS_RATIO * x_limits[0]

    if draws is not None:
        _draw_histogram(axes, draws, x_limits, is_log=is_log)
    if _is_finite(interval):
        _draw_interval(axes, interval)
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
    if _is_finite(interval):
        title += f" ({three_digits(interval[0])} to {three_digits(interval[1])})"
    axes.set_title(title)


def _is_finite(interval: Interval) -> bool:
    return all(map(math.isfinite, interval))


def _bootstrap_draws(view: View, name: str) -> Array | None:
    """(D,) draws of a parameter; None where the bootstrap gave none."""
    bootstrap = view.analysis.bootstrap
    if bootstrap is None or bootstrap.status != OK:
        return None
    return np.asarray(bootstrap.draws[:, NATURAL_NAMES.index(name)])


def _x_limits(
    profile: Profile, estimate: float, interval: Interval, draws: Array | None
) -> tuple[float, float]:
    """The range of a parameter that holds its profile, its interval, and almost all draws."""
    shown = [float(profile.values.min()), float(profile.values.max())]
    if _is_finite(interval):
        shown += interval
    if draws is not None:
        shown += np.quantile(draws, [0.005, 0.995]).tolist()
    start = min(shown)
    end = max(shown)
    if profile.name != "k":
        # The ends of an interval must not lie on the frame.
        margin = X_MARGIN * (end - start)
        return start - margin, end + margin

    start = max(start, estimate / MAX_K_RATIO)
    end = min(end, estimate * MAX_K_RATIO)
    return start, end


def _draw_histogram(axes: Axes, draws: Array, limits: tuple[float, float], *, is_log: bool) -> None:
    """Draw a histogram of the bootstrap's draws (D,)."""
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


def _draw_interval(axes: Axes, interval: Interval) -> None:
    """Draw a 95 % interval as a band."""
    axes.axvspan(
        *interval,
        color=ORANGE,
        alpha=0.13,
        lw=0,
        zorder=0.5,
        label="95 % interval",
    )
    for end in interval:
        axes.axvline(
            end,
            color=ORANGE,
            lw=0.7,
            ls=":",
            zorder=1,
        )

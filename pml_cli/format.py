"""Numbers for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

# What tables print where there is no number.
MISSING = "-"


def counted(
    things: Sequence[object] | int, name: str, plural: str = "s", *, spec: str = "d"
) -> str:
    """How many of something: 1 cell, 2 cells.

    Args:
        things: a count, or what is counted.
        name: the singular.
        plural: what the plural appends.
        spec: format of the count: "," parts thousands.
    """
    count = things if isinstance(things, int) else len(things)
    return f"{count} {name}" if count == 1 else f"{count:{spec}} {name}{plural}"


def number(value: float | None, spec: str = ".4g", missing: str = MISSING) -> str:
    """A number in the given format; `missing` for None, nan and infinity."""
    if value is None or not math.isfinite(value):
        return missing
    return format(value, spec)


def span(low: float | None, high: float | None, spec: str = ".4g", missing: str = MISSING) -> str:
    """An interval, `0.12 to 0.34`; `missing` where an end is not finite."""
    if low is None or high is None or not math.isfinite(low + high):
        return missing
    return f"{low:{spec}} to {high:{spec}}"


def percent(proportion: float, missing: str = MISSING) -> str:
    """A proportion as per cent (without the sign), which never rounds up to 100 or down to 0."""
    if math.isnan(proportion):
        return missing
    rounded = f"{100 * proportion:.1f}"
    if rounded == "100.0" and proportion < 1:
        return f"{math.floor(1e4 * proportion) / 100:.2f}"
    if rounded == "0.0" and proportion > 0:
        return f"{100 * proportion:.1g}"
    return rounded


def three_digits(value: float) -> str:
    """Three significant digits: 0.600, 14.0, 1.23e+05."""
    return f"{value:#.3g}".rstrip(".")


def flops_text(count: float) -> str:
    """FLOPs: 950 MFLOP, 1.2 TFLOP."""
    units = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP")
    return _scaled(count, 1000, units)


def bytes_text(count: float) -> str:
    """Bytes: 640 MiB, 5.5 GiB."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration_text(seconds: float) -> str:
    """A duration: 45 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{two_digits(seconds)} s"
    if seconds < 90 * 60:
        return f"{two_digits(seconds / 60)} min"
    if seconds < 48 * 3600:
        return f"{two_digits(seconds / 3600)} h"
    return f"{two_digits(seconds / 86400)} days"


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    """The value in the largest unit in which it has at most three digits before the point."""
    for unit in units[:-1]:
        if value < 999.5:
            return f"{two_digits(value)} {unit}"
        value /= step
    return f"{two_digits(value)} {units[-1]}"


def two_digits(value: float) -> str:
    """A positive number: with one decimal below 10, unless that is 0, and whole from there on."""
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"

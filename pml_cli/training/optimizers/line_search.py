"""A line search that asks for one forward-backward pass at a time.

The strong Wolfe search of torch.optim.LBFGS (Nocedal & Wright 2006, algorithms 3.5 and 3.6, with
cubic interpolation), as a generator: it yields the step at which it wants loss and slope. So the
cells of a pack, each in a search of its own, share their passes; and a search is resumed by
giving it its trials again.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple, TypeAlias

# As in torch.optim.LBFGS.
SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
MOST_TRIALS = 25
LEAST_CHANGE = 1e-9

# A trial without a finite loss is followed by one so much closer.
RETREAT = 0.1


class Point(NamedTuple):
    """A point on the line x + t d."""

    t: float
    loss: float
    slope: float
    """Derivative of the loss by t."""


Search: TypeAlias = "Generator[float, Point, Point]"
"""Yields the step of the next trial, takes its point, and returns the point to go to."""


class _Bracket(NamedTuple):
    """An interval that holds an acceptable point, and the trials that are left."""

    low: Point
    """The end with the smaller loss."""
    high: Point
    trials: int


def strong_wolfe(start: Point, t: float, largest_change: float) -> Search:
    """Search for a point with a sufficiently smaller loss and a slope that is less steep.

    Args:
        start: at t = 0, where the slope is negative.
        t: the first trial.
        largest_change: largest absolute entry of d.

    Returns:
        An acceptable point; or, after MOST_TRIALS or where the interval is too short, that with
        the smallest loss so far, which may be the start.
    """
    trial = yield from _finite_trial(t)
    bracket = yield from _bracket(start, trial)
    if isinstance(bracket, Point):
        return bracket

    low, high, trials = bracket
    stuck = False
    while trials < MOST_TRIALS and abs(high.t - low.t) * largest_change >= LEAST_CHANGE:
        t, stuck = _between(low, high, stuck)
        trial = yield from _finite_trial(t)
        trials += 1

        if not _decreases(start, trial) or trial.loss >= low.loss:
            high = trial
            if high.loss < low.loss:
                low, high = high, low
            continue
        if _is_flat(start, trial):
            return trial
        if trial.slope * (high.t - low.t) >= 0:
            high = low
        low = trial
    return low


def _bracket(start: Point, trial: Point) -> Generator[float, Point, Point | _Bracket]:
    """Go further until a point is acceptable or an interval holds one."""
    previous = start
    for trials in range(MOST_TRIALS):
        rises = trials > 1 and trial.loss >= previous.loss
        if rises or not _decreases(start, trial):
            return _ordered(previous, trial, trials)
        if _is_flat(start, trial):
            return trial
        if trial.slope >= 0:
            return _ordered(previous, trial, trials)

        least = trial.t + 0.01 * (trial.t - previous.t)
        t = cubic_minimum(previous, trial, (least, 10 * trial.t))
        previous = trial
        trial = yield from _finite_trial(t)
    return min(start, trial, key=_loss)


def _finite_trial(t: float) -> Search:
    """The point at t, or closer to the start where there is no finite loss."""
    for _ in range(MOST_TRIALS):
        trial = yield t
        if math.isfinite(trial.loss) and math.isfinite(trial.slope):
            break
        t *= RETREAT
    return trial


def _decreases(start: Point, trial: Point) -> bool:
    return trial.loss <= start.loss + SUFFICIENT_DECREASE * trial.t * start.slope


def _is_flat(start: Point, trial: Point) -> bool:
    return abs(trial.slope) <= -CURVATURE * start.slope


def _loss(point: Point) -> float:
    return point.loss


def _ordered(first: Point, second: Point, trials: int) -> _Bracket:
    low, high = sorted((first, second), key=_loss)
    return _Bracket(low=low, high=high, trials=trials)


def _between(low: Point, high: Point, stuck: bool) -> tuple[float, bool]:
    """The next trial in an interval, and whether it is close to an end of it.

    The second time that this is so, the trial moves a tenth of the interval away from the end.
    """
    first, last = sorted((low.t, high.t))
    t = cubic_minimum(low, high, (first, last))
    margin = 0.1 * (last - first)
    if min(last - t, t - first) >= margin:
        return t, False
    if not stuck and first < t < last:
        return t, True
    return (last - margin if last - t < t - first else first + margin), False


def cubic_minimum(first: Point, second: Point, bounds: tuple[float, float]) -> float:
    """The minimum within bounds of the cubic through two points with their slopes.

    Nocedal & Wright 2006, equation 3.59; the middle of the bounds where it has no minimum, and
    where the two points are one: a trial that retreats may come back to the one before.
    """
    left, right = sorted((first, second), key=lambda point: point.t)
    least, most = bounds
    if left.t == right.t:
        return (least + most) / 2

    d1 = left.slope + right.slope - 3 * (left.loss - right.loss) / (left.t - right.t)
    square = d1**2 - left.slope * right.slope
    if not square >= 0:
        return (least + most) / 2

    d2 = math.sqrt(square)
    denominator = right.slope - left.slope + 2 * d2
    if denominator == 0:
        return (least + most) / 2
    t = right.t - (right.t - left.t) * (right.slope + d2 - d1) / denominator
    return min(max(t, least), most)

"""What more training would gain: the loss over the doublings of the passes, gone on with.

The loss of an adapter falls ever more slowly; by how much with a doubling of the passes, the latest
two doublings show. A line search never raises the loss and has no learning rate that falls to 0,
so a loss at rest is no artefact of a schedule. The estimate is never below what the inverse
Hessian promises for the next step, g' H g / 2: where the gradient is not small, a cell has not
converged however flat its curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Fewer passes have no doublings to speak of.
LEAST_PASSES = 80


def expected_gain(lowest: Sequence[float], next_gain: float) -> float:
    """What three times as many passes again would gain at most, in the units of the loss.

    Both doublings gain as much as the last one did, or more where the gains grow: an upper
    estimate, since they mostly shrink (docs/optimizers.md).

    Args:
        lowest: the lowest loss so far, after each pass.
        next_gain: g' H g / 2 where the training is.

    Returns:
        the gain; infinite where there were too few passes to tell.
    """
    passes = len(lowest)
    if passes < LEAST_PASSES:
        return math.inf

    quarter, half, now = (lowest[passes // parts - 1] for parts in (4, 2, 1))
    latest = half - now
    before = quarter - half
    growth = max(latest / before, 1.0) if before > 0 else 1.0
    doublings = latest * (growth + growth**2)
    return max(doublings, next_gain)

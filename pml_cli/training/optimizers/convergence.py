"""What more training would gain: the loss at each doubling of the passes, gone on with.

The loss of an adapter falls ever more slowly, and by how much less with every doubling of the
passes is what the latest two doublings show. A line search never raises the loss and has no
learning rate that falls to 0, so a loss at rest is no artefact of a schedule. Below that estimate
never goes what the inverse Hessian promises for the next step, g' H g / 2: where the gradient is
not small, a cell has not converged however flat its curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Fewer passes have no doublings to speak of.
LEAST_PASSES = 80

# A doubling is taken to gain at least this share of what the one before it gained: where a curve
# has just bent, its latest two doublings promise too little (docs/optimizers.md).
LEAST_RATIO = 0.75


def expected_gain(lowest: Sequence[float], next_gain: float) -> float:
    """What three times as many passes again would gain, in the units of the loss.

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
    ratio = max(latest / before, LEAST_RATIO) if before > 0 else 1.0
    doublings = latest * (ratio + ratio**2)
    return max(doublings, next_gain)

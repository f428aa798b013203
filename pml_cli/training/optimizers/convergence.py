"""Expected gain of more training, extrapolated from the last two doublings of the passes.

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
    """Upper estimate of what four times the passes so far would gain, in the units of the loss.

    Both doublings gain as much as the last one did, or more where the gains grow: an upper
    estimate, since they mostly shrink (docs/optimizers.md).

    Args:
        lowest: the lowest loss so far, after each pass.
        next_gain: g' H g / 2 where the training is.

    Returns:
        the gain; infinite after fewer than LEAST_PASSES passes.
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

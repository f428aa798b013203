"""The size at which half of the samples of one text are recalled verbatim.

The share recalled is made monotone in size (isotonic regression), and the size at which it crosses
one half is interpolated between the sizes tried, on logs. With one sample that is the geometric
mean of the largest size that fails and the smallest that recalls.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize

from pml_cli.stats import Array

# Where a threshold lies: among the sizes tried, below all of them or above all of them.
WITHIN = ""
BELOW = "below"
ABOVE = "above"


def half_recall_rank(ranks: Array, shares: Array) -> tuple[float, str]:
    """The rank at which the share recalled crosses one half, and where that lies.

    Args:
        ranks: ascending, (N,).
        shares: of samples recalled verbatim, 0 to 1, (N,).

    Returns:
        The rank, and WITHIN where ranks tried lie on both sides. Else a bound: the smallest rank
        with BELOW, or the largest with ABOVE.
    """
    monotone = optimize.isotonic_regression(shares).x
    last_under = int((monotone < 0.5).sum()) - 1
    first_over = int((monotone <= 0.5).sum())
    if first_over == 0:
        return float(ranks[0]), BELOW
    if last_under == len(ranks) - 1:
        return float(ranks[-1]), ABOVE

    # Where the share stays at one half over a range of ranks, the middle of the range counts.
    log_ranks = np.log(ranks)
    start = log_ranks[0]
    if last_under >= 0:
        start = _crossing(log_ranks, monotone, last_under)
    end = log_ranks[-1]
    if first_over < len(ranks):
        end = _crossing(log_ranks, monotone, first_over - 1)
    return float(np.exp((start + end) / 2)), WITHIN


def _crossing(log_ranks: Array, shares: Array, index: int) -> float:
    """Where the line from one rank to the next crosses one half."""
    low = shares[index]
    high = shares[index + 1]
    fraction = (0.5 - low) / (high - low)
    step = log_ranks[index + 1] - log_ranks[index]
    return float(log_ranks[index] + fraction * step)

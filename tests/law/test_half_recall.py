"""The size at which half is recalled, by hand."""

import numpy as np
import pytest

from pml_cli.law.half_recall import ABOVE, BELOW, WITHIN, half_recall_rank

RANKS = np.array([1.0, 2, 4, 8])
BETWEEN_2_AND_4 = 2 * 2**0.5


@pytest.mark.parametrize(
    ("shares", "rank", "outside"),
    [
        ([0, 0, 1, 1], BETWEEN_2_AND_4, WITHIN),
        # Isotonic regression gives one half to both of the pair that falls: the middle of them.
        ([0, 1, 0, 1], BETWEEN_2_AND_4, WITHIN),
        # Shares of many samples: where the line crosses one half.
        ([0, 0.25, 0.75, 1], BETWEEN_2_AND_4, WITHIN),
        ([0, 0, 0, 0.5], 8, WITHIN),
        ([1, 1, 1, 1], 1, BELOW),
        ([0, 0, 0, 0.4], 8, ABOVE),
        ([1, 0, 0, 0], 8, ABOVE),
    ],
)
def test_half_recall_rank_by_hand(shares, rank, outside):
    assert half_recall_rank(RANKS, np.array(shares, float)) == (pytest.approx(rank), outside)

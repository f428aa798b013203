"""What is advised after a fit: a sweep that can carry a law."""

import pandas as pd
import pytest

from pml_cli.law.conclusions import FIRST_LENGTHS, FIRST_RANKS, next_sweep


def cells(ranks, lengths, saturated=False):
    rows = [(rank, length, not saturated) for rank in ranks for length in lengths]
    # Of facts, as many as fit are trained: fewer target tokens than asked for.
    table = pd.DataFrame(rows, columns=["rank", "seqlen", "kept"])
    return table.assign(target_tokens=table["seqlen"] - 3)


def test_results_without_the_length_asked_for_have_that_of_their_targets():
    table = cells([1, 2, 4], [16, 32])
    _, lengths = next_sweep(table.assign(seqlen=[None, 32] * 3))
    assert lengths[:2] == (13, 32)
    _, lengths = next_sweep(table.drop(columns="seqlen"))
    assert lengths[:2] == (13, 29)


def test_without_cells_it_is_a_grid_of_its_own():
    assert next_sweep(cells([], [])) == (FIRST_RANKS, FIRST_LENGTHS)


@pytest.mark.parametrize("saturated", [False, True])
@pytest.mark.parametrize("ranks", [[1], [2], [1, 2], [8]])
@pytest.mark.parametrize("lengths", [[16], [16, 32]])
def test_it_has_ranks_and_lengths_enough_for_a_law(ranks, lengths, saturated):
    more_ranks, more_lengths = next_sweep(cells(ranks, lengths, saturated))
    assert len(set(more_ranks)) >= 3
    assert len(set(more_lengths)) >= 3
    # Those that are there are trained already: the lengths are those asked for.
    assert set(more_ranks) >= set(ranks)
    assert set(more_lengths) >= set(lengths)
    assert list(more_ranks) == sorted(more_ranks)

"""The pinned numbers come out again."""

import pandas as pd
import pytest

from golden import numbers


@pytest.fixture
def cells(quick, tmp_path):
    return numbers.train(quick, tmp_path)


def test_cells_come_out_as_pinned(cells):
    pinned = pd.read_csv(numbers.CELLS)
    pd.testing.assert_frame_equal(cells[numbers.EXACT], pinned[numbers.EXACT])

    for column in numbers.CLOSE:
        off = numbers.deviation(cells[column], pinned[column])
        assert off < numbers.tolerance(), f"{column} is off by {off:.1e}"


def test_the_law_comes_out_as_pinned():
    pinned = pd.read_csv(numbers.LAW)
    both = pinned.merge(numbers.fit(), on=["form", "parameter"], suffixes=("_pinned", ""))
    assert len(both) == len(pinned), "a form or parameter is gone"

    for form, rows in both.groupby("form"):
        off = numbers.deviation(rows["value"], rows["value_pinned"])
        assert off < numbers.tolerance(), f"{form} is off by {off:.1e}"

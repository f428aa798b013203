"""The table of predictions: bands, what cannot be reached, and what was asked."""

from types import SimpleNamespace

import pytest
from support.printing import printed

from pml_cli.law.observations import RANK
from pml_cli.report.tables import predict

LAW = SimpleNamespace(
    axis=RANK, form=SimpleNamespace(name="hill"), ranks=(1.0, 24.0), lengths=(32.0, 512.0)
)


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def lines_of(rows, target="verbatim", value=None):
    answer = {"group": "a sweep", "x": "rank", "target": target, "value": value, "rows": rows}
    return printed(predict._table(LAW, answer))


def test_a_least_rank_stands_beside_the_length_that_was_asked():
    row = {"length": 100, "chance": 0.5, "rank": interval(14.0, 7.0, 37.0), "outside": ""}
    heading, line = lines_of([row])
    assert heading.split() == "length exact recall what value 95 % band outside".split()
    assert line.split() == "100 50 % least rank 14 7 to 37 -".split()


def test_a_cell_has_a_line_for_each_quantity_and_its_size_once():
    row = {
        "rank": 8,
        "length": 64,
        "base_loss": 9.0,
        "gain": interval(5.0, 4.5, 5.5),
        "recall": interval(0.999, 0.5, 1.0),
        "outside": "rank above 24",
    }
    _, gain, recall = lines_of([row])
    assert gain.split() == "8 64 gain dL 5.00 4.50 to 5.50 rank above 24".split()
    assert recall.split() == "exact recall over 99 % 50 % to over 99 %".split()


@pytest.mark.parametrize(
    ("target", "quantity", "name", "missing"),
    [
        ("loss", "length", "longest text", "any"),
        ("bits", "length", "shortest text", "none"),
        ("loss", "rank", "least rank", "none"),
    ],
)
def test_an_infinite_answer_is_any_length_or_none(target, quantity, name, missing):
    given = {"rank": "length", "length": "rank"}[quantity]
    row = {given: 8, quantity: interval(None, 4.0, None), "outside": ""}
    line = lines_of([row], target, 1.0)[1]
    assert line.split() == f"8 {name} {missing} 4 or more -".split()


def test_a_law_without_draws_has_no_band():
    row = {"length": 64, "rank": interval(8.0, None, None), "outside": ""}
    assert lines_of([row])[1].split() == "64 least rank 8 - -".split()


def test_the_note_has_the_target_and_the_range_of_the_cells():
    note = predict._note(LAW, {"target": "bits", "value": 2000.0, "rows": [{}]})
    assert note.startswith("Target: at least 2000 bits gained in all.")
    assert note.endswith("Trained: rank 1 to 24, length 32 to 512.")


def test_a_band_without_end_is_not_written_out():
    row = {"rank": 8, "length": interval(60.0, 8.0, 1e67), "outside": ""}
    line = lines_of([row])[1]
    assert line.split() == "8 longest text 60 8 to over 1e+09 -".split()

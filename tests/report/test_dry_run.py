"""The table of a dry run: a row a pack, and a column for each setting that varies."""

import pytest
from support.pricing import model, pack
from support.printing import printed

from pml_cli.report.tables import dry_run


@pytest.fixture(scope="module")
def packs():
    base = model()
    return [pack(base, ranks=(2, 4), seqlen=16, steps=3), pack(base, ranks=(8,), steps=9)]


def test_a_row_holds_a_pack_and_what_it_costs(packs):
    lines = printed(dry_run._pack_table(packs, [1.5e9, 2e12], [2**20, 3 * 2**30], [None, 100.0]))
    heading, first, second = (line.split() for line in lines)
    assert heading == [*dry_run.COLUMNS, "steps"]
    assert first[:4] == ["1", "2", "2,4", "16"] and first[-1] == "3"
    assert "1.5 GFLOP" in lines[1] and "1 MiB" in lines[1] and first[-2] == "-"
    assert second[:4] == ["2", "1", "8", "40"] and second[-1] == "9"
    assert "2 TFLOP" in lines[2] and "3 GiB" in lines[2] and "1.7 min" in lines[2]


def test_settings_that_all_packs_share_have_no_column(packs):
    heading = printed(dry_run._pack_table(packs[:1], [1.0], [1], [None]))[0]
    assert heading.split() == list(dry_run.COLUMNS)


def test_a_time_that_another_model_took_is_marked(packs):
    others = {packs[0].cells[0].run.model.name}
    marked = printed(dry_run._pack_table(packs, [1.0] * 2, [1] * 2, [9.0, None], others))
    assert "9 s ?" in marked[1] and "?" not in marked[2]


@pytest.mark.parametrize(("values", "text"), [({8}, "8"), ({16, 8}, "8,16"), ({1, 2, 64}, "1..64")])
def test_many_values_are_a_range(values, text):
    assert dry_run._range(values) == text

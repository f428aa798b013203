"""Wrong inputs at every door end as documented; a part of the catalogue, the rest by its script."""

import pytest

from catalogue.doors import TABLES, all_cases
from catalogue.run import failures, spread

# Cases of each table in the default suite, and among the slow tests.
FEW = 3
MANY = 40
NAMES = [table.__name__.rpartition(".")[2] for table in TABLES]


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_a_part_of_the_catalogue_is_handled_well(table, tmp_path):
    assert failures(spread(list(table.cases()), FEW), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_a_larger_part_is_handled_well(table, tmp_path):
    assert failures(spread(list(table.cases()), MANY), tmp_path) == []


def test_the_catalogue_is_large_and_names_each_case_once():
    cases = [(case.door, case.name) for case in all_cases()]
    assert len(cases) >= 1500
    assert len(set(cases)) == len(cases)

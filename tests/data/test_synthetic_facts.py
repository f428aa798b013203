"""The phone book and the linear rule: different names, uniform digits, unseen pairs apart."""

import re

import numpy as np
import pytest

from pml_cli.data import synthetic_facts


def test_a_phonebook_of_thousands_of_different_names():
    rows = synthetic_facts.phonebook(0, 10)
    assert len(rows) > 5000
    assert len({query for query, _ in rows}) == len(rows)
    assert all(
        re.fullmatch(r"[A-Z][a-z]+ [A-Z][a-z]+:", query) and re.fullmatch(r"\d{10}", number)
        for query, number in rows
    )
    digits = np.array([[int(d) for d in number] for _, number in rows])
    assert np.abs(digits.mean(0) - 4.5).max() < 0.2
    assert len({number for _, number in rows}) > 0.99 * len(rows)
    assert {query for query, _ in synthetic_facts.phonebook(1, 4)} == {query for query, _ in rows}
    assert len(synthetic_facts.phonebook(1, 4)[0][1]) == 4


@pytest.mark.parametrize(("maximum", "tests"), [(99, 200), (3, 200), (1, 1), (9, 0)])
def test_the_rule_and_its_unseen_pairs(maximum, tests):
    learn, unseen = synthetic_facts.rule(5, maximum, tests)
    assert not {q for q, _ in learn} & {q for q, _ in unseen}
    assert len({q for q, _ in learn + unseen}) == (maximum + 1) ** 2
    assert len(unseen) == min(tests, (maximum + 1) ** 2 // 2)
    for query, target in learn + unseen:
        x, y = map(int, re.fullmatch(r"f\((\d+),(\d+)\)=", query).groups())
        assert int(target) == 3 * x + 5 * y + 7

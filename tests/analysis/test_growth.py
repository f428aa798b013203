"""Growth finds a planted capacity, to the token, whatever it begins with."""

import pytest

from pml_cli.analysis.growth import BUDGET, EXACT, WHOLE_TEXT, Attempt, Growth, GrowthRule


def grown(growth, capacity, passes=10):
    """The growth of an adapter that recalls up to `capacity` tokens; of more, an eighth."""
    while (length := growth.next_length()) is not None:
        recalled = length if length <= capacity else capacity // 8
        growth = growth.after(Attempt(length=length, recalled=recalled, passes=passes))
    return growth


@pytest.mark.parametrize("capacity", [1, 2, 7, 40, 41, 333])
@pytest.mark.parametrize("first", [1, 32, 500])
def test_the_planted_capacity_is_found(capacity, first):
    growth = grown(Growth(first=first, longest=1000, rule=GrowthRule()), capacity)
    assert growth.held == capacity
    assert growth.failed == capacity + 1
    assert growth.ended() == EXACT
    # From a first length within a factor of two, a dozen attempts.
    if capacity / 2 <= first <= 2 * capacity:
        assert len(growth.attempts) <= 14


def test_a_coarse_resolution_brackets_it():
    growth = grown(Growth(first=64, longest=1000, rule=GrowthRule(resolution=8)), 150)
    assert growth.held <= 150 < growth.failed
    assert growth.failed - growth.held <= 8


def test_it_ends_at_the_end_of_the_text_and_at_the_budget():
    growth = grown(Growth(first=64, longest=100, rule=GrowthRule()), 150)
    assert (growth.held, growth.failed, growth.ended()) == (100, None, WHOLE_TEXT)

    growth = grown(Growth(first=8, longest=1000, rule=GrowthRule(passes=30)), 150)
    assert (growth.passes, growth.ended()) == (30, BUDGET)
    assert growth.held < 150


def test_nothing_recalled_has_no_best_attempt():
    growth = grown(Growth(first=16, longest=100, rule=GrowthRule()), 0)
    assert growth.held == 0
    assert growth.best is None
    assert growth.failed == 1


def test_a_failed_attempt_counts_up_to_its_first_wrong_token():
    growth = Growth(first=64, longest=500, rule=GrowthRule())
    growth = growth.after(Attempt(length=64, recalled=64)).after(Attempt(length=80, recalled=77))
    assert (growth.held, growth.failed, growth.best) == (77, 80, 1)
    # Recalled whole after all: what failed at a shorter length no longer bounds it.
    growth = growth.after(Attempt(length=79, recalled=79)).after(Attempt(length=79, recalled=20))
    assert (growth.held, growth.failed, growth.best) == (79, 80, 2)

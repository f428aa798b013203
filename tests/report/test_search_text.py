"""What is said of a search: planted trials, and the advice that follows from them."""

import pytest

from pml_cli.analysis.rank_search import Limits, SearchState, Trial, answer
from pml_cli.config.schema import Train
from pml_cli.report.search_text import Situation, advice, round_title, trial_line


def state(trials, **limits):
    return SearchState(
        ranks=[1, 2, 4, 8], ladder=[1, 2, 4, 8], seeds=[0], limits=Limits(**limits), trials=trials
    )


def advised(trials, *, contradictions=0, out_of_time=False, train=None, **limits):
    situation = Situation(
        facts=40,
        contradictions=contradictions,
        excluded=2 * contradictions,
        train=train or Train(steps=300),
        out_of_time=out_of_time,
    )
    searched = state(trials, **limits)
    return advice(searched, answer(searched), situation)


def trial(rank, recalled, harm=None):
    return Trial(rank=rank, seed=0, recalled=recalled, harm=harm)


def test_nothing_is_advised_where_a_rank_keeps_the_limits():
    assert advised([trial(1, 0.5), trial(2, 1.0, 0.05)], max_forgetting=0.1) == []


def test_what_is_known_and_more_room():
    assert advised([trial(2, 0.9), trial(4, 0.975)]) == [
        "with --exact 97% rank 4 would do: 39 of 40 facts whole",
        "larger ranks come nearer: rank=8,16",
        "more steps: train.steps=600",
    ]
    lines = advised([trial(2, 0.9), trial(4, 0.8)], train=Train(epochs=20))
    assert lines == [
        "with --exact 90% rank 2 would do: 36 of 40 facts whole",
        "more epochs: train.epochs=40",
    ]


def test_one_rank_does_not_say_whether_larger_ones_come_nearer():
    assert advised([trial(2, 0.1)]) == ["larger ranks: rank=4,8", "more steps: train.steps=600"]


def test_one_fact_is_a_fact():
    assert trial_line(trial(2, 0.0), 1, None) == "  rank 2, seed 0: 0 of 1 facts whole"


def test_a_limit_that_nobody_would_take_is_not_advised():
    assert advised([trial(2, 0.1), trial(4, 0.075)]) == ["more steps: train.steps=600"]


def test_a_weaker_limit_of_forgetting():
    lines = advised([trial(2, 1.0, 0.141), trial(4, 1.0, 0.16)], max_forgetting=0.1)
    assert lines[0] == "with --max-forgetting 0.15 rank 2 would do: 40 of 40 facts whole"
    assert "loss.keep_harm" in lines[1]


def test_contradictions_and_the_budget_come_first():
    lines = advised([trial(2, 0.9)], contradictions=2, out_of_time=True)
    assert lines[0].startswith("the time budget ran out")
    assert lines[1].startswith("2 questions with more than one answer: at most 36 of 40 facts")
    assert lines[1].endswith("--exact 90%")
    assert not [line for line in lines if "more steps" in line]


def test_where_all_is_recalled_that_can_be_nothing_more_is_advised():
    """Neither larger ranks nor more steps recall two answers to one question."""
    assert advised([trial(1, 0.5), trial(2, 0.95)], contradictions=1) == [
        "1 question with more than one answer: at most 38 of 40 facts can be recalled; correct "
        "the file, or pass --exact 95%",
        "with --exact 95% rank 2 would do: 38 of 40 facts whole",
    ]
    short_of_it = advised([trial(1, 0.5), trial(2, 0.9)], contradictions=1)
    assert short_of_it[-1] == "more steps: train.steps=600"


def test_no_limit_is_advised_that_is_stronger_than_that_asked_for():
    """The contradictions are not what keeps the limits from being reached."""
    lines = advised([trial(2, 0.3)], contradictions=1, exact=0.5)
    assert lines == ["larger ranks: rank=4,8", "more steps: train.steps=600"]
    harmful = advised([trial(2, 0.95, 0.2)], contradictions=1, exact=0.9, max_forgetting=0.1)
    assert harmful[0] == "with --max-forgetting 0.2 rank 2 would do: 38 of 40 facts whole"


@pytest.mark.parametrize(
    ("known", "facts", "failure", "line"),
    [
        (trial(2, 0.5), 40, None, "  rank 2, seed 0: 20 of 40 facts whole"),
        (trial(2, 1.0, 0.0512), 40, None, "facts whole, 0.051 nats/token of harm"),
        (trial(2, 0.995), None, None, "99.5 % of the tokens right"),
        (trial(2, 0.0), 40, "the loss is no longer finite", "failed: the loss is no longer finite"),
    ],
)
def test_a_line_for_each_cell(known, facts, failure, line):
    assert line in trial_line(known, facts, failure)


def test_the_title_of_a_round():
    assert round_title(2, [(6, 0), (5, 0), (5, 1)]) == "round 2, ranks 5, 6"
    assert round_title(3, [(5, 1)]) == "round 3, rank 5"

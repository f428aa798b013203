"""The summary of teacher-forced scores by hand."""

import math

import numpy as np
import pytest

from pml_cli.training.scores import Scores, concatenate, summarise, violations


def make_scores(nll, correct, sample=None):
    """Token i is i; a wrong one is decoded as i + 1."""
    count = len(nll)
    ids = np.arange(count, dtype=np.int32)
    return Scores(
        sample=np.zeros(count, np.int32) if sample is None else np.array(sample, np.int32),
        position=ids,
        token_id=ids,
        nll=np.array(nll, np.float64),
        margin=np.where(correct, 1.0, -1.0),
        argmax_id=np.where(correct, ids, ids + 1).astype(np.int32),
    )


def test_the_summary_by_hand():
    scores = make_scores([0.1, 0.8, 0.2, 3.0, 0.9], [True, True, True, False, True])
    assert summarise(scores) == {
        "final_loss": pytest.approx(1.0),
        "token_accuracy": pytest.approx(0.8),
        "exact_match": 0.0,
        "first_failure": 3,
        "earliest_stubborn": 1,
        "share_above_threshold": pytest.approx(0.4),
        "stubborn_tokens": 3,
        "violations": 0,
    }


def test_a_recalled_sequence_has_no_first_failure():
    summary = summarise(make_scores([0.1, 0.2], [True, True]))
    assert summary["first_failure"] is None
    assert summary["earliest_stubborn"] is None
    assert summary["exact_match"] == 1.0


def test_exact_match_counts_samples():
    scores = make_scores([0.1, 0.2, 2.0, 0.1], [True, True, False, True], sample=[0, 1, 1, 2])
    summary = summarise(scores)
    assert summary["exact_match"] == pytest.approx(2 / 3)
    # A first failure belongs to one sequence.
    assert summary["first_failure"] is None


def test_violations_are_counted():
    assert violations(make_scores([0.1, 0.1, 2.0], [True, False, False])) == 1
    assert violations(make_scores([math.log(2)], [False])) == 0


def test_the_table_of_a_step():
    table = make_scores([0.1, 2.0], [True, False]).table(30)
    assert table["step"].tolist() == [30, 30]
    assert table["p"].tolist() == pytest.approx([math.exp(-0.1), math.exp(-2)])
    assert table["correct"].tolist() == [True, False]
    assert table["argmax_id"].tolist() == [0, 2]


def test_the_batches_of_a_cell_are_joined_in_order():
    scores = make_scores([0.1, 0.2, 2.0], [True, True, False], sample=[0, 1, 1])
    batches = [
        make_scores([0.1], [True], sample=[0]),
        make_scores([0.2, 2.0], [True, False], sample=[1, 1]),
    ]
    joined = concatenate(batches)
    assert joined.sample.tolist() == scores.sample.tolist()
    assert joined.nll.tolist() == scores.nll.tolist()
    assert joined.correct.tolist() == scores.correct.tolist()

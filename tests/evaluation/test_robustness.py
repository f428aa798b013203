"""What is counted of a run under a condition, by hand."""

import math

import pytest
from support.adapters import make_scores

from pml_cli.data.source import Sample
from pml_cli.evaluation.robustness import condition_row, free_decoding_row, violating_tokens


def test_lost_tokens_and_margins_by_hand():
    tokens = {"target": (1, 1, 1, 1), "sample": (0, 0, 1, 1)}
    trained = make_scores(
        nll=[0.1, 0.6, 2.0, 0.2], margin=[3.0, 0.4, -1.0, 2.0], argmax=[1, 1, 5, 1], **tokens
    )
    rounded = make_scores(
        nll=[0.2, 0.9, 1.0, 0.2], margin=[2.5, -0.1, 0.5, 2.0], argmax=[1, 7, 1, 1], **tokens
    )
    row = condition_row(rounded, trained)
    assert row["lost"] == 1
    assert row["won"] == 1
    assert row["lost_above"] == 1
    assert row["violations"] == 0
    # Sample 0 was recalled, sample 1 was not.
    assert row["kept_whole"] == 0
    assert row["exact_match"] == 0.5
    assert row["fall_worst"] == pytest.approx(0.5)
    assert row["shift_rms"] == pytest.approx(math.sqrt((0.25 + 0.25 + 0) / 3))
    assert condition_row(trained, trained)["kept_whole"] == 1


SAMPLES = [Sample(prompt=(0,), target=(1, 1, 1))]


def test_violations_of_teacher_forcing_have_their_cause():
    """Position 0: the hidden states; position 1: a tie of rounded logits."""
    trained = make_scores(nll=[0.1, 0.3, 0.2], margin=[2.0, 0.01, 1.5], argmax=[1, 1, 1])
    bf16 = make_scores(nll=[0.9, 0.694, 0.3], margin=[-0.2, 0.0, 1.0], argmax=[8, 0, 1])
    float32_head = make_scores(nll=[0.9, 0.69, 0.3], margin=[-0.2, 0.004, 1.0], argmax=[8, 1, 1])
    first, second = violating_tokens(
        SAMPLES, trained=trained, bf16=bf16, bf16_float32_head=float32_head, decoded=None
    )
    assert (first["position"], first["decoded_id"]) == (0, 8)
    assert "hidden states" in first["cause"]
    assert (second["position"], second["decoded_id"]) == (1, 0)
    assert "tie" in second["cause"]
    assert second["p_trained"] == pytest.approx(math.exp(-0.3))
    assert second["margin"] == 0


def test_a_token_that_only_free_decoding_loses_is_a_violation():
    trained = make_scores(nll=[0.1, 0.3, 0.2], margin=[2.0, 0.01, 1.5], argmax=[1, 1, 1])
    bf16 = make_scores(nll=[0.1, 0.3, 0.2], margin=[2.0, 0.5, 1.5], argmax=[1, 1, 1])
    (row,) = violating_tokens(
        SAMPLES, trained=trained, bf16=bf16, bf16_float32_head=bf16, decoded=[[1, 1, 9]]
    )
    assert (row["position"], row["decoded_id"]) == (2, 9)
    assert "cache" in row["cause"]
    expected = {"free_exact_match": 0, "violations": 1}
    assert free_decoding_row(SAMPLES, bf16, [[1, 1, 9]]) == expected


def test_a_token_with_p_below_one_half_promises_nothing():
    unsure = make_scores(nll=[0.1, 0.3, 0.9], margin=[2.0, 0.5, 0.1], argmax=[1, 1, 1])
    expected = {"free_exact_match": 0, "violations": 0}
    assert free_decoding_row(SAMPLES, unsure, [[1, 1, 9]]) == expected
    assert free_decoding_row(SAMPLES, unsure, None) == {"free_exact_match": None}


def test_an_answer_that_stops_too_early_is_not_recalled():
    samples = [Sample(prompt=(0,), target=(1, 1, 2), end=1)]
    scores = make_scores(
        nll=[0.1, 0.3, 0.2], margin=[2.0, 0.5, 1.5], argmax=[1, 1, 2], target=[1, 1, 2]
    )
    expected = {"free_exact_match": 0, "violations": 1}
    assert free_decoding_row(samples, scores, [[1, 2]]) == expected
    (row,) = violating_tokens(
        samples, trained=scores, bf16=scores, bf16_float32_head=scores, decoded=[[1, 2]]
    )
    assert (row["position"], row["decoded_id"]) == (1, 2)
    assert free_decoding_row(samples, scores, [[1, 1, 2]])["free_exact_match"] == 1

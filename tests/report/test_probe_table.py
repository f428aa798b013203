"""The table of one run: the verdict and every measured value in a sentence."""

import pytest
from support.planted_laws import result
from support.printing import printed

from pml_cli.report.tables.probe import missing_fields, probe_table

RUN = result(4, 256) | {
    "exact_match": 0.0,
    "first_failure": 64,
    "token_accuracy": 0.25,
    "free_accuracy": 0.125,
    "share_above_threshold": 0.2,
    "earliest_stubborn": 3,
    "violations": 0,
    "bits_gained": 2048.0,
    "bits_memorised": None,
    "trainable_parameters": 1024,
    "base_loss": 2.0,
    "final_loss": 1.0,
    "delta_loss": 1.0,
}


def text(**changes):
    return " ".join(" ".join(printed(probe_table(RUN | changes), width=200)).split())


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"exact_match": 1.0}, "Remembered: every token, in order."),
        ({}, "the first wrong token is at position 64 of 256."),
        ({"samples": 8}, "Not one of 8 samples is remembered exactly."),
        ({"samples": 8, "exact_match": 0.25}, "Remembered in part: 25.0 % of 8 samples exactly."),
    ],
)
def test_the_verdict_says_how_much_is_recalled(changes, verdict):
    assert verdict in text(**changes)


def test_every_measured_value_is_there():
    sentences = text()
    for part in (
        "rank 4, 1,024 trained parameters, 256 tokens to remember",
        "2.000 before, 1.000 after: gain 1.000 nats per token",
        "from 13.5 % to 36.8 % (geometric mean)",
        "2,048 bits saved against the base model, 2 per trained parameter",
        "25.0 % of the tokens are the model's first choice",
        "12.5 % of the tokens are right",
        "20.0 % of the tokens have p > 0.5",
        "the first that has not: position 3",
    ):
        assert part in sentences
    assert "broke that rule" not in sentences and "bits of the source" not in sentences


def test_what_only_some_runs_have_is_added():
    assert "300 bits of the source itself" in text(bits_memorised=300.0)
    assert "2 broke that rule" in text(violations=2)
    assert "not decoded (train.decode=false)" in text(free_accuracy=None)
    assert "(stopped early: all recalled)" in text(stopped_early=True)


def test_a_training_that_was_checked_says_whether_it_has_converged():
    assert "passes (converged: three times as many more would gain 0.012" in text(
        converged=True, expected_gain=0.012
    )
    assert "passes (not converged)" in text(converged=False, expected_gain=None)
    assert "converged" not in text(converged=None, expected_gain=None)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_result_that_lacks_a_number_is_not_shown(value):
    assert missing_fields(RUN) == []
    assert missing_fields(RUN | {"rank": value, "steps_run": value}) == ["rank", "steps_run"]

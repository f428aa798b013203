"""Numbers for people: units, and percentages that never claim all or nothing by rounding."""

import math

import pytest

from pml_cli import format


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (0, "0 FLOP"),
        (950, "950 FLOP"),
        (1234, "1.2 kFLOP"),
        (9.96e6, "10 MFLOP"),
        (999.6e6, "1 GFLOP"),
        (1.2e12, "1.2 TFLOP"),
        (3.45e15, "3.5 PFLOP"),
        (7e21, "7000 EFLOP"),
    ],
)
def test_flops(flops, text):
    assert format.flops_text(flops) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(640 * 2**20, "640 MiB"), (5.5 * 2**30, "5.5 GiB"), (1023, "1 KiB"), (2**40, "1 TiB")],
)
def test_bytes(count, text):
    assert format.bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0 s"),
        (45, "45 s"),
        (89.9, "90 s"),
        (12 * 60, "12 min"),
        (3.4 * 3600, "3.4 h"),
        (2.1 * 86400, "2.1 days"),
    ],
)
def test_durations(seconds, text):
    assert format.duration_text(seconds) == text


def test_counts():
    assert format.counted(1, "cell") == "1 cell"
    assert format.counted(["a", "b"], "cell") == "2 cells"
    assert format.counted(0, "match", plural="es") == "0 matches"


def test_missing_numbers():
    assert format.number(0.12345) == "0.1235"
    assert format.number(None) == format.number(math.nan) == format.number(math.inf) == "-"
    assert format.number(None, missing="none") == "none"


def test_spans():
    assert format.span(0.1, 2, ".2f") == "0.10 to 2.00"
    assert format.span(math.nan, 2) == format.span(None, 2) == "-"


@pytest.mark.parametrize(
    ("proportion", "text"),
    [
        (0, "0.0"),
        (1, "100.0"),
        (0.123, "12.3"),
        (0.99999, "99.99"),
        (0.0001, "0.01"),
        (math.nan, "-"),
    ],
)
def test_percentages_never_round_to_all_or_nothing(proportion, text):
    assert format.percent(proportion) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.6, "0.600"), (14, "14.0"), (3.14159, "3.14"), (123.4, "123"), (123456, "1.23e+05")],
)
def test_three_digits(value, text):
    assert format.three_digits(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 tokens"), (1, "1 token"), (2, "2 tokens"), (52000, "52,000 tokens")]
)
def test_counts_part_thousands_where_that_is_asked_for(count, text):
    assert format.counted(count, "token", spec=",") == text

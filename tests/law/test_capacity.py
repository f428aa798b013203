"""Bits a parameter, and the gain on unseen sequences, against values computed by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy
from support.planted_laws import result

from pml_cli.law import capacity
from pml_cli.report.law_text import capacity_lines


def test_bits_a_parameter_are_the_most_over_lengths():
    gains = {50: 2.5, 100: 2.0, 200: 0.5}
    rows = pd.DataFrame(
        [
            result(2, n, gain, seed=s, data_seed=t)
            for n, gain in gains.items()
            for s in (0, 1)
            for t in (0, 1)
        ]
    )
    # By text: two seeds of one are no new texts.
    rows.loc[rows["seqlen"] == 100, "delta_loss"] += [0.01, -0.01] * 2
    rows["bits_memorised"] = rows["target_tokens"] * 1.0
    gained, memorised = capacity.bits_per_parameter(rows)
    at_100 = 100 * 2.0 / math.log(2) / 512
    assert (gained.kind, gained.length, gained.runs, gained.last) == ("gained", 100, 4, False)
    assert gained.bits == pytest.approx(at_100)
    half = 12.7062 * (0.02 / math.sqrt(2)) / math.sqrt(2) * 100 / math.log(2) / 512
    assert gained.high - gained.bits == pytest.approx(half, rel=1e-4)
    assert memorised.length == 200 and memorised.bits == pytest.approx(200 / 512) and memorised.last
    assert "3.6: Morris" in " ".join(capacity_lines([gained, memorised], None))


def test_the_length_of_a_text_is_chosen_on_the_other_texts():
    """Each of three texts is lucky at a length of its own: what one stores there is no more."""
    rows = pd.DataFrame(
        [
            planted(text, rank, length, 3.0 if length == 64 * 2**text else 2.0)
            for text in range(3)
            for rank in (2, 4)
            for length in (64, 128, 256)
        ]
    )
    for row in (*capacity.bits_per_parameter(rows), *capacity.most_bits(rows)):
        assert row.bits == pytest.approx(2.0)

    # One text alone has nothing to choose on.
    (alone, _) = capacity.bits_per_parameter(rows[rows["data_seed"] == 1])
    assert (alone.length, alone.bits) == (128, pytest.approx(3.0)) and math.isnan(alone.low)


def test_lengths_that_are_not_told_apart_widen_the_interval():
    found = []
    for rival in (0.5, 1.99):
        rows = [
            planted(text, 2, length, stored + 0.1 * text)
            for text in range(4)
            for length, stored in ((64, 2.0), (128, rival - 0.02 * text))
        ]
        found += capacity.most_bits(pd.DataFrame(rows))
    clear, rivals = found
    assert clear.length == rivals.length == 64 and clear.bits == rivals.bits
    factor = (rivals.high - rivals.low) / (clear.high - clear.low)
    assert factor == pytest.approx(math.sqrt(1 + 4 / 3))


@pytest.mark.slow
@pytest.mark.parametrize("peak", [0.0, 0.1])
def test_the_interval_of_the_most_bits_holds_the_truth(peak):
    """Of 300 sweeps of five texts, nine lengths and 10 % noise; 2.0 bits are the most anywhere.

    The interval at the length of the largest mean holds it in 83 %, around a mean of 2.13.
    """
    rng = np.random.default_rng(0)
    means = []
    held = 0
    for _ in range(300):
        rows = []
        for text in range(5):
            for k in range(9):
                stored = (2.0 - peak * (k - 4) ** 2 / 4) * (1 + 0.1 * rng.standard_normal())
                rows.append(planted(text, 4, 32 * 2**k, stored))
        (row,) = capacity.most_bits(pd.DataFrame(rows))
        means.append(row.bits)
        held += row.low <= 2.0 <= row.high
    assert np.mean(means) == pytest.approx(2.0, abs=0.05)
    assert 0.9 < held / 300 < 0.98


def planted(text, rank, length, stored):
    """A run that gains so many bits a parameter."""
    gain = stored * 256 * rank * math.log(2) / length
    return result(rank, length, gain, base=1e6, data_seed=text)


def test_the_control_is_a_mean_over_texts():
    rows = pd.DataFrame(
        [
            result(2, n, control_gain=g, data_seed=s)
            for n, g, s in ((50, 1.0, 0), (100, 2.0, 0), (50, 2.5, 1), (100, 2.5, 1))
        ]
    )
    found = capacity.unseen_gain(rows)
    assert found.gain == 2.0 and (found.least, found.most, found.cells) == (1.0, 2.5, 4)
    assert found.high - found.gain == pytest.approx(
        12.7062 * (1.0 / math.sqrt(2)) / math.sqrt(2), rel=1e-4
    )
    assert (
        "2.00 (-4.35 to 8.35) nats per token are gained on unseen" in capacity_lines([], found)[0]
    )
    assert capacity_lines([], found)[0].endswith("not distinguishable from 0")
    assert capacity.unseen_gain(rows.assign(control_gain=None)) is None


def test_a_text_with_more_cells_than_others_does_not_move_the_control():
    """Twenty cells of one text, one each of three others: the texts' means are 1, 0, 0, 0."""
    gains = [(1.0, 0)] * 20 + [(0.0, 1), (0.0, 2), (0.0, 3)]
    rows = pd.DataFrame([result(2, 50, control_gain=g, data_seed=s) for g, s in gains])
    found = capacity.unseen_gain(rows)
    expected = scipy.stats.ttest_1samp([1, 0, 0, 0], 0).confidence_interval(0.95)
    assert found.gain == 0.25
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # With the mean over cells, 0.87, the interval was above 0.
    assert found.effect == "none"

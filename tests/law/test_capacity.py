"""Bits a parameter, and the gain on unseen sequences, against values computed by hand."""

import math

import pandas as pd
import pytest
from support.planted_laws import result

from pml_cli.law import capacity
from pml_cli.report.law_text import capacity_lines


def test_bits_a_parameter_are_the_most_over_lengths():
    rows = pd.DataFrame(
        [
            result(2, n, 3.0 - n / 100, seed=s, data_seed=t)
            for n in (50, 100, 200)
            for s in (0, 1)
            for t in (0, 1)
        ]
    )
    rows.loc[rows["seqlen"] == 100, "delta_loss"] += [
        0.1,
        -0.1,
    ] * 2  # by text: two seeds of one are no new texts
    rows["bits_memorised"] = rows["target_tokens"] * 1.0
    gained, memorised = capacity.bits_per_parameter(rows)
    at_100 = 100 * 2.0 / math.log(2) / 512
    assert (gained.kind, gained.length, gained.runs, gained.last) == ("gained", 100, 4, False)
    assert gained.bits == pytest.approx(at_100)
    half = 12.7062 * (0.2 / math.sqrt(2)) / math.sqrt(2) * 100 / math.log(2) / 512
    assert gained.high - gained.bits == pytest.approx(half, rel=1e-4)
    assert memorised.length == 200 and memorised.bits == pytest.approx(200 / 512) and memorised.last
    assert "3.6: Morris" in " ".join(capacity_lines([gained, memorised], None))


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

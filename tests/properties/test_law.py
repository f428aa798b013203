"""The laws between their limits: within the base loss, monotone, in one unit, and invertible."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pml_cli.law import inverse
from pml_cli.law.findings import OK
from pml_cli.law.fitted_law import BaseLoss, FittedLaw, LengthCurve
from pml_cli.law.forms import FORMS, LINKS, log_gain, log_gain_slopes
from pml_cli.law.inverse import Question, Target
from pml_cli.law.observations import RANK, bits
from pml_cli.law.parameters import LOG_SPREAD, to_natural
from pml_cli.law.recall_law import RecallFit

DRAWS = 20
RANKS = (1.0, 64.0)
LENGTHS = (16.0, 512.0)
CENTRE = (math.log(8), math.log(90))

ranks = st.floats(0.5, 500)
lengths = st.floats(4, 5000)
forms = st.sampled_from(FORMS)


@st.composite
def fitted_laws(draw, form=forms, base=None):
    """A law whose gain is positive at every rank and length, with draws near it."""
    form = draw(form)
    base = base or draw(st.floats(1, 12))
    theta = np.array(
        [
            draw(st.floats(-3, 3)),
            draw(st.floats(0.05, 2)),
            draw(st.floats(0.05, 2)),
            draw(st.floats(0, 2)) if form.offset else 0.0,
            math.log(draw(st.floats(0.5, 30))) if form.kind.has_k else 0.0,
            draw(st.floats(0, 0.5)) if form.floor else 0.0,
            # Of the loss that a sequence starts from, at most the base model's.
            base * draw(st.floats(0.1, 1)) if form.level else 0.0,
            math.log(0.02),
        ]
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    nearby = theta + np.zeros((DRAWS, 1))
    nearby[:, 0] += 0.1 * rng.standard_normal(DRAWS)
    curve = LengthCurve(log_length=np.log(LENGTHS), nats=np.array([base, base]))
    return FittedLaw(
        name="planted",
        axis=RANK,
        form=form,
        form_reason="",
        theta=np.concatenate([theta[None], nearby]),
        centre=CENTRE,
        ranks=RANKS,
        lengths=LENGTHS,
        base=BaseLoss(mean=curve, texts=[curve]),
        recall=None,
        recall_reason="",
        all_recall=None,
        tokens_per_fact=math.nan,
        status=OK,
        texts=1,
        text_spread=0.0,
    )


def base_of(law):
    return float(law.base.mean.nats[0])


def gain(law, rank, length):
    """Of the fit, nats per token."""
    return float(law.gain(rank, length, base_of(law))[0])


@given(fitted_laws(), ranks, lengths)
def test_gain_and_loss_lie_between_0_and_the_base_loss(law, rank, length):
    base = base_of(law)
    gains = law.gain(rank, length, base)
    assert (gains >= 0).all()
    assert (gains <= base).all()


@given(fitted_laws(), ranks, lengths, st.floats(1, 20))
def test_more_rank_gains_more_and_a_longer_text_less(law, rank, length, factor):
    slack = 1 + 1e-12
    here = gain(law, rank, length)
    assert gain(law, rank * factor, length) * slack >= here
    assert gain(law, rank, length * factor) <= here * slack


@given(fitted_laws(), ranks, lengths)
def test_one_gain_in_nats_and_in_bits(law, rank, length):
    question = Question(ranks=[rank], lengths=[length])
    (row,) = inverse.answer(law, Target(kind="verbatim"), question)["rows"]
    base = base_of(law)
    assert row["base_loss"] == pytest.approx(base)
    for name in ("value", "low", "high"):
        in_bits = row["gain"][name] * length / math.log(2)
        assert row["bits"][name] == pytest.approx(in_bits)
    assert row["loss"]["value"] == pytest.approx(base - row["gain"]["value"], abs=1e-12)
    assert bits(length, row["gain"]["value"]) == pytest.approx(row["bits"]["value"])
    json.dumps(row, allow_nan=False)


@given(fitted_laws(), lengths, st.floats(0.02, 0.98))
def test_the_least_rank_reaches_the_loss_and_the_rank_below_does_not(law, length, share):
    base = base_of(law)
    target = share * base
    question = Question(lengths=[length])
    (row,) = inverse.answer(law, Target(kind="loss", value=target), question)["rows"]
    json.dumps(row, allow_nan=False)
    rank = row["rank"]["value"]
    # Unreachable, or so far off that a rank more is none.
    assume(rank is not None and rank < 1e6)
    slack = 1e-9 * base
    assert base - gain(law, rank, length) <= target + slack
    if rank > 1:
        assert base - gain(law, rank - 1, length) >= target - slack


@given(fitted_laws(), st.floats(1, 100), st.floats(0.02, 0.98))
def test_the_longest_length_keeps_the_loss_and_the_next_does_not(law, rank, share):
    base = base_of(law)
    target = share * base
    question = Question(ranks=[rank])
    (row,) = inverse.answer(law, Target(kind="loss", value=target), question)["rows"]
    json.dumps(row, allow_nan=False)
    length = row["length"]["value"]
    assume(length is not None and 1 <= length < 1e6)
    slack = 1e-9 * base
    assert base - gain(law, rank, length) <= target + slack
    assert base - gain(law, rank, length + 1) >= target - slack


@given(st.sampled_from(sorted(LINKS)), st.floats(-30, 30), st.floats(0.5, 30))
def test_a_link_is_the_identity_at_first_never_above_1_and_has_its_slope(name, log_x, k):
    link = LINKS[name]
    log_k = np.array([[math.log(k)]])

    def log_s(at):
        return float(link.log_s(np.array([[at]]), log_k)[0, 0])

    value = log_s(log_x)
    assert value <= log_x + 1e-12
    assert not link.has_ceiling or value <= 1e-12
    assert log_s(-40.0 / min(k, 1)) == pytest.approx(-40.0 / min(k, 1), abs=1e-6)

    step = 1e-5
    # min(1, x) has a corner.
    assume(name != "hard" or abs(log_x) > step)
    numeric = (log_s(log_x + step) - log_s(log_x - step)) / (2 * step)
    slope = float(link.slope(np.array([[log_x]]), log_k)[0, 0])
    assert slope == pytest.approx(numeric, abs=1e-5)


@given(fitted_laws(), ranks, lengths)
def test_slopes_of_the_gain_are_its_derivatives(law, rank, length):
    form = law.form
    theta = law.theta[:1]
    wanted = tuple(p for p in form.free if p != LOG_SPREAD)
    x = np.array([math.log(rank) - CENTRE[0]])
    y = np.array([math.log(length) - CENTRE[1]])
    base = np.array([base_of(law)])
    _, slopes = log_gain_slopes(theta, x, y, base, link=form.link, wanted=wanted)

    step = 1e-6
    for column, parameter in enumerate(wanted):
        ends = []
        for sign in (1, -1):
            moved = theta.copy()
            moved[0, parameter] += sign * step
            ends.append(float(log_gain(moved, x, y, base, form.link)[0, 0]))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assume(form.link != "hard" or abs(slopes[0, 0, column] - numeric) < 1e-3)
        assert slopes[0, 0, column] == pytest.approx(numeric, rel=1e-3, abs=1e-4)


@given(fitted_laws(), ranks, lengths)
def test_natural_parameters_give_the_same_power(law, rank, length):
    natural = to_natural(law.theta[:1], CENTRE)[0]
    power = natural[0] * rank ** natural[1] * length ** -natural[2]
    theta = law.theta[0]
    log_power = theta[0] + theta[1] * (math.log(rank) - CENTRE[0])
    log_power -= theta[2] * (math.log(length) - CENTRE[1])
    assert power == pytest.approx(math.exp(log_power), rel=1e-9)


@st.composite
def recall_laws(draw):
    theta = [draw(st.floats(-20, 20)), draw(st.floats(0.5, 10)), draw(st.floats(0.5, 10))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    draws = np.array(theta) * (1 + 0.05 * rng.standard_normal((DRAWS, 3)))
    return RecallFit(
        status=OK,
        finding=None,
        theta=np.array(theta),
        draws=draws,
        n=30,
        exact=10,
        texts=3,
        clusters=draw(st.integers(2, 50)),
        rank_blur=0.1,
        length_blur=0.1,
    )


@given(recall_laws(), ranks, lengths, st.floats(1, 20))
def test_recall_is_a_probability_that_rises_with_rank_and_falls_with_length(
    law, rank, length, factor
):
    here = law.probabilities(rank, length)
    assert ((here >= 0) & (here <= 1)).all()
    assert law.probabilities(rank * factor, length)[0] >= here[0]
    assert law.probabilities(rank, length * factor)[0] <= here[0]


@given(recall_laws(), ranks, lengths, st.floats(0.01, 0.99))
def test_the_inverse_of_recall_gives_the_question_back(law, rank, length, probability):
    log_rank = law.log_ranks(length, probability)[0]
    log_length = law.log_lengths(rank, probability)[0]
    assume(abs(log_rank) < 300 and abs(log_length) < 300)
    assert law.probabilities(math.exp(log_rank), length)[0] == pytest.approx(probability, rel=1e-6)
    assert law.probabilities(rank, math.exp(log_length))[0] == pytest.approx(probability, rel=1e-6)

"""Intervals that know which form is uncertain, lack of fit, texts that are off, flat gains."""

import numpy as np
import pytest

from pml_cli.law.exponents import exponent_mixture
from pml_cli.law.findings import NOT_IDENTIFIED
from pml_cli.law.forms import Form
from pml_cli.law.lack_of_fit import lack_of_fit
from pml_cli.law.mle import fit_saturating
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import BETA
from pml_cli.law.power_law import fit_paper
from pml_cli.law.quality import quality_of
from pml_cli.law.robust import fit_robust
from pml_cli.law.text_deviations import text_deviations

BASE = 6.0
EXP = Form(link="exp")
HARD = Form(link="hard")


def grid(texts=3, ranks=(2, 4, 8, 16, 32), lengths=(64, 128, 256, 512)):
    axes = np.meshgrid(ranks, lengths, range(texts), indexing="ij")
    return [axis.ravel().astype(float) for axis in axes]


def cells(gain, rank, length, text, **columns):
    base = np.full(len(rank), BASE)
    return Observations.of(rank, length, np.minimum(gain, 5.99), base, text=text, **columns)


def exponential(rank, length, alpha=0.6):
    return BASE * -np.expm1(-15 * rank**alpha * length**-0.5 / BASE)


def planted(seed=0, factor=1.0, alpha=0.6):
    rng = np.random.default_rng(seed)
    rank, length, text = grid()
    gain = exponential(rank, length, alpha) * (1 + 0.02 * rng.standard_normal(len(rank)))
    factors = np.where(text == 1, factor, 1.0)
    return cells(gain * factors, rank, length, text)


def test_texts_with_exponents_of_their_own_widen_the_interval():
    rng = np.random.default_rng(0)
    rank, length, text = grid()
    tilt = np.array([-0.1, 0.0, 0.1])[text.astype(int)] * np.log(rank / 8)
    gain = exponential(rank, length) * np.exp(tilt) * (1 + 0.02 * rng.standard_normal(len(rank)))
    alike = fit_saturating(planted(), EXP)
    differ = fit_saturating(cells(gain, rank, length, text), EXP)

    narrow = exponent_mixture([alike], alike, "alpha").interval
    wide = exponent_mixture([differ], differ, "alpha").interval

    assert wide[0] < 0.6 < wide[1]
    assert wide[1] - wide[0] > 4 * (narrow[1] - narrow[0])


def test_two_forms_that_fit_alike_share_an_interval():
    rank, length, text = grid(ranks=(4, 6, 8), lengths=(100, 150, 200))
    rng = np.random.default_rng(1)
    gain = exponential(rank, length) * (1 + 0.02 * rng.standard_normal(len(rank)))
    few = cells(gain, rank, length, text)
    fits = [fit_saturating(few, form) for form in (EXP, HARD)]

    both = exponent_mixture(fits, fits[0], "alpha")

    assert both.weights.sum() == pytest.approx(1)
    low, high = both.interval
    assert low < min(fit.parameters["alpha"] for fit in fits)
    assert high > fits[0].parameters["alpha"]
    assert both.share_below(np.array([low]))[0] == pytest.approx(0.025, abs=0.003)


def test_a_form_that_does_not_fit_has_no_weight():
    many = planted()
    fits = [fit_saturating(many, form) for form in (EXP, HARD)]
    assert exponent_mixture(fits, fits[0], "alpha").forms == ("exp",)


def test_a_law_outside_the_family_is_told():
    good = planted()
    assert not lack_of_fit(good, fit_saturating(good, EXP)).rejected

    rank, length, text = grid()
    alpha = 0.6 + 0.2 * np.log(length / 180) / np.log(8)
    rng = np.random.default_rng(0)
    gain = exponential(rank, length, alpha) * np.exp(-(alpha - 0.6) * np.log(8))
    interacting = cells(gain * (1 + 0.02 * rng.standard_normal(len(rank))), rank, length, text)
    assert lack_of_fit(interacting, fit_saturating(interacting, EXP)).rejected


def test_a_bend_that_reaches_nearly_all_cells_is_told():
    good = planted()
    exp = fit_saturating(good, EXP)
    assert not quality_of(good, [exp], exp).bends_everywhere

    # Half of the tokens are nine times as hard as the others: no cell shows a power.
    rank, length, text = grid()
    load = 15 * rank**0.6 * length**-0.5 / BASE
    gain = BASE * (-np.expm1(-3 * load) - np.expm1(-load / 3)) / 2
    rng = np.random.default_rng(0)
    mixed = cells(gain * (1 + 0.02 * rng.standard_normal(len(rank))), rank, length, text)
    hill = fit_saturating(mixed, Form(link="hill"))
    quality = quality_of(mixed, [hill], hill)
    assert quality.bends_everywhere
    assert "bends_everywhere" in [warning.code for warning in quality.warnings]


def test_long_texts_that_miss_a_share_are_told():
    """Only where the gain bends can the exponent of the length be told from what is missing."""
    good = planted()
    assert not lack_of_fit(good, fit_saturating(good, EXP)).long_texts_short

    missing = 0.2 * np.log(good.length / 64) / np.log(8)
    late = cells(good.delta * (1 - missing), good.rank, good.length, good.text)
    exp = fit_saturating(late, EXP)
    quality = quality_of(late, [exp], exp)

    assert exp.parameters["beta"] > 0.55
    assert quality.lack_of_fit.long_texts_short
    assert 0.1 < quality.lack_of_fit.missing < 0.3
    assert "long_texts_short" in [warning.code for warning in quality.warnings]


def test_texts_alone_make_the_interval_of_several():
    """A level of each text is no error of beta: its cells of one length have it in common."""
    rank, length, text = grid()
    gain = exponential(rank, length) * (1 + 0.05 * (text - 1))
    fit = fit_saturating(cells(gain, rank, length, text), EXP)
    per_text = []
    for number in range(3):
        own = text == number
        alone = cells(gain[own], rank[own], length[own], text[own])
        per_text.append(fit_saturating(alone, EXP).parameters["beta"])

    student = 4.303 * np.std(per_text, ddof=1) / np.sqrt(3)
    assert fit.half_width(BETA) == pytest.approx(student, rel=0.2)


def test_the_band_of_several_texts_is_as_wide_as_they_differ():
    """Not as if each length of a text were another text."""
    rank, length, text = grid()
    level = 0.05 * (text - 1)
    differ = cells(exponential(rank, length) * (1 + level), rank, length, text)
    for planted_cells, least, most in ((planted(), 0.03, 0.06), (differ, 0.15, 0.22)):
        fit = fit_saturating(planted_cells, EXP)
        place = (np.array([8.0]), np.array([128.0]), np.array([BASE]))
        (low,), (high,) = fit.band(*place)
        half = (high - low) / 2 / fit.predict(*place)[0]
        assert least < half < most

    # Student's t of three texts whose levels have a spread of 5 %, and the cells around them.
    student = 4.303 * 0.05 / np.sqrt(3)
    around = 2.0 * np.std(level)
    assert half == pytest.approx(np.hypot(student, around), rel=0.2)


@pytest.mark.slow
def test_the_band_holds_cells_of_new_texts():
    """Of 60 grids of five texts whose levels differ by 6 %, without and with noise of 2 % alone."""
    rng = np.random.default_rng(0)
    rank, length, text = grid(texts=5)
    place = (np.array([8.0]), np.array([128.0]), np.array([BASE]))
    truth = exponential(*place[:2])[0]
    for spread, widest in ((0.0, 0.1), (0.06, 0.35)):
        held_law = held_new = 0
        widths = []
        for _ in range(60):
            levels = 1 + spread * rng.standard_normal(6)
            noise = 1 + 0.02 * rng.standard_normal(len(rank) + 1)
            gain = exponential(rank, length) * levels[text.astype(int)] * noise[1:]
            fit = fit_saturating(cells(gain, rank, length, text), EXP)
            (low,), (high,) = fit.band(*place)
            held_law += low < truth < high
            held_new += low < truth * levels[5] * noise[0] < high
            widths.append((high - low) / truth)
        assert held_new >= 0.9 * 60 and held_law >= held_new - 3
        assert np.median(widths) < widest


def test_parameters_that_fit_noise_do_not_widen_an_interval():
    good = planted()
    forms = (EXP, Form(link="exp", offset=True), Form(link="exp", floor=True))
    fits = [fit_saturating(good, form) for form in forms]
    assert exponent_mixture(fits, fits[0], "alpha").forms == ("exp",)


def test_the_text_that_is_off_is_named():
    off = planted(factor=0.7)
    predicted = fit_saturating(off, EXP).predict(off.rank, off.length, off.base)
    rows = text_deviations(off, predicted)
    assert [row.off for row in rows] == [False, True, False]
    assert rows[1].deviation < rows[0].deviation - 0.2

    good = planted()
    predicted = fit_saturating(good, EXP).predict(good.rank, good.length, good.base)
    assert not any(row.off for row in text_deviations(good, predicted))


def test_cells_that_had_not_converged_lie_between_two_limits():
    rank, length, text = grid()
    gain = exponential(rank, length)
    late = length > 100
    measured = np.where(late, (1 - 0.05 * np.log2(length / 64)) * gain, gain)
    expected = np.where(late, 2.4 * (gain - measured), 0.0)

    as_measured = fit_saturating(cells(measured, rank, length, text), EXP)
    bracketed = fit_saturating(cells(measured, rank, length, text, expected=expected), EXP)

    assert as_measured.parameters["beta"] > 0.55
    assert bracketed.parameters["beta"] == pytest.approx(0.5, abs=0.02)


def test_of_a_cell_that_may_have_saturated_only_the_lower_limit_counts():
    few = Observations.of(
        [2, 4, 8],
        [64, 64, 64],
        [3.0, 4.0, 5.5],
        [6.0, 6.0, 6.0],
        expected=[0.5, 1.5, 0.0],
    )
    assert few.bracketed.tolist() == [True, False, False]
    assert few.saturated.tolist() == [False, True, True]
    assert few.limit.tolist() == pytest.approx([3.0, 4.0, 6 - np.log(2)])
    assert few.upper_limit.tolist() == [3.5, np.inf, np.inf]


@pytest.mark.parametrize("texts", [1, 2, 3])
def test_flat_gains_are_not_identified(texts):
    rank, length, text = grid(texts)
    statuses = set()
    for seed in range(12):
        rng = np.random.default_rng([texts, seed])
        flat = cells(3 * (1 + 0.02 * rng.standard_normal(len(rank))), rank, length, text)
        fits = (fit_paper(flat), fit_robust(flat), fit_saturating(flat, HARD))
        statuses.update(fit.finding.code for fit in fits if fit.status == NOT_IDENTIFIED)
    assert "flat_gain" in statuses

"""Laws with a ceiling: a planted one is recovered; estimators that resist bad cells."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pml_cli.io import jsonable
from pml_cli.law import power_law
from pml_cli.law.findings import BOUND_HIT, NOT_IDENTIFIED, OK
from pml_cli.law.forms import FORMS, LINKS, Form, log_gain, log_gain_slopes
from pml_cli.law.likelihood import derivatives, minimise, negative_log_likelihood
from pml_cli.law.mle import design_of, fit_saturating
from pml_cli.law.observations import Observations, bits
from pml_cli.law.parameters import ALPHA, BETA, FLOOR, LEVEL, LOG_K, THETA_NAMES, B, C
from pml_cli.law.robust import fit_robust

RANKS, LENGTHS = (1, 2, 4, 8, 16, 32), (32, 64, 128, 256, 512)
R, L = (axis.ravel().astype(float) for axis in np.meshgrid(RANKS, LENGTHS, indexing="ij"))
BASE = 9.0 + 0.4 * np.sin(L)  # each text has its own


def share(ratio, link, k):
    if link == "none":
        return ratio
    return {
        "hard": np.minimum(ratio, 1),
        "exp": -np.expm1(-ratio),
        "hill": ratio * (1 + ratio**k) ** (-1 / k),
        "weibull": (-np.expm1(-(ratio**k))) ** (1 / k),
        "burr": (1 - (1 + 2 * ratio**k) ** -0.5) ** (1 / k),
        "burr3": (1 - (1 + ratio**k / 3) ** -3.0) ** (1 / k),
    }[link]


def plant(
    link="hill",
    *,
    k=4.0,
    b=0.0,
    floor=0.0,
    beta=0.5,
    C=12.0,
    noise=0.0,
    seed=0,
    rank=R,
    length=L,
    base=BASE,
):
    ratio = (C * rank**0.6 * length**-beta + b) / (base - floor)
    delta = (base - floor) * share(ratio, link, k)
    delta = delta * (1 + noise * np.random.default_rng(seed).standard_normal(len(rank)))
    return Observations.of(
        rank, length, np.minimum(delta, base - 1e-6) if link != "none" else delta, base
    )


@pytest.mark.parametrize(
    ("form", "truth"),
    [
        (Form(link="none", offset=True), {"b": 0.3, "C": 5.0}),
        (Form(link="hard"), {}),
        (Form(link="exp"), {}),
        (Form(link="exp", offset=True), {"b": 1.0}),
        (Form(link="hill"), {"k": 4.0}),
        (Form(link="hill", offset=True), {"k": 2.0, "b": 1.0}),
        (Form(link="weibull"), {"k": 2.0}),
        (Form(link="burr"), {"k": 2.0}),
        (Form(link="burr3"), {"k": 2.0}),
        (Form(link="exp", floor=True), {"floor": 0.4}),
        (Form(link="exp", beta=1.0), {"beta": 1.0, "C": 60.0}),
    ],
    ids=lambda value: value.name if isinstance(value, Form) else "",
)
def test_a_noiseless_law_is_recovered(form, truth):
    fit = fit_saturating(plant(form.link, **truth), form)
    expected = {"alpha": 0.6, "beta": 0.5, "C": 12.0} | truth
    assert fit.status == OK and fit.finding is None
    assert {name: fit.parameters[name] for name in expected} == pytest.approx(
        expected, abs=1e-6, rel=1e-6
    )
    assert fit.r2_all == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("link", LINKS)
def test_slopes_are_those_of_the_law(link):
    x, y = np.log(R) - 1.7, np.log(L) - 5
    # all but the floor and the level; k where the link has one
    wanted = (C, ALPHA, BETA, B, LOG_K) if LINKS[link].has_k else (C, ALPHA, BETA, B)
    step = 1e-6
    theta = np.array([[0.8, 0.6, 0.5, 0.7, 0.9, 0.3, 0.0, -3.0]])
    _, slopes = log_gain_slopes(theta, x, y, BASE, link=link, wanted=wanted)
    for k, position in enumerate(wanted):
        move = np.eye(8)[position] * step
        above = log_gain(theta + move, x, y, BASE, link)[0]
        below = log_gain(theta - move, x, y, BASE, link)[0]
        assert slopes[0, :, k] == pytest.approx((above - below) / (2 * step), abs=1e-6), position


@pytest.mark.parametrize("link", [name for name in LINKS if LINKS[name].has_ceiling])
def test_a_link_is_the_identity_near_0_and_1_at_the_ceiling(link):
    log_k = np.array([[np.log(3.0)]])
    small, large = np.array([[-12.0]]), np.array([[12.0]])
    assert LINKS[link].log_s(small, log_k) == pytest.approx(small, abs=1e-4)
    assert LINKS[link].slope(small, log_k) == pytest.approx(1, abs=1e-4)
    assert LINKS[link].log_s(large, log_k) == pytest.approx(0, abs=1e-4)
    assert LINKS[link].slope(large, log_k) == pytest.approx(0, abs=1e-4)


def test_the_slope_of_the_floor_is_that_of_the_law():
    x, y, step = np.log(R) - 1.7, np.log(L) - 5, 1e-6
    theta = np.array([[0.8, 0.6, 0.5, 0.7, 0.9, 0.3, 0.0, -3.0]])
    move = np.eye(8)[FLOOR] * step
    for link in ("exp", "hill"):
        _, slopes = log_gain_slopes(theta, x, y, BASE, link=link, wanted=(FLOOR,))
        above = log_gain(theta + move, x, y, BASE, link)[0]
        below = log_gain(theta - move, x, y, BASE, link)[0]
        assert slopes[0, :, 0] == pytest.approx((above - below) / (2 * step), abs=1e-6), link


def test_the_forms_that_are_fitted():
    assert [form.name for form in FORMS] == [
        "power",
        "power + b",
        "hard",
        "exp",
        "hill",
        "weibull",
        "burr",
        "burr3",
        "hard + b",
        "exp + b",
        "hill + b",
        "exp + floor",
        "hill + floor",
        "exp + level",
        "hill + level",
    ]


def test_slopes_are_those_of_a_law_with_a_level():
    x, y, step = np.log(R) - 1.7, np.log(L) - 5, 1e-6
    theta = np.array([[0.8, 0.6, 0.5, 0.0, 0.9, 0.0, 7.0, -3.0]])
    for link, wanted in (
        ("exp", (C, ALPHA, BETA, LEVEL)),
        ("hill", (C, ALPHA, BETA, LOG_K, LEVEL)),
    ):
        value, slopes = log_gain_slopes(theta, x, y, BASE, link=link, wanted=wanted)
        assert np.allclose(value, log_gain(theta, x, y, BASE, link))
        for k, place in enumerate(wanted):
            move = np.eye(8)[place] * step
            ends = [log_gain(theta + sign * move, x, y, BASE, link)[0] for sign in (1, -1)]
            assert slopes[0, :, k] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6), (
                link,
                place,
            )


@pytest.mark.parametrize("link", ["exp", "hill"])
def test_a_law_with_a_level_is_recovered_and_chosen(link):
    """The final loss does not depend on the base loss, which differs from text to text."""
    ratio = 12.0 * R**0.6 * L**-0.5 / 7.0
    base = 9.0 + 0.8 * np.sin(L)
    delta = base - 7.0 * (1 - share(ratio, link, 3.0))
    fit = fit_saturating(Observations.of(R, L, delta, base), Form(link=link, level=True))
    assert fit.status == OK
    truth = {"C": 12.0, "alpha": 0.6, "beta": 0.5, "level": 7.0} | (
        {"k": 3.0} if link == "hill" else {}
    )
    assert {name: fit.parameters[name] for name in truth} == pytest.approx(truth, rel=1e-5)
    assert (
        np.allclose(fit.predict(R, L, base), delta, rtol=1e-6)
        and (fit.predict(R, L, base) < base).all()
    )
    noisy = Observations.of(
        R,
        L,
        np.minimum(
            delta * (1 + 0.01 * np.random.default_rng(0).standard_normal(len(R))), base - 1e-3
        ),
        base,
    )
    others = [
        fit_saturating(noisy, form).aicc for form in (Form(link=link), Form(link=link, offset=True))
    ]
    assert fit_saturating(noisy, Form(link=link, level=True)).aicc < min(others) - 10
    high = base - 14.0 * (1 - share(12.0 * R**0.6 * L**-0.5 / 14.0, link, 3.0))
    kept = high > 0.1
    fit = fit_saturating(
        Observations.of(R[kept], L[kept], high[kept], base[kept]), Form(link=link, level=True)
    )
    assert fit.status == BOUND_HIT and fit.finding.code == "level_above_base_loss"
    with pytest.raises(ValueError, match="level"):
        Form(link="exp", level=True, offset=True)


def test_gradient_is_that_of_the_likelihood_with_censored_cells():
    exact = plant("hill", noise=0.03)
    # Every third cell is known to lie between two limits.
    missing = np.where(np.arange(len(exact)) % 3, 0.0, 0.1 * exact.delta)
    cells = replace(exact, expected=missing)
    assert cells.saturated.any() and cells.bracketed.sum() > 5
    design = design_of(cells, (1.7, 5.0))
    theta, free = (
        np.array([[0.8, 0.6, 0.5, 0.7, 0.9, 0.3, 0.0, -2.0]]),
        np.array([0, 1, 2, 3, 4, 5, 7]),
    )
    form, once = Form(link="hill", offset=True, floor=True), np.ones((1, 1))
    gradient, _ = derivatives(theta, design, form, once, free)
    for k, place in enumerate(free):
        move = np.eye(8)[place] * 1e-6
        ends = [
            negative_log_likelihood(theta + sign * move, design, form, once)[0] for sign in (1, -1)
        ]
        assert gradient[0, k] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-4), (
            THETA_NAMES[place]
        )


@pytest.mark.parametrize(
    "form",
    [
        Form(link="hill", offset=True),
        Form(link="exp"),
        Form(link="hard"),
        Form(link="none", offset=True),
    ],
)
def test_the_optimum_is_no_worse_than_the_best_of_random_starts(form):
    cells = plant("hill", k=3.0, noise=0.03, seed=1)
    fit = fit_saturating(cells, form)
    design = design_of(cells, fit.centre)
    starts = np.random.default_rng(0).uniform(
        [-1, 0.05, 0.05, 0, 0, 0, 0, -4], [3, 2, 2, 2 * form.offset, 3, 0, 0, -1], size=(200, 8)
    )
    starts[:, LOG_K] = np.where(form.link == "hill", starts[:, LOG_K], 0)
    _, nll = minimise(starts, design, form, iterations=300)
    assert fit.nll <= nll.min() + 1e-6


def test_hill_truth_is_recovered_where_the_paper_line_is_biased_and_warns():
    errors = []
    for seed in range(10):
        cells = plant("hill", noise=0.01, seed=seed, C=20.0)
        paper = power_law.fit_paper(cells)
        assert paper.alpha < 0.55 and [warning.code for warning in paper.warnings] == [
            "negative_offset_paper"
        ]
        fit = fit_saturating(cells, Form(link="hill"))
        errors.append([fit.parameters["alpha"] - 0.6, fit.parameters["beta"] - 0.5])
    assert np.abs(np.mean(errors, axis=0)).max() < 0.01


PAPER = np.meshgrid(
    (1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32, 48, 64, 128, 256, 512),
    (50, 100, 200, 500, 1000, 2000, 5000, 10000),
)


@pytest.mark.parametrize(
    ("grid", "C", "place"),
    [
        ((R, L), 12.0, (32, 32)),
        ((R, L), 12.0, (16, 32)),
        (PAPER, 100.0, (512, 50)),
        (PAPER, 100.0, (256, 2000)),
    ],
    ids=["corner", "near it", "the paper's corner", "inside"],
)
def test_one_saturated_cell_that_leaks_past_the_threshold_does_not_move_the_robust_law(
    grid, C, place
):
    R, L = (axis.ravel().astype(float) for axis in grid)
    base = np.full(len(R), 9.0)
    ceiling = plant("none", C=C, noise=0.01, base=base, rank=R, length=L).delta
    clean = Observations.of(
        R, L, np.minimum(ceiling, 9.0 - 0.01), base
    )  # a hard ceiling: what reaches it is left out
    leak = clean.delta.copy()
    corner = int(np.flatnonzero((place[0] == R) & (place[1] == L))[0])
    assert clean.saturated[corner]
    leak[corner] = 9.0 - 0.70  # it holds no more than its loss, and yet stays in
    moved = Observations.of(R, L, leak, base)
    robust = [fit_robust(cells) for cells in (clean, moved)]
    papers = [power_law.fit_paper(cells) for cells in (clean, moved)]
    assert robust[0].status == OK and robust[1].n_used == robust[0].n_used + 1
    assert abs(robust[1].alpha - robust[0].alpha) < 0.01
    assert abs(papers[1].alpha - papers[0].alpha) > 3 * abs(robust[1].alpha - robust[0].alpha)


def test_a_noiseless_law_is_recovered_by_the_robust_estimator():
    fit = fit_robust(plant("none", C=5.0, b=0.2, base=np.full(len(R), 60.0)))
    assert (fit.alpha, fit.beta, fit.b, fit.C) == pytest.approx((0.6, 0.5, 0.2, 5.0), abs=1e-6)


@pytest.mark.parametrize("link", ["hard", "exp", "hill"])
def test_no_prediction_exceeds_the_base_loss(link):
    cells = plant("hill", noise=0.02)
    fit = fit_saturating(cells, Form(link=link, offset=link != "hard"))
    rank, length = np.geomspace(0.1, 1e6, 50), np.full(50, 8.0)
    base = np.full(50, 6.0)
    assert (fit.predict(rank, length, base) <= base * (1 + 1e-12)).all()
    low, high = fit.band(rank, length, base)
    assert (low <= fit.predict(rank, length, base) + 1e-9).all() and (high <= base).all()


def test_doubling_the_sd_of_a_bad_point_reduces_its_pull():
    clean = plant("exp", noise=0.01)
    bad = clean.delta.copy()
    place = int(np.flatnonzero((R == 1) & (L == 64))[0])
    bad[place] *= 1.2

    def moved(sd):
        spreads = np.ones(len(R))
        spreads[place] = sd
        fits = [
            fit_saturating(Observations.of(R, L, delta, BASE, sd=spreads), Form(link="exp"))
            for delta in (bad, clean.delta)
        ]
        return abs(fits[0].parameters["alpha"] - fits[1].parameters["alpha"])

    assert moved(2) < 0.7 * moved(1)


def test_rescaling_rank_changes_only_the_scale():
    cells = plant("hill", noise=0.02)
    scaled = Observations.of(R * 8192, L, cells.delta, BASE)
    for form in (Form(link="hill"), Form(link="exp", offset=True)):
        one, other = fit_saturating(cells, form), fit_saturating(scaled, form)
        kept = [name for name in one.parameters if name != "C"]
        assert [other.parameters[n] for n in kept] == pytest.approx(
            [one.parameters[n] for n in kept], rel=1e-5
        )
        assert other.parameters["C"] * 8192 ** other.parameters["alpha"] == pytest.approx(
            one.parameters["C"], rel=1e-4
        )
        assert other.nll == pytest.approx(one.nll)


def test_one_token_that_gains_ln_2_is_one_bit():
    assert bits(1, np.log(2)) == pytest.approx(1)
    assert bits([10, 20], [np.log(2), np.log(4)]) == pytest.approx([10, 40])


def test_hill_falls_back_to_the_hard_link():
    fit = fit_saturating(plant("hard", C=25.0), Form(link="hill"))
    assert (
        fit.form == Form(link="hard")
        and fit.status == OK
        and fit.finding.code == "k_at_upper_bound"
    )


def test_a_floor_that_is_not_there_hits_its_bound():
    fits = [
        fit_saturating(plant("hill", noise=0.01, seed=seed), Form(link="hill", floor=True))
        for seed in range(6)
    ]
    stopped = [fit for fit in fits if fit.status == BOUND_HIT]
    assert stopped and all(
        fit.finding.code == "floor_at_zero" and np.isnan(fit.covariance).all() for fit in stopped
    )


@pytest.mark.parametrize(
    ("chosen", "axis", "distinct"),
    [
        (np.isin(R, (1, 2)), "size", (1, 2)),
        (np.isin(L, (512,)), "length", (512,)),
        (np.isin(R, ()), "size", ()),
    ],
)
def test_too_few_cells_are_not_identified(chosen, axis, distinct):
    fit = fit_saturating(plant().take(chosen), Form(link="exp"))
    assert fit.status == NOT_IDENTIFIED and fit.finding.code == "few_distinct_values"
    assert fit.finding.values == {"axis": axis, "distinct": distinct, "needed": 3}
    assert np.isnan(fit.predict(4, 64, 9)) and np.isnan(fit.aicc)
    assert json.loads(json.dumps(jsonable(fit.parameters), allow_nan=False))["alpha"] is None


def test_saturated_cells_alone_are_not_identified():
    assert fit_saturating(plant("hard", C=900.0), Form(link="hard")).status == NOT_IDENTIFIED


def test_cells_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="finite"):
        Observations.of(R, L, np.full(len(R), np.nan), BASE)
    with pytest.raises(ValueError, match="above 0"):
        Observations.of(R - 1, L, BASE, BASE)
    with pytest.raises(ValueError, match="differ in length"):
        Observations.of(R, L[1:], BASE, BASE)
    with pytest.raises(ValueError, match="one of none, hard, exp, hill, weibull, burr, burr3"):
        Form(link="soft")
    with pytest.raises(ValueError, match="needs a link"):
        Form(link="none", floor=True)


def test_bounds_hold_the_starts():
    for form in FORMS:
        lower, upper = form.bounds
        assert (lower < upper).all()


def test_a_parameter_that_the_cells_say_nothing_about_is_named():
    few = plant(
        "hard", C=5.0, base=np.full(len(R), 60.0)
    )  # far below the ceiling a floor has no effect at all
    fit = fit_saturating(few, Form(link="hard", floor=True))
    assert fit.status == NOT_IDENTIFIED and fit.finding.code == "no_information"
    assert fit.finding.values == {"parameter": "floor"}


def test_base_losses_too_far_apart_for_a_level_are_said_so():
    """The search begins at 0.8 of the mean base loss: the text of base loss 1 has no gain there."""
    base = np.repeat([1.0, 20.0], len(R))
    rank, length = np.tile(R, 2), np.tile(L, 2)
    cells = Observations.of(rank, length, base * -np.expm1(-3 * rank**0.6 * length**-0.5), base)
    fit = fit_saturating(cells, Form(link="exp", level=True))
    assert fit.status == NOT_IDENTIFIED
    assert fit.finding.code == "no_finite_likelihood"

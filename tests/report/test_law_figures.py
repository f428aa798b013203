"""All figures of a law: nothing that a sweep can hold stops them, and they stay small."""

import io
import math
import warnings

import numpy as np
import pytest
from support.law_views import labelled, view_of
from support.planted_laws import grid, result, several_texts

from pml_cli.law.forms import Form
from pml_cli.report.figures.curves import rank_figure
from pml_cli.report.figures.registry import of_report

FIGURES = {name: spec.draw for name, spec in of_report("law").items()}
WITHOUT_LAW = {"law", "law-rank", "law-length", "law-maps"}
WITH_LAW = {"law-surface", "law-predicted", "law-residuals", "law-profile"}
AT_A_BOUND = [
    result(rank, length, 6.0 * rank**-0.3 * length**-0.1 + 0.02 * math.sin(rank * length))
    for rank in (2, 4, 8, 16)
    for length in (32, 64, 128)
]


@pytest.mark.parametrize(
    ("results", "drawn"),
    [
        (grid(ranks=(4,)), WITHOUT_LAW),
        (grid(lengths=(64,)), WITHOUT_LAW),
        (grid(ranks=(64, 128, 256), lengths=(2, 4, 8)), WITHOUT_LAW),
        (grid(ranks=(2, 4, 8), lengths=(64,)), WITHOUT_LAW),
        ([result(4, 32)], WITHOUT_LAW),
        ([result(4, 32) | {"rank": None}], {"law"}),
        ([result(rank, 16 * rank) for rank in (2, 3, 4, 6, 8, 12, 16)], WITHOUT_LAW),
        (AT_A_BOUND, WITHOUT_LAW | {"law-surface", "law-predicted", "law-residuals"}),
    ],
    ids=[
        "one rank",
        "one length",
        "saturated only",
        "three cells",
        "one cell",
        "no number",
        "rank with length",
        "at a bound",
    ],
)
def test_cells_without_a_chosen_law_have_the_figures_they_carry(results, drawn):
    view = view_of(results)
    assert view.chosen is None
    figures = {name: draw(view) for name, draw in FIGURES.items()}
    drawn_names = {name for name, figure in figures.items() if figure is not None}
    # Others are tested beside their own modules.
    assert drawn_names & (WITHOUT_LAW | WITH_LAW) == drawn

    # Layout takes long, and the other cases are laid out alike.
    if len(view.observed) in (0, 1, 3, 9):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figures["law"].draw_without_rendering()


@pytest.mark.slow
def test_odd_cells_do_not_stop_a_figure():
    unmeasured = dict.fromkeys(("free_accuracy", "token_accuracy", "bits_gained"))
    odd = [
        result(4, 64, delta_loss=None),
        result(4, 48, final_loss=90.0, delta_loss=-82.4),
        result(4, 96) | unmeasured | {"trainable_parameters": 0},
    ]
    view = view_of([*several_texts(texts=(0,)), *odd], Form(link="hill"))
    for name, draw in FIGURES.items():
        figure = draw(view)
        assert figure is not None, name
        # The page has the panels of most others.
        if name in ("law", "law-profile"):
            figure.draw_without_rendering()

    # A diverged cell sits at the edge of the frame.
    axes = rank_figure(view).axes[0]
    assert labelled(axes, "_excluded") and axes.get_ylim()[0] > -1


@pytest.mark.slow
def test_thousands_of_cells_make_a_small_svg():
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, 65, 1200)
    lengths = rng.integers(20, 3000, 1200)
    x = 14 * ranks**0.6 * lengths**-0.5
    gains = 7.6 * x / (7.6**4 + x**4) ** 0.25 * (1 + 0.01 * rng.standard_normal(1200))
    results = [
        result(int(rank), int(length), min(gain, 7.5))
        for rank, length, gain in zip(ranks, lengths, gains, strict=True)
    ]
    view = view_of(results, Form(link="hill"))
    for name in ("law-predicted", "law-residuals", "law-surface"):
        svg = io.BytesIO()
        FIGURES[name](view).savefig(svg, format="svg", dpi=60)
        assert b"<image" in svg.getvalue() and len(svg.getvalue()) < 400_000

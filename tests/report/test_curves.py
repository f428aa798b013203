"""Gain by rank and by length: lines are the law, points are means of the runs."""

from dataclasses import replace

import numpy as np
import pytest
from support.law_views import labelled

from pml_cli.law.observations import PARAMETERS
from pml_cli.report.figures import curves
from pml_cli.stats import LN2


def test_lines_are_the_chosen_law(hill_view):
    (axes,) = curves.rank_figure(hill_view).axes
    lines = [
        line
        for line in axes.get_lines()
        if line.get_label().startswith("_child") and len(line.get_xdata()) == curves.CURVE_POINTS
    ]
    lengths = 5
    assert len(lines) == lengths

    p = hill_view.chosen.parameters
    rank, gain = lines[0].get_data()
    base = hill_view.observed.base[hill_view.observed.length == 32].mean()
    x = p["C"] * rank ** p["alpha"] * 32 ** -p["beta"] / base
    assert np.allclose(gain, base * x / (1 + x ** p["k"]) ** (1 / p["k"]))


def test_the_band_is_that_of_the_chosen_law(hill_view):
    (axes,) = curves.rank_figure(hill_view).axes
    rank = np.geomspace(1, 32, curves.CURVE_POINTS)
    length = np.full_like(rank, 32)
    base = np.full_like(rank, hill_view.observed.base[hill_view.observed.length == 32].mean())
    low, high = hill_view.chosen.band(rank, length, base)

    outline = labelled(axes, "_band")[0].get_paths()[0].vertices
    assert outline[:, 1].min() == pytest.approx(low.min())
    assert outline[:, 1].max() == pytest.approx(high.max())


@pytest.mark.parametrize("draw", [curves.rank_figure, curves.length_figure])
def test_legends_are_not_cut_at_the_edge(hill_view, draw):
    figure = draw(hill_view)
    figure.draw_without_rendering()
    for legend in figure.legends:
        extent = legend.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width


def test_the_papers_law_is_dashed_where_it_differs(hill_view):
    (axes,) = curves.rank_figure(hill_view).axes
    rank, gain = labelled(axes, "_paper")[0].get_data()
    drawn = np.isfinite(gain)
    assert 0 < drawn.sum() < curves.CURVE_POINTS
    assert np.allclose(gain[drawn], hill_view.paper.predict(rank[drawn], 32))


@pytest.mark.parametrize("draw", [curves.rank_figure, curves.length_figure])
def test_points_are_hollow_where_most_runs_are_saturated(hill_view, draw):
    (axes,) = draw(hill_view).axes
    points = {
        label: sum(len(line.get_xdata()) for line in labelled(axes, label))
        for label in ("_full", "_hollow")
    }
    final_loss = hill_view.cells.groupby(["rank", "target_tokens"])["final_loss"]
    saturated = final_loss.agg(lambda losses: (losses <= LN2).mean() >= 0.5)
    assert points["_hollow"] == saturated.sum() > 0
    # 90 runs, three of each rank and length
    assert points["_full"] + points["_hollow"] == 30


def test_a_point_is_the_mean_of_its_runs(hill_view):
    (axes,) = curves.rank_figure(hill_view).axes
    first = labelled(axes, "_full")[0]
    observed = hill_view.observed
    runs = (observed.rank == 1) & (observed.length == 32)
    assert first.get_ydata()[0] == pytest.approx(observed.delta[runs].mean())


def test_an_axis_of_parameters_has_their_name_and_values(exact_view):
    observed = exact_view.observed
    view = replace(
        exact_view, axis=PARAMETERS, observed=replace(observed, rank=256 * observed.rank)
    )
    axes = curves.rank_figure(view).axes[0]
    assert axes.get_xlabel() == "trainable parameters N"
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["256", "512", "1024", "2048", "4096", "8192"]


def test_of_many_lengths_nine_are_drawn(hill_view):
    points = hill_view.observed
    many = replace(points, length=np.arange(len(points), dtype=float) + 20)
    view = replace(hill_view, observed=many)
    assert curves.lines_title(view, "rank") == f"length l\n(9 of {len(points)})"
    (axes,) = curves.rank_figure(view).axes
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == curves.CURVE_POINTS]
    solid = [line for line in lines if line.get_linestyle() == "-"]
    assert len(solid) == curves.MAX_LINES

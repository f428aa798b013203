"""Predicted against measured gain: the cells left out are predicted by a fit without them."""

import numpy as np
import pytest
from support.law_views import labelled, view_of
from support.planted_laws import several_texts

from pml_cli.law.forms import Form
from pml_cli.report.figures.parity import predicted_figure
from pml_cli.stats import LN2


def test_the_largest_ranks_and_longest_lengths_are_held_out(exact_view):
    (axes,) = predicted_figure(exact_view).axes
    (held_out,) = labelled(axes, "unseen by the fit")
    observed = exact_view.observed
    edge = ((observed.rank == 32) | (observed.length == 512)) & ~observed.saturated
    assert sorted(held_out.get_xdata()) == pytest.approx(sorted(observed.delta[edge]))
    # The truth is a Hill law without noise.
    assert np.allclose(held_out.get_xdata(), held_out.get_ydata(), rtol=1e-4)


def test_a_cell_has_no_influence_on_its_own_prediction(exact_view):
    results = several_texts(noise=0.0, texts=(0,))
    for content in results:
        on_the_edge = content["rank"] == 32 or content["target_tokens"] == 512
        if on_the_edge and content["final_loss"] > LN2:
            content["delta_loss"] *= 0.9
            content["final_loss"] = content["base_loss"] - content["delta_loss"]

    predictions = []
    for view in (exact_view, view_of(results, Form(link="hill"))):
        (axes,) = predicted_figure(view).axes
        predictions.append(labelled(axes, "unseen by the fit")[0].get_ydata())
    assert np.allclose(*predictions, rtol=1e-4)


def test_predictions_beyond_the_frame_are_clipped_to_its_edge(exact_view):
    (axes,) = predicted_figure(exact_view).axes
    paper = next(
        line for line in axes.get_lines() if line.get_label().startswith("unseen, paper's law")
    )
    assert paper.get_ydata().max() == pytest.approx(axes.get_ylim()[1])
    assert paper.get_label().endswith("(clipped)")


def test_the_title_is_the_error_on_the_held_out_cells(hill_view):
    (axes,) = predicted_figure(hill_view).axes
    error = hill_view.check().mape
    papers_error = hill_view.check("paper").mape
    assert axes.get_title() == (
        f"MAPE on unseen cells: {error:.1f} % (paper's law: {papers_error:.1f} %)"
    )

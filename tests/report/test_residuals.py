"""Residuals of the law: relative, and their means by hand."""

import numpy as np
import pytest
from support.law_views import labelled, view_of
from support.planted_laws import several_texts

from pml_cli.law.forms import Form
from pml_cli.report.figures import residuals
from pml_cli.report.figures.residuals import residuals_figure
from pml_cli.report.figures.style import column_figure


def test_residuals_are_relative(hill_view):
    by_rank = residuals_figure(hill_view).axes[0]
    observed = hill_view.observed
    predicted = hill_view.chosen.predict(observed.rank, observed.length, observed.base)
    residual = 100 * (observed.delta / predicted - 1)
    uncensored = ~observed.saturated

    (points,) = labelled(by_rank, "in the fit")
    assert sorted(points.get_ydata()) == pytest.approx(sorted(residual[uncensored]))
    saturated = labelled(by_rank, "saturated")[0]
    assert len(saturated.get_xdata()) == observed.saturated.sum() > 0

    (means,) = labelled(by_rank, "mean in the fit")
    assert means.get_xdata().tolist() == [1, 2, 4, 8, 16, 32]
    first = residual[(observed.rank == 1) & uncensored]
    assert means.get_ydata()[0] == pytest.approx(first.mean())


@pytest.mark.parametrize(("spread", "width"), [(0.01, "0.02"), (5.0, "9.8"), (60.0, "118")])
def test_the_spread_is_written_without_powers_of_ten(spread, width):
    axes = column_figure().subplots()
    residuals._draw_spread([axes], spread)
    assert axes.get_legend_handles_labels()[1] == [f"95 % by the law's spread, ± {width} %"]


def test_means_over_the_predicted_gain_are_in_bins_of_several_cells():
    """Few cells, each with a gain of its own: a mean for each cell would be that cell."""
    view = view_of(several_texts(texts=(0,), ranks=(1, 2, 4, 8)), Form(link="hill"))
    by_gain = residuals_figure(view).axes[2]
    (points,) = labelled(by_gain, "in the fit")
    (means,) = labelled(by_gain, "mean in the fit")
    assert len(points.get_xdata()) <= residuals.MAX_DISTINCT

    order = np.argsort(points.get_xdata())
    bins = np.array_split(points.get_ydata()[order], len(means.get_xdata()))
    assert min(map(len, bins)) >= residuals.CELLS_A_BIN
    assert means.get_ydata() == pytest.approx([cells.mean() for cells in bins])


def test_values_that_do_not_repeat_are_binned():
    x, mean = residuals._means(np.arange(10.0), np.ones(10))
    assert len(x) == len(mean) == 2

"""Profiles of the parameters: the 95 % line, the interval, and the bootstrap's draws."""

from dataclasses import replace

import pytest
from support.law_views import labelled

from pml_cli.law.observations import PARAMETERS
from pml_cli.report.figures import profile
from pml_cli.report.figures.profile import profile_figure


def test_each_free_parameter_has_a_panel(hill_view):
    names = [axes.get_xlabel().split(" ")[0] for axes in profile_figure(hill_view).axes]
    assert names == ["alpha", "beta", "k"]


def test_the_95_line_the_interval_and_the_draws(hill_view):
    alpha = profile_figure(hill_view).axes[0]
    line = labelled(alpha, "95 % line, 3.84")[0]
    assert line.get_ydata()[0] == pytest.approx(3.8415, abs=1e-4)

    low, high = hill_view.analysis.bootstrap.intervals["alpha"]
    (span,) = labelled(alpha, "bootstrap 95 % interval")
    assert span.get_x() == pytest.approx(low)
    assert span.get_x() + span.get_width() == pytest.approx(high)

    heights = labelled(alpha, "bootstrap draws")[0].get_data().values
    assert heights.max() == pytest.approx(profile.HISTOGRAM_HEIGHT * profile.MAX_DEVIANCE)
    assert (heights > 0).sum() > 5
    assert alpha.get_title().startswith(f"{hill_view.chosen.parameters['alpha']:.3f} (")


def test_a_law_of_parameters_says_so(exact_view):
    axes = profile_figure(replace(exact_view, axis=PARAMETERS)).axes[0]
    assert axes.get_xlabel() == "alpha (power of parameters)"

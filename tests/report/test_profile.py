"""Profiles of the parameters: the 95 % line, the interval, and the bootstrap's draws."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.law_views import labelled

from pml_cli.law.bootstrap import no_bootstrap
from pml_cli.law.exponents import ExponentMixture
from pml_cli.law.findings import finding
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
    (span,) = labelled(alpha, "95 % interval")
    assert span.get_x() == pytest.approx(low)
    assert span.get_x() + span.get_width() == pytest.approx(high)

    heights = labelled(alpha, "bootstrap draws")[0].get_data().values
    assert heights.max() == pytest.approx(profile.HISTOGRAM_HEIGHT * profile.MAX_DEVIANCE)
    assert (heights > 0).sum() > 5
    assert alpha.get_title().startswith(f"{hill_view.chosen.parameters['alpha']:.3f} (")


def test_without_a_bootstrap_none_is_named(hill_view):
    """The interval of alpha is that over all forms, that of beta of its profile."""
    mixture = ExponentMixture(
        forms=("hill", "exp"),
        weights=np.array([0.5, 0.5]),
        values=np.array([0.3, 0.9]),
        errors=np.array([0.01, 0.01]),
    )
    quality = SimpleNamespace(
        exponents={"alpha": mixture}, interval=lambda name: mixture.interval, texts=[0, 1, 2]
    )
    reason = finding("few_clusters", clusters=2, needed=4)
    none = no_bootstrap(hill_view.observed, reason)
    analysis = replace(hill_view.analysis, bootstrap=none, quality=quality)
    drawn = profile_figure(replace(hill_view, analysis=analysis))

    alpha = drawn.axes[0]
    (span,) = labelled(alpha, "95 % interval")
    low, high = mixture.interval
    assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((low, high))
    # All of it can be seen.
    assert alpha.get_xlim()[0] < low < high < alpha.get_xlim()[1]
    assert not labelled(alpha, "bootstrap draws")

    title = " ".join(drawn.get_suptitle().split())
    assert "bootstrap" not in title
    assert "of the exponents: over 2 forms that fit nearly as well, as wide as 3 texts" in title
    assert title.endswith("of the others: profile likelihood, cells taken as independent")


def test_the_title_names_the_bootstrap_there_was(hill_view):
    title = " ".join(profile_figure(hill_view).get_suptitle().split())
    assert title.endswith("intervals: bootstrap of 15 clusters, 200 draws")


def test_a_law_of_parameters_says_so(exact_view):
    axes = profile_figure(replace(exact_view, axis=PARAMETERS)).axes[0]
    assert axes.get_xlabel() == "alpha (power of parameters)"

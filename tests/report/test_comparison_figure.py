"""The forest plot of compared groups: both tests, and the value that these are of."""

import math
from dataclasses import replace

import pytest

from pml_cli.law.forms import Form
from pml_cli.law.group_comparison import Comparison, Group, Tie
from pml_cli.report.figures.comparison import forest_figure


def tie(what, shared, p, p_clustered):
    return Tie(
        what=what,
        shared=shared,
        freedom=len(shared),
        statistic=6.0,
        p=p,
        p_clustered=p_clustered,
    )


@pytest.fixture(scope="module")
def panels(hill_view):
    """Alpha differs by the likelihood ratio and may be shared by clusters; group b rejects."""
    first = Group(name="a", fit=hill_view.chosen, cost=0.0)
    comparison = Comparison(
        by=("model",),
        common="",
        form=Form(link="hill"),
        finding=None,
        groups=[first, replace(first, name="b", cost=30.0)],
        ties=[
            tie("alpha", {"alpha": 0.611}, 0.014, 0.23),
            tie("beta", {"beta": 0.522}, 0.003, 0.002),
            tie("alpha and beta", {"alpha": 0.7, "beta": 0.8}, 0.002, math.nan),
        ],
    )
    alpha, beta = forest_figure(comparison).axes
    return {"alpha": alpha, "beta": beta}


@pytest.mark.parametrize(
    ("name", "verdict", "shared", "p_values"),
    [
        ("alpha", "may be shared", 0.611, "p = 0.014 (likelihood ratio), 0.23 (clusters)"),
        ("beta", "differ", 0.522, "p = 0.003 (likelihood ratio), 0.002 (clusters)"),
    ],
)
def test_the_title_and_the_dashes_are_of_one_exponent(panels, name, verdict, shared, p_values):
    """Not those of the tie of both exponents, whose shared values are others."""
    axes = panels[name]
    assert axes.get_title() == f"{name}: {verdict} (shared: {shared}, dashed)\n{p_values}"
    (dashed,) = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert dashed.get_xdata()[0] == shared


def test_a_group_that_rejects_the_common_law_is_hollow(panels):
    points = [line for line in panels["alpha"].get_lines() if line.get_marker() == "o"]
    assert points[0].get_markerfacecolor() != "white"
    assert points[1].get_markerfacecolor() == "white"
    labels = [text.get_text() for text in panels["alpha"].get_yticklabels()]
    assert labels == ["a", "b\n(rejects the common law)"]

"""Views and groups that several modules are tested on; fitting them takes longest."""

import pytest
from support.law_groups import groups_of
from support.law_views import view_of
from support.planted_laws import grid, several_texts

from pml_cli.law.forms import Form


@pytest.fixture(scope="session")
def hill_view():
    """Three texts whose gain follows a Hill law up to the base loss, with a bootstrap."""
    return view_of(several_texts(), Form(link="hill"), draws=200)


@pytest.fixture(scope="session")
def exact_view():
    """One text whose gain follows a Hill law without noise."""
    return view_of(several_texts(noise=0.0, texts=(0,)), Form(link="hill"))


@pytest.fixture(scope="session")
def group():
    """Two texts whose gain follows a Hill law."""
    (only,) = groups_of(*several_texts(texts=(0, 1)))
    return only


@pytest.fixture(scope="session")
def unidentified():
    """Four cells, too few for any law."""
    (only,) = groups_of(*grid(ranks=(2, 4), lengths=(64, 128)))
    return only

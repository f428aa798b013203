"""Views that several figures are tested on; fitting them takes longer than drawing."""

import pytest
from support.law_views import view_of
from support.planted_laws import several_texts

from pml_cli.law.forms import Form


@pytest.fixture(scope="session")
def hill_view():
    """Three texts whose gain follows a Hill law up to the base loss, with a bootstrap."""
    return view_of(several_texts(), Form(link="hill"), draws=200)


@pytest.fixture(scope="session")
def exact_view():
    """One text whose gain follows a Hill law without noise."""
    return view_of(several_texts(noise=0.0, texts=(0,)), Form(link="hill"))

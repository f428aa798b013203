"""Marks of single parameters."""

import pytest


def slow(*values, **options):
    """A set of parameters that is run with the slow tests, beside others that always are."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)

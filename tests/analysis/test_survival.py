"""Kaplan-Meier curves against those computed by hand."""

import numpy as np
import pandas as pd
import pytest

from pml_cli.analysis.survival import median_step, survival


def test_survival_is_kaplan_meiers():
    counts = pd.DataFrame({"step": [0, 10, 20, 30], "crossed": [1, 3, 0, 2], "left": [0, 1, 2, 1]})
    curve = survival(counts)
    assert curve["at_risk"].tolist() == [10, 9, 5, 3]
    assert curve["stubborn"].tolist() == pytest.approx([0.9, 0.9 * 6 / 9, 0.6, 0.6 / 3])
    assert median_step(curve) == 30
    assert np.isnan(median_step(curve.head(3)))


def test_counts_of_equal_steps_are_added():
    counts = pd.DataFrame({"step": [10, 0, 10], "crossed": [1, 0, 2], "left": [1, 0, 0]})
    curve = survival(counts)
    assert curve["step"].tolist() == [0, 10]
    assert curve["at_risk"].tolist() == [4, 4]
    assert curve["stubborn"].tolist() == pytest.approx([1, 0.25])

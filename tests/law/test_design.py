"""What a planned grid will tell, against grids of that plan."""

import numpy as np
import pandas as pd
import pytest

from pml_cli.law.design import embedded_pilot, sharpness
from pml_cli.law.forms import Form
from pml_cli.law.mle import fit_saturating
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import ALPHA, BETA


def planned(ranks, lengths, texts=1):
    axes = np.meshgrid(ranks, lengths, np.arange(texts), indexing="ij")
    return tuple(axis.ravel().astype(float) for axis in axes)


def test_widths_on_the_law_sweep_are_those_that_it_had():
    """Its 81 cells as they were measured, with the interval of the form that was chosen."""
    cells = pd.read_csv("benchmarks/law.csv")
    columns = (cells[name] for name in ("rank", "seqlen", "delta_loss", "base_loss"))
    observed = Observations.of(*columns)
    fit = fit_saturating(observed, Form(link="exp", level=True))

    ranks, lengths = observed.rank, observed.length
    found = sharpness(embedded_pilot(), ranks, lengths, np.zeros(81))
    assert 1 / 1.5 < found.alpha_half / fit.half_width(ALPHA) < 1.5
    assert 1 / 1.5 < found.beta_half / fit.half_width(BETA) < 1.5


def test_more_texts_are_sharper():
    pilot = embedded_pilot()
    few = sharpness(pilot, *planned((2, 4, 8), (32, 64, 128), texts=2))
    many = sharpness(pilot, *planned((1, 2, 4, 8, 16), (32, 64, 128, 256), texts=8))
    assert many.alpha_half < few.alpha_half / 2 and many.beta_half < few.beta_half / 2
    assert 1.02 < many.recall_factor < few.recall_factor
    assert many.recall_rank == pytest.approx(10, rel=0.05)

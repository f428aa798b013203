"""Heat maps: the measured values in their cells, and binned axes where there are many."""

import numpy as np
import pandas as pd
import pytest
from support.law_views import view_of
from support.planted_laws import grid, result

from pml_cli.report.figures import heatmaps
from pml_cli.report.figures.law import maps_figure

DIVERGED = result(16, 64, final_loss=50.0, delta_loss=-42.4)
RESULTS = [*grid(ranks=(2, 4, 8), lengths=(64, 128)), DIVERGED]


def texts(axes):
    return {text.get_text() for text in axes.texts}


def test_maps_hold_the_measured_values():
    loss, bits, accuracy, _ = maps_figure(view_of(RESULTS)).axes
    first = RESULTS[0]
    assert {f"{first['final_loss']:.2f}", "50.0"} <= texts(loss)
    assert f"{first['bits_gained'] / first['trainable_parameters']:.2f}" in texts(bits)
    assert "gained" in bits.get_title()
    assert texts(accuracy) <= {"25", "100"}


def test_a_diverged_cell_does_not_dim_the_others():
    loss = maps_figure(view_of(RESULTS)).axes[0]
    assert loss.images[0].norm.vmax == RESULTS[0]["base_loss"]


def test_bits_are_memorised_ones_where_the_entropy_is_known():
    results = [content | {"bits_memorised": 512.0} for content in RESULTS]
    bits = maps_figure(view_of(results)).axes[1]
    assert "memorised" in bits.get_title()
    # 512 bits in the 512 parameters of rank 2
    assert "1.00" in texts(bits)


def test_many_lengths_are_binned():
    lengths = np.arange(20, 2020)
    cells = pd.DataFrame({"rank": 8, "target_tokens": lengths, "final_loss": 1.0})
    table = heatmaps.cell_means(cells, "final_loss")
    assert len(table) == 1 and 20 <= table.shape[1] <= heatmaps.BINS
    assert (table.to_numpy() == 1).all()
    assert heatmaps.cell_means(cells[:40], "final_loss").shape == (1, 40)


def test_the_mean_of_repeats_stands_in_a_cell():
    cells = pd.DataFrame(
        {"rank": [2, 2, 4], "target_tokens": [32, 32, 64], "final_loss": [1.0, 3.0, 5.0]}
    )
    table = heatmaps.cell_means(cells, "final_loss")
    assert table.index.tolist() == [4, 2] and table.columns.tolist() == [32, 64]
    assert table.loc[2, 32] == 2 and table.loc[4, 64] == 5 and np.isnan(table.loc[2, 64])


@pytest.mark.parametrize(("value", "text"), [(99.4, "99"), (99.9, "99"), (100, "100"), (0.4, "0")])
def test_per_cent_is_not_rounded_up_to_100(value, text):
    assert heatmaps._percent_text(value) == text

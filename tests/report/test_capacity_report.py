"""What `pml capacity` prints and draws, of planted adapters."""

from io import StringIO

import numpy as np
import pandas as pd
from rich.console import Console

from pml_cli.analysis.rank_search import PARAMETER_EXPONENT, PARAMETER_SCALE
from pml_cli.report.figures.capacity import capacity_figure
from pml_cli.report.tables.capacity import capacity_report


def held_by(loss, parameters, bits, ended="exact"):
    """An adapter that has grown."""
    kind = {"model": "tiny", "data": "random", "adapter": "mlp_block", "layer": 4, "setting": ""}
    rank = parameters // 256
    size = {"rank": rank, "parameters": parameters, "tokens": bits / 11, "bits": bits}
    cost = {"lr": 0.5, "steps": 200, "passes": 900, "seconds": 20.0, "ended": ended}
    return {**kind, **size, **cost, "loss": loss, "data_seed": 0, "seed": 0}


HELD = pd.DataFrame(
    [
        held_by("sft", 256, 44.0),
        held_by("sft", 512, 132.0),
        held_by("memft_margin", 256, 121.0, "budget"),
    ]
)


def printed(held):
    out = StringIO()
    for part in capacity_report(held):
        Console(file=out, width=80).print(part)
    return out.getvalue()


def test_a_table_for_each_loss_and_what_is_a_lower_bound():
    text = printed(HELD)
    assert "tiny, random, sft" in text
    assert "tiny, random, memft_margin" in text
    assert "of 1 adapter the tokens are a lower bound: out of passes" in text
    assert "sft: N = " in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_point_an_adapter_and_the_line_of_the_grids():
    (axes,) = capacity_figure(HELD).axes
    drawn = {len(points.get_offsets()) for points in axes.collections}
    assert drawn == {1, 2}
    (line,) = axes.lines
    parameters, bits = line.get_data()
    np.testing.assert_allclose(PARAMETER_SCALE * bits**PARAMETER_EXPONENT, parameters)

"""Bits against parameters with a planted power law, and texts as the units of every interval."""

import numpy as np
import pandas as pd
import pytest

from pml_cli.analysis.capacity import capacity_table, parameter_lines
from pml_cli.stats import t_half_width


def planted(texts=3, seeds=2, sizes=(256, 512, 1024)):
    """N = 5 bits^0.8; each text holds so much more or less, whatever the seed."""
    rows = []
    for text in range(texts):
        for seed in range(seeds):
            for rank, parameters in enumerate(sizes, start=1):
                bits = (parameters / 5) ** (1 / 0.8) * (1 + 0.1 * text)
                rows.append(
                    {
                        "model": "tiny",
                        "data": "random",
                        "adapter": "mlp_block",
                        "loss": "sft",
                        "layer": 4,
                        "setting": "",
                        "lr": 0.5,
                        "steps": 200,
                        "data_seed": text,
                        "seed": seed,
                        "rank": rank,
                        "parameters": parameters,
                        "tokens": bits / 11,
                        "bits": bits,
                        "passes": 100,
                        "seconds": 1.0,
                        "ended": "exact",
                    }
                )
    return pd.DataFrame(rows)


def test_intervals_are_over_texts_not_over_seeds():
    table = capacity_table(planted())
    assert list(table["texts"]) == [3, 3, 3]
    assert list(table["runs"]) == [6, 6, 6]
    bits = (512 / 5) ** (1 / 0.8) * np.array([1.0, 1.1, 1.2])
    row = table.iloc[1]
    assert row["bits"] == pytest.approx(bits.mean())
    assert row["bits_high"] - row["bits"] == pytest.approx(t_half_width(bits))
    assert capacity_table(planted(texts=1))["bits_low"].isna().all()


def test_the_planted_line_is_found():
    line = parameter_lines(planted()).iloc[0]
    assert line["s"] == pytest.approx(0.8)
    assert line["s_high"] - line["s_low"] == pytest.approx(0, abs=1e-9)
    # The texts hold 1, 1.1 and 1.2 times as much.
    assert line["c"] == pytest.approx(5 / np.prod([1, 1.1, 1.2]) ** (0.8 / 3))


def test_nothing_held_and_a_single_size_have_no_line():
    held = planted()
    held.loc[held["rank"] == 1, "bits"] = 0.0
    assert parameter_lines(held).iloc[0]["s"] == pytest.approx(0.8)
    assert parameter_lines(planted(sizes=(256,))).empty

"""What a base model knows before any training is said where it is much."""

import pandas as pd

from pml_cli.report.base_knowledge import base_lines, much_known_line


def cells(known, whole=0.0):
    """Two texts, each learned by two adapters; of the second text the base knows nothing."""
    rows = []
    for seed, accuracy in ((0, known), (1, 0.0)):
        for rank in (2, 4):
            row = {"model": "m", "data": "d", "data_seed": seed, "seqlen": 8, "rank": rank}
            row |= {"base_token_accuracy": accuracy, "base_exact_match": whole}
            rows.append(row | {"base_log10_p": -10.0, "control_gain": 0.5})
    return pd.DataFrame(rows)


def test_each_text_counts_once_however_many_adapters_learn_it():
    uneven = pd.concat([cells(0.8), cells(0.8)[:2]])
    (line,) = base_lines(uneven)
    assert "40.0 % of the tokens, log10 p -10" in line
    assert "gain 0.50 nats/token on unseen text" in line


def test_a_fit_warns_where_the_base_knows_much():
    assert "predicts 40 % of these tokens" in much_known_line(cells(0.8))
    assert much_known_line(cells(0.2)) == ""
    # Runs of earlier versions.
    assert much_known_line(cells(0.8).drop(columns="base_log10_p")) == ""
    assert base_lines(cells(0.8).drop(columns="base_log10_p")) == []

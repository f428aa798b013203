"""Which cells belong together: texts, whatever their length."""

import pandas as pd

from pml_cli.law.observations import Observations, text_names


def test_lengths_of_one_text_are_one_cluster():
    runs = pd.DataFrame(
        {
            "data": ["random", "random", "text", "random"],
            "data_seed": [0, 0, 0, 1],
            "target_tokens": [24, 96, 24, 24],
        }
    )

    names = text_names(runs)

    assert names[0] == names[1]
    assert names.nunique() == 3


def test_a_run_without_a_seed_has_a_text_of_its_own():
    runs = pd.DataFrame({"data_seed": [0.0, None, None]})
    assert text_names(runs).nunique() == 2


def test_texts_are_counted():
    cells = Observations.of([1, 2, 1], [8, 8, 16], [1, 1, 1], [3, 3, 3], text=["b", "b", "a"])
    text, count = cells.texts
    assert text.tolist() == [1, 1, 0]
    assert count == 2

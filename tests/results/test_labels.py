"""One name for one model and file, however they were called; two for two."""

import pandas as pd
import pytest

from pml_cli.results.folder import RunFolder
from pml_cli.results.groups import split_groups, with_key_columns
from pml_cli.results.labels import with_settled_labels
from pml_cli.results.read import read_runs

DEFAULTS = {"model": "base", "data": "random", "adapter": "mlp_block", "loss": "sft", "layer": 4}
DEFAULTS |= {"setting": "", "rank": 4, "target_tokens": 64, "lr": 0.01, "steps": 5}


def settled(*rows):
    return with_settled_labels(pd.DataFrame([DEFAULTS | row for row in rows]))


def groups_of(runs):
    return len(list(split_groups(with_key_columns(runs))))


def test_a_loss_of_old_has_the_name_of_its_option():
    runs = settled(
        {"loss": "memft_margin(switch=1.0)", "rank": 2},
        {"loss": "memft_margin_facts", "rank": 4},
        {"loss": "memft_margin(switch=0.9)"},
    )
    assert runs["loss"].tolist() == ["memft_margin_facts"] * 2 + ["memft_margin(switch=0.9)"]
    assert groups_of(runs) == 2


def test_a_renamed_model_is_one_group():
    runs = settled(
        {"model": "base", "setting": "model.path=a1b2c3 train.batch=4", "rank": 2},
        {"model": "snapshot", "setting": "model.path=a1b2c3 train.batch=4", "rank": 4},
        {"model": "snapshot", "setting": "model.path=ffffff train.batch=4"},
        {"model": "other"},
    )
    assert runs["model"].tolist() == ["base", "base", "snapshot", "other"]
    assert groups_of(runs) == 3


def test_a_renamed_file_is_one_group_for_each_source():
    runs = settled(
        {"data": "jsonl:facts", "setting": "data.path=a1b2c3"},
        {"data": "jsonl:facts-crlf", "setting": "train.batch=4 data.path=a1b2c3"},
        {"data": "text:facts", "setting": "data.path=a1b2c3"},
        {"data": "jsonl:more", "setting": "data.path=ffffff"},
        {"data": "random"},
    )
    assert runs["data"].tolist() == [
        "jsonl:facts",
        "jsonl:facts",
        "text:facts",
        "jsonl:more",
        "random",
    ]


def test_two_hub_models_of_one_name_are_two_groups():
    runs = settled({"hub_id": "a/base"}, {"hub_id": "b/base"}, {"hub_id": None})
    assert runs["model"].tolist() == ["a/base", "b/base", "base"]
    assert groups_of(runs) == 3
    assert groups_of(settled({"hub_id": "a/base"}, {"hub_id": "a/base", "rank": 8})) == 1
    assert settled({"hub_id": "a/base"}, {"hub_id": "a/base"})["model"].tolist() == ["base"] * 2


@pytest.mark.parametrize("content", [{}, {"rank": 4}, {"setting": None, "model": "m", "data": "d"}])
def test_results_of_other_shapes_are_left_alone(tmp_path, content):
    RunFolder(tmp_path, "run").finish(content)
    (row,) = read_runs([tmp_path]).to_dict("records")
    assert row | content == row
    assert with_settled_labels(pd.DataFrame()).empty

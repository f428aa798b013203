"""Groups of comparable runs: how they are split, named and compared."""

import numpy as np
import pandas as pd
import pytest

from pml_cli.errors import UserError
from pml_cli.results.groups import (
    common_key,
    comparison_names,
    file_stems,
    group_name,
    group_slug,
    group_slugs,
    key_for_json,
    split_groups,
    unique_slugs,
    with_key_columns,
)


def runs_of(*rows):
    defaults = {"model": "tiny", "data": "random", "adapter": "mlp_block", "loss": "sft"}
    defaults |= {"layer": 4, "setting": "", "rank": 4, "target_tokens": 64, "lr": 0.01, "steps": 5}
    return with_key_columns(pd.DataFrame([defaults | row for row in rows]))


def test_runs_that_share_a_key_are_one_group():
    groups = list(split_groups(runs_of({"rank": 4}, {"rank": 8}, {"data": "text"})))
    assert [(key["data"], len(rows)) for key, rows in groups] == [("random", 2), ("text", 1)]
    assert "lr" not in groups[0][0]


def test_learning_rates_split_a_group_only_where_one_cell_has_several():
    (by_length,) = split_groups(runs_of({"lr": 0.01}, {"lr": 0.02, "target_tokens": 128}))
    assert "lr" not in by_length[0]
    split = list(split_groups(runs_of({"lr": 0.01}, {"lr": 0.02})))
    assert [key["lr"] for key, _ in split] == [0.01, 0.02]


def test_a_list_of_layers_is_a_value_like_any_other():
    (group,) = split_groups(runs_of({"layer": [1, 2]}, {"layer": [1, 2], "rank": 8}))
    assert group[0]["layer"] == "[1, 2]"


def test_names_leave_out_what_is_missing():
    key = {"model": "tiny", "data": "text:notes", "layer": 4.0, "setting": "", "lr": np.nan}
    assert group_name(key) == "tiny, text:notes, layer 4"
    assert group_slug(key) == "tiny-text-notes-layer-4"
    assert key_for_json(key)["lr"] is None
    assert unique_slugs(["a", "b"]) == ["a", "b"]
    assert unique_slugs(["a", "a"]) == ["a-0", "a-1"]


def test_files_of_several_groups_are_called_by_what_tells_them_apart():
    setting = "model.path=53947f data.separator=\\n data.path=48f522"
    key = {"model": "base", "loss": "sft", "layer": 27, "setting": setting}
    batch = {"setting": f"{setting} train.batch=4"}
    longest = ["base-sft-layer-27-model.path-53947f-data.separator-n-data.path-48f522"]

    assert group_slugs([key, key | {"loss": "memft_ot"}]) == ["sft", "memft-ot"]
    assert group_slugs([key, key | {"loss": "memft_ot"} | batch])[1] == "memft-ot-train.batch-4"
    assert group_slugs([key, key | batch]) == [*longest, "train.batch-4"]
    assert group_slugs([key]) == longest


def test_a_comparison_ignores_entries_of_the_settings_that_it_compares():
    key = {"data": "text", "layer": 4, "setting": "data.text=abc train.batch=4"}
    assert common_key(key, ["data"]) == {"layer": 4, "setting": "train.batch=4"}
    assert common_key(key, ["layer"])["setting"] == "data.text=abc train.batch=4"


def test_models_are_compared_with_the_prompt_that_one_of_them_needs():
    """A prompt by hand is still a setting of its own."""
    key = {"model": "far", "setting": "data.prompt=Text: train.batch=4"}
    assert common_key(key, ["model"]) == {"setting": "train.batch=4"}
    key["setting"] = "data.prompt=My words: train.batch=4"
    assert common_key(key, ["model"]) == {"setting": key["setting"]}


def test_names_of_compared_groups_show_what_differs():
    keys = [{"layer": 4, "setting": f"adapter.layers=[{n}, 5] train.batch=4"} for n in (1, 2)]
    names = comparison_names(keys, ["layer"])
    assert names == ["layer 4 adapter.layers=[1, 5]", "layer 4 adapter.layers=[2, 5]"]


def test_groups_that_cannot_be_told_apart_are_a_users_error():
    keys = [{"data": "text", "setting": f"train.batch={n}"} for n in (1, 2)]
    with pytest.raises(UserError, match=r"by=data: .*'data text'; they differ in setting"):
        comparison_names(keys, ["data"])


def test_no_value_of_a_result_leads_out_of_a_folder():
    above = {"model": "..", "data": "text"}
    assert group_slugs([above, above | {"model": "base"}]) == ["text", "base"]


def test_file_names_of_groups_stay_in_their_folder_and_fit_into_one():
    long = "x" * 5000
    stems = file_stems("bits", [["../../x"], ["a/b"], [long], [long + "y"], ["memft_ot"]])
    assert not any("/" in stem or len(stem) > 160 for stem in stems)
    assert stems[0].startswith("bits-..-..-x") and len(set(stems)) == len(stems)
    assert file_stems("bits", [["sft"], ["memft_ot"]]) == ["bits-sft", "bits-memft_ot"]
    assert file_stems("bits", [["../x"]]) == ["bits"]
    assert file_stems("memft", [["random", ""], ["text", "a=1"]]) == [
        "memft-random",
        "memft-text-a=1",
    ]

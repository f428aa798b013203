"""The config of a model as transformers resolves it."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.dims import decoder_shape, model_dims
from pml_cli.model.model_config import config_fields, is_read_as_it_is, model_config


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        config_fields(Model(path=str(tmp_path)))


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not readable as JSON"):
        config_fields(Model(path=str(tmp_path)))


def bundled_architectures():
    """Models of conf/model that spell their architecture out, by name."""
    folder = Path(__file__).parents[2] / "conf" / "model"
    configs = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in folder.glob("*.yaml")}
    spelt_out = {name: config.get("architecture") for name, config in configs.items()}
    return {name: architecture for name, architecture in spelt_out.items() if architecture}


ARCHITECTURES = bundled_architectures()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_that_says_all_is_planned_as_transformers_resolves_it(name):
    model = Model(name=name, weights="random", architecture=ARCHITECTURES[name])
    assert is_read_as_it_is(model)
    # One more field that planning does not need, and one less that has a default.
    resolved = dict(ARCHITECTURES[name])
    resolved.pop("max_position_embeddings")
    context = model_dims(model).context
    other = Model(name=name, weights="random", architecture=resolved)
    assert not is_read_as_it_is(other)
    assert dataclasses.replace(model_dims(other), context=context) == model_dims(model)
    assert decoder_shape(other) == decoder_shape(model)


def test_defaults_of_the_class_count():
    """Gemma 2 ties its embeddings, caps its scores and has heads of 256 without saying so."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 101}
    model = Model(weights="random", architecture={"model_type": "gemma2", **sizes})
    shape = decoder_shape(model)
    assert shape.query_width == 8 * 256
    assert shape.untied_input_weights == 0
    assert shape.unfused_heads == 8
    assert shape.softcaps_logits


def test_a_config_that_was_replaced_is_read_again(tmp_path):
    import transformers

    model = Model(path=str(tmp_path))
    for layers in (3, 12):
        config = transformers.AutoConfig.for_model("llama", num_hidden_layers=layers)
        config.save_pretrained(tmp_path)
        assert config_fields(model)["num_hidden_layers"] == layers


def test_the_config_may_be_changed_by_the_caller(model_folder):
    model = Model(path=str(model_folder("llama")))
    model_config(model).num_hidden_layers = 99
    config_fields(model)["num_hidden_layers"] = 99
    assert model_config(model).num_hidden_layers == config_fields(model)["num_hidden_layers"] == 3


def test_a_size_of_0_is_named(model_folder, tmp_path):
    spelt_out = Model(weights="random", architecture={"model_type": "llama", "hidden_size": 0})
    with pytest.raises(UserError, match=r"^model\.architecture: hidden_size=0: must be at least 1"):
        config_fields(spelt_out)

    fields = json.loads((model_folder("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_attention_heads": 0}))
    with pytest.raises(UserError, match=r"config\.json: num_attention_heads=0: must be at least 1"):
        config_fields(Model(path=str(tmp_path)))


def test_an_architecture_without_a_model_type_is_refused():
    model = Model(weights="random", architecture={"vocab_size": 7})
    with pytest.raises(UserError, match=r"model\.architecture: needs a model_type"):
        config_fields(model)

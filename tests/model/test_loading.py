"""Models that can be loaded, and clear errors for those that cannot."""

import json
import shutil

import pytest
import torch
from support.families import FAMILIES
from support.models import local

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.loading import load_model


def refusal(settings, match):
    """The one line that refuses a model."""
    with pytest.raises(UserError, match=match) as caught:
        load_model(settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def with_config(folder, source, **fields):
    """A folder with the config.json of another one, some fields changed."""
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def test_random_weights_are_the_same_each_time_and_leave_the_generator_alone():
    architecture = {"model_type": "gpt2", **FAMILIES["gpt2"]}
    settings = Model(name="random", weights="random", architecture=architecture, device="cpu")
    state = torch.random.get_rng_state()
    hashes = {load_model(settings).weights_hash() for _ in range(2)}
    assert len(hashes) == 1
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_folder_without_safetensors_is_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("gpt2"), tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refusal(local(folder), r"model\.path=")


def test_a_folder_with_a_broken_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama",')
    refusal(local(tmp_path), r"config\.json")


def test_damaged_weights_are_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("gpt2"), tmp_path / "damaged")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    refusal(local(folder), r"model\.path=")


@pytest.fixture(params=FAMILIES)
def with_and_without_head(request, tmp_path):
    """save(tied): files of a whole model and of its decoder alone, for each family."""
    import transformers

    def save(tied):
        config = transformers.AutoConfig.for_model(
            request.param, **FAMILIES[request.param], tie_word_embeddings=tied
        )
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path / "whole")
        model.base_model.save_pretrained(tmp_path / "decoder")
        return tmp_path / "whole", tmp_path / "decoder"

    return save


@pytest.mark.parametrize("stream", [False, True])
def test_a_tied_head_need_not_be_in_the_files(with_and_without_head, stream):
    whole, decoder = with_and_without_head(tied=True)
    expected = load_model(local(whole, stream=stream)).weights_hash()
    assert load_model(local(decoder, stream=stream)).weights_hash() == expected


@pytest.mark.parametrize("stream", [False, True])
def test_an_untied_head_that_is_not_in_the_files_is_refused(with_and_without_head, stream):
    """It would be drawn at random with every load."""
    whole, decoder = with_and_without_head(tied=False)
    load_model(local(whole, stream=stream))
    refusal(local(decoder, stream=stream), r"^model\..* have no lm_head\.weight")


def test_missing_weights_are_counted(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("llama"), tmp_path / "deeper")
    with_config(folder, model_folder("llama"), num_hidden_layers=4)
    names = r"its weights have no model\.layers\.3\.input_layernorm\.weight, .* and 6 more$"
    refusal(local(folder), names)


def test_an_unknown_model_type_is_refused(tmp_path, model_folder):
    with_config(tmp_path, model_folder("gpt2"), model_type="gpt99", architectures=["Gpt99"])
    refusal(local(tmp_path), r"model\.path=")


@pytest.mark.parametrize(
    "fault",
    [
        {"hidden_size": 30},
        {"model_type": "gpt99"},
        {"num_key_value_heads": "two"},
        {"hidden_act": "nope"},
    ],
)
def test_an_impossible_architecture_is_refused(fault):
    architecture = {"model_type": "llama", **FAMILIES["llama"], **fault}
    settings = Model(name="odd", weights="random", architecture=architecture, layer=1, device="cpu")
    refusal(settings, r"model\.architecture")


def test_a_rope_that_depends_on_length_is_refused():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    architecture = {"model_type": "llama", **FAMILIES["llama"], "rope_parameters": rope}
    settings = Model(name="odd", weights="random", architecture=architecture, layer=1, device="cpu")
    refusal(settings, "its rope type dynamic depends on length")

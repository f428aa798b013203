"""Models that can be loaded, and clear errors for those that cannot."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import FAMILIES
from support.models import adapter_of, local, own_logits, random_bank, random_ids

from pml_cli.config.schema import MlpBlockAdapter, Model
from pml_cli.errors import UserError
from pml_cli.model.dims import model_dims
from pml_cli.model.loading import check_weights, load_model


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


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_whose_parts_cannot_be_found_is_refused(model_folder, monkeypatch, stream):
    """Whatever is raised: a model's own code may be anyone's."""
    import transformers

    def missing(_model):
        raise AttributeError("no attribute 'decoder'")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "get_decoder", missing)
    settings = local(model_folder("llama"), stream=stream)
    refusal(settings, r"^model.*AttributeError: no attribute 'decoder'")


def copied(model_folder, tmp_path, family="llama", **fields):
    """A folder with a copy of a model, some fields of its config.json changed."""
    folder = shutil.copytree(model_folder(family), tmp_path / "copy")
    return with_config(folder, folder, **fields)


QUANTISED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "unknown method": {"bits": 4},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_weights_are_refused_with_what_helps(model_folder, tmp_path, method, stream):
    folder = copied(model_folder, tmp_path, quantization_config=QUANTISED[method])
    settings = local(folder, stream=stream)
    message = refusal(settings, r"^model\.path=.*quantised")
    assert f"({method})" in message
    assert "dequantize()" in message
    # Before anything is loaded, as in a dry run.
    with pytest.raises(UserError, match="quantised"):
        model_dims(settings)


@pytest.mark.parametrize("stream", [False, True])
def test_a_padding_token_beyond_the_embeddings_is_refused(model_folder, tmp_path, stream):
    folder = copied(model_folder, tmp_path, pad_token_id=101)
    message = refusal(local(folder, stream=stream), r"^model\.path=")
    assert "pad_token_id 101" in message
    with pytest.raises(UserError, match="pad_token_id"):
        model_dims(local(folder))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_2"},
        {"return_dict": False},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"use_cache": False},
    ],
    ids=str,
)
def test_how_a_model_was_run_elsewhere_does_not_matter(model_folder, tmp_path, fields, stream):
    expected = load_model(local(model_folder("llama")))
    model = load_model(local(copied(model_folder, tmp_path, **fields), stream=stream))
    bank = random_bank(model, MlpBlockAdapter())
    model.check_split(bank)
    ids = random_ids(model, 2)
    assert torch.equal(own_logits(model, ids, bank), own_logits(expected, ids, bank))


@pytest.mark.parametrize("stream", [False, True])
def test_an_adapter_beside_the_weights_is_refused(model_folder, tmp_path, stream):
    """transformers would put it onto the base by itself."""
    folder = copied(model_folder, tmp_path)
    base = load_model(local(folder))
    bank = random_bank(base, adapter_of("linear", "llama"), ranks=(3,))
    bank.save(0, folder, str(folder))
    refusal(local(folder, stream=stream), r"an adapter lies beside the weights \(adapter_config")
    with pytest.raises(UserError, match="an adapter lies beside"):
        check_weights(local(folder))


def test_what_lies_beside_the_weights_does_not_change_the_base(model_folder, tmp_path):
    folder = copied(model_folder, tmp_path)
    expected = load_model(local(folder)).weights_hash()
    other = load_file(folder / "model.safetensors")
    other = {name: 2 * tensor for name, tensor in other.items()}

    save_file(other, folder / "consolidated.safetensors", {"format": "pt"})
    save_file(other, folder / "model.fp16.safetensors", {"format": "pt"})
    torch.save(other, folder / "pytorch_model.bin")
    (folder / "._model.safetensors").write_bytes(b"\0" * 4096)
    # Left behind by an earlier save in shards.
    save_file(other, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    weight_map = dict.fromkeys(other, "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 3.0}')

    for stream in (False, True):
        check_weights(local(folder, stream=stream))
        assert load_model(local(folder, stream=stream)).weights_hash() == expected


def test_a_config_that_names_the_weights_file(model_folder, tmp_path):
    folder = copied(model_folder, tmp_path, transformers_weights="other.safetensors")
    tensors = load_file(folder / "model.safetensors")
    doubled = {name: 2 * tensor for name, tensor in tensors.items()}
    save_file(doubled, folder / "other.safetensors", {"format": "pt"})
    whole, streamed = (load_model(local(folder, stream=stream)) for stream in (False, True))
    assert whole.weights_hash() == streamed.weights_hash()
    assert torch.equal(whole.head.weight_VD, doubled["lm_head.weight"])


def in_shards(folder):
    """Split the weights of a folder into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_processes_share_weights_of_the_dtype_of_their_file(model_folder, tmp_path, dtype):
    """Their memory is the file's, mapped and never written: N workers hold one copy."""
    folder = copied(model_folder, tmp_path)
    loaded = load_model(local(folder, dtype=dtype))
    assert loaded.model.get_input_embeddings().weight.dtype == getattr(torch, dtype)
    loaded.full(random_ids(loaded, 1, 5))

    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if str(folder) in line]
    # The file is in float32; of another dtype each process has its own copy.
    assert bool(starts) == (dtype == "float32")
    for start in starts:
        sizes = dict(line.split(":", 1) for line in lines[start + 1 : start + 20] if ":" in line)
        # What was written to would be memory of the process alone.
        assert sizes["Anonymous"].split() == ["0", "kB"]


@pytest.mark.parametrize("stream", [False, True])
def test_shards(model_folder, tmp_path, stream):
    folder = in_shards(copied(model_folder, tmp_path))
    expected = load_model(local(model_folder("llama"))).weights_hash()
    assert load_model(local(folder, stream=stream)).weights_hash() == expected

    shard = folder / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    for damage in (content[:5], content[:5000], None):
        shard.unlink()
        if damage is not None:
            shard.write_bytes(damage)
        refusal(local(folder, stream=stream), r"^model\.path=")
        with pytest.raises(UserError, match=shard.name):
            check_weights(local(folder, stream=stream))


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_damaged_index_is_refused(model_folder, tmp_path, text, stream):
    folder = in_shards(copied(model_folder, tmp_path))
    (folder / "model.safetensors.index.json").write_text(text)
    refusal(local(folder, stream=stream), r"^model\.path=")
    with pytest.raises(UserError, match=r"index\.json: "):
        check_weights(local(folder, stream=stream))


@pytest.mark.parametrize("stream", [False, True])
def test_numbers_of_eight_bits(model_folder, tmp_path, stream):
    """Weights in float8 without a scale are plain numbers; streamed and whole are the same."""
    folder = copied(model_folder, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    rounded = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})
    model = load_model(local(folder, stream=stream))
    assert torch.equal(model.head.weight_VD, rounded["lm_head.weight"].float())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory")])
def test_memory_that_runs_out_is_no_fault_of_the_model(model_folder, monkeypatch, error):
    """Those who load a model try again with less."""
    import transformers

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)):
        load_model(local(model_folder("llama")))

"""GGUF files as base models: the same model as the one they were written from."""

import json
import re
import shutil

import pytest
import torch

pytest.importorskip("gguf")

import gguf
import numpy as np
from support.faults import full_disk
from support.gguf import save_small_llama, write_gguf
from support.models import logits_of_cell, random_bank, random_ids

from pml_cli.config.schema import TINY, LinearAdapter, Model, Run
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.model import file_hash
from pml_cli.model import gguf as gguf_module
from pml_cli.model.dims import decoder_shape, model_dims
from pml_cli.model.gguf import base_path, config_folder, gguf_file
from pml_cli.model.gguf_layout import read_layout
from pml_cli.model.loading import check_weights, load_model
from pml_cli.model.tokenizer import Tokenizer
from pml_cli.results.run_id import run_id, settings_label


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_llama(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def file(tmp_path_factory, folder):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", folder)


@pytest.fixture(scope="module")
def original(folder):
    return load_model(settings(folder))


def settings(path, **changed):
    return Model(name="converted", path=str(path), **({"device": "cpu"} | changed))


def refusal(path, **changed):
    """The one line that refuses a model."""
    with pytest.raises(UserError) as caught:
        load_model(settings(path, **changed))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_is_the_model_that_it_was_written_from(file, original):
    model = load_model(settings(file))
    assert model.weights_hash() == original.weights_hash()
    ids = random_ids(original, 2)
    with torch.no_grad():
        logits = [base.model(input_ids=ids).logits for base in (model, original)]
    assert torch.equal(*logits)


def test_loading_prints_nothing(file, capfd):
    load_model(settings(file))
    assert capfd.readouterr() == ("", "")


def test_a_quantised_file_is_dequantised_to_the_dtype_asked_for(tmp_path, original, folder):
    file = write_gguf(tmp_path / "q8.gguf", folder, gguf.GGMLQuantizationType.Q8_0)
    model = load_model(settings(file, dtype="bfloat16"))
    weights = dict(model.model.named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert not hasattr(model.model.config, "quantization_config")
    for name, expected in original.model.named_parameters():
        # Eight bits of the largest of 32 weights, then eight bits of mantissa.
        allowed = expected.abs().max() / 127
        assert (weights[name].float() - expected).abs().max() <= allowed


def test_sizes_are_those_of_the_model(file, folder):
    assert model_dims(settings(file)) == model_dims(settings(folder))
    assert decoder_shape(settings(file)) == decoder_shape(settings(folder))


def test_a_size_equal_to_the_default_of_its_class_is_written(file):
    from transformers import LlamaConfig

    fields = json.loads((config_folder(file) / "config.json").read_text())
    assert fields["rms_norm_eps"] == pytest.approx(LlamaConfig().rms_norm_eps)
    assert fields["attention_bias"] is False
    assert "quantization_config" not in fields


def test_the_tokenizer_is_that_of_the_model(file, folder):
    converted, tiny = (Tokenizer(settings(path), 2048) for path in (file, folder))
    text = "A licence, 2024:\n\n  it's <|endoftext|>"
    assert converted.encode(text) == tiny.encode(text)
    assert converted.begin == tiny.begin == [0]
    assert converted.special == tiny.special
    prompt = converted.chat_text((("user", "Hi"),), RandomData(chat=True, system=""))
    assert prompt == "<system><user>Hi<assistant>"


def test_it_can_be_built_without_weights(file):
    check_weights(settings(file))
    model = load_model(settings(file, weights="random", device="meta"))
    assert all(parameter.is_meta for parameter in model.model.parameters())


def test_streaming_is_refused_and_the_automatic_choice_loads_whole(file, monkeypatch):
    from pml_cli.model import loading

    for check in (load_model, check_weights):
        with pytest.raises(UserError, match=r"^model\.stream=true: must be null or false for a G"):
            check(settings(file, stream=True))
    monkeypatch.setattr(loading, "usable_memory", lambda _device: 1)
    assert load_model(settings(file)).stream is None


def test_a_folder_with_one_file_is_that_file_and_several_are_named(file, tmp_path):
    shutil.copy(file, tmp_path / "one.gguf")
    (tmp_path / "._one.gguf").write_bytes(b"left by another system")
    (tmp_path / "README.md").write_text("words")
    assert gguf_file(str(tmp_path)) == tmp_path / "one.gguf"

    shutil.copy(file, tmp_path / "two.GGUF")
    expected = (
        f"model.path={tmp_path}: has several GGUF files; name one of them: one.gguf, two.GGUF"
    )
    assert refusal(tmp_path) == expected
    # With a config.json it is a model's folder like any other.
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(str(tmp_path)) is None


def test_what_lies_beside_the_file_changes_nothing(file, tmp_path, original):
    copy = shutil.copy(file, tmp_path / "model.gguf")
    other = {"bos_token": "!", "eos_token": "!", "chat_template": "other"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(other))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    # Another process, which has no such file in memory.
    gguf_module._config_folder.cache_clear()
    shutil.rmtree(config_folder(file))
    gguf_module._config_folder.cache_clear()
    assert Tokenizer(settings(copy), 2048).begin == [0]
    assert load_model(settings(copy)).weights_hash() == original.weights_hash()


def test_the_same_file_elsewhere_is_the_same_run_and_another_one_is_not(file, tmp_path, folder):
    moved = shutil.copy(file, tmp_path / "moved.gguf")
    changed = write_gguf(tmp_path / "changed.gguf", folder, output_norm_weight=0.01)
    (tmp_path / "alone").mkdir()
    shutil.copy(file, tmp_path / "alone" / "x.gguf")
    paths = (file, moved, tmp_path / "alone", changed)
    runs = [Run(seqlen=8, model=settings(path)) for path in paths]

    first, second, third, fourth = map(run_id, runs)
    assert first == second == third != fourth
    # By which tables keep them apart.
    assert settings_label(runs[0]) == settings_label(runs[1]) != settings_label(runs[3])


def test_every_tensor_of_a_large_file_counts(file, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(file_hash, "MAX_WHOLE_BYTES", 2**10)
    names = [tensor.name for tensor in gguf.GGUFReader(file).tensors]
    hashes = {file_hash.sampled_hash(file)}
    for name in names:
        other = write_gguf(tmp_path / "other.gguf", folder, **{name.replace(".", "_"): 0.01})
        hashes.add(file_hash.sampled_hash(other))
    assert len(hashes) == 1 + len(names)


def test_the_layout_is_that_of_the_package(file):
    layout = read_layout(file)
    expected = [tensor.data_offset for tensor in gguf.GGUFReader(file).tensors]
    assert [layout.data_start + first for first, _end in layout.tensors] == expected
    assert layout.data_start + layout.tensors[-1][1] == file.stat().st_size


@pytest.mark.parametrize("kept", [4, 100, 5000, -200_000])
def test_a_damaged_file_is_refused_in_one_line_and_has_a_hash(file, tmp_path, kept, monkeypatch):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(file.read_bytes()[:kept])
    assert refusal(damaged).startswith(f"model.path={damaged}: ")
    monkeypatch.setattr(file_hash, "MAX_WHOLE_BYTES", 2**10)
    assert file_hash.sampled_hash(damaged) != file_hash.sampled_hash(file)


def test_a_family_that_transformers_does_not_read_is_refused_in_one_line(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "odd")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "transformers cannot read this GGUF file: " in refusal(tmp_path / "odd.gguf")


@pytest.mark.parametrize(
    ("add", "name"),
    [
        (
            lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32)),
            "rope_freqs.weight",
        ),
        (
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            "llama.rope.scaling.type=yarn",
        ),
    ],
)
def test_a_rope_scaling_that_would_be_left_out_is_refused(tmp_path, folder, add, name):
    message = refusal(write_gguf(tmp_path / "scaled.gguf", folder, add=add))
    assert f"({name}); use the model in safetensors" in message


def test_no_rope_scaling_may_be_said(tmp_path, folder):
    def add(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)

    load_model(settings(write_gguf(tmp_path / "plain.gguf", folder, add=add)))


def test_files_that_are_missing_or_no_gguf_are_refused(tmp_path):
    missing = tmp_path / "missing.gguf"
    assert refusal(missing) == f"model.path={missing}: no such file"
    (tmp_path / "text.gguf").write_text("words")
    assert "must be a folder or GGUF" in refusal(tmp_path / "text.gguf")


def test_without_the_package_the_error_says_what_to_install(file, monkeypatch):
    monkeypatch.setattr(gguf_module.importlib.util, "find_spec", lambda _name: None)
    expected = f"model.path={file}: GGUF needs an extra: pip install 'pml-cli[gguf]'"
    assert refusal(file) == expected


def test_a_cache_that_cannot_be_written_is_no_fault(file, monkeypatch, tmp_path):
    (tmp_path / "occupied").write_text("a file where the folder would be")
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "occupied"))
    gguf_module._config_folder.cache_clear()
    assert model_dims(settings(file)).layers == 3
    gguf_module._config_folder.cache_clear()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("tokenizer.json", None),
        ("tokenizer.json", b"[]"),
        ("sha256.json", b""),
    ],
)
def test_a_damaged_cache_is_converted_anew(file, monkeypatch, tmp_path, name, content):
    monkeypatch.setenv("PML_CACHE", str(tmp_path))
    gguf_module._config_folder.cache_clear()
    folder = config_folder(file)
    sound = {path.name: path.read_bytes() for path in folder.iterdir()}

    damaged = folder / name
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    gguf_module._config_folder.cache_clear()
    assert config_folder(file) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == sound
    assert [path.name for path in (tmp_path / "gguf").iterdir()] == [folder.name]
    gguf_module._config_folder.cache_clear()


def test_a_link_in_place_of_the_cache_is_replaced_and_not_followed(file, monkeypatch, tmp_path):
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "cache"))
    gguf_module._config_folder.cache_clear()
    folder = config_folder(file)
    theirs = tmp_path / "theirs"
    folder.rename(theirs)
    (theirs / "config.json").write_text("{}")
    folder.symlink_to(theirs)

    gguf_module._config_folder.cache_clear()
    assert model_dims(settings(file)).layers == 3
    assert not folder.is_symlink()
    assert (theirs / "config.json").read_text() == "{}"
    gguf_module._config_folder.cache_clear()


def test_a_full_disk_is_the_fault_that_is_named(file, monkeypatch, tmp_path):
    monkeypatch.setenv("PML_CACHE", str(tmp_path))
    gguf_module._config_folder.cache_clear()
    with full_disk(2000), pytest.raises(OSError, match="File too large") as caught:
        model_dims(settings(file))
    # In place of the cache, which has no room either.
    assert re.search(r"/pml-gguf-\w+/config$", caught.value.filename)
    assert not list((tmp_path / "gguf").iterdir())
    gguf_module._config_folder.cache_clear()


def test_an_adapter_names_the_folder_from_which_peft_loads(file, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert base_path(settings(file.name)) == base_path(settings(".")) == str(file.parent)
    assert base_path(Model()) == str(TINY)


def test_peft_loads_an_adapter_with_its_base(file, original, tmp_path):
    """As its user does: the folder is in adapter_config.json, the file's name is given."""
    from peft import AutoPeftModelForCausalLM

    adapter = LinearAdapter(targets=["gate_proj", "down_proj"], layers=[1])
    bank = random_bank(original, adapter, ranks=(2,))
    bank.save(0, tmp_path, base_path(settings(file)))
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name)

    ids = random_ids(original, 1)
    with torch.no_grad():
        logits = loaded(input_ids=ids).logits
    assert torch.allclose(logits, logits_of_cell(original, ids, bank, 0), atol=1e-4)


def test_paths_below_the_home_folder(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))
    assert Model(path="~/small.gguf").path == str(file)
    assert TextData(path="~/notes.txt").path == str(file.parent / "notes.txt")
    assert Model(path="~nobody-of-this-name/x").path == "~nobody-of-this-name/x"

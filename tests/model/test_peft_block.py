"""The paper's adapter around an MLP block, as a layer of PEFT."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.models import local, logits_of_cell, random_bank, random_ids, transformers_model

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.errors import UserError
from pml_cli.model.loading import load_model
from pml_cli.peft_block import MlpBlockLora, load_mlp_block, mlp_block_config

RANKS = (4, 2)


@pytest.fixture
def block_bank(model_folder):
    """A model of Qwen3's family and random adapters around one of its blocks."""
    model = load_model(local(model_folder("qwen3")))
    return model, random_bank(model, MlpBlockAdapter(), RANKS)


@pytest.fixture
def qwen3(model_folder):
    """qwen3(): the same model as anyone loads it, anew each time."""
    return lambda: transformers_model(model_folder("qwen3"))


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gpt_neox", "gemma2", "gpt_oss", "mpt"])
def test_peft_loads_a_block_adapter_through_the_layer(model_folder, tmp_path, family):
    model = load_model(local(model_folder(family)))
    bank = random_bank(model, MlpBlockAdapter(), RANKS)
    ids = random_ids(model, 2)
    bank.save(1, tmp_path, str(model_folder(family)))

    adapted = load_mlp_block(transformers_model(model_folder(family)), tmp_path)
    assert not any(p.requires_grad for p in adapted.parameters())
    expected = logits_of_cell(model, ids, bank, 1)
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-4)
        with adapted.disable_adapter():
            disabled = adapted(ids).logits
        unadapted = transformers_model(model_folder(family))(ids).logits
    torch.testing.assert_close(disabled, unadapted)
    assert (disabled - expected).abs().max() > 0.1 * expected.abs().max()


def test_a_block_adapter_cannot_be_merged(block_bank, qwen3, tmp_path):
    _, bank = block_bank
    bank.save(0, tmp_path, "x")
    with pytest.raises(NotImplementedError, match="cannot be merged"):
        load_mlp_block(qwen3(), tmp_path).merge_and_unload()


def test_peft_saves_what_it_has_loaded_and_unloads_it(block_bank, qwen3, tmp_path):
    model, bank = block_bank
    (tmp_path / "pml").mkdir()
    bank.save(0, tmp_path / "pml", "x")
    adapted = load_mlp_block(qwen3(), tmp_path / "pml")
    adapted.save_pretrained(tmp_path / "peft")

    saved = load_file(tmp_path / "pml/adapter_model.safetensors")
    saved_again = load_file(tmp_path / "peft/adapter_model.safetensors")
    assert saved.keys() == saved_again.keys()
    assert all(torch.equal(saved[name], saved_again[name]) for name in saved)

    ids = random_ids(model, 2)
    torch.testing.assert_close(adapted.unload()(ids).logits, qwen3()(ids).logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float64", 1e-6)])
def test_a_block_adapter_on_a_model_of_another_dtype(model_folder, tmp_path, dtype, tolerance):
    model = load_model(local(model_folder("llama"), dtype=dtype))
    bank = random_bank(model, MlpBlockAdapter(), RANKS)
    bank.save(0, tmp_path, "x")

    plain = transformers_model(model_folder("llama"), getattr(torch, dtype))
    adapted = load_mlp_block(plain, tmp_path)
    ids = random_ids(model, 2)
    expected = logits_of_cell(model, ids, bank, 0)
    with torch.no_grad():
        difference = (adapted(ids).logits - expected).abs().max()
    assert difference <= tolerance * expected.abs().max()


def test_folders_and_models_that_do_not_fit_are_refused(model_folder, block_bank, qwen3, tmp_path):
    with pytest.raises(UserError, match="adapter_config"):
        load_mlp_block(qwen3(), tmp_path)

    model, bank = block_bank
    linear = LinearAdapter(targets=["q_proj", "v_proj"], layers=[1, 2], alpha=12.0)
    random_bank(model, linear).save(0, tmp_path, "x")
    with pytest.raises(UserError, match="PeftModel"):
        load_mlp_block(qwen3(), tmp_path)

    bank.save(0, tmp_path, "x")
    with pytest.raises(UserError, match="no module"):
        load_mlp_block(transformers_model(model_folder("gpt2")), tmp_path)
    with pytest.raises(UserError, match="layer=3"):
        mlp_block_config(qwen3(), 2, 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("adapter_config.json", text) for text in (b"", b"[]", b"\xff", b"[" * 9999)),
        *(("adapter_config.json", text) for text in (b'{"r": 2}', b'{"r": "2"}')),
        ("adapter_config.json", None),
        ("adapter_model.safetensors", b"no weights"),
        ("adapter_model.safetensors", None),
    ],
)
def test_a_damaged_folder_is_refused_in_a_line(block_bank, qwen3, tmp_path, name, content):
    _, bank = block_bank
    bank.save(0, tmp_path, "x")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        load_mlp_block(qwen3(), tmp_path)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"rank": "4"}, {"rank": True}, {"dropout": 2.0}])
def test_settings_out_of_range_are_refused(qwen3, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
        mlp_block_config(qwen3(), **{"rank": 2, "layer": 1} | wrong)


def test_two_block_adapters_on_one_model(block_bank, qwen3, tmp_path):
    model, bank = block_bank
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        bank.save(k, tmp_path / str(k), "x")
    adapted = load_mlp_block(qwen3(), tmp_path / "0")
    adapted.load_adapter(str(tmp_path / "1"), "second")

    ids = random_ids(model, 2)
    for name, k in (("second", 1), ("default", 0)):
        adapted.set_adapter(name)
        expected = logits_of_cell(model, ids, bank, k)
        with torch.no_grad():
            torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-4)


def block_layer(model, config):
    """The layer that PEFT puts around the block, with a random B."""
    adapted = peft.get_peft_model(model, config)
    layer = next(m for m in adapted.modules() if isinstance(m, MlpBlockLora))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    return adapted, layer


def test_dropout_falls_on_the_output_and_only_in_training(qwen3):
    model = qwen3()
    adapted, layer = block_layer(model, mlp_block_config(model, 2, 1, dropout=0.5))
    x = torch.randn(1, 40, 32)
    with torch.no_grad():
        adapted.eval()
        delta = layer(x) - layer.base_layer(x)
        adapted.train()
        dropped = layer(x) - layer.base_layer(x)

    survives = dropped.abs() > 1e-6
    assert 0.4 < survives.float().mean() < 0.6
    torch.testing.assert_close(dropped[survives], 2 * delta[survives], rtol=1e-3, atol=1e-4)


def test_scaling_is_alpha_over_rank(qwen3):
    model = qwen3()
    config = mlp_block_config(model, 2, 1)
    config.lora_alpha = 6
    _, layer = block_layer(model, config)
    x = torch.randn(1, 5, 32)
    A = layer.lora_A["default"].weight
    B = layer.lora_B["default"].weight
    expected = 3 * x @ A.T @ B.T
    torch.testing.assert_close(layer(x) - layer.base_layer(x), expected, rtol=1e-3, atol=1e-4)


def test_a_rank_below_one_is_refused(qwen3):
    model = qwen3()
    _, layer = block_layer(model, mlp_block_config(model, 2, 1))
    with pytest.raises(ValueError, match="r=0"):
        layer.update_layer("other", 0, 1, lora_dropout=0.0)

"""Adapters that PEFT has made, in a bank: the logits are those of PEFT's own model."""

import json
from collections import OrderedDict

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from pml_cli.config.schema import TINY, LinearAdapter
from pml_cli.errors import UserError
from pml_cli.evaluation.peft_adapter import bank_of, read_adapter
from pml_cli.evaluation.peft_folder import read_config
from pml_cli.model.adapter_bank import AdapterBank, Site

IDS = torch.tensor([[0, 5, 17, 99, 300, 42, 7]])


def save_random(folder, **settings):
    """Logits of a PEFT model with random weights, whose adapter is saved."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return adapted(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha_pattern": {"[": 1}}, "alpha_pattern=[: no pattern of module names"),
        ({"alpha_pattern": {"a{99999999999}": 1}}, "no pattern of module names"),
        # Would be tried for hours against the name of a module.
        ({"alpha_pattern": {"(.+)+x": 1}}, "no pattern of module names"),
        ({"lora_alpha": 1e308}, "too large to use"),
    ],
    ids=str,
)
def test_a_config_that_no_training_writes_is_refused(tmp_path, change, said):
    save_random(tmp_path, r=4, lora_alpha=8, target_modules=["v_proj"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError) as caught:
        read_adapter(tmp_path, read_config(tmp_path))
    assert said in caught.value.faults[0]


def test_patterns_as_people_write_them_are_taken(tmp_path):
    save_random(tmp_path, r=4, lora_alpha=8, target_modules=["v_proj"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for pattern in ("v_proj", r"model\.layers\.\d+\.self_attn\.v_proj", "^model.*v_proj$"):
        (tmp_path / "adapter_config.json").write_text(
            json.dumps(config | {"alpha_pattern": {pattern: 20}})
        )
        adapter = read_adapter(tmp_path, read_config(tmp_path))
        assert adapter.scale(next(iter(adapter.A))) > 0


def test_an_adapter_without_a_rank_is_refused(tmp_path):
    save_random(tmp_path, r=4, lora_alpha=8, target_modules=["v_proj"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor[:0] for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(UserError, match="is empty"):
        read_adapter(tmp_path, read_config(tmp_path))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (0, 0.0), (16, 4.0)])
def test_without_its_alpha_the_scale_is_that_of_peft(tmp_path, alpha, scale):
    save_random(tmp_path, r=4, lora_alpha=8, target_modules=["v_proj"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["lora_alpha"] = alpha
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapter = read_adapter(tmp_path, read_config(tmp_path))
    assert adapter.scale(next(iter(adapter.A))) == scale


def test_in_bfloat16_the_output_is_that_of_peft_to_the_last_bit():
    """It is rounded once, after the sum: ties and slim margins are decided alike."""
    torch.manual_seed(0)
    plain = nn.Sequential(OrderedDict(layer=nn.Linear(48, 40, dtype=torch.bfloat16)))
    bank = AdapterBank(
        sites={"layer": Site(name="layer", inputs=48, outputs=40)},
        settings=LinearAdapter(),
        ranks=[4],
        A={"layer": torch.randn(1, 48, 4)},
        B={"layer": torch.randn(1, 4, 40)},
        scale=torch.tensor([4.0]),
    )
    x = torch.randn(3, 7, 48, dtype=torch.bfloat16)
    with torch.no_grad(), bank.attached(dict(plain.named_modules())):
        ours = plain(x)

    adapted = get_peft_model(plain, LoraConfig(r=4, lora_alpha=16, target_modules=["layer"]))
    weights = dict(adapted.named_parameters())
    for matrix, values in (("A", bank.A), ("B", bank.B)):
        name = f"base_model.model.layer.lora_{matrix}.default.weight"
        weights[name].data = values["layer"][0].T.contiguous()
    with torch.no_grad():
        assert torch.equal(adapted(x), ours)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 8, "target_modules": ["v_proj"], "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 2},
            "alpha_pattern": {"up_proj": 6},
            "layers_to_transform": [2, 5],
        },
    ],
    ids=["usual", "rslora", "ranks and scales of their own"],
)
def test_the_logits_are_those_of_peft(tiny_base, tmp_path, settings):
    expected = save_random(tmp_path, **settings)
    adapter = read_adapter(tmp_path, read_config(tmp_path))
    bank = bank_of(tiny_base, adapter)
    with torch.no_grad():
        logits = tiny_base.logits(tiny_base.full(IDS, bank).last_hidden_state)
        plain = tiny_base.logits(tiny_base.full(IDS).last_hidden_state)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    # The adapter does something.
    assert (logits - plain).abs().max() > 0.1
    assert adapter.rank == 4

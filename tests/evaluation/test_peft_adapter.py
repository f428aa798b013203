"""Adapters that PEFT has made, in a bank: the logits are those of PEFT's own model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pml_cli.config.schema import TINY
from pml_cli.evaluation.peft_adapter import bank_of, read_adapter
from pml_cli.evaluation.peft_folder import read_config

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

"""Linear adapters against PEFT: it loads what pml saves, and trains to the same weights."""

import json

import peft
import pytest
import torch
from support.models import (
    initial_bank,
    local,
    logits_of_cell,
    random_bank,
    random_ids,
    transformers_model,
)
from torch.nn import functional as F

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Run, Train
from pml_cli.data.source import Sample
from pml_cli.data.sources.random import RandomData
from pml_cli.model.loading import load_model
from pml_cli.peft_block import mlp_block_config
from pml_cli.training.trainer import Cell, Trainer

LINEAR = {
    "qwen3": LinearAdapter(targets=["q_proj", "v_proj", "down_proj"], layers=[1, 2], alpha=12.0),
    "gpt2": LinearAdapter(targets=["c_attn", "c_fc"], layers=[0, 2], alpha=6.0),
}
RANKS = (4, 2)
SAMPLES = [
    Sample(prompt=(5, 9), target=(11, 3, 77, 50, 8)),
    Sample(prompt=(5,), target=(2, 99, 41)),
    Sample(prompt=(7, 7, 7), target=(60, 61, 62, 63)),
]


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("family", LINEAR)
def test_peft_loads_what_is_saved(model_folder, tmp_path, family, k):
    model = load_model(local(model_folder(family)))
    bank = random_bank(model, LINEAR[family], RANKS)
    ids = random_ids(model, 2)
    bank.save(k, tmp_path, str(model_folder(family)))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == RANKS[k]

    adapted = peft.PeftModel.from_pretrained(transformers_model(model_folder(family)), tmp_path)
    expected = logits_of_cell(model, ids, bank, k)
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-4)
        unadapted = transformers_model(model_folder(family))(ids).logits
        assert (unadapted - expected).abs().max() > 0.1
        merged = adapted.merge_and_unload()(ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-3)


def peft_model(folder, adapter, rank):
    """A model in float64 with an untrained adapter of PEFT."""
    model = transformers_model(folder, torch.float64)
    if isinstance(adapter, MlpBlockAdapter):
        return peft.get_peft_model(model, mlp_block_config(model, rank, 1))

    names = [site.name for site in load_model(local(folder)).sites(adapter)]
    config = peft.LoraConfig(
        r=rank, lora_alpha=adapter.alpha, target_modules=names, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def copy_initial_weights(bank, adapted):
    """Start PEFT's adapter from the bank's; B is zero in both."""
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_A" in name:
                site = name.removeprefix("base_model.model.").split(".lora_A")[0]
                assert parameter.dtype == torch.float64
                parameter.copy_(bank.A[site][0].T)


def peft_weights(adapted):
    state = peft.get_peft_model_state_dict(adapted)
    return {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}


def peft_step(adapted, optimizer):
    """One plain PyTorch step on SAMPLES: the mean nll over all target tokens, clipped at 1."""
    losses = []
    for sample in SAMPLES:
        ids = torch.tensor([[*sample.prompt, *sample.target]])
        logits = adapted(ids[:, :-1]).logits[0, len(sample.prompt) - 1 :]
        losses.append(F.cross_entropy(logits, torch.tensor(sample.target), reduction="none"))

    optimizer.zero_grad()
    torch.cat(losses).mean().backward()
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(trainable, 1.0)
    optimizer.step()


@pytest.mark.parametrize("kind", ["linear", "block"])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_training_is_that_of_peft_and_torch(model_folder, family, kind):
    """Three steps in float64, so that differences are not rounding.

    Qwen3's norms round to float32 all the same, and AdamW divides by tiny gradients.
    """
    tolerance = 1e-4 if family == "qwen3" else 1e-7
    adapter = LINEAR[family] if kind == "linear" else MlpBlockAdapter()
    model = load_model(local(model_folder(family), dtype="float64"))
    run = Run(
        rank=3,
        seqlen=12,
        seed=0,
        model=model.settings,
        data=RandomData(),
        adapter=adapter,
        train=Train(steps=3, lr=1e-2, schedule="constant", weight_decay=0.1, clip=1.0),
    )
    initial = initial_bank(model, adapter, [3])

    cell = Cell(run=run, samples=SAMPLES)
    Trainer(model, [cell]).train()

    adapted = peft_model(model_folder(family), adapter, 3)
    copy_initial_weights(initial, adapted)
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        peft_step(adapted, optimizer)

    assert sum(p.numel() for p in trainable) == cell.adapter.parameter_count(0)
    expected = peft_weights(adapted)
    for site in initial.sites:
        A = cell.adapter.A[site]
        B = cell.adapter.B[site]
        expected_A = expected[f"{site}.lora_A.weight"]
        expected_B = expected[f"{site}.lora_B.weight"]
        torch.testing.assert_close(A[0].T, expected_A, rtol=0, atol=tolerance)
        torch.testing.assert_close(B[0].T, expected_B, rtol=0, atol=tolerance)
        assert B.abs().max() > 0.01
        assert (A - initial.A[site]).abs().max() > 1e-3

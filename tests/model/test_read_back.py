"""What PEFT makes of a saved adapter is found out by PEFT, on the model itself."""

import json
from unittest.mock import Mock

import peft
import pytest
import torch
import transformers
from support.families import SMALL
from support.models import adapter_of, initial_bank, local, own_logits, random_bank, random_ids

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.model import read_back
from pml_cli.model.loading import load_model
from pml_cli.model.read_back import loading_of, reads_back

# PEFT renames the projections of this family's MLPs to those of fused experts.
GLM4_MOE = SMALL | {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
}


@pytest.fixture(scope="module")
def glm4_moe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glm4_moe")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("glm4_moe", **GLM4_MOE)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def state(model):
    """All that PEFT might leave behind, by identity."""
    attributes = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            content = [id(v) for v in value.values()] if isinstance(value, dict) else None
            attributes[name, key] = (id(value), content)
    return attributes


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("kind", ["linear", "mlp_block"])
def test_peft_reads_what_is_saved_and_the_model_is_as_before(model_folder, family, kind):
    model = load_model(local(model_folder(family)))
    bank = initial_bank(model, adapter_of(kind, family), [4, 2])
    ids = random_ids(model, 2)
    before = state(model.model), model.weights_hash(), own_logits(model, ids, bank)

    loading = loading_of(model, bank)
    assert loading.by_peft == (kind == "linear")
    assert loading.by_block == (kind == "mlp_block")
    assert loading.sites == tuple(bank.sites)
    assert not loading.returns_tuple

    assert state(model.model) == before[0]
    assert model.weights_hash() == before[1]
    assert torch.equal(own_logits(model, ids, bank), before[2])
    assert dict(model.model.named_modules()) == model.modules


def test_a_family_that_peft_misreads_is_found_out(glm4_moe):
    model = load_model(local(glm4_moe))
    before = state(model.model)
    # Loaded without an error, it answers as the base model.
    silent = initial_bank(model, LinearAdapter(targets=["shared_experts.down_proj"]), [2])
    loud = initial_bank(model, LinearAdapter(targets=["shared_experts.gate_proj"]), [2])
    attention = initial_bank(model, LinearAdapter(targets=["q_proj", "o_proj"]), [2])
    assert not loading_of(model, silent).by_peft
    assert not loading_of(model, loud).by_peft
    assert loading_of(model, attention).by_peft
    assert state(model.model) == before


def test_peft_refuses_what_it_would_misread_with_a_word_of_the_readme(glm4_moe, tmp_path):
    model = load_model(local(glm4_moe))
    bank = random_bank(model, LinearAdapter(targets=["shared_experts.down_proj"]))
    bank.save(0, tmp_path, "x", peft_type=loading_of(model, bank).peft_type)
    base = transformers.AutoModelForCausalLM.from_pretrained(glm4_moe)
    with pytest.raises(KeyError, match=r"README\.md in the adapter's folder has a script"):
        peft.PeftModel.from_pretrained(base, tmp_path)


def test_an_adapter_that_is_saved_wrongly_is_found_out(model_folder, monkeypatch):
    model = load_model(local(model_folder("llama")))
    bank = initial_bank(model, adapter_of("linear", "llama"), [3])
    assert reads_back(model, bank, read_back._load_plain, 0)
    # Half the scale.
    real = bank.save.__func__

    def save_wrongly(self, k, folder, path):
        real(self, k, folder, path)
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] / 2}))

    monkeypatch.setattr(type(bank), "save", save_wrongly)
    assert not reads_back(model, bank, read_back._load_plain, 0)


def test_a_streamed_model_is_tried_out_and_streamed_afterwards(model_folder):
    settings = local(model_folder("qwen3"), stream=True)
    model = load_model(settings)
    for adapter in (adapter_of("linear", "qwen3"), MlpBlockAdapter()):
        bank = initial_bank(model, adapter, [2])
        before = state(model.model)
        loader = read_back._load_block if bank.is_block else read_back._load_plain
        assert reads_back(model, bank, loader, 0)
        assert {key[0] for key in before} == {key[0] for key in state(model.model)}
        assert model.layers[0].mlp.up_proj.weight.is_meta
    ids = random_ids(model, 1)
    whole = load_model(local(model_folder("qwen3")))
    bank = random_bank(model, MlpBlockAdapter())
    same = random_bank(whole, MlpBlockAdapter())
    assert torch.equal(
        own_logits(model, ids, bank.select([0])), own_logits(whole, ids, same.select([0]))
    )


def test_it_is_tried_out_once(model_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PML_CACHE", str(tmp_path))
    model = load_model(local(model_folder("llama")))
    bank = initial_bank(model, adapter_of("linear", "llama"), [3])
    first = loading_of(model, bank)
    with monkeypatch.context() as patch:
        patch.setattr(read_back, "_try_out", lambda *_: pytest.fail("tried out again"))
        # Other ranks and weights are loaded in the same way.
        other = initial_bank(model, adapter_of("linear", "llama"), [5, 1])
        assert loading_of(model, other) == first

    (answer,) = (tmp_path / "read_back").iterdir()
    for damage in ("{", "[" * 100_000, '{"by_peft": "x", "by_block": true, "returns_tuple": 1}'):
        answer.write_text(damage)
        assert loading_of(model, bank) == first
        assert json.loads(answer.read_text())["by_peft"]


def test_a_gpu_that_fails_says_nothing_of_the_family(model_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PML_CACHE", str(tmp_path))
    model = load_model(local(model_folder("llama")))
    bank = initial_bank(model, adapter_of("linear", "llama"), [3])
    with monkeypatch.context() as patch:
        fault = torch.AcceleratorError("CUDA error: an illegal memory access")
        patch.setattr(peft.PeftModel, "from_pretrained", Mock(side_effect=fault))
        with pytest.raises(torch.AcceleratorError):
            loading_of(model, bank)
    assert loading_of(model, bank).by_peft


def test_trying_out_draws_no_random_numbers_of_the_caller(model_folder):
    model = load_model(local(model_folder("llama")))
    bank = initial_bank(model, adapter_of("linear", "llama"), [3])
    before = torch.random.get_rng_state()
    read_back._try_out(model, bank)
    assert torch.equal(torch.random.get_rng_state(), before)

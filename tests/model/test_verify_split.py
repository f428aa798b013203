"""Models whose split pass is right are accepted, others refused, in every dtype."""

from dataclasses import replace

import pytest
import torch
from support.families import FAMILIES
from support.marks import slow
from support.models import adapter_of, local, own_logits, random_bank, random_ids

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.errors import UserError
from pml_cli.model import families, modules
from pml_cli.model.loading import load_model
from pml_cli.model.verify_split import split_matches_full

DTYPES = [slow("float64"), "float32", "bfloat16", slow("float16")]
SEEDS = range(3)
MLP = MlpBlockAdapter()


def with_larger_matrices(model, factor):
    """The effect of rounding on the logits grows, compared with that of an adapter."""
    with torch.no_grad():
        for parameter in model.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
    return model


def test_a_head_that_does_more_than_its_weight_bias_and_cap_is_refused(model_folder):
    model = load_model(local(model_folder("llama")))
    model.model.lm_head.register_forward_hook(lambda _module, _inputs, output: output * 1.1)
    with pytest.raises(UserError, match="differs from the full one"):
        model.check_split(random_bank(model, MlpBlockAdapter()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_that_caps_its_logits_unnoticed_is_refused(model_folder, dtype):
    """The cap changes logits as small as these by less than 1 %."""
    model = load_model(local(model_folder("llama"), dtype=dtype))
    ids = random_ids(model, 2)
    largest = float(own_logits(model, ids, random_bank(model, MLP)).abs().max())
    cap = 8 * largest
    model.model.lm_head.register_forward_hook(
        lambda _module, _inputs, output: cap * torch.tanh(output / cap)
    )
    refused = not split_matches_full(model, random_bank(model, MLP), seed=0)
    # Where a number has few bits it cannot be told from rounding.
    assert refused == (dtype in ("float64", "float32"))


def test_attention_that_sees_later_tokens_is_refused(model_folder):
    model = load_model(local(model_folder("llama")))
    for layer in model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UserError, match="differs from the full one"):
        model.check_split(random_bank(model, MLP))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("family", "exact"), [("gemma2", True), ("lfm2", False), ("rwkv", False)])
def test_decoding_keeps_a_cache_where_that_is_exact(model_folder, family, exact, stream):
    model = load_model(local(model_folder(family), stream=stream))
    assert (model.new_cache() is not None) == exact


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [*FAMILIES, "glm4", "granite"])
def test_a_right_split_is_accepted(model_folder, family, dtype):
    """With every random adapter: a wrong refusal would lock a user out."""
    for factor in (0.3, 1, 4):
        model = load_model(local(model_folder(family), dtype=dtype))
        model = with_larger_matrices(model, factor)
        for kind in ("mlp_block", "linear"):
            bank = random_bank(model, adapter_of(kind, family))
            assert all(split_matches_full(model, bank, seed) for seed in SEEDS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["granite", "glm4"])
def test_a_wrong_split_is_refused(model_folder, monkeypatch, family, dtype):
    """Granite scales what an MLP adds, GLM-4 norms it; here both are overlooked.

    Linear adapters are not concerned.
    """
    overlooked = replace(families.GENERIC, post_mlp_norms=("post_feedforward_layernorm",))
    monkeypatch.setattr(families, "GENERIC", overlooked)
    monkeypatch.setattr(modules, "MLP_FACTORS", ())
    for factor in (0.3, 1, 4, 8):
        model = load_model(local(model_folder(family), dtype=dtype))
        model = with_larger_matrices(model, factor)
        linear = LinearAdapter(targets=["q_proj"], layers=[1])
        model.check_split(random_bank(model, linear))

        bank = random_bank(model, MlpBlockAdapter())
        assert not any(split_matches_full(model, bank, seed) for seed in SEEDS)
        with pytest.raises(UserError, match="adapter=mlp_block: its split forward pass differs"):
            model.check_split(bank)

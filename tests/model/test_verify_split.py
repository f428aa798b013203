"""Models whose split pass is right are accepted, others refused, in every dtype."""

from dataclasses import replace

import pytest
import torch
from support.families import FAMILIES
from support.models import adapter_of, local, random_bank

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.errors import UserError
from pml_cli.model import families, modules
from pml_cli.model.loading import load_model
from pml_cli.model.verify_split import split_matches_full

DTYPES = ["float64", "float32", "bfloat16", "float16"]
SEEDS = range(3)


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

"""The split forward pass against the model's own, family by family."""

import pytest
import torch
from support.families import FAMILIES
from support.models import T, adapter_of, local, own_logits, random_bank, random_ids

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.model.loading import load_model

# Relative to the largest logit, for float32.
ROUNDING = 3e-5

BOTH_ROWS = torch.tensor([0, 1])


def split_logits(model, prefix, bank):
    with torch.no_grad():
        return model.logits(model.upper(prefix, bank))


def assert_close(logits, expected, tolerance=ROUNDING):
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_split_equals_full(model_folder, family, kind):
    model = load_model(local(model_folder(family)))
    bank = random_bank(model, adapter_of(kind, family))
    model.check_split(bank)
    # Two rows for each of the two adapters, from a cache of three.
    unique = random_ids(model, 3)
    rows = torch.tensor([0, 2, 1, 1])
    ids = unique[rows]

    expected = own_logits(model, ids, bank)
    effect = (expected - model.model(input_ids=ids).logits).abs().max()
    assert effect > 0.03 * expected.abs().max()

    prefix = model.prefix(unique, bank, rows=2)
    assert_close(split_logits(model, prefix.rows(rows, T), bank), expected)
    with torch.no_grad():
        full = model.logits(model.full(ids, bank).last_hidden_state)
    assert_close(full, expected)


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shorter_prefixes_of_a_longer_cache(model_folder, family, kind):
    model = load_model(local(model_folder(family)))
    bank = random_bank(model, adapter_of(kind, family))
    ids = random_ids(model, 2)
    prefix = model.prefix(ids, bank)
    # Around the sliding window of 7.
    for tokens in (1, 6, 7, 8, 20):
        expected = own_logits(model, ids[:, :tokens], bank)
        assert_close(split_logits(model, prefix.rows(BOTH_ROWS, tokens), bank), expected)


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2"])
def test_gradients_of_the_split_pass_are_those_of_the_full_one(model_folder, family, kind):
    model = load_model(local(model_folder(family)))
    ids = random_ids(model, 2)
    bank = random_bank(model, adapter_of(kind, family)).requires_grad_()

    hidden = model.upper(model.prefix(ids, bank).rows(BOTH_ROWS, T), bank)
    split_grads = torch.autograd.grad(hidden.square().sum(), bank.parameters())
    full_hidden = model.full(ids, bank).last_hidden_state
    full_grads = torch.autograd.grad(full_hidden.square().sum(), bank.parameters())

    for split, full in zip(split_grads, full_grads, strict=True):
        assert (split - full).abs().max() <= 1e-3 * full.abs().max() + 1e-5


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    "adapter", [MlpBlockAdapter(), LinearAdapter(targets=["q_proj", "up_proj"])]
)
def test_the_first_and_the_last_layer(model_folder, layer, adapter):
    model = load_model(local(model_folder("qwen3"), layer=layer))
    bank = random_bank(model, adapter)
    ids = random_ids(model, 2)
    assert all(f"layers.{layer}." in name for name in bank.sites)
    assert model.first_layer(bank) == layer

    expected = own_logits(model, ids, bank)
    prefix = model.prefix(ids, bank)
    assert_close(split_logits(model, prefix.rows(BOTH_ROWS, T), bank), expected)


def test_glm4_in_float64(model_folder):
    """Its MLP's output is normed before it is added; the norms compute in float32."""
    model = load_model(local(model_folder("glm4"), dtype="float64"))
    bank = random_bank(model, MlpBlockAdapter())
    ids = random_ids(model, 2)
    expected = own_logits(model, ids, bank)
    assert_close(split_logits(model, model.prefix(ids, bank), bank), expected, 1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-6), ("bfloat16", 0.08), ("float16", 0.02)]
)
def test_other_dtypes(model_folder, dtype, tolerance):
    model = load_model(local(model_folder("llama"), dtype=dtype))
    assert model.dtype == getattr(torch, dtype)
    bank = random_bank(model, MlpBlockAdapter())
    ids = random_ids(model, 2)
    model.check_split(bank)

    expected = own_logits(model, ids, bank).double()
    logits = split_logits(model, model.prefix(ids, bank), bank).double()
    assert_close(logits, expected, tolerance)
    adapter_dtype = torch.float64 if dtype == "float64" else torch.float32
    assert {p.dtype for p in bank.parameters()} == {adapter_dtype}


def test_the_adapter_layer_is_at_two_thirds_of_the_depth(model_folder, tiny_base):
    assert load_model(local(model_folder("gpt2"), layer=None)).layer == 2
    assert len(tiny_base.layers) == 6
    assert tiny_base.layer == 4

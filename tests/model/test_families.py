"""Each record of a family against a model of transformers."""

import pytest
from support.families import FAMILIES, SMALL_MODELS
from support.models import local

from pml_cli.model import families
from pml_cli.model.dims import decoder_shape
from pml_cli.model.loading import load_model
from pml_cli.model.modules import find_post_mlp_norm


def test_every_record_has_a_small_model():
    assert set(SMALL_MODELS) == set(families.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_matrices_are_those_of_the_model(model_folder, family):
    """Names, sizes and biases of all matrices of a layer."""
    settings = local(model_folder(family))
    layer = load_model(settings).layers[0]
    shape = decoder_shape(settings)

    matrices = {name: m for name, m in layer.named_modules() if hasattr(m, "nf") or is_linear(m)}
    assert set(matrices) == set(shape.matrices)
    for name, module in matrices.items():
        sizes = {shape.matrices[name].inputs, shape.matrices[name].outputs}
        assert set(module.weight.shape) == sizes
        assert (module.bias is not None) == shape.family.linear_bias


def is_linear(module):
    return type(module).__name__ == "Linear"


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_the_model(model_folder, family):
    model = load_model(local(model_folder(family)))
    record = families.FAMILIES[family]
    assert isinstance(getattr(model.decoder, record.final_norms[0]), type(model.norm))

    has_norm = find_post_mlp_norm(model.layers[0], record) is not None
    generic_has_norm = find_post_mlp_norm(model.layers[0], families.GENERIC) is not None
    assert has_norm == generic_has_norm == record.norms_outputs
    names = {name.split(".")[-1] for name, _ in model.layers[0].named_modules()}
    assert ({"q_norm", "k_norm"} <= names) == record.norms_queries_and_keys


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_model(model_folder, family):
    settings = local(model_folder(family))
    weights = load_model(settings).model.named_parameters()
    counted = sum(p.numel() for name, p in weights if "norm" not in name and "ln_" not in name)
    assert decoder_shape(settings).parameters == counted


def test_families_without_a_record():
    assert families.family_of("llama") == families.FAMILIES["llama"]
    assert families.family_of("olmo7") == families.GENERIC

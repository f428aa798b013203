"""Sizes of a model from its config.json alone."""

import pytest
from support.families import FAMILIES, GPT2, SMALL

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.dims import Stage, decoder_shape, model_dims
from pml_cli.model.families import ModelFamily


def random_model(layer=None, **architecture):
    return Model(name="small", weights="random", architecture=architecture, layer=layer)


def test_field_names_of_llama_and_of_gpt2():
    llama = model_dims(random_model(**SMALL))
    gpt2 = model_dims(random_model(**GPT2))
    assert (llama.layers, llama.hidden, llama.vocabulary, llama.context) == (3, 32, 101, 256)
    assert gpt2 == llama


def test_the_text_part_of_a_multimodal_config():
    nested = random_model(model_type="llava", text_config=FAMILIES["llama"])
    assert model_dims(nested) == model_dims(random_model(**FAMILIES["llama"]))


def test_the_adapter_layer():
    dims = model_dims(random_model(**SMALL))
    assert dims.adapter_layer(0) == 0
    assert dims.adapter_layer(None) == 2


def test_a_layer_beyond_the_last_is_refused():
    assert model_dims(random_model(layer=2, **SMALL)).layers == 3
    with pytest.raises(UserError, match=r"model\.layer=3: small has layers 0 to 2"):
        model_dims(random_model(layer=3, **SMALL))


def test_a_config_without_a_size_is_refused():
    incomplete = {name: value for name, value in SMALL.items() if name != "hidden_size"}
    with pytest.raises(UserError, match="its config has no hidden_size"):
        model_dims(random_model(**incomplete))


def test_matrices_of_grouped_queries():
    """Four query heads and two key-value heads of size 8, hidden size 32."""
    shape = decoder_shape(random_model(model_type="llama", **SMALL))
    assert shape.matrices["self_attn.q_proj"] == (32, 32, Stage.QKV)
    assert shape.matrices["self_attn.k_proj"] == (32, 16, Stage.QKV)
    assert shape.matrices["mlp.down_proj"] == (48, 32, Stage.DOWN)
    assert isinstance(shape.family, ModelFamily)


@pytest.mark.parametrize(
    ("tied", "input_weights", "embedding_weights"),
    [(True, 0, 101 * 32), (False, 101 * 32, 2 * 101 * 32)],
)
def test_embeddings_that_the_head_shares(tied, input_weights, embedding_weights):
    model = random_model(model_type="llama", **SMALL, tie_word_embeddings=tied)
    shape = decoder_shape(model)
    assert shape.untied_input_weights == input_weights
    assert shape.embedding_weights == embedding_weights


def test_the_head_size_of_a_family_where_the_config_does_not_say():
    without_head_dim = {name: value for name, value in SMALL.items() if name != "head_dim"}
    qwen3 = decoder_shape(random_model(model_type="qwen3", **without_head_dim))
    llama = decoder_shape(random_model(model_type="llama", **without_head_dim))
    assert qwen3.query_width == 4 * 128
    assert llama.query_width == 32


def test_soft_caps():
    plain = decoder_shape(random_model(model_type="llama", **SMALL))
    assert plain.unfused_heads == 0
    assert not plain.softcaps_logits

    capped = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 0.5}
    shape = decoder_shape(random_model(model_type="llama", **SMALL, **capped))
    assert shape.unfused_heads == 4
    assert shape.softcaps_logits

"""Sizes of a model from its config.json alone."""

import pytest
from support.families import FAMILIES, GPT2, SMALL

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.dims import NO_LIMIT, Stage, decoder_shape, model_dims
from pml_cli.model.families import ModelFamily


def random_model(layer=None, model_type="llama", **architecture):
    architecture = {"model_type": model_type, **architecture}
    return Model(name="small", weights="random", architecture=architecture, layer=layer)


GPT_NEO = {
    "num_layers": 3,
    "num_heads": 4,
    "hidden_size": 32,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "attention_types": [[["global"], 3]],
}
FALCON = {"num_hidden_layers": 3, "hidden_size": 32, "vocab_size": 101}
BLOOM = {"n_layer": 3, "hidden_size": 32, "vocab_size": 101}
MPT = {"n_layers": 3, "d_model": 32, "vocab_size": 101, "max_seq_len": 256}


@pytest.mark.parametrize(
    ("family", "fields", "context"),
    [
        ("llama", SMALL, 256),
        ("gpt2", GPT2, 256),
        ("gpt_neo", GPT_NEO, 256),
        ("mpt", MPT, 256),
        # The default of its class.
        ("falcon", FALCON, 2048),
        # Neither learned positions nor RoPE.
        ("bloom", BLOOM, NO_LIMIT),
    ],
)
def test_field_names_of_the_families(family, fields, context):
    dims = model_dims(random_model(model_type=family, **fields))
    assert (dims.layers, dims.hidden, dims.vocabulary, dims.context) == (3, 32, 101, context)


def test_the_text_part_of_a_multimodal_config():
    nested = random_model(model_type="gemma3", text_config=FAMILIES["gemma3_text"])
    text = random_model(model_type="gemma3_text", **FAMILIES["gemma3_text"])
    assert model_dims(nested) == model_dims(text)
    assert decoder_shape(nested).query_width == decoder_shape(text).query_width == 32


def test_the_adapter_layer():
    dims = model_dims(random_model(**SMALL))
    assert dims.adapter_layer(0) == 0
    assert dims.adapter_layer(None) == 2


def test_a_layer_beyond_the_last_is_refused():
    assert model_dims(random_model(layer=2, **SMALL)).layers == 3
    with pytest.raises(UserError, match=r"model\.layer=3: small has layers 0 to 2"):
        model_dims(random_model(layer=3, **SMALL))


def test_a_family_without_such_sizes_is_refused():
    with pytest.raises(UserError, match="has no num_hidden_layers; the family encodec is not"):
        model_dims(random_model(model_type="encodec"))
    with pytest.raises(UserError, match=r"model\.architecture: prophetnet has an encoder"):
        model_dims(random_model(model_type="prophetnet"))
    # In the words of transformers, which differ by its version.
    with pytest.raises(UserError, match=r"model\.architecture: .*text"):
        model_dims(random_model(model_type="musicgen"))


def test_matrices_of_grouped_queries():
    """Four query heads and two key-value heads of size 8, hidden size 32."""
    shape = decoder_shape(random_model(**SMALL))
    assert shape.matrices["self_attn.q_proj"] == (32, 32, Stage.QKV)
    assert shape.matrices["self_attn.k_proj"] == (32, 16, Stage.QKV)
    assert shape.matrices["mlp.down_proj"] == (48, 32, Stage.DOWN)
    assert isinstance(shape.family, ModelFamily)


@pytest.mark.parametrize(
    ("tied", "input_weights", "embedding_weights"),
    [(True, 0, 101 * 32), (False, 101 * 32, 2 * 101 * 32)],
)
def test_embeddings_that_the_head_shares(tied, input_weights, embedding_weights):
    model = random_model(**SMALL, tie_word_embeddings=tied)
    shape = decoder_shape(model)
    assert shape.untied_input_weights == input_weights
    assert shape.embedding_weights == embedding_weights


def test_the_head_size_of_a_family_where_the_config_does_not_say():
    without_head_dim = {name: value for name, value in SMALL.items() if name != "head_dim"}
    qwen3 = decoder_shape(random_model(model_type="qwen3", **without_head_dim))
    llama = decoder_shape(random_model(**without_head_dim))
    assert qwen3.query_width == 4 * 128
    assert llama.query_width == 32


def test_soft_caps():
    plain = decoder_shape(random_model(**SMALL))
    assert plain.unfused_heads == 0
    assert not plain.softcaps_logits

    capped = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 0.5}
    shape = decoder_shape(random_model(**SMALL, **capped))
    assert shape.unfused_heads == 4
    assert shape.softcaps_logits

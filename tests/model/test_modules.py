"""Where adapters go: sites by layer and target."""

import pytest
from support.models import local

from pml_cli.config.schema import LinearAdapter
from pml_cli.errors import UserError
from pml_cli.model.loading import load_model


def test_all_layers_and_unsorted_layers(model_folder):
    model = load_model(local(model_folder("llama")))
    all_layers = model.sites(LinearAdapter(targets=["q_proj"], layers=[]))
    assert [s.name for s in all_layers] == [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]

    some_layers = model.sites(LinearAdapter(targets=["q_proj"], layers=[2, 0, 2]))
    names = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 2)]
    assert [s.name for s in some_layers] == names

    (k_proj,) = model.sites(LinearAdapter(targets=["k_proj"]))
    assert (k_proj.inputs, k_proj.outputs, k_proj.transposed) == (32, 16, False)


def test_weights_of_gpt2_are_stored_transposed(model_folder):
    model = load_model(local(model_folder("gpt2")))
    (c_fc,) = model.sites(LinearAdapter(targets=["c_fc"]))
    assert (c_fc.inputs, c_fc.outputs, c_fc.transposed) == (32, 128, True)

    # Of attention and of the MLP.
    assert len(model.sites(LinearAdapter(targets=["c_proj"]))) == 2
    (c_proj,) = model.sites(LinearAdapter(targets=["mlp.c_proj"]))
    assert c_proj.inputs == 128


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (LinearAdapter(targets=["q_prj"]), "adapter.targets=q_prj: did you mean 'q_proj'?"),
        (LinearAdapter(targets=["q_proj"], layers=[3]), "layers 0 to 2"),
        (LinearAdapter(targets=["q_proj"], layers=[-1]), "layers 0 to 2"),
        (LinearAdapter(targets=["input_layernorm"]), "allowed:"),
    ],
)
def test_sites_that_do_not_exist_are_refused(model_folder, adapter, message):
    model = load_model(local(model_folder("qwen3")))
    with pytest.raises(UserError, match="adapter") as caught:
        model.sites(adapter)
    assert message in str(caught.value)

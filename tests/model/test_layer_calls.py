"""Layers that are skipped, called and captured."""

import torch
from torch import nn

from pml_cli.model.layer_calls import LayerCall, captured, first_tensor, skipped


class Layer(nn.Module):
    """Adds a number to its input, and returns it in a tuple as some layers do."""

    def forward(self, hidden_states, number, *, sign=1):
        return (hidden_states + sign * number,)


def test_skipped_layers_return_their_input_and_their_calls_can_be_repeated():
    layers = [Layer(), Layer()]
    calls = []
    x = torch.zeros(1, 2, 3)
    with skipped(layers, calls):
        for layer in layers:
            assert layer(x, 2.0, sign=-1) is x

    assert [call.layer for call in calls] == layers
    assert torch.equal(calls[0](x), x - 2)
    # The layers' own forward is restored.
    assert torch.equal(layers[1](x, 2.0)[0], x + 2)


def test_layers_are_restored_after_an_error():
    layer = Layer()
    try:
        with skipped([layer]):
            raise KeyError
    except KeyError:
        pass
    assert "forward" not in vars(layer)


def test_captured_input_and_output():
    layer = Layer()
    x = torch.ones(1, 2, 3)
    tensors = {}
    with captured(layer, tensors, input_key="before", output_key="after"):
        LayerCall(layer=layer, args=(5.0,), kwargs={})(x)
    assert tensors["before"] is x
    assert torch.equal(tensors["after"], x + 5)

    # By keyword too, and nothing is captured outside.
    only_input = {}
    with captured(layer, only_input, input_key="before"):
        layer(hidden_states=x, number=1.0)
    layer(x, 1.0)
    assert only_input == {"before": x}


def test_hidden_states_of_an_output():
    x = torch.ones(2)
    assert first_tensor(x) is x
    assert first_tensor((x, None)) is x

"""Layers that are skipped, called and captured."""

import pytest
import torch
from torch import nn

from pml_cli.model.layer_calls import (
    LayerCall,
    OutputForm,
    captured,
    first_tensor,
    output_form,
    serves,
    skipped,
    with_first_tensor,
)


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


def test_an_output_keeps_its_form_where_its_hidden_states_change():
    x, y = torch.ones(2), torch.zeros(2)
    assert with_first_tensor(x, y) is y
    assert with_first_tensor((x, "scores"), y) == (y, "scores")
    assert with_first_tensor([x, None], y) == [y, None]


class Returning(nn.Module):
    """Returns its input in a form."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, hidden_states):
        return self.form(hidden_states)


@pytest.mark.parametrize(
    ("form", "kind", "length"),
    [
        (lambda x: x, None, 1),
        (lambda x: (x,), tuple, 1),
        (lambda x: (x, "cache", None), tuple, 3),
        (lambda x: [x, None], list, 2),
    ],
)
def test_skipped_layers_return_what_the_layers_do(form, kind, length):
    """Seen in a pass that ends with the first layer."""
    layers = [Returning(form), Returning(form)]
    x = torch.zeros(1, 2, 3)
    later = []

    def run():
        later.append(layers[1](layers[0](x)))

    seen = output_form(layers[0], run)
    assert seen == OutputForm(kind=kind, length=length)
    assert later == []
    # The hook is gone.
    assert first_tensor(layers[0](x)) is x

    with skipped(layers, form=seen):
        returned = layers[1](x)
    assert first_tensor(returned) is x
    assert type(returned) is type(form(x))
    assert kind is None or len(returned) == length


class AddsMask(nn.Module):
    def forward(self, hidden_states, mask):
        if mask.shape[0] not in (1, hidden_states.shape[0]):
            raise ValueError("mask of another batch")
        return hidden_states + mask


def test_arguments_of_one_row_serve_more_rows_where_they_broadcast():
    two_rows = torch.zeros(2, 4, 3)
    for mask, expected in [(torch.ones(1, 4, 1), True), (torch.ones(3, 4, 1), False)]:
        assert serves(LayerCall(layer=AddsMask(), args=(mask,), kwargs={}), two_rows) is expected

"""Single decoder layers: skip them, call them as the model does, capture their tensors.

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pml_cli.model.device import is_fault_of_machine


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """One decoder layer with the arguments that the model passes to it."""

    layer: nn.Module
    """The layer."""

    args: tuple[Any, ...]
    """Positional arguments after the hidden states."""

    kwargs: dict[str, Any]
    """Keyword arguments, such as the attention mask and the position embeddings."""

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        """Run the layer on hidden states, (B, T, D), and return its output in the same shape."""
        return first_tensor(self.layer(hidden_BTD, *self.args, **self.kwargs))


@torch.no_grad()
def serves(call: LayerCall, hidden_BTD: Tensor) -> bool:
    """Whether a layer can be called on these hidden states with the arguments of the call."""
    try:
        call(hidden_BTD)
    except (RuntimeError, ValueError) as error:
        if is_fault_of_machine(error):
            raise
        return False
    return True


def first_tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states, (B, T, D), of a module's output.

    Some layers return them in a tuple or list with more, some MLPs beside their router's scores.
    """
    return output[0] if isinstance(output, tuple | list) else output


def with_first_tensor(output: Any, hidden: Tensor) -> Any:
    """An output of a module with other hidden states, (B, T, D), in the form it has."""
    if isinstance(output, tuple | list):
        return type(output)([hidden, *output[1:]])
    return hidden


class OutputForm(NamedTuple):
    """What the layers of a model return: hidden states alone, or first of several values."""

    kind: type | None
    """tuple or list; None: the hidden states themselves."""

    length: int
    """Values of the tuple."""

    def wrap(self, hidden: Tensor) -> Any:
        """Hidden states as a layer would return them; the other values are None."""
        if self.kind is None:
            return hidden
        return self.kind([hidden, *[None] * (self.length - 1)])


TENSOR = OutputForm(kind=None, length=1)


class _SeenError(Exception):
    """Ends a forward pass that has shown what was to be seen."""


def output_form(layer: nn.Module, run: Callable[[], Any]) -> OutputForm:
    """What a layer returns, seen in a forward pass that ends with it.

    Args:
        layer: the layer.
        run: begins a forward pass of its model.
    """
    forms: list[OutputForm] = []

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, tuple | list):
            kind: type = tuple if isinstance(output, tuple) else list
            forms.append(OutputForm(kind=kind, length=len(output)))
        else:
            forms.append(TENSOR)
        raise _SeenError

    handle = layer.register_forward_hook(look)
    try:
        run()
    except _SeenError:
        pass
    finally:
        handle.remove()
    return forms[0]


@contextmanager
def skipped(
    layers: Iterable[nn.Module],
    calls: list[LayerCall] | None = None,
    form: OutputForm = TENSOR,
) -> Iterator[None]:
    """Make layers return their input unchanged while inside.

    Args:
        layers: decoder layers.
        calls: receives the arguments that each of them is called with.
        form: what the layers return.
    """
    layers = list(layers)
    try:
        for layer in layers:
            layer.forward = _identity_forward(layer, calls, form)
        yield
    finally:
        for layer in layers:
            del layer.forward


def _identity_forward(
    layer: nn.Module, calls: list[LayerCall] | None, form: OutputForm
) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if calls is not None:
            calls.append(LayerCall(layer=layer, args=args, kwargs=kwargs))
        return form.wrap(hidden_states)

    return forward


@contextmanager
def captured(
    module: nn.Module,
    tensors: dict[str, Tensor],
    *,
    input_key: str | None = None,
    output_key: str | None = None,
) -> Iterator[None]:
    """Keep the input and the output of a module, (B, T, D) each, while inside.

    Args:
        module: the module; it must run once.
        tensors: receives its first input and its output.
        input_key: key of the input; None: it is not kept.
        output_key: key of the output; None: it is not kept.
    """

    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if input_key is not None:
            tensors[input_key] = args[0] if args else kwargs["hidden_states"]
        if output_key is not None:
            tensors[output_key] = first_tensor(output)

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

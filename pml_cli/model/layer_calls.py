"""Single decoder layers: skip them, call them as the model does, capture their tensors.

Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


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


def first_tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states, (B, T, D), of a layer's output; some layers return them in a tuple."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def skipped(layers: Iterable[nn.Module], calls: list[LayerCall] | None = None) -> Iterator[None]:
    """Make layers return their input unchanged while inside.

    Args:
        layers: decoder layers.
        calls: receives the arguments that each of them is called with.
    """
    layers = list(layers)
    try:
        for layer in layers:
            layer.forward = _identity_forward(layer, calls)
        yield
    finally:
        for layer in layers:
            del layer.forward


def _identity_forward(layer: nn.Module, calls: list[LayerCall] | None) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if calls is not None:
            calls.append(LayerCall(layer=layer, args=args, kwargs=kwargs))
        return hidden_states

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

"""Decoder layers through torch.compile, which fuses what they compute between their products.

Between two products a layer of transformers normalises, rotates, gates and adds, each operation a
kernel of its own that reads and writes all hidden states. On a GPU these take as long as the
products. Fused, they read and write once.

Products and attention stay those of torch. Values are rounded to the model's dtype where the layer
itself rounds them, so that compiled and plain layers differ by the order of sums alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from pml_cli.model.faults import one_line
from pml_cli.model.layer_calls import LayerCall, first_tensor

# Variants of a layer that are compiled: with and without gradients, of one row or several, and by
# kind of attention.
MAX_VARIANTS = 64


def compiled(call: LayerCall) -> Callable[[Tensor], Tensor]:
    """The same call of a layer, compiled at its first use in this process.

    Layers of one kind, and inputs of any shape, share what was compiled.

    Args:
        call: of a layer that carries no adapter.

    Returns:
        A function of hidden states, (B, T, D), that raises UserError where torch cannot compile
        the layer.
    """

    def run(hidden_BTD: Tensor) -> Tensor:
        with one_line("model.compile=true", "torch.compile fails on a layer of this model"):
            return _compiled_layer()(call.layer, hidden_BTD, call.args, call.kwargs)

    return run


@cache
def _compiled_layer() -> Callable[..., Tensor]:
    # Takes seconds, which a process that compiles nothing does not spend.
    import torch._dynamo

    # Advice about settings that are pml's, such as TensorFloat-32.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, MAX_VARIANTS)
    options: dict[str, Any] = {"emulate_precision_casts": True}
    function: Callable[..., Tensor] = torch.compile(_run_layer, dynamic=True, options=options)
    return function


def _run_layer(
    layer: nn.Module, hidden_BTD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    return first_tensor(layer(hidden_BTD, *args, **kwargs))

"""Decoder layers through torch.compile, which fuses what they compute between their products.

Between two products a layer of transformers normalises, rotates, gates and adds, each operation a
kernel of its own that reads and writes all hidden states. On a GPU these take as long as the
products. Fused, they read and write once.

Products and attention stay those of torch. Values are rounded to the model's dtype where the layer
itself rounds them, so that compiled and plain layers differ by the order of sums alone.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pml_cli.errors import UserError
from pml_cli.model.device import is_fault_of_machine
from pml_cli.model.faults import error_line
from pml_cli.model.layer_calls import LayerCall, first_tensor

SETTING = "model.compile=true"

# Variants of a layer that are compiled: with and without gradients, of one row or several, and by
# kind of attention. Beyond torch's own limit a layer would silently run as it is.
MAX_VARIANTS = 64


def check_compiler(device: torch.device) -> None:
    """Refuse a machine on which torch.compile would find no compiler.

    Raises:
        UserError: names what is missing.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UserError(f"{SETTING}: torch.compile needs Triton on a GPU, and it is missing")
        # Triton launches its kernels with what it compiles by one of these.
        compilers = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    else:
        default = "clang++" if sys.platform == "darwin" else "g++"
        compilers = [os.environ.get("CXX") or default]
    names = [name for name in compilers if name]
    if not any(shutil.which(name) for name in names):
        raise UserError(f"{SETTING}: needs a compiler, and there is no {' or '.join(names)}")


def compiled(call: LayerCall) -> Callable[[Tensor], Tensor]:
    """The same call of a layer, compiled at its first use in this process.

    Layers of one kind, and inputs of any shape, share what was compiled. Raises torch's limit of
    variants for the whole process, and silences the advice of its compiler.

    Args:
        call: of a layer that carries no adapter and has its weights.

    Returns:
        A function of hidden states, (B, T, D), that raises UserError where torch cannot compile
        the layer.
    """

    def run(hidden_BTD: Tensor) -> Tensor:
        function = _compiled_layer()
        # Takes seconds, which a process that compiles nothing does not spend.
        from torch._dynamo import config
        from torch._dynamo.exc import TorchDynamoException

        # The limit is each thread's own.
        config.recompile_limit = max(config.recompile_limit, MAX_VARIANTS)
        try:
            return function(call.layer, hidden_BTD, call.args, call.kwargs)
        except TorchDynamoException as error:
            if is_fault_of_machine(error):
                raise
            reason = f"torch.compile fails on a layer of this model ({error_line(error)})"
            raise UserError(f"{SETTING}: {reason}") from error

    return run


@cache
def _compiled_layer() -> Callable[..., Tensor]:
    # Advice about settings that are pml's, such as TensorFloat-32.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
    options: dict[str, Any] = {"emulate_precision_casts": True}
    function: Callable[..., Tensor] = torch.compile(_run_layer, dynamic=True, options=options)
    return function


def _run_layer(
    layer: nn.Module, hidden_BTD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    # Without the hooks of a streamed layer, which would have each layer compiled by itself.
    return first_tensor(layer.forward(hidden_BTD, *args, **kwargs))

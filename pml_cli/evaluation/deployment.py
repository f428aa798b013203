"""Adapters as they are deployed: rounded, merged, on a rounded base, in bfloat16.

Shapes: K cells, R largest rank, I inputs and O outputs of a module, N tokens of a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pml_cli.evaluation.conditions import Condition
from pml_cli.evaluation.quantize import ROUNDINGS, Rounding, to_bfloat16
from pml_cli.model.adapter_bank import AdapterBank, ForwardHook
from pml_cli.model.head import Head
from pml_cli.model.split_model import SplitModel


def is_mergeable(bank: AdapterBank) -> bool:
    """Whether the adapters can be added to weights of the base: not those beside a whole MLP."""
    return not bank.is_block


def deploy(base: SplitModel, bank: AdapterBank, condition: Condition) -> AdapterBank:
    """The adapters under a condition.

    Args:
        base: the model as the condition has it: rounded, or in bfloat16.
        bank: the adapters as trained.
        condition: what becomes of them.
    """
    if condition.merged:
        dtype = torch.bfloat16 if condition.bf16 else None
        return MergedBank(base, bank, condition.merged_weights, dtype)
    if condition.bf16:
        return bf16_bank(bank)
    if condition.adapter:
        return rounded_bank(bank, ROUNDINGS[condition.adapter])
    return bank


def rounded_bank(bank: AdapterBank, rounding: Rounding) -> AdapterBank:
    """A copy with A and B rounded; a column of A (one of R) and of B (one of O) is an output channel."""
    return _converted(bank, lambda weight_KIO: rounding(weight_KIO, 1))


def bf16_bank(bank: AdapterBank) -> AdapterBank:
    """A copy whose weights and arithmetic are bfloat16.

    The scale alpha / rank, which need not be a bfloat16 number, goes into B.
    """
    converted = _converted(bank, lambda weight_KIO: to_bfloat16(weight_KIO, 1))
    scale = converted.scale[:, None, None]
    converted.A = {name: A.bfloat16() for name, A in converted.A.items()}
    converted.B = {name: (B * scale).bfloat16() for name, B in converted.B.items()}
    converted.scale = torch.ones_like(converted.scale, dtype=torch.bfloat16)
    return converted


def _converted(bank: AdapterBank, convert: Callable[[Tensor], Tensor]) -> AdapterBank:
    converted = bank.select(range(len(bank)))
    converted.A = {name: convert(A) for name, A in converted.A.items()}
    converted.B = {name: convert(B) for name, B in converted.B.items()}
    return converted


class MergedBank(AdapterBank):
    """Adapters merged into their modules' weights: each cell has matrices of its own, W + scale A B.

    Attributes:
        matrices: of each module the merged matrices, (K, I, O), and its bias, (O,).
    """

    def __init__(
        self,
        base: SplitModel,
        bank: AdapterBank,
        rounding: str = "",
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            base: holds the weights that the adapters are added to.
            bank: adapters of linear modules.
            rounding: type that the merged matrices are rounded to; empty: they are not.
            dtype: of their arithmetic; None: the adapters' own.
        """
        super().__init__(
            sites=bank.sites,
            settings=bank.settings,
            ranks=bank.ranks,
            A=bank.A,
            B=bank.B,
            scale=bank.scale,
        )
        self.matrices: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, site in bank.sites.items():
            module: Any = base.modules[name]
            weight_IO = module.weight if site.transposed else module.weight.T
            A = bank.A[name]
            merged_KIO = weight_IO.to(A.dtype) + A @ (bank.B[name] * bank.scale[:, None, None])
            if rounding:
                merged_KIO = ROUNDINGS[rounding](merged_KIO, 1)

            bias_O = getattr(module, "bias", None)
            if bias_O is not None:
                bias_O = bias_O.to(dtype or A.dtype)
            self.matrices[name] = (merged_KIO.to(dtype or A.dtype), bias_O)

    def output_hook(self, name: str) -> ForwardHook:
        """The forward hook of one module, which replaces its output by that of the merged matrices."""
        merged_KIO, bias_O = self.matrices[name]

        def replace(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            x_KNI = inputs[0].reshape(len(self), -1, inputs[0].shape[-1]).to(merged_KIO.dtype)
            y_KNO: Tensor = x_KNI @ merged_KIO
            if bias_O is not None:
                y_KNO = y_KNO + bias_O
            return y_KNO.view(output.shape).to(output.dtype)

        return replace


def merged_bytes(bank: AdapterBank) -> int:
    """Memory of one cell's merged matrices; 0 if the adapters cannot be merged."""
    if not is_mergeable(bank):
        return 0
    element = next(iter(bank.A.values())).element_size()
    return sum(site.inputs * site.outputs * element for site in bank.sites.values())


@contextmanager
def rounded_base(base: SplitModel, rounding: str) -> Iterator[None]:
    """The base with rounded weights while inside.

    bfloat16 rounds every weight. Integers round the matrices of the decoder layers, not the embeddings, the head and the
    norms, as is usual where models are quantised.
    """
    if rounding == "bfloat16":
        input_dims = dict.fromkeys(base.model.parameters(), 0)
    else:
        input_dims = _layer_matrices(base)
    original = [(parameter, parameter.data) for parameter in input_dims]
    try:
        for parameter, input_dim in input_dims.items():
            parameter.data = ROUNDINGS[rounding](parameter.data, input_dim)
        yield
    finally:
        for parameter, data in original:
            parameter.data = data


def _layer_matrices(base: SplitModel) -> dict[nn.Parameter, int]:
    """The matrices of the decoder layers, with the dimension that their product sums over."""
    input_dims: dict[nn.Parameter, int] = {}
    for layer in base.layers:
        for module in layer.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.dim() == 2:
                # GPT-2's Conv1D stores (in, out).
                input_dims[weight] = 1 if isinstance(module, nn.Linear) else 0
    return input_dims


def float32_head(base: SplitModel) -> Head:
    """The model's head in float32: the same weights, logits without rounding to the model's dtype."""
    head = base.head
    bias_V = None if head.bias_V is None else head.bias_V.float()
    return head._replace(weight_VD=head.weight_VD.float(), bias_V=bias_V)

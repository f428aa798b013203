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
    # Merging comes first: in bfloat16 it is into weights that are bfloat16 already.
    if condition.merged:
        dtype = torch.bfloat16 if condition.bf16 else None
        return MergedBank(base, bank, condition.merged_weights, dtype)

    if condition.bf16:
        return bf16_bank(bank)
    if condition.adapter:
        return rounded_bank(bank, ROUNDINGS[condition.adapter])
    return bank


def rounded_bank(bank: AdapterBank, rounding: Rounding) -> AdapterBank:
    """A copy with A and B rounded, both by output channel: columns of A (R) and of B (O)."""
    return _converted(bank, lambda weight_KIO: rounding(weight_KIO, 1))


def bf16_bank(bank: AdapterBank) -> AdapterBank:
    """A copy whose weights and arithmetic are bfloat16.

    The scale alpha / rank, which need not be a bfloat16 number, goes into B.
    """
    converted = _converted(bank, lambda weight_KIO: to_bfloat16(weight_KIO, 1))
    scale = converted.scale[:, None, None]

    for name in converted.sites:
        converted.A[name] = converted.A[name].bfloat16()
        converted.B[name] = (converted.B[name] * scale).bfloat16()
    converted.scale = torch.ones_like(converted.scale, dtype=torch.bfloat16)
    return converted


def _converted(bank: AdapterBank, convert: Callable[[Tensor], Tensor]) -> AdapterBank:
    """A copy of the bank with every matrix converted, each (K, I, O)."""
    converted = bank.select(range(len(bank)))
    for name in converted.sites:
        converted.A[name] = convert(converted.A[name])
        converted.B[name] = convert(converted.B[name])
    return converted


class MergedBank(AdapterBank):
    """Adapters merged into their modules' weights: W + scale A B, for each cell.

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
            dtype: they are stored and multiplied in; None: that of the base's weights, as after
                PEFT's merge.
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
            scaled_B = bank.B[name] * bank.scale[:, None, None]
            merged_KIO = weight_IO.to(A.dtype) + A @ scaled_B

            # What is stored is rounded, whatever the dtype of the product.
            if rounding:
                merged_KIO = ROUNDINGS[rounding](merged_KIO, 1)

            arithmetic = dtype or weight_IO.dtype
            bias_O = getattr(module, "bias", None)
            if bias_O is not None:
                bias_O = bias_O.to(arithmetic)
            self.matrices[name] = (merged_KIO.to(arithmetic), bias_O)

    def output_hook(self, name: str) -> ForwardHook:
        """The forward hook of one module: its output becomes that of the merged matrices."""
        merged_KIO, bias_O = self.matrices[name]

        def replace(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            x: Tensor = inputs[0]
            x_KNI = x.reshape(len(self), -1, x.shape[-1])
            y_KNO = x_KNI.to(merged_KIO.dtype) @ merged_KIO
            if bias_O is not None:
                y_KNO = y_KNO + bias_O
            return y_KNO.view(output.shape).to(output.dtype)

        return replace


def merged_bytes(bank: AdapterBank) -> int:
    """Memory of one cell's merged matrices; 0 if the adapters cannot be merged."""
    if not is_mergeable(bank):
        return 0

    weights = 0
    for site in bank.sites.values():
        weights += site.inputs * site.outputs
    return weights * next(iter(bank.A.values())).element_size()


@contextmanager
def rounded_base(base: SplitModel, rounding: str) -> Iterator[None]:
    """The base with rounded weights while inside.

    bfloat16 rounds every weight. Integers round the matrices of the decoder layers, not the
    embeddings, the head and the norms, as is usual where models are quantised.
    """
    if rounding == "bfloat16":
        # Each weight is rounded by itself: any dimension serves.
        input_dims = dict.fromkeys(base.model.parameters(), 0)
    else:
        input_dims = _layer_matrices(base)

    # Only the data changes hands: hooks, ties and the split model keep their parameters.
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
    """The model's head in float32: the same weights, but logits that are not rounded."""
    head = base.head
    bias_V = None if head.bias_V is None else head.bias_V.float()
    return head._replace(weight_VD=head.weight_VD.float(), bias_V=bias_V)

"""Adapters as they are deployed: rounded, merged, on a rounded base, in bfloat16; scored as in training, in banks.

Shapes: K cells, I inputs and O outputs of a module, R largest rank, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pml_cli.data.source import Sample
from pml_cli.evaluation.conditions import Condition
from pml_cli.evaluation.quantize import Rounding, to_bfloat16, to_int4, to_int8
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import Head, token_nll
from pml_cli.model.split_model import SplitModel
from pml_cli.training.batches import PackData
from pml_cli.training.scores import Scores, concatenate
from pml_cli.training.scoring import split_scores

TOKENS = 16384  # at once, as in an evaluation
ROUNDINGS: dict[str, Rounding] = {"bfloat16": to_bfloat16, "int8": to_int8, "int4": to_int4}


class Forced:
    """Teacher-forced scores of a chunk of cells on one base; what lies below the adapters is computed once."""

    def __init__(
        self, base: SplitModel, bank: AdapterBank, cells: Sequence[Sequence[Sample]]
    ) -> None:
        self.base, self.data = base, PackData(cells, base.device)
        self.prefix = base.prefix(self.data.ids[:, :-1], bank)

    @torch.no_grad()
    def scores(self, bank: AdapterBank, precise_head: bool = False) -> list[Scores]:
        """Of each cell under its adapter.

        Args:
            precise_head: logits in float32, from hidden states and a head as they are.
        """
        head, parts = self.base.head, [[] for _ in self.data.cells]  # type: tuple[Head, list[list[Scores]]]
        if precise_head:
            head = Head(
                head.weight_VD.float(),
                None if head.bias_V is None else head.bias_V.float(),
                head.cap,
            )
        size = max(1, TOKENS // (len(bank) * self.data.ids.shape[1]))
        for start in range(0, max(len(cell) for cell in self.data.cells), size):
            batch = [cell[start : start + size] for cell in self.data.cells]
            layout = self.data.layout(batch)
            hidden = self.base.upper(self.prefix.rows(layout.rows, layout.tokens), bank).flatten(
                0, 1
            )[layout.scored]
            scored = token_nll(hidden.to(head.weight_VD.dtype), head, layout.targets)
            for part, scores in zip(parts, split_scores(layout, scored, batch), strict=True):
                part.append(scores)
        return [concatenate(part) for part in parts]


def mergeable(bank: AdapterBank) -> bool:
    """Whether the adapters can be added to weights of the base: not those beside a whole MLP."""
    return not bank.is_block


def deployed(base: SplitModel, bank: AdapterBank, condition: Condition) -> AdapterBank:
    """The bank as a condition has it, for a base that is as the condition has it."""
    if condition.merged:
        return MergedBank(base, bank, condition.after, torch.bfloat16 if condition.half else None)
    if condition.half:
        return half(bank)
    return rounded_bank(bank, ROUNDINGS[condition.adapter]) if condition.adapter else bank


def rounded_bank(bank: AdapterBank, rounding: Rounding) -> AdapterBank:
    """A and B rounded: a column of A is an output channel (one of R), and so is a column of B (one of O)."""
    return _changed(bank, lambda weight_KIO: rounding(weight_KIO, 1))


def half(bank: AdapterBank) -> AdapterBank:
    """A bank whose weights and arithmetic are bfloat16; the scale alpha / rank, which may be no such number, goes into B."""
    part = _changed(bank, lambda weight: to_bfloat16(weight, 1))
    part.A = {name: A.bfloat16() for name, A in part.A.items()}
    part.B = {name: (B * part.scale[:, None, None]).bfloat16() for name, B in part.B.items()}
    part.scale = torch.ones_like(part.scale, dtype=torch.bfloat16)
    return part


def _changed(bank: AdapterBank, change: Callable[[Tensor], Tensor]) -> AdapterBank:
    part = bank.select(range(len(bank)))
    part.A = {name: change(A) for name, A in part.A.items()}
    part.B = {name: change(B) for name, B in part.B.items()}
    return part


class MergedBank(AdapterBank):
    """Adapters that have become part of their modules' weights: each cell has matrices of its own, W + scale A B."""

    def __init__(
        self, base: SplitModel, bank: AdapterBank, after: str = "", dtype: torch.dtype | None = None
    ) -> None:
        """`after`: the rounding of the merged matrices; `dtype`: of their arithmetic, None: the adapters' own."""
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
            A, B = bank.A[name], bank.B[name]
            merged_KIO = weight_IO.to(A.dtype) + A @ (B * bank.scale[:, None, None])
            if after:
                merged_KIO = ROUNDINGS[after](merged_KIO, 1)
            bias = getattr(module, "bias", None)
            self.matrices[name] = (
                merged_KIO.to(dtype or A.dtype),
                None if bias is None else bias.to(dtype or A.dtype),
            )

    def output_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        merged_KIO, bias_O = self.matrices[name]

        def replaced(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            y = (
                inputs[0].reshape(len(self), -1, inputs[0].shape[-1]).to(merged_KIO.dtype)
                @ merged_KIO
            )
            out: Tensor = y if bias_O is None else y + bias_O
            return out.view(output.shape).to(output.dtype)

        return replaced


def merged_bytes(bank: AdapterBank) -> int:
    """Memory of one cell's merged matrices."""
    size = next(iter(bank.A.values())).element_size()
    return (
        sum(site.inputs * site.outputs * size for site in bank.sites.values())
        if mergeable(bank)
        else 0
    )


@contextmanager
def rounded_base(base: SplitModel, rounding: str) -> Iterator[None]:
    """The base with rounded weights while inside.

    bfloat16: every weight. Integers: the matrices of the decoder layers, not the embeddings, the head and the norms, as is
    usual where models are quantised.
    """
    chosen: dict[nn.Parameter, int] = {}  # and the dimension that is summed over
    if rounding == "bfloat16":
        chosen = dict.fromkeys(base.model.parameters(), 0)
    else:
        for layer in base.layers:
            for module in layer.modules():
                weight = getattr(module, "weight", None)
                if isinstance(weight, nn.Parameter) and weight.dim() == 2:
                    chosen[weight] = (
                        1 if isinstance(module, nn.Linear) else 0
                    )  # GPT-2's Conv1D stores (in, out)
    kept = [(parameter, parameter.data) for parameter in chosen]
    try:
        for parameter, inputs in chosen.items():
            parameter.data = ROUNDINGS[rounding](parameter.data, inputs)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data

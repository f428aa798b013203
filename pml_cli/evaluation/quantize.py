"""Weights as they are stored when they are deployed: bfloat16, or integers of few bits with a scale for each output channel.

The values are rounded and stay in the type they had, so that what is measured is the rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rounding = Callable[
    [Tensor, int], Tensor
]  # a matrix, or a stack of them, and the dimension that is summed over in a product


def to_bfloat16(weight: Tensor, inputs: int) -> Tensor:
    """Each weight by itself to the nearest number with 8 significant bits."""
    return weight.to(torch.bfloat16).to(weight.dtype)


def to_int8(weight: Tensor, inputs: int) -> Tensor:
    """To -127..127 times the largest weight of its output channel / 127."""
    return to_levels(weight, inputs, 127)


def to_int4(weight: Tensor, inputs: int) -> Tensor:
    """To -7..7 times the largest weight of its output channel / 7."""
    return to_levels(weight, inputs, 7)


def to_levels(weight: Tensor, inputs: int, levels: int) -> Tensor:
    """Symmetric absmax rounding: q = round(w / s), s = max |w| over `inputs` / levels; a half goes to the even neighbour.

    Args:
        inputs: the dimension summed over in a product; what remains are the output channels, with a scale each.
    """
    precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = precise.abs().amax(inputs, keepdim=True) / levels
    whole = torch.round(precise / torch.where(scale > 0, scale, 1.0)).clamp(-levels, levels)
    return (whole * scale).to(weight.dtype)

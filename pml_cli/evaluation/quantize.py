"""Rounding of weights as they are stored when deployed: bfloat16, or integers with a scale.

The values are rounded and keep their dtype, so that what is measured is the rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rounding = Callable[[Tensor, int], Tensor]
"""(weight, input_dim) -> rounded weight; see `to_levels`."""

# Largest integers of symmetric int8 and int4.
INT8_LEVELS = 127
INT4_LEVELS = 7


def to_bfloat16(weight: Tensor, input_dim: int) -> Tensor:
    """Each weight rounded to 8 significant bits; `input_dim` does not matter."""
    return weight.to(torch.bfloat16).to(weight.dtype)


def to_int8(weight: Tensor, input_dim: int) -> Tensor:
    """Rounded to 255 levels for each output channel; see `to_levels`."""
    return to_levels(weight, input_dim, INT8_LEVELS)


def to_int4(weight: Tensor, input_dim: int) -> Tensor:
    """Rounded to 15 levels for each output channel; see `to_levels`."""
    return to_levels(weight, input_dim, INT4_LEVELS)


def to_levels(weight: Tensor, input_dim: int, levels: int) -> Tensor:
    """Symmetric absmax rounding: q = round(w / s), s = max |w| / levels of each output channel.

    A half is rounded to the even neighbour.

    Args:
        weight: a matrix, or a stack of matrices.
        input_dim: the dimension that a product sums over; the other dimensions are output channels.
        levels: the largest integer.
    """
    # Half precision would round the quotient before it is rounded to an integer.
    precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = precise.abs().amax(input_dim, keepdim=True) / levels

    # A channel of zeros stays zero.
    divisor = torch.where(scale > 0, scale, 1.0)
    # torch.round goes to the even neighbour, as inference kernels do.
    integers = torch.round(precise / divisor).clamp(-levels, levels)
    return (integers * scale).to(weight.dtype)


ROUNDINGS: dict[str, Rounding] = {"bfloat16": to_bfloat16, "int8": to_int8, "int4": to_int4}

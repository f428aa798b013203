"""Gradient clipping over a bank of adapters, each cell with a largest norm of its own.

Shapes: K cells; a parameter of the bank is (K, ..., ...), one slice a cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# As in torch.nn.utils.clip_grad_norm_.
CLIP_EPS = 1e-6


@torch.no_grad()
def clip_grad_norm_(grads: Sequence[Tensor], max_norm_K: Tensor) -> Tensor:
    """Clip each cell's gradient to its largest norm, as torch.nn.utils.clip_grad_norm_ does.

    Args:
        grads: gradients of the bank's parameters, one slice a cell.
        max_norm_K: largest norm of each cell, (K,); infinity: no clipping.

    Returns:
        Norm of each cell's gradient before clipping, (K,).
    """
    squares = [grad.flatten(1).square().sum(1) for grad in grads]
    norm_K = torch.stack(squares).sum(0).sqrt()
    factor_K = (max_norm_K / (norm_K + CLIP_EPS)).clamp(max=1.0)

    for grad in grads:
        grad.mul_(factor_K[:, None, None])
    return norm_K

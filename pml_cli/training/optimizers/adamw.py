"""AdamW over a bank of adapters, each cell with settings of its own.

Shapes: K cells; a parameter of the bank is (K, ..., ...), one slice a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.training.optimizers.base import Optimizer

BETA_1 = 0.9
BETA_2 = 0.999
EPS = 1e-8


class AdamW(Optimizer):
    """AdamW with a learning rate and a weight decay for each cell.

    torch's fused AdamW has one learning rate for a whole tensor; the cells of a bank share tensors.
    Decoupled weight decay; equal to torch.optim.AdamW with its default betas and eps.

    Attributes:
        step_count: steps taken.
        m: running mean of the gradient of each parameter, in the parameter's shape.
        v: running mean of its square.
        weight_decay: weight decay of each cell, (K,).
    """

    def __init__(self, bank: AdapterBank, weight_decay: Tensor) -> None:
        """Start with zero moments.

        Args:
            bank: the adapters to be trained.
            weight_decay: weight decay of each cell, (K,).
        """
        self.step_count = 0
        self.weight_decay = weight_decay
        self.m = [torch.zeros_like(parameter) for parameter in bank.parameters()]
        self.v = [torch.zeros_like(parameter) for parameter in bank.parameters()]

    @torch.no_grad()
    def step(
        self,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        lr_K: Tensor,
        loss_K: Tensor,
    ) -> None:
        """One update; see `Optimizer.step`. The loss is not read."""
        self.step_count += 1
        lr = lr_K[:, None, None]
        decay = 1 - lr * self.weight_decay[:, None, None]
        debias_m = 1 - BETA_1**self.step_count
        root_debias_v = math.sqrt(1 - BETA_2**self.step_count)

        for p, g, m, v in zip(parameters, grads, self.m, self.v, strict=True):
            m.lerp_(g, 0.1)
            v.mul_(BETA_2).addcmul_(g, g, value=0.001)
            denominator = v.sqrt().div_(root_debias_v).add_(EPS)
            update = m / denominator * (lr / debias_m)
            p.mul_(decay).sub_(update)

    def retain_cells(self, cells: Sequence[int]) -> None:
        index = torch.tensor(cells, device=self.weight_decay.device)
        self.m = [m[index] for m in self.m]
        self.v = [v[index] for v in self.v]
        self.weight_decay = self.weight_decay[index]

    def state(self) -> dict[str, Tensor]:
        moments = {f"m.{i}": m for i, m in enumerate(self.m)}
        return moments | {f"v.{i}": v for i, v in enumerate(self.v)}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self.step_count = step
        self.m = [tensors[f"m.{i}"] for i in range(len(self.m))]
        self.v = [tensors[f"v.{i}"] for i in range(len(self.v))]

"""Muon over a bank of adapters: momentum whose singular values are all brought near 1.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon). Every update of A and of B has the
spectral norm of the learning rate, whatever width and rank: so one rate fits every model and rank
(measured for widths from 64 to 1024 and ranks from 1 to 64, docs/optimizers.md). Where the adapter
has a scale, the rate is divided by its square root: then A @ B times the scale moves as far.

Shapes: K cells, I inputs and O outputs of a module, R largest rank of the bank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.training.optimizers.base import Optimizer

# As in torch.optim.Muon.
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5
EPS = 1e-7


class Muon(Optimizer):
    """Muon with Nesterov momentum, and a learning rate and a weight decay for each cell.

    Equal to torch.optim.Muon on A transposed, (R, I), and B, (R, O), with its default momentum and
    coefficients, but for its rounding of the orthogonalisation to bfloat16.

    Attributes:
        momentum: running mean of the gradient of each parameter, in the parameter's shape.
        root_scale: square root of the scale of each cell's adapter, (K,).
        weight_decay: weight decay of each cell, (K,).
    """

    def __init__(self, bank: AdapterBank, weight_decay: Tensor) -> None:
        """Start without momentum.

        Args:
            bank: the adapters to be trained.
            weight_decay: weight decay of each cell, (K,).
        """
        self.root_scale = bank.scale.sqrt()
        self.weight_decay = weight_decay
        self.momentum = [torch.zeros_like(parameter) for parameter in bank.parameters()]

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
        lr = lr_K[:, None, None]
        decay = 1 - lr * self.weight_decay[:, None, None]
        size = lr / self.root_scale[:, None, None]

        for parameter, grad, momentum in zip(parameters, grads, self.momentum, strict=True):
            momentum.lerp_(grad, 1 - MOMENTUM)
            ahead = grad.lerp(momentum, MOMENTUM)
            parameter.mul_(decay).sub_(orthogonalised(ahead) * size)

    def retain_cells(self, cells: Sequence[int]) -> None:
        index = torch.tensor(cells, device=self.weight_decay.device)
        self.momentum = [momentum[index] for momentum in self.momentum]
        self.root_scale = self.root_scale[index]
        self.weight_decay = self.weight_decay[index]

    def state(self) -> dict[str, Tensor]:
        return {f"m.{i}": momentum for i, momentum in enumerate(self.momentum)}

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        self.momentum = [tensors[f"m.{i}"] for i in range(len(self.momentum))]


def orthogonalised(matrices: Tensor) -> Tensor:
    """U S V' of some matrices with S brought near 1, by Newton-Schulz iterations.

    Rows and columns of zeros stay so and change nothing: the padding of a bank is exact.

    Args:
        matrices: (K, rows, columns).
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    X: Tensor = matrices.mT if is_tall else matrices
    # The spectral norm must not exceed 1.
    norm_K = X.flatten(1).norm(dim=1).clamp(min=EPS)
    X = X / norm_K[:, None, None]

    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    return X.mT if is_tall else X

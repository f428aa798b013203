"""The inverse Hessian of L-BFGS: the latest steps of every cell, and what its gradient did.

Nocedal & Wright 2006, algorithms 7.4 and 7.5.

Shapes: K cells, m pairs, P numbers of a cell's adapter (padding included, which stays 0), C cells
of the K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# As in torch.optim.LBFGS: pairs with a smaller product say nothing about the curvature.
LEAST_CURVATURE = 1e-10


class Secants:
    """Pairs s (a step) and y (the change of the gradient), each cell with a ring of its own.

    Attributes:
        s, y: (K, m, P).
        product: s . y of each pair, (K, m), float64.
        pushed: pairs that each cell was given so far, (K,).
        first_guess: makes of vectors of some cells, (C,) and (C, P), the inverse Hessian times
            them before any pair is used; None: the vectors themselves.
    """

    def __init__(self, like: Tensor, pairs: int) -> None:
        """Without pairs.

        Args:
            like: (K, P).
            pairs: m.
        """
        cells, size = like.shape
        self.s = like.new_zeros(cells, pairs, size)
        self.y = torch.zeros_like(self.s)
        self.product = torch.zeros(cells, pairs, dtype=torch.float64, device=like.device)
        self.pushed = torch.zeros(cells, dtype=torch.int64, device=like.device)
        self.first_guess: Callable[[Tensor, Tensor], Tensor] | None = None

    def push(self, cells: Tensor, s: Tensor, y: Tensor) -> None:
        """Remember a pair of some cells; one without curvature is left out.

        Args:
            cells: (C,).
            s: (C, P).
            y: (C, P).
        """
        product = dot(s, y)
        useful = product > LEAST_CURVATURE
        cells = cells[useful]
        slot = self.pushed[cells] % self.s.shape[1]
        self.s[cells, slot] = s[useful]
        self.y[cells, slot] = y[useful]
        self.product[cells, slot] = product[useful]
        self.pushed[cells] += 1

    def forget(self, cells: Tensor) -> None:
        """Drop the pairs of some cells."""
        self.pushed[cells] = 0

    def direction(self, cells: Tensor, grad: Tensor) -> Tensor:
        """-H g of some cells, (C, P): without pairs the first guess times minus the gradient.

        Args:
            cells: (C,).
            grad: (C, P).
        """
        pairs = self.s.shape[1]
        pushed = self.pushed[cells]
        longest = min(pairs, int(pushed.max()))
        q = -grad
        factors: list[Tensor] = []

        # The latest pair first; a cell with fewer pairs than others has factors of 0.
        for age in range(longest):
            slot = (pushed - 1 - age) % pairs
            factor = dot(self.s[cells, slot], q) / self.product[cells, slot]
            factor = torch.where(age < pushed, factor, 0.0)
            factors.append(factor)
            q = q - factor.to(q.dtype)[:, None] * self.y[cells, slot]

        q = self._guess(cells, q) * self._scale(cells).to(q.dtype)[:, None]
        for age in reversed(range(longest)):
            slot = (pushed - 1 - age) % pairs
            back = dot(self.y[cells, slot], q) / self.product[cells, slot]
            change = torch.where(age < pushed, factors[age] - back, 0.0)
            q = q + change.to(q.dtype)[:, None] * self.s[cells, slot]
        return q

    def _guess(self, cells: Tensor, vectors: Tensor) -> Tensor:
        return vectors if self.first_guess is None else self.first_guess(cells, vectors)

    def _scale(self, cells: Tensor) -> Tensor:
        """s . y / y . G y of the latest pair, (C,), with the first guess G; 1 without pairs."""
        pushed = self.pushed[cells]
        slot = (pushed - 1) % self.s.shape[1]
        y = self.y[cells, slot]
        scale = self.product[cells, slot] / dot(y, self._guess(cells, y))
        return torch.where(pushed > 0, scale, 1.0)

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""
        rows = list(cells)
        self.restore({name: values[rows] for name, values in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """Everything, by name; K is the first dimension."""
        return {"s": self.s, "y": self.y, "product": self.product, "pushed": self.pushed}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.s = state["s"]
        self.y = state["y"]
        self.product = state["product"]
        self.pushed = state["pushed"]


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Products of the rows, float64."""
    return (first * second).sum(1, dtype=torch.float64)

"""Whitened inputs: the gradient of A, times the inverse second moment of what A reads.

A is curved along the inputs as they vary, and in most models they vary a hundred times more in some
directions than in others. With C + ridge on the left of A's Hessian, its inverse makes a better
first guess of the inverse Hessian than a multiple of the identity: K-FAC's factor of the inputs
(Martens & Grosse 2015). That is L-BFGS in coordinates in which the inputs are white.

Shapes: K cells, I inputs of a site, R largest rank, P numbers of a cell's adapter, C of the cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.training.energy import Factored, Moments

# Share of the mean square of an input that is added to all directions.
RIDGE = 0.01


class Whitening:
    """The inverse moments of the cells of a pack."""

    def __init__(self, bank: AdapterBank, moments: Sequence[Moments]) -> None:
        """
        Args:
            bank: the adapters; their weights do not matter.
            moments: second moments of the inputs of each cell; cells may share one object.
        """
        self._shapes = {name: A.shape[1:] for name, A in bank.A.items()}
        distinct = {id(of_cell): of_cell for of_cell in moments}
        self._inverses = {
            key: {name: inverse(C) for name, C in of_cell.items()}
            for key, of_cell in distinct.items()
        }
        self._keys = [id(of_cell) for of_cell in moments]

    def __call__(self, cells: Tensor, vectors: Tensor) -> Tensor:
        """The vectors of some cells, (C, P), with those of A whitened; the order is the bank's.

        Args:
            cells: (C,).
            vectors: (C, P).
        """
        whitened = vectors.clone()
        by_key: dict[int, list[int]] = {}
        for i, k in enumerate(cells.tolist()):
            by_key.setdefault(self._keys[k], []).append(i)

        for key, cells_of_key in by_key.items():
            # Once on the device: each use of a list would copy it there and wait.
            rows = torch.tensor(cells_of_key, device=vectors.device)
            first = 0
            for name, shape in self._shapes.items():
                size = shape.numel()
                A_CIR = vectors[rows, first : first + size].view(len(rows), *shape)
                # One product for all cells: (I, I) times (I, C R).
                columns = A_CIR.transpose(0, 1).flatten(1)
                product = (self._inverses[key][name] @ columns).view(shape[0], len(rows), -1)
                whitened[rows, first : first + size] = product.transpose(0, 1).flatten(1)
                first += size
        return whitened

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""
        self._keys = [self._keys[k] for k in cells]
        self._inverses = {key: self._inverses[key] for key in set(self._keys)}


def inverse(C: Tensor | Factored) -> Tensor | Factored:
    """The inverse of a second moment in units of its mean square, with the ridge."""
    if isinstance(C, Factored):
        mean = C.rest + C.excess_k.sum() / len(C.directions_Ik)
        rest = 1 / (C.rest / mean + RIDGE)
        along_k = 1 / ((C.rest + C.excess_k) / mean + RIDGE)
        return Factored(directions_Ik=C.directions_Ik, excess_k=along_k - rest, rest=rest)

    mean = C.diagonal().mean().clamp(min=torch.finfo(C.dtype).tiny)
    ridge = RIDGE * torch.eye(len(C), dtype=C.dtype, device=C.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(C / mean + ridge))

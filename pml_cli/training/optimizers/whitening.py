"""Whitened inputs: the gradient of A, times the inverse second moment of what A reads.

K-FAC (Martens & Grosse 2015) approximates the Hessian of A by a Kronecker product, one factor of
which is the second moment of A's inputs. In most models these vary a hundred times more in some
directions than in others. So the inverse of the moment, with a ridge, is a better first guess of
the inverse Hessian than a multiple of the identity. That is L-BFGS in coordinates in which the
inputs are white.

Shapes: K cells, C of them, I inputs of a site, R largest rank, P numbers of a cell's adapter.
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
        # Moments that cells share are inverted once.
        self._keys = [id(of_cell) for of_cell in moments]
        self._inverses: dict[int, Moments] = {}
        for key, of_cell in zip(self._keys, moments, strict=True):
            if key not in self._inverses:
                self._inverses[key] = {name: inverse(moment) for name, moment in of_cell.items()}

    def __call__(self, cells: Tensor, vectors: Tensor) -> Tensor:
        """The vectors of some cells, (C, P), with those of A whitened; the order is the bank's.

        Args:
            cells: (C,).
            vectors: (C, P).
        """
        rows_by_key: dict[int, list[int]] = {}
        for row, k in enumerate(cells.tolist()):
            rows_by_key.setdefault(self._keys[k], []).append(row)

        whitened = vectors.clone()
        for key, rows_of_key in rows_by_key.items():
            # Once on the device: each use of a list would copy it there and wait.
            rows = torch.tensor(rows_of_key, device=vectors.device)
            # All A come first in a vector.
            start = 0
            for name, shape in self._shapes.items():
                end = start + shape.numel()
                A_CIR = vectors[rows, start:end].view(len(rows), *shape)
                # One product for all cells: (I, I) times (I, C R).
                columns = A_CIR.transpose(0, 1).flatten(1)
                product_ICR = (self._inverses[key][name] @ columns).view(shape[0], len(rows), -1)
                whitened[rows, start:end] = product_ICR.transpose(0, 1).flatten(1)
                start = end
        return whitened

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""
        self._keys = [self._keys[k] for k in cells]
        self._inverses = {key: self._inverses[key] for key in set(self._keys)}


def inverse(moment: Tensor | Factored) -> Tensor | Factored:
    """The inverse of a second moment in units of its mean square, with the ridge."""
    if isinstance(moment, Factored):
        # The inverse has the same main directions; along each it is that of a number.
        inputs = len(moment.directions_Ik)
        mean = moment.rest + moment.excess_k.sum() / inputs
        rest = 1 / (moment.rest / mean + RIDGE)
        main_k = 1 / ((moment.rest + moment.excess_k) / mean + RIDGE)
        return Factored(directions_Ik=moment.directions_Ik, excess_k=main_k - rest, rest=rest)

    mean = moment.diagonal().mean().clamp(min=torch.finfo(moment.dtype).tiny)
    ridge = RIDGE * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(moment / mean + ridge))

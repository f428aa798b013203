"""The losses of a pack: cells under equal settings are weighted together.

Shapes: K cells of the pack, S scored tokens of a cell in the batch, M most samples of a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_cli.config.schema import Loss
from pml_cli.training.losses.base import LossState, TokenLoss, Tokens, Weighted, as_token_loss


@dataclass(kw_only=True)
class _Group:
    """Cells of the pack under one loss."""

    loss: TokenLoss
    cells: Tensor
    """Their indices in the pack, (C,)."""
    state: LossState
    """What the loss remembers of their samples, (C, M) each."""


class LossGroups:
    """Weighs the tokens of every cell under its own loss, and keeps what the losses remember."""

    def __init__(
        self,
        losses: Sequence[Loss],
        samples: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            losses: one for each cell.
            samples: most samples of a cell, M.
            device: where the tokens are scored.

        Raises:
            NotImplementedError: one of them cannot be trained with.
        """
        self._losses = [as_token_loss(loss) for loss in losses]
        self._device = device

        self._groups: list[_Group] = []
        self._form_groups(samples)

    def _form_groups(self, samples: int) -> None:
        by_settings: dict[str, list[int]] = {}
        for k, loss in enumerate(self._losses):
            by_settings.setdefault(repr(loss), []).append(k)

        self._groups = []
        for cells in by_settings.values():
            loss = self._losses[cells[0]]
            initial = loss.initial_state(samples, self._device)
            count = len(cells)
            group = _Group(
                loss=loss,
                cells=torch.tensor(cells, device=self._device),
                state={name: values.repeat(count, 1) for name, values in initial.items()},
            )
            self._groups.append(group)

        # Takes rows in the order of the groups back to the order of the cells.
        grouped_cells = torch.cat([group.cells for group in self._groups])
        self._cell_order = grouped_cells.argsort()

    def weights(self, tokens: Tokens, progress: float) -> Weighted:
        """Weight and value of each token under its cell's loss, (K, S) each.

        Args:
            tokens: the scored tokens of the step, (K, S) each.
            progress: fraction of the training that is done.
        """
        # The common case, without copies.
        if len(self._groups) == 1:
            (group,) = self._groups
            weighted, group.state = group.loss.weights(tokens, group.state, progress)
            return weighted

        by_group: list[Weighted] = []
        for group in self._groups:
            group_tokens = tokens.of_cells(group.cells)
            weighted, group.state = group.loss.weights(group_tokens, group.state, progress)
            by_group.append(weighted)

        fields = [torch.cat(parts) for parts in zip(*by_group, strict=True)]
        return Weighted(*(field[self._cell_order] for field in fields))

    def state(self) -> dict[str, Tensor]:
        """What all losses remember, by name, (K, M) each.

        Cells whose loss lacks a name have its initial values.
        """
        rows: dict[str, Tensor] = {}

        for group in self._groups:
            for name, values in group.state.items():
                if name not in rows:
                    samples = values.shape[1]
                    initial = group.loss.initial_state(samples, self._device)
                    rows[name] = initial[name].repeat(len(self._losses), 1)
                rows[name][group.cells] = values
        return rows

    def restore(self, rows: Mapping[str, Tensor]) -> None:
        """Restore the state, (K, M) each, that `state` returned."""
        for group in self._groups:
            # Names that only other losses of the pack know are left out.
            names = list(group.state)
            group.state = {name: rows[name][group.cells] for name in names}

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""
        state = self.state()
        self._losses = [self._losses[k] for k in cells]
        # With a placeholder for the state, which follows.
        self._form_groups(samples=1)
        self.restore({name: values[list(cells)] for name, values in state.items()})

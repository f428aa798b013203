"""`loss.keep` in the trainer: what holds the adapters of a pack down on other text.

The training minimises loss + lambda * penalty; scores and the logged loss stay those of the task.

Shapes: K cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pml_cli.config.schema import Run
from pml_cli.data.generic_text import generic_windows
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.training.energy import EnergyPenalty


class KeepPenalty:
    """The penalties of the cells of a pack; those whose loss keeps nothing have none.

    Attributes:
        weight_K: lambda of each cell, (K,); 0: no penalty.
    """

    def __init__(self, base: SplitModel, bank: AdapterBank, runs: Sequence[Run]) -> None:
        """Prepare the penalties of a pack.

        Args:
            base: the frozen model.
            bank: its sites tell where the adapters are; its weights do not matter.
            runs: of the cells.

        Raises:
            UserError: the generic text cannot be read.
        """
        windows = [generic_windows(run) for run in runs]
        weights = [run.loss.keep for run in runs]
        self.weight_K = torch.tensor(weights, dtype=base.adapter_dtype, device=base.device)
        self.energy = EnergyPenalty(base, bank, windows)

    def add_gradient(self, bank: AdapterBank, grads: Sequence[Tensor]) -> None:
        """Add the gradient of lambda * penalty of each cell, in place.

        Args:
            bank: the adapters of the cells.
            grads: gradients of its parameters, in the order of `AdapterBank.parameters`.
        """
        self.energy.add_gradient(bank, grads, self.weight_K)

    def keep(self, cells: Sequence[int]) -> None:
        """Drop all cells but these, by their indices."""
        self.weight_K = self.weight_K[list(cells)]
        self.energy.keep(cells)

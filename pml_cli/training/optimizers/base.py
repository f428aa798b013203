"""What the trainer needs of an optimiser over a bank of adapters.

Shapes: K cells; a parameter of the bank is (K, ..., ...), one slice a cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.training.energy import Moments


class Optimizer(ABC):
    """Trains the adapters of a pack; nothing of one cell depends on another.

    `step` is called after each forward-backward pass, with what that pass has given.

    Attributes:
        reads_inputs: whether `learn_inputs` is called before the first step.
    """

    reads_inputs: ClassVar[bool] = False

    # Not abstract: most optimisers do without.
    def learn_inputs(  # noqa: B027
        self, bank: AdapterBank, moments: Sequence[Moments]
    ) -> None:
        """Take the second moments of what the adapters of each cell read."""

    @abstractmethod
    def step(
        self,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        lr_K: Tensor,
        loss_K: Tensor,
    ) -> None:
        """Move the parameters in place, to where the next pass is to be.

        Args:
            parameters: of the bank, in the order of `AdapterBank.parameters`.
            grads: gradients of the loss of each cell, at the parameters as they are.
            lr_K: learning rate of each cell, (K,).
            loss_K: what is minimised, of each cell, at the parameters as they are, (K,).
        """

    def expected_gain(self, k: int) -> float | None:
        """What more training of a cell is expected to gain, nats per token; None: not known."""
        return None

    def is_searching(self, k: int) -> bool:
        """Whether a cell is in a line search: a trial with a non-finite loss is then undone."""
        return False

    # Not abstract: most optimisers are at their best point.
    def settle(  # noqa: B027
        self, parameters: Sequence[Tensor], cells: Sequence[int]
    ) -> None:
        """Move some cells from their current trial back to their best point."""

    @abstractmethod
    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What changes in training, by the names of the checkpoint; K is the first dimension."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Go on from what `state` returned.

        Args:
            tensors: on the device, under the names of `state`; others are passed over.
            step: number of steps done.
        """

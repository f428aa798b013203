"""`loss.keep` in the trainer: what holds the adapters of a pack down on other text.

The training minimises loss + lambda * penalty; scores and the logged loss stay those of the task.

Shapes: K cells, n windows of text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pml_cli.config.schema import Loss, Run
from pml_cli.data.generic_text import generic_windows
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.training.energy import EnergyPenalty
from pml_cli.training.keep_harm import INITIAL_WEIGHT, SETTLED, HarmLimit
from pml_cli.training.keep_text import WindowOrder, keep_text
from pml_cli.training.limits import MEASURE_EVERY, MEASURED_WINDOWS


class KeepPenalty:
    """The penalties of the cells of a pack; those whose loss keeps nothing have none.

    Attributes:
        limit: lambda of each cell; 0: no penalty.
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
        weights = [_initial_weight(run.loss) for run in runs]
        # 0 stands for no limit.
        limits = [run.loss.keep_harm or math.inf for run in runs]
        like = torch.empty(0, dtype=base.adapter_dtype, device=base.device)
        self.limit = HarmLimit(like.new_tensor(weights), like.new_tensor(limits))
        # Of the adapters as they are, by cell.
        self._harms: dict[int, float] = {}
        self._kept = [k for k, run in enumerate(runs) if run.loss.keeps]
        self._limited = [k for k, run in enumerate(runs) if run.loss.keep_harm]
        if not self._kept:
            return

        windows = [generic_windows(run) for run in runs]
        self._text = keep_text(base, bank, windows)
        self._rows = [[self._text.rows[window] for window in of_cell] for of_cell in windows]
        seeds = [run.seed for run in runs]
        self._orders = [WindowOrder(r, s) for r, s in zip(self._rows, seeds, strict=True)]
        self._energy = EnergyPenalty(self._text, bank, self._rows)

    def add_gradient(
        self, bank: AdapterBank, grads: Sequence[Tensor], step: int, steps: int
    ) -> None:
        """Add the gradient of lambda * penalty of each cell, in place; then move lambda.

        Args:
            bank: the adapters of the cells.
            grads: gradients of its parameters, in the order of `AdapterBank.parameters`.
            step: number of steps done before.
            steps: length of the training.
        """
        # After this the adapters change.
        self._harms.clear()
        if not self._kept:
            return

        penalty_K = self._energy.add_gradient(bank, grads, self.limit.weight_K)
        if not self._limited:
            return
        # Before the first step an adapter adds nothing.
        if step > 0 and step % MEASURE_EVERY == 0:
            self._measure(bank, penalty_K, step // MEASURE_EVERY)
        self.limit.update(penalty_K, step / steps)

    def _measure(self, bank: AdapterBank, penalty_K: Tensor, number: int) -> None:
        drawn = [self._orders[k].draw(number, MEASURED_WINDOWS) for k in self._limited]
        rows_Kb = torch.tensor(drawn, device=penalty_K.device)
        harm_K = torch.zeros_like(penalty_K)
        harm_K[self._limited] = self._text.harm(bank.select(self._limited), rows_Kb)
        self.limit.measured(harm_K, penalty_K)

    def harm(self, bank: AdapterBank, k: int) -> float | None:
        """Harm of a cell on all its text, nats per token; None where nothing is kept."""
        if k not in self._kept:
            return None
        if k not in self._harms:
            rows_1n = torch.tensor([self._rows[k]], device=bank.scale.device)
            self._harms[k] = self._text.harm(bank.select([k]), rows_1n).item()
        return self._harms[k]

    def is_met(self, bank: AdapterBank, k: int) -> bool:
        """Whether a cell keeps its limit on all its text; true where it has none."""
        harm = self.harm(bank, k) if k in self._limited else None
        return harm is None or harm <= self.limit.limit_K[k].item()

    @torch.no_grad()
    def settle(self, bank: AdapterBank) -> None:
        """At the end of the training: scale down each adapter that is above its limit."""
        for k in self._limited:
            while not self.is_met(bank, k):
                harm = self.harm(bank, k)
                assert harm is not None
                # A guess: the harm of a small adapter grows with its square.
                factor = SETTLED * math.sqrt(self.limit.limit_K[k].item() / harm)
                for B in bank.B.values():
                    B[k] *= factor
                self._harms.pop(k)

    def keep(self, cells: Sequence[int]) -> None:
        """Drop all cells but these, by their indices."""
        self.limit.keep(cells)
        self._harms.clear()
        self._limited = [i for i, k in enumerate(cells) if k in self._limited]
        kept = [i for i, k in enumerate(cells) if k in self._kept]
        if self._kept:
            self._rows = [self._rows[k] for k in cells]
            self._orders = [self._orders[k] for k in cells]
            self._energy.keep(cells)
        self._kept = kept

    def state(self) -> dict[str, Tensor]:
        """What changes in training, by name, (K,) each."""
        return self.limit.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.limit.restore(state)


def _initial_weight(loss: Loss) -> float:
    if loss.keep_harm and not loss.keep:
        return INITIAL_WEIGHT
    return loss.keep

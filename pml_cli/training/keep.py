"""`loss.keep` in the trainer: penalties that keep a model close to its base on generic text.

The training minimises loss + lambda * penalty; scores and the logged loss stay those of the task.

Shapes: K cells, n windows of text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pml_cli.config.schema import Loss, Run
from pml_cli.data.generic_text import generic_windows
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.training.energy import EnergyPenalty
from pml_cli.training.keep_harm import HarmLimit, initial_weight, settle
from pml_cli.training.keep_kl import KlPenalty
from pml_cli.training.keep_text import WindowOrder, forget_keep_text, keep_text
from pml_cli.training.limits import KL_WINDOWS, MEASURE_EVERY, MEASURED_WINDOWS


class KeepPenalty:
    """The penalties of the cells of a pack; those whose loss keeps nothing have none.

    Attributes:
        limit: lambda and the limit of harm of each cell; lambda 0: no penalty.
    """

    def __init__(
        self,
        base: SplitModel,
        bank: AdapterBank,
        runs: Sequence[Run],
        *,
        checkpointing: bool = False,
    ) -> None:
        """Prepare the penalties of a pack.

        Args:
            base: the frozen model.
            bank: its sites tell where the adapters are; its weights do not matter.
            runs: of the cells.
            checkpointing: activation checkpointing, as in the training steps.

        Raises:
            UserError: the generic text cannot be read.
        """
        self._losses = [run.loss for run in runs]
        self.limit = _limit(self._losses, base)
        # What `harm` has measured, by cell, as long as the adapters do not change.
        self._harms: dict[int, float] = {}
        if not self._kept_cells():
            # The text of an earlier pack is not in the memory that was planned for this one.
            forget_keep_text(base)
            return

        windows = [generic_windows(run) for run in runs]
        self._text = keep_text(base, bank, windows)
        self._rows: list[list[int]] = []
        self._orders: list[WindowOrder] = []
        for run, of_cell in zip(runs, windows, strict=True):
            rows = [self._text.rows[window] for window in of_cell]
            self._rows.append(rows)
            self._orders.append(WindowOrder(rows, run.seed))

        energy_rows: list[list[int]] = [[] for _ in runs]
        for k in self._kept_cells(by="energy"):
            energy_rows[k] = self._rows[k]
        self._energy = EnergyPenalty(self._text, bank, energy_rows)
        self._kl = KlPenalty(self._text, checkpointing=checkpointing)

    def _kept_cells(self, by: str = "") -> list[int]:
        """Indices of the cells that have a penalty: of one kind, `loss.keep_by`, or of any."""
        cells = []
        for k, loss in enumerate(self._losses):
            if loss.keeps and by in ("", loss.keep_by):
                cells.append(k)
        return cells

    def _limited_cells(self, by: str = "") -> list[int]:
        """Those of `_kept_cells` that have a limit of harm."""
        return [k for k in self._kept_cells(by) if self._losses[k].keep_harm]

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
        # The step that these gradients are for changes the adapters.
        self._harms.clear()
        if not self._kept_cells():
            return

        penalty_K = self._energy.add_gradient(bank, grads, self.limit.weight_K)
        # Before the first step an adapter adds nothing: there is no harm to measure.
        if step > 0 and step % MEASURE_EVERY == 0:
            self._measure_harm(bank, penalty_K, step // MEASURE_EVERY)
        self._add_kl(bank, grads, penalty_K, step)
        self.limit.update(penalty_K, step / steps)

    def _measure_harm(self, bank: AdapterBank, energy_K: Tensor, number: int) -> None:
        """Measure the harm of limited cells whose penalty is an energy."""
        cells = self._limited_cells(by="energy")
        if not cells:
            return
        rows_Kb = self._draw(cells, number, MEASURED_WINDOWS)
        harm = self._text.harm(bank.select(cells), rows_Kb)
        self.limit.measured(cells, harm, energy_K[cells])

    def _add_kl(
        self, bank: AdapterBank, grads: Sequence[Tensor], penalty_K: Tensor, step: int
    ) -> None:
        """Add the gradient of the cells whose penalty is a KL, and set theirs in penalty_K."""
        cells = self._kept_cells(by="kl")
        if not cells:
            return

        rows_Kb = self._draw(cells, step, KL_WINDOWS)
        reading = self._kl.add_gradient(bank, grads, self.limit.weight_K, cells, rows_Kb)
        # Before the first step both are 0 but for rounding, from which no mean may begin.
        if step > 0:
            self.limit.measured(cells, reading.harm, reading.kl)
        # The running mean: a step reads too few windows to go by.
        penalty_K[cells] = self.limit.penalty_K[cells]

    def _draw(self, cells: Sequence[int], number: int, count: int) -> Tensor:
        """The rows of the next `count` windows of some cells, each in its own order."""
        drawn = [self._orders[k].draw(number, count) for k in cells]
        return torch.tensor(drawn, device=self.limit.weight_K.device)

    def harm(self, bank: AdapterBank, k: int) -> float | None:
        """Harm of a cell on all its text, nats per token; None where nothing is kept."""
        return self._measured_harm(bank, k) if self._losses[k].keeps else None

    def _measured_harm(self, bank: AdapterBank, k: int) -> float:
        """Harm of a cell that has a penalty; measured once as long as its adapter is the same."""
        if k not in self._harms:
            rows_1n = torch.tensor([self._rows[k]], device=bank.scale.device)
            self._harms[k] = self._text.harm(bank.select([k]), rows_1n).item()
        return self._harms[k]

    def is_met(self, bank: AdapterBank, k: int) -> bool:
        """Whether a cell keeps its limit on all its text; true where it has none."""
        if not self._losses[k].keep_harm:
            return True
        return self._measured_harm(bank, k) <= self.limit.limit_K[k].item()

    @torch.no_grad()
    def settle(self, bank: AdapterBank) -> None:
        """At the end of the training: scale down each adapter that is above its limit."""
        for k in self._limited_cells():
            limit = self.limit.limit_K[k].item()
            harm = partial(self._measured_harm, bank, k)
            scale = partial(self._scale, bank, k)
            settle(limit, harm, scale)

    def _scale(self, bank: AdapterBank, k: int, factor: float) -> None:
        """Multiply what the adapter of a cell adds, in place."""
        for B in bank.B.values():
            B[k] *= factor
        self._harms.pop(k, None)

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""
        self.limit.retain_cells(cells)
        self._harms.clear()
        if self._kept_cells():
            self._rows = [self._rows[k] for k in cells]
            self._orders = [self._orders[k] for k in cells]
            self._energy.retain_cells(cells)
        self._losses = [self._losses[k] for k in cells]

    def state(self) -> dict[str, Tensor]:
        """What changes in training, by name, (K,) each."""
        return self.limit.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.limit.restore(state)


def _limit(losses: Sequence[Loss], base: SplitModel) -> HarmLimit:
    """Lambda and limit of each cell, before the first step."""
    weights = [initial_weight(loss) for loss in losses]
    # 0 stands for no limit.
    limits = [loss.keep_harm or math.inf for loss in losses]
    like = torch.empty(0, dtype=base.adapter_dtype, device=base.device)
    return HarmLimit(like.new_tensor(weights), like.new_tensor(limits))

"""The training loop: a pack of cells on one frozen base. A single run is a pack of one.

Every statistic of a batch is kept per cell: normaliser, clipping, learning
rate, schedule, dropout, sample order, early stop. So a cell's result does not depend on the cells
it is packed with.

Shapes: K cells, S scored slots of a cell, N scored tokens of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from pml_cli.config.schema import Run, Train
from pml_cli.data.curriculum import total_steps
from pml_cli.data.source import Sample
from pml_cli.errors import UserError, first_line
from pml_cli.model.adapter_bank import AdapterBank, Dropout
from pml_cli.model.head import NeededTokens, TokenScores, token_nll
from pml_cli.model.split_model import Prefix, SplitModel
from pml_cli.training.batches import Batch, Layout, SampleOrder
from pml_cli.training.curve import curve_tables, curve_values, empty_curve
from pml_cli.training.input_moments import input_moments
from pml_cli.training.keep import KeepPenalty
from pml_cli.training.loss_groups import LossGroups
from pml_cli.training.losses.base import Tokens
from pml_cli.training.optimizers.base import Optimizer
from pml_cli.training.optimizers.clipping import clip_grad_norm_
from pml_cli.training.optimizers.registry import optimizer_for
from pml_cli.training.scores import Scores
from pml_cli.training.scoring import (
    PackInputs,
    score_cells,
    scored_hidden,
    split_scores,
    zero_adapters,
)

# Adapter weights beyond this overflow the squares in the norms: the model is lost although its loss
# may be finite.
RUNAWAY = 1e9

# Steps between two looks at which cells have converged.
CONVERGENCE_EVERY = 10

# Name of `FixedBatch.needed_by_cell` in a state.
_NEEDED = "needed"

# Logged steps of a run whose train.log_every is 0.
_DEFAULT_LOGGED_STEPS = 20


@dataclass(kw_only=True)
class Cell:
    """One cell of a pack, and the outcome that its training fills in."""

    run: Run
    samples: list[Sample]
    initial: Scores | None = None
    """Scores of the base model."""
    final: Scores | None = None
    adapter: AdapterBank | None = None
    """The trained adapter, a bank of one."""
    failure: str | None = None
    steps_run: int = 0
    converged: bool | None = None
    """Whether more training is expected to gain next to nothing; None: not checked."""
    expected_gain: float | None = None
    """What more training is expected to gain, nats per token; None: not known."""
    keep: float = 0.0
    """Weight of the penalty of `loss.keep` at the end."""
    keep_harm: float | None = None
    """Harm on the text of `loss.keep`, nats per token; None: not measured."""
    logged: list[pd.DataFrame] = field(default_factory=list)
    """Token tables (`Scores.table`) of the logged steps."""
    curve: list[pd.DataFrame] = field(default_factory=list)
    """Consecutive pieces of the training curve (`curve.COLUMNS`)."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """A logged step: the cells still in training, their scores and their latest training loss."""

    step: int
    steps: int
    cells: list[Cell]
    scores: list[Scores]
    loss: list[float]


class TrainingObserver:
    """Callbacks during the training of a pack. Each does nothing unless overridden."""

    def before_step(self, step: int) -> None:
        """Before every optimiser step; may raise an exception to end the training.

        Args:
            step: number of steps done.
        """

    def on_logged_step(self, report: StepReport) -> None:
        """After every logged step, while its cells are still in the pack."""

    def on_finished(self, cells: list[Cell]) -> None:
        """Cells have ended or failed and have left the pack; their outcome is filled in."""


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """A pack between two steps: everything that is needed to resume its cells.

    Entry i of every list and row i of every tensor belong to the same cell.
    """

    step: int
    cells: list[int]
    """Positions, in the pack as it began, of the cells still in training."""
    tensors: dict[str, Tensor]
    logged: list[pd.DataFrame]
    curve: list[pd.DataFrame]
    draws: list[int]
    """Minibatches drawn so far."""

    def select(self, rows: Sequence[int]) -> TrainerState:
        """The state of some of its cells, by row."""
        index = list(rows)
        return TrainerState(
            step=self.step,
            cells=[self.cells[i] for i in rows],
            tensors={name: tensor[index] for name, tensor in self.tensors.items()},
            logged=[self.logged[i] for i in rows],
            curve=[self.curve[i] for i in rows],
            draws=[self.draws[i] for i in rows],
        )


@dataclass(frozen=True, kw_only=True)
class FixedBatch:
    """What every step of a pack has where all cells see all their samples in each."""

    layout: Layout
    inputs: Prefix | Tensor
    """Rows of the prefix, or token ids; see `PackInputs.gather`."""
    needed: NeededTokens
    """Scored tokens whose nll had a gradient in the step before."""

    def needed_by_cell(self) -> Tensor | None:
        """`needed` by cell and slot, (K, S); None: all of them."""
        mask_N = self.needed.mask_N
        return None if mask_N is None else self.layout.by_cell(mask_N)

    def restore_needed(self, mask_KS: Tensor) -> None:
        """Take over `needed_by_cell` of the same cells, perhaps padded for others."""
        slots = self.layout.mask_KS.shape[1]
        self.needed.restore(mask_KS[:, :slots].flatten()[self.layout.slots])


@dataclass(kw_only=True)
class PackState:
    """The cells in training, and everything that has an entry for each of them.

    `retain_cells` cuts all of it together.
    """

    cells: list[Cell]
    positions: list[int]
    """Positions of the cells in the pack as it began."""
    inputs: PackInputs
    bank: AdapterBank
    optimizer: Optimizer
    losses: LossGroups
    penalty: KeepPenalty
    orders: list[SampleOrder]
    lr_TK: Tensor
    """Learning rate of every step and cell, on the device: a step neither copies nor waits."""
    clip_K: Tensor
    dropout: Dropout | None
    curve: list[Tensor] = field(default_factory=list)
    """`curve_values` of the steps since the last logged one, each (columns, K)."""

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""
        rows = list(cells)
        self.cells = [self.cells[k] for k in rows]
        self.positions = [self.positions[k] for k in rows]
        if not rows:
            return

        # The prefix stays whole: its rows are shared, and a pack is short-lived.
        self.inputs.data.retain_cells(rows)
        self.bank.keep_cells(rows)
        self.optimizer.retain_cells(rows)
        self.losses.retain_cells(rows)
        self.penalty.retain_cells(rows)
        self.orders = [self.orders[k] for k in rows]
        self.lr_TK = self.lr_TK[:, rows]
        self.clip_K = self.clip_K[rows]
        self.curve = [values[:, rows] for values in self.curve]
        if self.dropout:
            self.dropout.keep_cells(rows)

    def snapshot(self, step: int) -> TrainerState:
        """What is needed to resume after `step` steps; tensors are on the CPU."""
        # The names are those of the file format: old checkpoints have them too.
        tensors: dict[str, Tensor] = {}
        tensors |= {f"A.{name}": A for name, A in self.bank.A.items()}
        tensors |= {f"B.{name}": B for name, B in self.bank.B.items()}
        tensors |= self.optimizer.state()

        loss_state = self.losses.state()
        tensors |= {f"loss.{name}": values for name, values in loss_state.items()}
        tensors |= {f"keep.{name}": values for name, values in self.penalty.state().items()}

        if self.curve:
            # Cells first, as in every other tensor.
            pending_TCK = torch.stack(self.curve)
            tensors["curve"] = pending_TCK.permute(2, 0, 1)
        if self.dropout:
            tensors["dropout"] = torch.stack(self.dropout.states())

        return TrainerState(
            step=step,
            cells=list(self.positions),
            tensors={name: _on_cpu(tensor) for name, tensor in tensors.items()},
            logged=[_joined(cell.logged) for cell in self.cells],
            curve=[_joined(cell.curve or [empty_curve()]) for cell in self.cells],
            draws=[order.drawn for order in self.orders],
        )

    def restore(self, state: TrainerState, device: torch.device) -> None:
        """Resume from a snapshot of the same cells."""
        self._restore_tensors(state, device)
        for k, cell in enumerate(self.cells):
            self.orders[k].skip(state.draws[k])
            # Instead of the scores of step 0, which the state holds too.
            cell.logged = [state.logged[k]]
            cell.curve = [state.curve[k]] if len(state.curve[k]) else []

    def _restore_tensors(self, state: TrainerState, device: torch.device) -> None:
        tensors = dict(state.tensors)
        dropout_states = tensors.pop("dropout", None)
        if self.dropout and dropout_states is not None:
            self.dropout.resume(dropout_states, state.step)

        # One by one: all of them together with those that they replace may not fit.
        for name in self.bank.sites:
            self.bank.A[name] = tensors.pop(f"A.{name}").to(device)
            self.bank.B[name] = tensors.pop(f"B.{name}").to(device)

        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.optimizer.restore(tensors, state.step)

        by_group: dict[str, dict[str, Tensor]] = {"loss": {}, "keep": {}}
        for name, values in tensors.items():
            group, _, key = name.partition(".")
            if group in by_group:
                by_group[group][key] = values
        self.losses.restore(by_group["loss"])
        # Checkpoints of an earlier version have no such state.
        if by_group["keep"]:
            self.penalty.restore(by_group["keep"])

        self.curve = []
        if "curve" in tensors:
            self.curve = list(tensors["curve"].permute(1, 2, 0))


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)


def _on_cpu(tensor: Tensor) -> Tensor:
    # Copied even on the CPU, because training continues while the state is written.
    return tensor.detach().to("cpu", copy=True).contiguous()


def learning_rate(train: Train, step: int, steps: int) -> float:
    """Learning rate of a step: constant, or decaying to 0, linearly or as half a cosine.

    Args:
        train: peak rate and schedule.
        step: from 0 to steps - 1.
        steps: length of the training.
    """
    # A line search finds its own steps.
    if train.optimizer == "lbfgs":
        return train.peak_lr
    progress = step / steps

    factors = {
        "linear": 1 - progress,
        "constant": 1.0,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }
    return train.peak_lr * factors[train.schedule]


class Trainer:
    """One pack in training; `train` fills in the outcome of every cell.

    Cells of a pack share the adapter's kind and the number of steps; all else may differ. A cell
    whose loss is no longer finite fails and leaves the pack; one that may stop early leaves when
    it has recalled everything.

    Attributes:
        base: the frozen model.
        pack: the cells still in training, and all that belongs to them.
        steps: length of the training.
        checkpointing: whether activation checkpointing is on.
        fixed_batch: the batch of every step; None where minibatches are drawn.
    """

    def __init__(
        self,
        base: SplitModel,
        cells: Sequence[Cell],
        observer: TrainingObserver | None = None,
        cached: bool = True,
        *,
        checkpointing: bool = False,
    ) -> None:
        """
        Args:
            base: the frozen model.
            cells: the pack; they share the adapter's kind and the number of steps.
            observer: called at each step and when cells end.
            cached: whether the layers below the adapters are run once instead of in every step.
            checkpointing: keep only the inputs of the layers above the cached prefix; backward
                recomputes the rest.

        Raises:
            UserError: the model's split forward pass differs from its own.
        """
        self.base = base
        self.observer = observer or TrainingObserver()
        self.checkpointing = checkpointing

        # The planner packs only cells that agree in these.
        train = cells[0].run.train
        self.steps = total_steps(train, len(cells[0].samples))
        self.log_every = train.log_every or max(1, self.steps // _DEFAULT_LOGGED_STEPS)

        self.pack = self._build_pack(list(cells), cached)
        self.fixed_batch = self._fixed_batch()

    def _build_pack(self, cells: list[Cell], cached: bool) -> PackState:
        """The state of a pack before its first step."""
        base = self.base
        runs = [cell.run for cell in cells]
        bank = self._initial_bank(runs)
        samples = [cell.samples for cell in cells]
        # Dropout is drawn by row and token, and stays as it was.
        packed = runs[0].adapter.dropout == 0
        inputs = PackInputs(base, bank, samples, cached=cached, packed=packed)

        orders = [_sample_order(cell) for cell in cells]
        most_samples = max(len(cell.samples) for cell in cells)

        return PackState(
            cells=cells,
            positions=list(range(len(cells))),
            inputs=inputs,
            bank=bank,
            optimizer=self._optimizer(bank, inputs, runs),
            losses=LossGroups([run.loss for run in runs], most_samples, base.device),
            penalty=KeepPenalty(base, bank, runs, checkpointing=self.checkpointing),
            orders=orders,
            lr_TK=self._learning_rates(runs),
            clip_K=self._tensor([_clip_norm(run) for run in runs]),
            dropout=self._build_dropout(cells, orders, inputs),
        )

    def _initial_bank(self, runs: Sequence[Run]) -> AdapterBank:
        """The adapters before the first step, on the model's device.

        Raises:
            UserError: an adapter to start from cannot be read or does not fit, or the model's split
                pass differs from its own pass.
        """
        base = self.base
        adapter = runs[0].adapter
        bank = AdapterBank.initial(
            base.sites(adapter),
            adapter,
            ranks=[run.rank for run in runs],
            seeds=[run.seed for run in runs],
            dtype=base.adapter_dtype,
        )
        _load_starts(bank, runs)
        bank.to(base.device)
        # Before anything is computed with it: refuses a model whose split pass is not its own.
        base.check_split(bank)
        return bank

    def _optimizer(self, bank: AdapterBank, inputs: PackInputs, runs: Sequence[Run]) -> Optimizer:
        """The optimizer of all cells: the planner packs only cells that agree in it."""
        weight_decay = [run.train.weight_decay for run in runs]
        optimizer = optimizer_for(runs[0].train.optimizer, bank, self._tensor(weight_decay))
        if optimizer.reads_inputs:
            optimizer.learn_inputs(bank, input_moments(self.base, bank, inputs))
        return optimizer

    def _learning_rates(self, runs: Sequence[Run]) -> Tensor:
        """The rate of every step and cell, (steps, K).

        They are on the device before the first step: a copy in a step would wait for it.
        """
        rates = []
        for step in range(self.steps):
            rates.append([learning_rate(run.train, step, self.steps) for run in runs])
        return self._tensor(rates)

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        """Settings of the cells, (..., K), in the adapters' dtype and on their device."""
        base = self.base
        return torch.tensor(values, dtype=base.adapter_dtype).to(base.device)

    def _build_dropout(
        self,
        cells: Sequence[Cell],
        orders: Sequence[SampleOrder],
        inputs: PackInputs,
    ) -> Dropout | None:
        share = cells[0].run.adapter.dropout
        if share == 0:
            return None

        # Without the padding of the pack: a cell draws as much as it does alone.
        shapes = []
        for k, order in enumerate(orders):
            shapes.append((order.batch, inputs.data.input_tokens(k)))
        seeds = [cell.run.seed for cell in cells]
        return Dropout(share, seeds, shapes, self.base.device)

    def train(self, state: TrainerState | None = None) -> None:
        """Train to the end, from the start or from a saved state.

        From a state, results on a CPU are bit for bit those of a training without the interruption.
        """
        before = self.evaluate()
        base_scores = self._base_scores(before)
        for k, cell in enumerate(self.pack.cells):
            cell.initial = base_scores[k]
            cell.logged.append(before[k].table(0))

        first_step = 0
        if state is not None:
            self._restore(state)
            first_step = state.step

        for step in range(first_step, self.steps):
            self.observer.before_step(step)
            converged = self._converged(step)
            layout, token_scores = self._forward()
            finished: list[int] = []
            is_logged = step > 0 and step % self.log_every == 0
            if is_logged or converged:
                scores = self._current_scores(layout, token_scores)
                recorded = range(len(self.pack.cells)) if is_logged else converged
                finished = self._log(step, scores, converged, recorded=recorded)

            # Cells that finish here take part once more; their outcome is already stored.
            self._update(step, layout, token_scores)
            self._retire(finished)
            if not self.pack.cells:
                return

        pack = self.pack
        pack.optimizer.settle(pack.bank.parameters(), list(range(len(pack.cells))))
        self.pack.penalty.settle(self.pack.bank)
        recorded = range(len(pack.cells))
        self._retire(self._log(self.steps, self.evaluate(), recorded=recorded))

    # -- interruption

    def state(self, step: int) -> TrainerState:
        """What is needed to resume after `step` steps; tensors are on the CPU."""
        state = self.pack.snapshot(step)
        needed_KS = self.fixed_batch.needed_by_cell() if self.fixed_batch else None
        if needed_KS is not None:
            # Which products a step makes decides the last bits of its result.
            state.tensors[_NEEDED] = _on_cpu(needed_KS)
        return state

    def _restore(self, state: TrainerState) -> None:
        """Resume from a state; cells that are not in it have ended already."""
        self._keep(state.cells)
        self.pack.restore(state, self.base.device)
        if self.fixed_batch and _NEEDED in state.tensors:
            self.fixed_batch.restore_needed(state.tensors[_NEEDED].to(self.base.device))

    # -- one step

    def _forward(self) -> tuple[Layout, TokenScores]:
        """Scores of the next batch, with a graph for the backward pass."""
        pack = self.pack
        fixed = self.fixed_batch
        layout, inputs = (fixed.layout, fixed.inputs) if fixed else self._next_batch()
        pack.bank.requires_grad_().dropout = pack.dropout
        hidden = scored_hidden(
            self.base, pack.bank, layout, inputs, checkpointing=self.checkpointing
        )
        needed = fixed.needed if fixed else None
        return layout, token_nll(hidden, self.base.head, layout.targets, needed=needed)

    def _update(self, step: int, layout: Layout, scores: TokenScores) -> None:
        """One optimiser step of every cell.

        Args:
            step: number of steps done before.
            layout: of the batch.
            scores: of the batch, from `_forward`.
        """
        pack = self.pack
        tokens = tokens_by_cell(layout, scores)
        weighted = pack.losses.weights(tokens, step / self.steps)

        # One backward pass for all cells: the loss of a cell depends on its own adapter alone.
        parameters = pack.bank.parameters()
        grads = self._gradients(weighted.loss, weighted.weight.sum(1), parameters)
        pack.penalty.add_gradient(pack.bank, grads, step, self.steps)

        norm_K = clip_grad_norm_(grads, pack.clip_K)
        lr_K = pack.lr_TK[step]
        pack.optimizer.step(parameters, grads, lr_K=lr_K, loss_K=weighted.loss.detach())
        pack.curve.append(curve_values(tokens, weighted, norm_K, lr_K))

    def _gradients(
        self, loss_K: Tensor, weight_K: Tensor, parameters: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The gradient of the loss of every cell, by parameter, (K, ...) each.

        Args:
            loss_K: weighted means over the tokens of each cell.
            weight_K: the sum of their weights.
            parameters: of the bank.
        """
        if self.base.dtype != torch.float16:
            return torch.autograd.grad(loss_K.sum(), parameters)

        # A mean over thousands of tokens leaves each a gradient below what float16 holds. A power
        # of two about their number changes no digit. Tokens that a gate leaves out do not count:
        # with them the gradients of the few others would overflow.
        scale_K = (2.0 ** weight_K.detach().clamp(min=1).log2().ceil()).to(loss_K.dtype)
        grads = torch.autograd.grad((scale_K * loss_K).sum(), parameters)
        return [grad / scale_K.view(-1, *[1] * (grad.dim() - 1)) for grad in grads]

    def _fixed_batch(self) -> FixedBatch | None:
        """The batch of every step; None where minibatches are drawn."""
        if not all(order.is_full_batch for order in self.pack.orders):
            return None
        inputs = self.pack.inputs
        layout = inputs.layout(inputs.data.cells)
        return FixedBatch(layout=layout, inputs=inputs.gather(layout), needed=NeededTokens())

    def _next_batch(self) -> tuple[Layout, Prefix | Tensor]:
        """Layout and inputs of the next minibatch of every cell."""
        pack = self.pack
        data = pack.inputs.data
        batch: Batch = []
        for order, samples in zip(pack.orders, data.cells, strict=True):
            # A full batch keeps the samples' own order and draws nothing.
            if order.is_full_batch:
                batch.append(list(samples))
            else:
                batch.append([samples[i] for i in order.next()])

        if pack.dropout:
            # The last minibatch of an epoch may be smaller.
            shapes = []
            for k, samples in enumerate(batch):
                shapes.append((len(samples), data.input_tokens(k)))
            pack.dropout.shapes = shapes

        layout = pack.inputs.layout(batch)
        return layout, pack.inputs.gather(layout)

    # -- logged steps

    def evaluate(self) -> list[Scores]:
        """Scores of every target token of every cell, without dropout."""
        bank = self.pack.bank
        bank.dropout = None
        scores = score_cells(self.base, bank, self.pack.inputs)
        # A step may be half done: its backward pass draws again what the forward pass has drawn.
        bank.dropout = self.pack.dropout
        return scores

    def _base_scores(self, before: list[Scores]) -> list[Scores]:
        """Scores of the base model.

        Args:
            before: those before the first step.
        """
        pack = self.pack
        if all(cell.run.train.start is None for cell in pack.cells):
            # B is 0 before the first step.
            return before
        zeroed = zero_adapters(pack.bank, range(len(pack.cells)))
        return score_cells(self.base, zeroed, pack.inputs)

    def _current_scores(self, layout: Layout, scores: TokenScores) -> list[Scores]:
        """The scores after the updates so far, of all samples and without dropout.

        Where the forward pass of the step has them, they are not computed again.
        """
        is_whole = self.fixed_batch is not None
        if not is_whole or self.pack.dropout is not None:
            return self.evaluate()
        return split_scores(layout, scores, self.pack.inputs.data.cells)

    def _converged(self, step: int) -> list[int]:
        """The cells that leave the pack as converged, moved to the best point of theirs."""
        if step == 0 or step % CONVERGENCE_EVERY:
            return []
        pack = self.pack
        cells = []
        for k, cell in enumerate(pack.cells):
            train = cell.run.train
            if train.stop == "converged" and _has_converged(train, pack.optimizer.expected_gain(k)):
                cells.append(k)
        if cells:
            pack.optimizer.settle(pack.bank.parameters(), cells)
        return cells

    def _log(
        self,
        step: int,
        scores: list[Scores],
        converged: Sequence[int] = (),
        *,
        recorded: Sequence[int],
    ) -> list[int]:
        """Record the scores after `step` updates, and the outcome of the cells that finish here.

        Args:
            step: number of steps done.
            scores: of all cells.
            converged: cells that finish because they have converged.
            recorded: cells whose scores are recorded.

        Returns:
            indices of the cells that finish.
        """
        pack = self.pack
        losses = self._flush_curve(step)
        at_optimum = range(len(pack.cells)) if step == self.steps else converged
        diverged = self._diverged(scores, losses, at_optimum)

        finished = []
        for k in recorded:
            cell = pack.cells[k]
            cell.logged.append(scores[k].table(step))
            if k in diverged:
                cell.failure = _failure(cell, step)
                finished.append(k)
            elif k in at_optimum or self._may_stop(k, scores[k]):
                finished.append(k)

        report = StepReport(
            step=step,
            steps=self.steps,
            cells=[pack.cells[k] for k in recorded],
            scores=[scores[k] for k in recorded],
            loss=[losses[k] for k in recorded],
        )
        self.observer.on_logged_step(report)

        for k in finished:
            self._store_outcome(k, step, scores[k])
        return finished

    def _flush_curve(self, step: int) -> list[float]:
        """Move the pending rows of the training curve to the cells; the last loss of each cell."""
        curves = curve_tables(self.pack.curve, step)
        self.pack.curve = []
        for cell, curve in zip(self.pack.cells, curves, strict=True):
            cell.curve.append(curve)
        return [float(curve["loss"].iloc[-1]) for curve in curves]

    def _store_outcome(self, k: int, step: int, scores: Scores) -> None:
        """Fill in the outcome of a cell that finishes after `step` updates."""
        pack = self.pack
        cell = pack.cells[k]
        cell.steps_run = step
        cell.final = scores
        cell.adapter = pack.bank.select([k])
        _note_convergence(cell, pack.optimizer.expected_gain(k))
        cell.keep = pack.penalty.limit.weight_K[k].item()
        if cell.failure is None:
            self._measure_harm(cell, k)

    def _measure_harm(self, cell: Cell, k: int) -> None:
        """Note the harm on the text of `loss.keep`; a cell of which it is not finite has failed."""
        harm = self.pack.penalty.harm(self.pack.bank, k)
        if harm is not None and not math.isfinite(harm):
            cell.failure = "the loss on the text of loss.keep is no longer finite"
            return
        cell.keep_harm = harm

    def _diverged(
        self, scores: Sequence[Scores], losses: Sequence[float], at_optimum: Collection[int]
    ) -> list[int]:
        """The cells whose loss or weights are no longer finite, or too large.

        Args:
            scores: of all cells.
            losses: of all cells, at the pass before.
            at_optimum: cells at their best point; others may be at a trial of a line search.
        """
        largest_weights = self.pack.bank.largest_weights()
        diverged = []
        for k, loss in enumerate(losses):
            is_searching = self.pack.optimizer.is_searching(k)
            if is_searching and k not in at_optimum:
                continue
            # Written so that NaN counts as too large.
            has_exploded = not largest_weights[k] < RUNAWAY
            # The pass before was a trial.
            last_loss = 0.0 if is_searching else loss
            if has_exploded or not _all_finite(scores[k].nll, last_loss):
                diverged.append(k)
        return diverged

    def _may_stop(self, k: int, scores: Scores) -> bool:
        """Whether a cell may stop early: recalled by train.stop_margin, within loss.keep_harm."""
        pack = self.pack
        return _is_recalled(pack.cells[k], scores) and pack.penalty.is_met(pack.bank, k)

    def _retire(self, finished: list[int]) -> None:
        """Take finished cells out of the pack."""
        if not finished:
            return

        cells = [self.pack.cells[k] for k in finished]
        count = len(self.pack.cells)
        # First out of the pack: the observer decodes, and needs the memory.
        self._keep([k for k in range(count) if k not in finished])
        self.observer.on_finished(cells)

    def _keep(self, cells: list[int]) -> None:
        """Drop all cells but these, and rebuild the fixed batch; with no cell left free both."""
        if len(cells) == len(self.pack.cells):
            return
        self.pack.retain_cells(cells)
        if self.pack.cells:
            self.fixed_batch = self._fixed_batch()
            return
        # No step follows.
        self.fixed_batch = None
        self.pack.inputs.prefix = None


def _sample_order(cell: Cell) -> SampleOrder:
    """The minibatches of a cell, drawn by a generator of its own, independent of the pack."""
    train = cell.run.train
    return SampleOrder(len(cell.samples), train.batch, cell.run.seed, train.curriculum)


def _clip_norm(run: Run) -> float:
    """Largest norm of a gradient; infinite: it is not clipped."""
    # A line search needs the gradient as it is.
    if run.train.optimizer == "lbfgs":
        return math.inf
    # 0 stands for no clipping.
    return run.train.clip or math.inf


def _load_starts(bank: AdapterBank, runs: Sequence[Run]) -> None:
    """Read the adapters that cells begin from.

    Raises:
        UserError: one cannot be read, or does not fit.
    """
    for k, run in enumerate(runs):
        start = run.train.start
        if start is None:
            continue
        try:
            bank.load(k, Path(start).parent)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"train.start={start}: {first_line(error)}") from error


def _all_finite(nll: NDArray[np.float64], loss: float) -> bool:
    return math.isfinite(loss) and bool(np.isfinite(nll).all())


def _is_recalled(cell: Cell, scores: Scores) -> bool:
    """Whether the cell stops at recall, and every token wins by train.stop_margin."""
    train = cell.run.train
    return train.stop == "recalled" and bool(scores.margin.min() > train.stop_margin)


def _has_converged(train: Train, gain: float | None) -> bool:
    """Whether more training is expected to gain no more than train.tolerance."""
    return gain is not None and gain <= train.tolerance


def _note_convergence(cell: Cell, gain: float | None) -> None:
    """Fill in what an optimiser knows of what is left to gain; None: nothing."""
    if gain is None:
        return
    cell.converged = _has_converged(cell.run.train, gain)
    # Infinite after too few passes.
    cell.expected_gain = gain if math.isfinite(gain) else None


def _failure(cell: Cell, step: int) -> str:
    """Why a cell fails at a logged step: the first step without a finite loss, if there is one."""
    # The curve has every step, the logged scores only some.
    curve = pd.concat(cell.curve)
    lost_steps = curve.loc[~np.isfinite(curve["loss"]), "step"]
    if len(lost_steps):
        step = int(lost_steps.iloc[0])
        fault = "the loss is no longer finite"
    else:
        fault = f"loss or weights are no longer below {RUNAWAY:g}"

    lr = cell.run.train.peak_lr
    return f"{fault} at step {step} of the training; try a lower train.lr (now {lr:g})"


def tokens_by_cell(layout: Layout, scores: TokenScores) -> Tokens:
    """The scored tokens of a batch as a loss takes them, (K, S) each."""
    nll_KS = layout.by_cell(scores.nll)
    return Tokens(
        nll=nll_KS,
        margin=layout.by_cell(scores.margin),
        correct=layout.by_cell(scores.argmax == layout.targets),
        mask=layout.mask_KS.to(nll_KS.dtype),
        sample=layout.sample_KS,
        position=layout.position_KS,
    )

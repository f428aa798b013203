"""THE training loop: a pack of cells on one frozen base. A single run is a pack of one.

Whatever looks like a statistic of the batch belongs to the cell: normaliser, clipping, learning rate, schedule, dropout,
sample order, early stop. So a cell's result does not depend on the cells it is packed with.

Shapes: K cells, S scored slots of a cell, N scored tokens of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pml_cli.config.schema import Loss, Run, Train
from pml_cli.data.curriculum import total_steps
from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank, Dropout
from pml_cli.model.head import TokenScores, token_nll
from pml_cli.model.split_model import Prefix, SplitModel
from pml_cli.stats import LN2
from pml_cli.training.batches import Batch, Layout, PackData, SampleOrder
from pml_cli.training.losses import Tokens, Weighted, fresh_state, weigh
from pml_cli.training.optimizer import AdamW, clip_grad_norm_
from pml_cli.training.scores import Scores

RUNAWAY = 1e9  # adapter weights beyond this overflow the squares in the norms: a dead model of finite loss
TINY = 1e-30  # in place of a sum of weights that is 0
EVALUATION_TOKENS = 16384  # at most so many tokens at once where nothing is trained
CURVE = (
    "loss",
    "nll",
    "share_above_threshold",
    "weight_above",
    "gradient_above",
    "grad_norm",
    "lr",
)
EMPTY_CURVE = pd.DataFrame({"step": np.zeros(0, np.int32), **{name: np.zeros(0) for name in CURVE}})


@dataclass
class Cell:
    """One cell of a pack, and what becomes of it."""

    run: Run
    samples: list[Sample]
    initial: Scores | None = None  # of the base model: the adapter is zero before the first step
    final: Scores | None = None
    adapter: AdapterBank | None = None  # a bank of one
    failure: str | None = None
    steps_run: int = 0
    logged: list[pd.DataFrame] = field(default_factory=list)
    curve: list[pd.DataFrame] = field(default_factory=list)


@dataclass(frozen=True)
class StepReport:
    """A logged step: the cells still in training, their scores and their latest training loss."""

    step: int
    steps: int
    cells: list[Cell]
    scores: list[Scores]
    loss: list[float]


class TrainingObserver:
    """Is told what happens to a pack in training; each method does nothing unless overridden."""

    def before_step(self, step: int) -> None:
        """Before every optimiser step, with the number of steps done; may raise to end the training."""

    def on_logged_step(self, report: StepReport) -> None:
        """After every logged step, while its cells are still in the pack."""

    def on_finished(self, cells: list[Cell]) -> None:
        """Cells have ended or failed and have left the pack; their outcome is filled in."""


@dataclass(frozen=True)
class TrainerState:
    """A pack between two steps: all that its cells need to go on. Row i of every tensor and list belongs to cells[i]."""

    step: int
    cells: list[int]  # those still in training, by their place in the pack
    tensors: dict[str, Tensor]
    logged: list[pd.DataFrame]
    curve: list[pd.DataFrame]
    draws: list[int]  # minibatches drawn so far

    def of(self, chosen: Sequence[int]) -> TrainerState:
        """The part of some of its cells, given by row."""
        tensors = {name: tensor[list(chosen)] for name, tensor in self.tensors.items()}
        lists = (
            [kept[i] for i in chosen] for kept in (self.cells, self.logged, self.curve, self.draws)
        )
        cells, logged, curve, draws = lists
        return TrainerState(self.step, cells, tensors, logged, curve, draws)  # type: ignore[arg-type]


def train_pack(
    base: SplitModel,
    cells: Sequence[Cell],
    observer: TrainingObserver | None = None,
    cached: bool = True,
) -> None:
    """Train every cell and fill in its outcome.

    Cells of a pack share the adapter's kind and the number of steps; all else may differ. A cell whose loss is no longer
    finite fails and leaves the pack; one that may stop early leaves when it has recalled everything.

    Args:
        observer: told of each step and of cells that have ended.
        cached: False runs the whole model each step instead of the layers above the cached prefix: the slow reference.
    """
    Trainer(base, cells, observer, cached).train()


def learning_rate(train: Train, step: int, steps: int) -> float:
    """Learning rate of a 0-based step: constant, or decaying to 0 at the end, linearly or as half a cosine."""
    done = step / steps
    return (
        train.lr
        * {"linear": 1 - done, "constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
            train.schedule
        ]
    )


class Trainer:
    """One pack in training: bank, optimiser, prefix and the cells that are still in it."""

    def __init__(
        self,
        base: SplitModel,
        cells: Sequence[Cell],
        observer: TrainingObserver | None = None,
        cached: bool = True,
        *,
        checkpointing: bool = False,
    ) -> None:
        """`checkpointing`: keep only the inputs of the layers above the cached prefix; backward runs them again."""
        self.base, self.cells, self.cached = base, list(cells), cached
        self.observer = observer or TrainingObserver()
        self.checkpointing = checkpointing
        self.places = list(range(len(self.cells)))
        runs = [cell.run for cell in self.cells]
        kind = runs[0].adapter
        self.bank = AdapterBank.initial(
            base.sites(kind),
            kind,
            ranks=[r.rank for r in runs],
            seeds=[r.seed for r in runs],
            dtype=base.adapter_dtype,
        )
        self.bank.to(base.device)
        base.check_split(self.bank)
        self.data = PackData([cell.samples for cell in self.cells], base.device)
        self.prefix = base.prefix(self.data.ids[:, :-1], self.bank) if cached else None
        decay = torch.tensor(
            [r.train.weight_decay for r in runs], dtype=base.adapter_dtype, device=base.device
        )
        self.optimizer = AdamW(self.bank, decay)
        trains = [r.train for r in runs]
        self.orders = [
            SampleOrder(len(c.samples), t.batch, c.run.seed, t.curriculum)
            for c, t in zip(self.cells, trains, strict=True)
        ]
        self.remembered = fresh_state(
            [r.loss for r in runs], max(len(c.samples) for c in self.cells), base.device
        )
        self.steps = total_steps(runs[0].train, len(self.cells[0].samples))
        self.log_every = runs[0].train.log_every or max(1, self.steps // 20)
        rates = [
            [learning_rate(r.train, step, self.steps) for r in runs] for step in range(self.steps)
        ]
        self.rates = torch.tensor(rates, dtype=base.adapter_dtype).to(
            base.device
        )  # (steps, K): no copy, no wait in a step
        self.dropout = self._dropout()
        self.curve: list[
            Tensor
        ] = []  # of the steps since the last logged one, (len(CURVE), K) each
        self._place()

    def _dropout(self) -> Dropout | None:
        run = self.cells[0].run
        if run.adapter.dropout == 0:
            return None
        return Dropout(
            run.adapter.dropout, [c.run.seed for c in self.cells], self._shapes(), self.base.device
        )

    def _shapes(self) -> list[tuple[int, int]]:
        return [(order.batch, self.data.input_tokens(k)) for k, order in enumerate(self.orders)]

    def _place(self) -> None:
        """Whatever depends on which cells are in the pack; called again when one leaves."""
        self.static: tuple[Layout, Prefix | Tensor] | None = None
        if all(order.whole for order in self.orders):
            self.static = self._gather(self.data.layout(self.data.cells))
        self.groups: dict[str, Loss] = {}
        members: dict[str, list[int]] = {}
        for k, cell in enumerate(self.cells):
            members.setdefault(repr(cell.run.loss), []).append(k)
            self.groups[repr(cell.run.loss)] = cell.run.loss
        self.members = {
            key: torch.tensor(ks, device=self.base.device) for key, ks in members.items()
        }
        self.back = torch.cat(
            list(self.members.values())
        ).argsort()  # from members' order to the cells'
        clip = [c.run.train.clip or math.inf for c in self.cells]
        self.clip = torch.tensor(clip, dtype=self.base.adapter_dtype, device=self.base.device)

    def train(self, state: TrainerState | None = None) -> None:
        """Train to the end, from the start or from a kept state (on a CPU, bit for bit as without the interruption)."""
        for cell, scores in zip(self.cells, self.evaluate(), strict=True):
            cell.initial = scores
            cell.logged.append(scores.table(0))
        if state is not None:
            self._restore(state)
        for step in range(state.step if state else 0, self.steps):
            self.observer.before_step(step)
            layout, trained = self._forward()
            finished = (
                self._log(step, layout, trained) if step and step % self.log_every == 0 else []
            )
            self._update(step, layout, trained)
            self._retire(finished)
            if not self.cells:
                return
        self._retire(self._log(self.steps))

    # -- going on later

    def state(self, step: int) -> TrainerState:
        """What is needed to go on after `step` steps; tensors are on the CPU."""
        rows = {f"A.{name}": A for name, A in self.bank.A.items()} | {
            f"B.{name}": B for name, B in self.bank.B.items()
        }
        rows |= {f"m.{i}": m for i, m in enumerate(self.optimizer.m)} | {
            f"v.{i}": v for i, v in enumerate(self.optimizer.v)
        }
        rows |= {f"loss.{name}": values for name, values in self.remembered.items()}
        if self.curve:
            rows["curve"] = torch.stack(self.curve).permute(2, 0, 1)
        if self.dropout:
            rows["dropout"] = torch.stack(
                [generator.get_state() for generator in self.dropout.generators]
            )
        tensors = {
            name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in rows.items()
        }
        logged = [pd.concat(cell.logged, ignore_index=True) for cell in self.cells]
        curve = [pd.concat(cell.curve or [EMPTY_CURVE], ignore_index=True) for cell in self.cells]
        return TrainerState(
            step, list(self.places), tensors, logged, curve, [order.drawn for order in self.orders]
        )

    def _restore(self, state: TrainerState) -> None:
        self._retire([k for k in range(len(self.cells)) if k not in state.cells], ended=False)
        kept = {
            name: tensor.to(self.base.device)
            for name, tensor in state.tensors.items()
            if name != "dropout"
        }
        self.bank.A = {name: kept[f"A.{name}"] for name in self.bank.A}
        self.bank.B = {name: kept[f"B.{name}"] for name in self.bank.B}
        self.optimizer.step_count = state.step
        self.optimizer.m = [kept[f"m.{i}"] for i in range(len(self.optimizer.m))]
        self.optimizer.v = [kept[f"v.{i}"] for i in range(len(self.optimizer.v))]
        self.remembered = {name: kept[f"loss.{name}"] for name in self.remembered}
        self.curve = list(kept["curve"].permute(1, 2, 0)) if "curve" in kept else []
        if self.dropout:
            for generator, drawn in zip(
                self.dropout.generators, state.tensors["dropout"], strict=True
            ):
                generator.set_state(
                    drawn.clone()
                )  # a view into a file's bytes may lie unaligned: torch crashes on it
        for order, draws in zip(self.orders, state.draws, strict=True):
            order.skip(draws)
        for cell, logged, curve in zip(self.cells, state.logged, state.curve, strict=True):
            cell.logged, cell.curve = [logged], [curve] if len(curve) else []

    # -- one step

    def _forward(self) -> tuple[Layout, TokenScores]:
        layout, inputs = self.static or self._gather(self.data.layout(self._next_batch()))
        self.bank.requires_grad_().dropout = self.dropout
        return layout, token_nll(self._hidden(layout, inputs), self.base.head, layout.targets)

    def _update(self, step: int, layout: Layout, scores: TokenScores) -> None:
        tokens = _tokens(layout, scores)
        weighted = self._weigh(tokens, step / self.steps)
        loss_K = weighted.loss
        parameters = self.bank.parameters()
        grads = torch.autograd.grad(loss_K.sum(), parameters)
        norm_K = clip_grad_norm_(grads, self.clip)
        lr_K = self.rates[step]
        self.optimizer.step(parameters, grads, lr_K)
        self._note_curve(tokens, weighted, norm_K, lr_K)

    def _next_batch(self) -> Batch:
        picked = [
            order.next() if not order.whole else range(order.samples) for order in self.orders
        ]
        if self.dropout:
            self.dropout.shapes = [
                (len(p), T) for p, (_, T) in zip(picked, self._shapes(), strict=True)
            ]
        return [[self.data.cells[k][i] for i in chosen] for k, chosen in enumerate(picked)]

    def _gather(self, layout: Layout) -> tuple[Layout, Prefix | Tensor]:
        if self.prefix is None:
            return layout, self.data.ids[layout.rows, : layout.tokens]
        return layout, self.prefix.rows(layout.rows, layout.tokens)

    def _hidden(
        self, layout: Layout, inputs: Prefix | Tensor, bank: AdapterBank | None = None
    ) -> Tensor:
        """Final hidden states at the scored positions, (N, D)."""
        bank = bank or self.bank
        if isinstance(inputs, Prefix):
            hidden = self.base.upper(inputs, bank, self.checkpointing)
        else:
            hidden = self.base.full(inputs, bank).last_hidden_state
        return hidden.flatten(0, 1).index_select(
            0, layout.scored
        )  # its backward is a plain sum, that of [] sorts first

    def _weigh(self, tokens: Tokens, progress: float) -> Weighted:
        """Each cell's tokens weighed under its own loss; what the losses remember goes on."""
        if len(self.members) == 1:
            weighted, self.remembered = weigh(
                next(iter(self.groups.values())), tokens, self.remembered, progress
            )
            return weighted
        parts: list[Weighted] = []
        remembered = {name: values.clone() for name, values in self.remembered.items()}
        for key, cells in self.members.items():
            before = {name: values[cells] for name, values in self.remembered.items()}
            weighted, after = weigh(self.groups[key], tokens.of(cells), before, progress)
            parts.append(weighted)
            for name, values in after.items():
                remembered[name][cells] = values
        self.remembered = remembered
        return Weighted(*(torch.cat(part)[self.back] for part in zip(*parts, strict=True)))

    # -- scores

    @torch.no_grad()
    def evaluate(self, samples: Sequence[Sequence[Sample]] | None = None) -> list[Scores]:
        """Scores of every target token of every cell, without dropout; of its own samples, or of others given per cell."""
        data, prefix = self.data, self.prefix
        if samples is not None:
            data = PackData(samples, self.base.device)
            prefix = self.base.prefix(data.ids[:, :-1], self.bank) if self.cached else None
        dropout, self.bank.dropout = self.bank.dropout, None
        parts: list[list[Scores]] = [[] for _ in self.cells]
        tokens = len(self.cells) * data.ids.shape[1]
        size = max(1, EVALUATION_TOKENS // tokens)
        for start in range(0, max(len(c) for c in data.cells), size):
            batch = [cell[start : start + size] for cell in data.cells]
            layout = data.layout(batch)
            inputs = (
                data.ids[layout.rows, : layout.tokens]
                if prefix is None
                else prefix.rows(layout.rows, layout.tokens)
            )
            scores = token_nll(self._hidden(layout, inputs), self.base.head, layout.targets)
            for k, part in enumerate(split_scores(layout, scores, batch)):
                parts[k].append(part)
        self.bank.dropout = dropout
        return [join_scores(part) for part in parts]

    # -- records

    def _note_curve(self, tokens: Tokens, weighted: Weighted, norm_K: Tensor, lr_K: Tensor) -> None:
        """Kept on the device until the next logged step: no wait for the device within."""
        nll_KS, mask_KS = tokens.nll.detach(), tokens.mask
        count, above = mask_KS.sum(1), (nll_KS < LN2) * mask_KS
        spent = [
            (part * above).sum(1) / part.sum(1).clamp(min=TINY)
            for part in (weighted.weight, weighted.pull)
        ]
        means = nll_KS.sum(1) / count, above.sum(1) / count
        self.curve.append(torch.stack([weighted.loss.detach(), *means, *spent, norm_K, lr_K]))

    def _flush_curve(self, done: int) -> list[float]:
        """Hand the curve to the cells; returns the last loss of each."""
        values = torch.stack(self.curve).double().cpu().numpy()  # (steps, len(CURVE), K)
        self.curve = []
        steps = np.arange(done - len(values), done, dtype=np.int32)
        for k, cell in enumerate(self.cells):
            cell.curve.append(
                pd.DataFrame({"step": steps, **dict(zip(CURVE, values[:, :, k].T, strict=True))})
            )
        return [float(x) for x in values[-1, 0]]

    def _log(
        self, done: int, layout: Layout | None = None, trained: TokenScores | None = None
    ) -> list[int]:
        """Note the scores after `done` updates.

        They are the ones trained on next; with minibatches or dropout, an evaluation of all samples without dropout.

        Returns:
            the cells that leave the pack here; their outcome is kept, so that one more update does no harm.
        """
        if layout is None or trained is None or self.static is None or self.dropout is not None:
            scores = self.evaluate()
        else:
            scores = split_scores(layout, trained, self.data.cells)
        loss, largest = self._flush_curve(done), self.bank.largest_weights()
        finished: list[int] = []
        for k, cell in enumerate(self.cells):
            cell.logged.append(scores[k].table(done))
            if (
                not np.isfinite(scores[k].nll).all()
                or not math.isfinite(loss[k])
                or not largest[k] < RUNAWAY
            ):
                cell.failure = _where_lost(cell, done)
                finished.append(k)
            elif done == self.steps or _may_stop(cell.run.train, scores[k]):
                finished.append(k)
        self.observer.on_logged_step(StepReport(done, self.steps, self.cells, scores, loss))
        for k in finished:
            cell = self.cells[k]
            cell.steps_run, cell.final, cell.adapter = done, scores[k], self.bank.select([k])
        return finished

    def _retire(self, finished: list[int], ended: bool = True) -> None:
        """Take cells out of the pack."""
        if not finished:
            return
        stay = [k for k in range(len(self.cells)) if k not in finished]
        left = [self.cells[k] for k in finished]
        self.cells, self.places = [self.cells[k] for k in stay], [self.places[k] for k in stay]
        if ended:
            self.observer.on_finished(left)
        if not stay:
            return
        self.bank.keep_cells(stay)
        self.optimizer.keep(stay)
        self.curve, self.rates = [values[:, stay] for values in self.curve], self.rates[:, stay]
        self.remembered = {name: values[stay] for name, values in self.remembered.items()}
        if self.dropout:
            self.dropout.keep_cells(stay)
        self.orders = [self.orders[k] for k in stay]
        self.data.cells = [self.data.cells[k] for k in stay]
        self._place()


def _may_stop(train: Train, scores: Scores) -> bool:
    return train.stop == "recalled" and bool(scores.margin.min() > train.stop_margin)


def _where_lost(cell: Cell, done: int) -> str:
    curve = pd.concat(cell.curve)
    lost = curve.loc[~np.isfinite(curve["loss"]), "step"]
    step = int(lost.iloc[0]) if len(lost) else done
    what = (
        "the loss is no longer finite"
        if len(lost)
        else f"loss or weights are no longer below {RUNAWAY:g}"
    )
    return (
        f"{what} at step {step} of the training; try a lower train.lr (now {cell.run.train.lr:g})"
    )


def _tokens(layout: Layout, scores: TokenScores) -> Tokens:
    """The scored tokens of a step, cell by cell."""
    nll_KS, margin_KS = layout.by_cell(scores.nll), layout.by_cell(scores.margin)
    correct_KS = layout.by_cell(scores.argmax == layout.targets)
    return Tokens(
        nll_KS,
        margin_KS,
        correct_KS,
        layout.mask_KS.to(nll_KS.dtype),
        layout.sample_KS,
        layout.position_KS,
    )


def split_scores(layout: Layout, scores: TokenScores, batch: Batch) -> list[Scores]:
    """Scores of a batch, cell by cell."""
    nll, margin = (values.detach().double().cpu().numpy() for values in (scores.nll, scores.margin))
    argmax, target = scores.argmax.int().cpu().numpy(), layout.targets.int().cpu().numpy()
    out, at = [], 0
    for pieces in batch:
        lengths = [piece.tokens for piece in pieces]
        sample = np.repeat(np.array([piece.sample for piece in pieces], np.int32), lengths)
        position = np.concatenate(
            [np.arange(length, dtype=np.int32) for length in lengths] or [np.zeros(0, np.int32)]
        )
        rows = slice(at, at + sum(lengths))
        out.append(Scores(sample, position, target[rows], nll[rows], margin[rows], argmax[rows]))
        at = rows.stop
    return out


def join_scores(parts: list[Scores]) -> Scores:
    """The scores of one cell from those of its batches, in order."""
    names = ("sample", "position", "token_id", "nll", "margin", "argmax_id")
    return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

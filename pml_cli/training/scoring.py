"""Teacher-forced scoring: samples to prefix, to hidden states at the scored positions, to scores.

Shapes: K cells, N scored tokens of a batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import Head, TokenScores, token_nll
from pml_cli.model.split_model import Prefix, SplitModel
from pml_cli.training.batches import Batch, Layout, PackData
from pml_cli.training.limits import EVALUATION_TOKENS
from pml_cli.training.scores import Scores, concatenate


class PackInputs:
    """The samples of K cells, and the hidden states below the adapters, computed once.

    Attributes:
        data: the samples.
        prefix: what the layers below the adapters give for them; None: the whole model is run each time.
    """

    def __init__(
        self,
        base: SplitModel,
        bank: AdapterBank,
        cells: Sequence[Sequence[Sample]],
        *,
        cached: bool = True,
    ) -> None:
        """
        Args:
            base: the frozen model.
            bank: adapters on the sites that will be scored; only where they sit matters.
            cells: the samples of each cell.
            cached: whether to compute the prefix.
        """
        self.data = PackData(cells, base.device)
        self.prefix = base.prefix(self.data.ids[:, :-1], bank) if cached else None

    def gather(self, layout: Layout) -> Prefix | Tensor:
        """The inputs of one batch: rows of the prefix, or token ids (K * b, T)."""
        if self.prefix is None:
            return self.data.ids[layout.rows, : layout.tokens]
        return self.prefix.rows(layout.rows, layout.tokens)


def scored_hidden(
    base: SplitModel,
    bank: AdapterBank,
    layout: Layout,
    inputs: Prefix | Tensor,
    *,
    checkpointing: bool = False,
) -> Tensor:
    """Final hidden states at the positions that predict the scored tokens, (N, D).

    Args:
        base: the frozen model.
        bank: K adapters.
        layout: of the batch.
        inputs: `PackInputs.gather` of that layout.
        checkpointing: whether backward recomputes the layers (activation checkpointing).
    """
    if isinstance(inputs, Prefix):
        hidden = base.upper(inputs, bank, checkpointing)
    else:
        hidden = base.full(inputs, bank).last_hidden_state
    # The backward pass of index_select is a plain sum; that of hidden[index] sorts first.
    return hidden.flatten(0, 1).index_select(0, layout.scored)


@torch.no_grad()
def score_cells(
    base: SplitModel, bank: AdapterBank, inputs: PackInputs, head: Head | None = None
) -> list[Scores]:
    """Scores of every target token of every cell under its adapter, without gradients.

    Args:
        base: the frozen model.
        bank: K adapters; whether dropout is on is the caller's affair.
        inputs: the samples of the K cells.
        head: output layer; None: the model's own.

    Returns:
        the scores of each cell, in sample order.
    """
    head = head or base.head
    data = inputs.data
    batch_size = max(1, EVALUATION_TOKENS // (len(data.cells) * data.ids.shape[1]))
    most_samples = max(len(cell) for cell in data.cells)

    by_cell: list[list[Scores]] = [[] for _ in data.cells]
    for start in range(0, most_samples, batch_size):
        batch = [cell[start : start + batch_size] for cell in data.cells]
        layout = data.layout(batch)
        hidden = scored_hidden(base, bank, layout, inputs.gather(layout))
        token_scores = token_nll(hidden.to(head.weight_VD.dtype), head, layout.targets)
        for cell_scores, scores in zip(
            by_cell, split_scores(layout, token_scores, batch), strict=True
        ):
            cell_scores.append(scores)
    return [concatenate(scores) for scores in by_cell]


def split_scores(layout: Layout, scores: TokenScores, batch: Batch) -> list[Scores]:
    """Scores of a batch, cell by cell; waits for the device."""
    nll = scores.nll.detach().double().cpu().numpy()
    margin = scores.margin.detach().double().cpu().numpy()
    argmax = scores.argmax.int().cpu().numpy()
    targets = layout.targets.int().cpu().numpy()

    cells = []
    start = 0
    for pieces in batch:
        lengths = [piece.tokens for piece in pieces]
        tokens = slice(start, start + sum(lengths))
        positions = [np.arange(length, dtype=np.int32) for length in lengths]
        scores_of_cell = Scores(
            sample=np.repeat(np.array([piece.sample for piece in pieces], np.int32), lengths),
            position=np.concatenate([np.zeros(0, np.int32), *positions]),
            token_id=targets[tokens],
            nll=nll[tokens],
            margin=margin[tokens],
            argmax_id=argmax[tokens],
        )
        cells.append(scores_of_cell)
        start = tokens.stop
    return cells


def zero_adapters(bank: AdapterBank, cells: Sequence[int]) -> AdapterBank:
    """A bank of some cells in which B is 0: the base model, as it runs with adapters on it."""
    zeroed = bank.select(cells)
    zeroed.B = {name: torch.zeros_like(B) for name, B in zeroed.B.items()}
    return zeroed


def cell_chunks(cells: Sequence[Sequence[Sample]]) -> Iterator[list[int]]:
    """Indices of the cells that have samples, as many at a time as fit into one evaluation.

    Args:
        cells: the samples of each cell.
    """
    remaining = [k for k, samples in enumerate(cells) if samples]
    while remaining:
        longest = max(len(s.prompt) + len(s.target) for k in remaining for s in cells[k])
        most_samples = max(len(cells[k]) for k in remaining)
        count = max(1, EVALUATION_TOKENS // (longest * most_samples))
        yield remaining[:count]
        remaining = remaining[count:]

"""Teacher-forced scoring: samples to prefix, to hidden states at the scored positions, to scores.

Shapes: K cells, N scored tokens of a batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pml_cli.data.row_packing import RowShape, shape_of_cells
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import Head, TokenScores, token_nll
from pml_cli.model.packed_rows import PackingMode
from pml_cli.model.split_model import Prefix, SplitModel
from pml_cli.training.batches import Batch, Layout, PackData, SamplesByCell
from pml_cli.training.limits import EVALUATION_TOKENS
from pml_cli.training.scores import Scores, concatenate


class PackInputs:
    """The samples of K cells, and the hidden states below the adapters, computed once.

    Attributes:
        data: the samples.
        shape: of packed rows; None: every sample is a row.
        prefix: what the layers below the adapters give for them; None: the whole model is run
            each time.
    """

    def __init__(
        self,
        base: SplitModel,
        bank: AdapterBank,
        cells: SamplesByCell,
        *,
        cached: bool = True,
        packed: bool = False,
    ) -> None:
        """
        Args:
            base: the frozen model.
            bank: adapters on the sites that will be scored; only where they sit matters.
            cells: the samples of each cell.
            cached: whether to compute the prefix.
            packed: whether to lay several samples into one row where that is less work and the
                model allows it; needs the prefix.
        """
        self.data = PackData(cells, base.device)
        self.shape: RowShape | None = None
        self._mode = PackingMode.SEPARATE
        if cached and packed:
            self._choose_shape(base, bank, cells)

        self.prefix: Prefix | None = None
        if cached:
            # The last token is not an input: nothing after it is predicted.
            ids = self.data.ids[:, :-1]
            lengths = self.data.input_lengths if self.shape else None
            self.prefix = base.prefix(ids, bank, lengths=lengths)

    def _choose_shape(self, base: SplitModel, bank: AdapterBank, cells: SamplesByCell) -> None:
        shape = shape_of_cells(cells)
        if shape is None:
            return
        # The last token is not an input.
        longest = self.data.ids.shape[1] - 1
        self._mode = base.packing_mode(bank, shape.common, shape.tokens, longest)
        if self._mode is not PackingMode.SEPARATE:
            self.shape = shape

    def layout(self, batch: Batch) -> Layout:
        """Lay out one batch, in packed rows where they are used."""
        if self.shape is None:
            return self.data.layout(batch)
        return self.data.layout(batch, self.shape, self._mode)

    @property
    def tokens_per_sample(self) -> int:
        """Input tokens that a sample of every cell takes, at most."""
        return len(self.data.cells) * self.data.ids.shape[1]

    def gather(self, layout: Layout) -> Prefix | Tensor:
        """The inputs of one batch: rows of the prefix, or token ids (K * b, T)."""
        if self.prefix is None:
            return self.data.ids[layout.rows, : layout.tokens]
        if layout.packed is not None:
            return self.prefix.gather(layout.packed)
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
        hidden = base.upper(inputs, bank, checkpointing, layout.packed)
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
        head: the output layer; None: the model's own.

    Returns:
        the scores of each cell, in sample order.
    """
    head = head or base.head
    data = inputs.data
    batch_size = max(1, EVALUATION_TOKENS // inputs.tokens_per_sample)
    most_samples = max(len(cell) for cell in data.cells)

    by_cell: list[list[Scores]] = [[] for _ in data.cells]
    for start in range(0, most_samples, batch_size):
        # Cells with fewer samples are empty in the last batches.
        batch = [cell[start : start + batch_size] for cell in data.cells]
        layout = inputs.layout(batch)
        hidden = scored_hidden(base, bank, layout, inputs.gather(layout))
        # Only another head than the model's own has another dtype.
        hidden = hidden.to(head.weight_VD.dtype)
        token_scores = token_nll(hidden, head, layout.targets)
        batch_scores = split_scores(layout, token_scores, batch)
        for collected, scores in zip(by_cell, batch_scores, strict=True):
            collected.append(scores)
    return [concatenate(scores) for scores in by_cell]


def split_scores(layout: Layout, scores: TokenScores, batch: Batch) -> list[Scores]:
    """Scores of a batch, cell by cell; waits for the device."""
    # float64 holds every score exactly, whatever dtype the model has.
    nll = _to_numpy(scores.nll.double())
    margin = _to_numpy(scores.margin.double())
    argmax = _to_numpy(scores.argmax.int())
    targets = _to_numpy(layout.targets.int())

    cells = []
    start = 0
    for pieces in batch:
        lengths = [piece.tokens for piece in pieces]
        tokens = slice(start, start + sum(lengths))
        samples = np.array([piece.sample for piece in pieces], np.int32)
        # A cell that has no more samples is empty here.
        positions = [np.zeros(0, np.int32)]
        positions += [np.arange(length, dtype=np.int32) for length in lengths]
        scores_of_cell = Scores(
            sample=np.repeat(samples, lengths),
            position=np.concatenate(positions),
            token_id=targets[tokens],
            nll=nll[tokens],
            margin=margin[tokens],
            argmax_id=argmax[tokens],
        )
        cells.append(scores_of_cell)
        start = tokens.stop
    return cells


def _to_numpy(values: Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy()


def zero_adapters(bank: AdapterBank, cells: Sequence[int]) -> AdapterBank:
    """A bank of some cells in which B is 0: the base model, as it runs with adapters on it.

    In the same arithmetic as with the trained adapters, so that differences are theirs alone.
    """
    zeroed = bank.select(cells)
    for name, B in zeroed.B.items():
        zeroed.B[name] = torch.zeros_like(B)
    return zeroed


def cell_chunks(cells: SamplesByCell) -> Iterator[list[int]]:
    """Indices of the cells that have samples, as many at a time as fit into one evaluation.

    Args:
        cells: the samples of each cell.
    """
    remaining = [k for k, samples in enumerate(cells) if samples]
    while remaining:
        # Every cell of a chunk is padded to the longest sample and to the most samples.
        samples = [sample for k in remaining for sample in cells[k]]
        longest = max(len(sample.prompt) + len(sample.target) for sample in samples)
        most_samples = max(len(cells[k]) for k in remaining)

        count = max(1, EVALUATION_TOKENS // (longest * most_samples))
        yield remaining[:count]
        remaining = remaining[count:]

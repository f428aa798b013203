"""The samples of a pack as tensors: shared rows for the prefix, and the layout of each batch.

Shapes: n unique rows, K cells, b samples of a cell in the batch, T input tokens, N scored tokens, S scored slots of a cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pml_cli.data.curriculum import samples_in_use
from pml_cli.data.source import Sample


class Piece(NamedTuple):
    """One sample of a cell in a batch."""

    row: int  # shared input row
    tokens: int  # of its target
    sample: int  # its place among the cell's samples


Batch = list[list[Piece]]  # per cell


@dataclass(frozen=True)
class Layout:
    """Where a batch's inputs lie in the prefix, and where its scored tokens lie in the hidden states."""

    rows: Tensor  # (K * b,) into the prefix
    tokens: int  # T
    scored: Tensor  # (N,) into hidden states flattened to (K * b * T)
    targets: Tensor  # (N,) token ids
    slots: Tensor  # (N,) into (K * S)
    mask_KS: Tensor  # 1 where a slot holds a token
    sample_KS: Tensor  # which of the cell's samples a slot belongs to; 0 where there is padding
    position_KS: Tensor  # of the token within its sample's target

    def by_cell(self, values_N: Tensor) -> Tensor:
        """Scored values laid out as (K, S), zero where there is padding; differentiable."""
        flat = values_N.new_zeros(self.mask_KS.numel()).index_copy(0, self.slots, values_N)
        return flat.view(self.mask_KS.shape)


class PackData:
    """The samples of K cells over shared input rows: a sample that begins another one with the same prompt uses its row."""

    def __init__(self, cells: Sequence[Sequence[Sample]], device: torch.device) -> None:
        self.rows: list[Sample] = []
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        place: dict[Sample, int] = {}
        for sample in sorted(
            {s for cell in cells for s in cell}, key=lambda s: (-len(s.target), s.prompt, s.target)
        ):
            known = by_prompt.setdefault(sample.prompt, [])
            row = next(
                (i for i in known if self.rows[i].target[: len(sample.target)] == sample.target),
                None,
            )
            if row is None:
                row = len(self.rows)
                self.rows.append(sample)
                known.append(row)
            place[sample] = row
        self.cells: Batch = [
            [Piece(place[s], len(s.target), i) for i, s in enumerate(cell)] for cell in cells
        ]
        longest = max(len(s.prompt) + len(s.target) for s in self.rows)
        ids = np.zeros((len(self.rows), longest), dtype=np.int64)
        for i, sample in enumerate(self.rows):
            ids[i, : len(sample.prompt) + len(sample.target)] = [*sample.prompt, *sample.target]
        self.ids, self.device = torch.from_numpy(ids).to(device), device

    def input_tokens(self, k: int) -> int:
        """Input length T of a cell by itself: its longest prompt and target, less the last token."""
        return max(len(self.rows[piece.row].prompt) + piece.tokens for piece in self.cells[k]) - 1

    def layout(self, batch: Batch) -> Layout:
        """Lay out one batch; cells with fewer samples are padded with rows in which nothing is scored."""
        b = max(len(samples) for samples in batch)
        T = (
            max(
                len(self.rows[piece.row].prompt) + piece.tokens
                for samples in batch
                for piece in samples
            )
            - 1
        )
        S = max(sum(piece.tokens for piece in samples) for samples in batch)
        rows = np.zeros((len(batch), b), dtype=np.int64)
        mask, sample, position = (
            np.zeros((len(batch), S)),
            *np.zeros((2, len(batch), S), dtype=np.int64),
        )
        scored, slots, picks = [], [], []
        for k, samples in enumerate(batch):
            used = 0
            for j, (row, length, i) in enumerate(samples):
                prompt, steps = len(self.rows[row].prompt), np.arange(length)
                rows[k, j] = row
                scored.append((k * b + j) * T + prompt - 1 + steps)
                slots.append(k * S + used + steps)
                picks.append(row * self.ids.shape[1] + prompt + steps)
                sample[k, used : used + length], position[k, used : used + length] = i, steps
                used += length
            mask[k, :used] = 1

        def send(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        targets = self.ids.flatten()[send(np.concatenate(picks))]
        where = send(np.concatenate(scored)), targets, send(np.concatenate(slots))
        return Layout(send(rows.ravel()), T, *where, send(mask), send(sample), send(position))


class SampleOrder:
    """The minibatches of one cell: every epoch a fresh permutation, from the cell's own generator, of the samples in use.

    With a curriculum those are a growing prefix of one fixed shuffled order.
    """

    def __init__(self, samples: int, batch: int, seed: int, curriculum: Sequence[int] = ()) -> None:
        """`curriculum`: the epochs at which the prefix grows; none: all samples from the start."""
        self.samples, self.batch, self.curriculum = (
            samples,
            min(batch, samples) if batch else samples,
            list(curriculum),
        )
        self.generator = np.random.default_rng([seed, 7])
        self.fixed = (
            np.random.default_rng([seed, 11]).permutation(samples)
            if self.curriculum
            else np.arange(samples)
        )
        self._queue, self.drawn = self._batches(), 0

    @property
    def whole(self) -> bool:
        """Whether every step sees all samples (then in their own order)."""
        return self.batch == self.samples and not self.curriculum

    def next(self) -> list[int]:
        self.drawn += 1
        return next(self._queue)

    def skip(self, draws: int) -> None:
        """Go on as after so many minibatches."""
        for _ in range(draws):
            self.next()

    def _batches(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            order = self.fixed[
                self.generator.permutation(samples_in_use(self.curriculum, epoch, self.samples))
            ]
            for start in range(0, len(order), self.batch):
                yield order[start : start + self.batch].tolist()

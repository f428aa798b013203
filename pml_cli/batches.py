"""The samples of a pack as tensors: shared rows for the prefix, and the layout of each batch.

Shapes: n unique rows, K cells, b samples of a cell in the batch, T input tokens, N scored tokens, S scored slots of a cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .sequences import Sample

Batch = list[list[tuple[int, int]]]  # per cell: (row, target tokens) of each of its samples in the batch


@dataclass(frozen=True)
class Layout:
    """Where a batch's inputs lie in the prefix, and where its scored tokens lie in the hidden states."""

    rows: Tensor  # (K * b,) into the prefix
    tokens: int  # T
    scored: Tensor  # (N,) into hidden states flattened to (K * b * T)
    targets: Tensor  # (N,) token ids
    slots: Tensor  # (N,) into (K * S)
    mask_KS: Tensor  # 1 where a slot holds a token

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
        for sample in sorted({s for cell in cells for s in cell}, key=lambda s: (-len(s.target), s.prompt, s.target)):
            known = by_prompt.setdefault(sample.prompt, [])
            row = next((i for i in known if self.rows[i].target[: len(sample.target)] == sample.target), None)
            if row is None:
                row = len(self.rows)
                self.rows.append(sample)
                known.append(row)
            place[sample] = row
        self.cells: Batch = [[(place[s], len(s.target)) for s in cell] for cell in cells]
        longest = max(len(s.prompt) + len(s.target) for s in self.rows)
        ids = np.zeros((len(self.rows), longest), dtype=np.int64)
        for i, sample in enumerate(self.rows):
            ids[i, : len(sample.prompt) + len(sample.target)] = [*sample.prompt, *sample.target]
        self.ids, self.device = torch.from_numpy(ids).to(device), device

    def input_tokens(self, k: int) -> int:
        """Input length T of a cell by itself: its longest prompt and target, less the last token."""
        return max(len(self.rows[row].prompt) + length for row, length in self.cells[k]) - 1

    def layout(self, batch: Batch) -> Layout:
        """Lay out one batch; cells with fewer samples are padded with rows in which nothing is scored."""
        b = max(len(samples) for samples in batch)
        T = max(len(self.rows[row].prompt) + length for samples in batch for row, length in samples) - 1
        S = max(sum(length for _, length in samples) for samples in batch)
        rows = np.zeros((len(batch), b), dtype=np.int64)
        mask = np.zeros((len(batch), S))
        scored, slots, picks = [], [], []
        for k, samples in enumerate(batch):
            used = 0
            for j, (row, length) in enumerate(samples):
                prompt, steps = len(self.rows[row].prompt), np.arange(length)
                rows[k, j] = row
                scored.append((k * b + j) * T + prompt - 1 + steps)
                slots.append(k * S + used + steps)
                picks.append(row * self.ids.shape[1] + prompt + steps)
                used += length
            mask[k, :used] = 1

        def send(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        targets = self.ids.flatten()[send(np.concatenate(picks))]
        return Layout(send(rows.ravel()), T, send(np.concatenate(scored)), targets, send(np.concatenate(slots)), send(mask))


class SampleOrder:
    """The minibatches of one cell: every epoch a fresh permutation from the cell's own generator."""

    def __init__(self, samples: int, batch: int, seed: int) -> None:
        self.samples, self.batch = samples, min(batch, samples) if batch else samples
        self.generator = np.random.default_rng([seed, 7])
        self._queue, self.drawn = self._batches(), 0

    @property
    def whole(self) -> bool:
        """Whether every step sees all samples (then in their own order)."""
        return self.batch == self.samples

    def next(self) -> list[int]:
        self.drawn += 1
        return next(self._queue)

    def skip(self, draws: int) -> None:
        """Go on as after so many minibatches."""
        for _ in range(draws):
            self.next()

    def _batches(self) -> Iterator[list[int]]:
        while True:
            order = self.generator.permutation(self.samples)
            for start in range(0, self.samples, self.batch):
                yield order[start : start + self.batch].tolist()

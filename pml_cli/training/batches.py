"""The samples of a pack as tensors: shared input rows for the prefix, and the layout of each batch.

Shapes: n unique input rows, K cells, b samples of a cell in the batch, T input tokens, N scored tokens of the batch,
S scored slots of a cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pml_cli.data.curriculum import samples_in_use
from pml_cli.data.source import Sample

# Streams of the sample order's generators, beside the seed.
_ORDER_STREAM = 7
_CURRICULUM_STREAM = 11


class SampleSlice(NamedTuple):
    """One sample of a cell in a batch: the beginning of a shared input row."""

    row: int
    """Index of the input row."""
    tokens: int
    """Length of its target."""
    sample: int
    """Index among the cell's samples."""


Batch: TypeAlias = list[list[SampleSlice]]
"""The samples of each cell."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a batch's inputs lie in the prefix, and where its scored tokens lie in the hidden states."""

    rows: Tensor
    """Input rows of the batch, (K * b,)."""
    tokens: int
    """Input length T."""
    scored: Tensor
    """Positions that predict the scored tokens, (N,), into hidden states flattened to (K * b * T)."""
    targets: Tensor
    """Token ids of the scored tokens, (N,)."""
    slots: Tensor
    """Slots of the scored tokens, (N,), into (K * S)."""
    mask_KS: Tensor
    """1 where a slot holds a token."""
    sample_KS: Tensor
    """Index of the cell's sample that a slot belongs to; 0 where there is padding."""
    position_KS: Tensor
    """Position of the token within its sample's target; 0 where there is padding."""

    def by_cell(self, values_N: Tensor) -> Tensor:
        """Values of scored tokens as (K, S), zero where there is padding; differentiable."""
        flat = values_N.new_zeros(self.mask_KS.numel()).index_copy(0, self.slots, values_N)
        return flat.view(self.mask_KS.shape)

    def mean_by_cell(self, values_N: Tensor) -> Tensor:
        """Mean of each cell's values, (K,), in float64."""
        return self.by_cell(values_N).double().sum(1) / self.mask_KS.sum(1)


class PackData:
    """The samples of K cells over shared input rows.

    A sample that is the beginning of another one with the same prompt uses its row.

    Attributes:
        rows: the sample that each input row holds, n of them.
        cells: the samples of each cell.
        ids: token ids of the rows, (n, longest), padded with 0.
    """

    def __init__(self, cells: Sequence[Sequence[Sample]], device: torch.device) -> None:
        self.rows: list[Sample] = []
        row_of = self._assign_rows({sample for cell in cells for sample in cell})
        self.cells: Batch = [
            [SampleSlice(row_of[sample], len(sample.target), i) for i, sample in enumerate(cell)]
            for cell in cells
        ]

        longest = max(len(sample.prompt) + len(sample.target) for sample in self.rows)
        ids = np.zeros((len(self.rows), longest), dtype=np.int64)
        for row, sample in enumerate(self.rows):
            tokens = [*sample.prompt, *sample.target]
            ids[row, : len(tokens)] = tokens
        self.device = device
        self.ids = torch.from_numpy(ids).to(device)

    def _assign_rows(self, samples: Iterable[Sample]) -> dict[Sample, int]:
        """Fill `self.rows`; the row of every sample."""
        row_of: dict[Sample, int] = {}
        rows_by_prompt: dict[tuple[int, ...], list[int]] = {}

        # The longest first, so that whatever begins another sample comes after it.
        for sample in sorted(samples, key=lambda s: (-len(s.target), s.prompt, s.target)):
            candidates = rows_by_prompt.setdefault(sample.prompt, [])
            length = len(sample.target)
            for row in candidates:
                if self.rows[row].target[:length] == sample.target:
                    row_of[sample] = row
                    break
            else:
                row_of[sample] = len(self.rows)
                candidates.append(len(self.rows))
                self.rows.append(sample)
        return row_of

    def keep(self, cells: Sequence[int]) -> None:
        """Drop all cells but these; the rows stay."""
        self.cells = [self.cells[k] for k in cells]

    def input_tokens(self, k: int) -> int:
        """Input length T of a cell by itself."""
        return self._input_length(self.cells[k])

    def _input_length(self, samples: Iterable[SampleSlice]) -> int:
        """The longest prompt and target, less the last token, which is no input."""
        return max(len(self.rows[piece.row].prompt) + piece.tokens for piece in samples) - 1

    def layout(self, batch: Batch) -> Layout:
        """Lay out one batch; cells with fewer samples are padded with rows in which nothing is scored."""
        b = max(len(samples) for samples in batch)
        T = self._input_length(itertools.chain.from_iterable(batch))
        S = max(sum(piece.tokens for piece in samples) for samples in batch)

        rows = np.zeros((len(batch), b), dtype=np.int64)
        mask = np.zeros((len(batch), S))
        sample = np.zeros((len(batch), S), dtype=np.int64)
        position = np.zeros((len(batch), S), dtype=np.int64)
        scored: list[NDArray[Any]] = []
        slots: list[NDArray[Any]] = []
        id_positions: list[NDArray[Any]] = []

        for k, samples in enumerate(batch):
            start = 0
            for j, piece in enumerate(samples):
                prompt = len(self.rows[piece.row].prompt)
                steps = np.arange(piece.tokens)
                end = start + piece.tokens

                rows[k, j] = piece.row
                mask[k, start:end] = 1
                sample[k, start:end] = piece.sample
                position[k, start:end] = steps

                # The hidden state before a token predicts it.
                scored.append((k * b + j) * T + prompt - 1 + steps)
                slots.append(k * S + start + steps)
                id_positions.append(piece.row * self.ids.shape[1] + prompt + steps)
                start = end

        return Layout(
            rows=self._to_device(rows.ravel()),
            tokens=T,
            scored=self._to_device(np.concatenate(scored)),
            targets=self.ids.flatten()[self._to_device(np.concatenate(id_positions))],
            slots=self._to_device(np.concatenate(slots)),
            mask_KS=self._to_device(mask),
            sample_KS=self._to_device(sample),
            position_KS=self._to_device(position),
        )

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


class SampleOrder:
    """The minibatches of one cell.

    Every epoch is a fresh permutation, from the cell's own generator, of the samples in use. With a curriculum those are a
    growing prefix of one fixed shuffled order.

    Attributes:
        samples: number of the cell's samples.
        batch: samples of a full minibatch.
        drawn: number of minibatches drawn so far.
    """

    def __init__(self, samples: int, batch: int, seed: int, curriculum: Sequence[int] = ()) -> None:
        """
        Args:
            samples: number of the cell's samples.
            batch: samples a step; 0: all of them.
            seed: of the run.
            curriculum: epochs at which the prefix grows; none: all samples are in use from the start.
        """
        self.samples = samples
        self.batch = min(batch, samples) if batch else samples
        self.drawn = 0
        self._curriculum = list(curriculum)
        self._generator = np.random.default_rng([seed, _ORDER_STREAM])
        self._fixed_order = np.arange(samples)
        if self._curriculum:
            generator = np.random.default_rng([seed, _CURRICULUM_STREAM])
            self._fixed_order = generator.permutation(samples)
        self._queue = self._minibatches()

    @property
    def is_full_batch(self) -> bool:
        """Whether every step sees all samples (then in their own order)."""
        return self.batch == self.samples and not self._curriculum

    def next(self) -> list[int]:
        """Indices of the samples of the next minibatch."""
        self.drawn += 1
        return next(self._queue)

    def skip(self, draws: int) -> None:
        """Go on as after so many minibatches."""
        for _ in range(draws):
            self.next()

    def _minibatches(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            in_use = samples_in_use(self._curriculum, epoch, self.samples)
            order = self._fixed_order[self._generator.permutation(in_use)]
            for start in range(0, len(order), self.batch):
                yield order[start : start + self.batch].tolist()

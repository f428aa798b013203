"""The samples of a pack as tensors: shared input rows for the prefix, and the layout of each batch.

Shapes: n unique input rows, K cells, b samples of a cell in the batch, T input tokens, N scored
tokens of the batch, S scored slots of a cell.
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

# Beside the seed, so that the order of samples is independent of the initial weights.
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
    first: int
    """Index of the first sample that is equal to it: losses remember the two as one."""


Batch: TypeAlias = list[list[SampleSlice]]
"""The samples of each cell in one batch."""

SamplesByCell: TypeAlias = Sequence[Sequence[Sample]]
"""All samples of each cell."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a batch's inputs lie in the prefix, and its scored tokens in the hidden states."""

    rows: Tensor
    """Input rows of the batch, (K * b,)."""
    tokens: int
    """Input length T."""
    scored: Tensor
    """Positions that predict the scored tokens, (N,), into hidden states as (K * b * T)."""
    targets: Tensor
    """Token ids of the scored tokens, (N,)."""
    slots: Tensor
    """Slots of the scored tokens, (N,), into (K * S)."""
    mask_KS: Tensor
    """1 where a slot holds a token."""
    sample_KS: Tensor
    """Index of the cell's sample that a slot belongs to, of equal ones the first; 0 where there is
    padding."""
    position_KS: Tensor
    """Position of the token within its sample's target; 0 where there is padding."""

    def by_cell(self, values_N: Tensor) -> Tensor:
        """Values of scored tokens as (K, S), zero where there is padding; differentiable."""
        # index_copy: its backward pass is a gather, and every slot is written once.
        padded = values_N.new_zeros(self.mask_KS.numel())
        return padded.index_copy(0, self.slots, values_N).view(self.mask_KS.shape)

    def mean_by_cell(self, values_N: Tensor) -> Tensor:
        """Mean of each cell's values, (K,), in float64."""
        sum_K = self.by_cell(values_N).double().sum(1)
        return sum_K / self.mask_KS.sum(1)


class PackData:
    """The samples of K cells over shared input rows.

    A sample that is the beginning of another one with the same prompt uses its row.

    Attributes:
        rows: the sample that each input row holds, n of them.
        cells: the samples of each cell.
        ids: token ids of the rows, (n, longest), padded with 0.
    """

    def __init__(self, cells: SamplesByCell, device: torch.device) -> None:
        self.device = device
        self.rows: list[Sample] = []
        row_of = self._assign_rows({sample for cell in cells for sample in cell})

        self.cells: Batch = []
        for samples in cells:
            first: dict[Sample, int] = {}
            slices = [
                SampleSlice(
                    row=row_of[sample],
                    tokens=len(sample.target),
                    sample=i,
                    first=first.setdefault(sample, i),
                )
                for i, sample in enumerate(samples)
            ]
            self.cells.append(slices)

        token_lists = [[*sample.prompt, *sample.target] for sample in self.rows]
        longest = max(len(tokens) for tokens in token_lists)
        # Padded at the end: causality keeps the padding from the tokens before it.
        ids = np.zeros((len(token_lists), longest), np.int64)
        for row, tokens in enumerate(token_lists):
            ids[row, : len(tokens)] = tokens
        self.ids = torch.from_numpy(ids).to(device)

    def _assign_rows(self, samples: Iterable[Sample]) -> dict[Sample, int]:
        """Fill `self.rows`; the row of every sample."""
        row_of: dict[Sample, int] = {}
        rows_by_prompt: dict[tuple[int, ...], list[int]] = {}

        # The longest first, so that whatever begins another sample comes after it; the order of
        # the rest makes the rows, and with them rounding, the same in every process.
        for sample in sorted(samples, key=_longest_first):
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
        """The longest prompt and target, less the last token, which is not an input."""
        lengths = [len(self.rows[piece.row].prompt) + piece.tokens for piece in samples]
        return max(lengths) - 1

    def layout(self, batch: Batch) -> Layout:
        """Lay out one batch.

        Cells with fewer samples are padded with rows in which nothing is scored.
        """
        b = max(len(samples) for samples in batch)
        T = self._input_length(itertools.chain.from_iterable(batch))
        S = max(sum(piece.tokens for piece in samples) for samples in batch)

        K = len(batch)

        rows = np.zeros((K, b), np.int64)
        mask = np.zeros((K, S))
        sample = np.zeros((K, S), np.int64)
        position = np.zeros((K, S), np.int64)
        scored: list[NDArray[Any]] = []
        slots: list[NDArray[Any]] = []
        # Into the ids of all rows, flattened.
        id_positions: list[NDArray[Any]] = []
        longest = self.ids.shape[1]

        for k, samples in enumerate(batch):
            # The slots of a cell's samples follow each other without padding between them.
            start = 0
            for j, piece in enumerate(samples):
                prompt = len(self.rows[piece.row].prompt)
                steps = np.arange(piece.tokens)
                end = start + piece.tokens

                rows[k, j] = piece.row
                mask[k, start:end] = 1
                sample[k, start:end] = piece.first
                position[k, start:end] = steps

                # The hidden state before a token predicts it.
                scored.append((k * b + j) * T + prompt - 1 + steps)
                slots.append(k * S + start + steps)
                id_positions.append(piece.row * longest + prompt + steps)
                start = end

        target_positions = self._to_device(np.concatenate(id_positions))
        return Layout(
            rows=self._to_device(rows.ravel()),
            tokens=T,
            scored=self._to_device(np.concatenate(scored)),
            targets=self.ids.flatten()[target_positions],
            slots=self._to_device(np.concatenate(slots)),
            mask_KS=self._to_device(mask),
            sample_KS=self._to_device(sample),
            position_KS=self._to_device(position),
        )

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def _longest_first(sample: Sample) -> tuple[Any, ...]:
    return -len(sample.target), sample.prompt, sample.target


class SampleOrder:
    """The minibatches of one cell.

    Every epoch is a fresh permutation, from the cell's own generator, of the samples in use. With
    a curriculum those are a growing prefix of one fixed shuffled order.

    Attributes:
        samples: number of the cell's samples.
        batch: samples of a full minibatch.
        drawn: number of minibatches drawn so far.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        seed: int,
        curriculum: Sequence[int] = (),
    ) -> None:
        """
        Args:
            samples: number of the cell's samples.
            batch: samples a step; 0: all of them.
            seed: of the run.
            curriculum: epochs at which the prefix grows; none: all samples are in use from the
                start.
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
        """Skip ahead: the next minibatch is the one after so many."""
        # Drawn again, because checkpoints do not store the generator's state.
        for _ in range(draws):
            self.next()

    def _minibatches(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            in_use = samples_in_use(self._curriculum, epoch, self.samples)
            order = self._fixed_order[self._generator.permutation(in_use)]
            # The last minibatch of an epoch may be smaller: no sample is left out.
            for start in range(0, len(order), self.batch):
                yield order[start : start + self.batch].tolist()

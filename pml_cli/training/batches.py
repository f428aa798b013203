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
from pml_cli.data.row_packing import RowShape, fill_rows, input_tokens
from pml_cli.data.source import Sample
from pml_cli.model.packed_rows import COMMON, PADDING, PackedRows, PackingMode

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
    """Input rows of the batch, (K * b,); of the tokens of packed rows, (B, L)."""
    tokens: int
    """Input length T, or length L of the packed rows."""
    packed: PackedRows | None
    """None: every sample is a row."""
    scored: Tensor
    """Positions that predict the scored tokens, (N,), into hidden states as (K * b * T); with
    packed rows, into those of their queries."""
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


class PackData:
    """The samples of K cells over shared input rows.

    A sample that is the beginning of another one with the same prompt uses its row.

    Attributes:
        rows: the sample that each input row holds, n of them.
        cells: the samples of each cell.
        ids: token ids of the rows, (n, longest), padded with 0.
        prompts: lengths of the rows' prompts.
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
        self.prompts = np.array([len(sample.prompt) for sample in self.rows])

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

    @property
    def input_lengths(self) -> list[int]:
        """Input length of each row."""
        return [input_tokens(sample) for sample in self.rows]

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices; the rows of the prefix stay."""
        self.cells = [self.cells[k] for k in cells]

    def input_tokens(self, k: int) -> int:
        """Input length T of a cell by itself."""
        return self._input_length(self.cells[k])

    def _input_length(self, samples: Iterable[SampleSlice]) -> int:
        """The longest prompt and target, less the last token, which is not an input."""
        lengths = [len(self.rows[piece.row].prompt) + piece.tokens for piece in samples]
        return max(lengths) - 1

    def layout(
        self,
        batch: Batch,
        shape: RowShape | None = None,
        mode: PackingMode = PackingMode.ALL_TOKENS,
    ) -> Layout:
        """Lay out one batch.

        Args:
            batch: the samples of each cell.
            shape: of the packed rows; None: each sample is a row, padded to the longest. Cells with
                fewer rows than others are padded with rows in which nothing is scored.
            mode: of packed rows.
        """
        tokens = self._batch_tokens(batch)
        if shape is None:
            rows, length, scored = self._separate_rows(tokens)
            packed = None
        else:
            packed, scored = self._packed_rows(tokens, shape, mode)
            rows, length = packed.rows, packed.rows.shape[1]

        K = len(batch)
        S = tokens.slots_per_cell
        mask = np.zeros(K * S)
        sample = np.zeros(K * S, np.int64)
        position = np.zeros(K * S, np.int64)
        mask[tokens.slot] = 1
        sample[tokens.slot] = tokens.first[tokens.sample]
        position[tokens.slot] = tokens.step

        # Into the ids of all rows, flattened.
        row = tokens.row[tokens.sample]
        prompt = tokens.prompt[tokens.sample]
        id_positions = row * self.ids.shape[1] + prompt + tokens.step
        return Layout(
            rows=rows,
            tokens=length,
            packed=packed,
            scored=self._to_device(scored),
            targets=self.ids.flatten()[self._to_device(id_positions)],
            slots=self._to_device(tokens.slot),
            mask_KS=self._to_device(mask.reshape(K, S)),
            sample_KS=self._to_device(sample.reshape(K, S)),
            position_KS=self._to_device(position.reshape(K, S)),
        )

    def _batch_tokens(self, batch: Batch) -> _BatchTokens:
        counts = np.array([len(samples) for samples in batch])
        pieces = np.array([piece for samples in batch for piece in samples], np.int64)
        row, lengths, _, first = pieces.T
        cell = np.repeat(np.arange(len(batch)), counts)

        # The slots of a cell's samples follow each other without padding between them.
        sample = np.repeat(np.arange(len(pieces)), lengths)
        tokens_of_cell = np.bincount(cell, lengths, len(batch)).astype(np.int64)
        slots_per_cell = int(tokens_of_cell.max())
        slot = cell[sample] * slots_per_cell + _ranges(tokens_of_cell)
        return _BatchTokens(
            counts=counts,
            cell=cell,
            row=row,
            prompt=self.prompts[row],
            lengths=lengths,
            first=first,
            sample=sample,
            step=_ranges(lengths),
            slot=slot,
            slots_per_cell=slots_per_cell,
        )

    def _separate_rows(self, tokens: _BatchTokens) -> tuple[Tensor, int, NDArray[np.int64]]:
        """Input rows, (K * b,), their length T, and where the scored tokens are in them."""
        K = len(tokens.counts)
        b = int(tokens.counts.max())
        T = int(tokens.inputs.max())

        place = tokens.cell * b + _ranges(tokens.counts)
        rows = np.zeros(K * b, np.int64)
        rows[place] = tokens.row
        return self._to_device(rows), T, place[tokens.sample] * T + tokens.predicting

    def _packed_rows(
        self, tokens: _BatchTokens, shape: RowShape, mode: PackingMode
    ) -> tuple[PackedRows, NDArray[np.int64]]:
        """The packed rows, and where the scored tokens are in their queries.

        A packed row of three samples, with the tokens that all samples have in common first:

            | common | sample 1 | sample 2  | sample 3 | padding |
                      offset 1   offset 2    offset 3             L

        S samples, B packed rows of L tokens, N scored tokens, Q queries a row.
        """
        placement = _placed(tokens, shape)
        row_BL, position_BL, segment_BL = _row_tables(tokens, placement, shape.common)
        queries_BQ, place_N = _query_table(tokens, placement, shape.common)
        packed = PackedRows(
            rows=self._to_device(row_BL),
            positions=self._to_device(position_BL),
            segments=self._to_device(segment_BL),
            queries=self._to_device(queries_BQ),
            # The last token is not an input.
            tokens=self.ids.shape[1] - 1,
            mode=mode,
        )
        return packed, place_N

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)


@dataclass(frozen=True, kw_only=True)
class _BatchTokens:
    """The samples of a batch, one after the other over all cells, and their scored tokens."""

    counts: NDArray[np.int64]
    """Samples of each cell."""
    cell: NDArray[np.int64]
    """Cell of each sample."""
    row: NDArray[np.int64]
    """Input row of each sample."""
    prompt: NDArray[np.int64]
    """Length of each sample's prompt."""
    lengths: NDArray[np.int64]
    """Length of each sample's target."""
    first: NDArray[np.int64]
    """`SampleSlice.first` of each sample."""
    sample: NDArray[np.int64]
    """Sample of each scored token."""
    step: NDArray[np.int64]
    """Position of each scored token in its target."""
    slot: NDArray[np.int64]
    """Slot of each scored token."""
    slots_per_cell: int

    @property
    def inputs(self) -> NDArray[np.int64]:
        """Input length of each sample: the last token is only predicted."""
        return self.prompt + self.lengths - 1

    @property
    def predicting(self) -> NDArray[np.int64]:
        """Position of the input token that predicts each scored token."""
        return self.prompt[self.sample] - 1 + self.step


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """Where the S samples of a batch lie in B packed rows of L tokens."""

    count_S: NDArray[np.int64]
    """Input tokens of each sample beyond those that all samples have in common."""
    packed_row_S: NDArray[np.int64]
    """Packed row of each sample."""
    offset_S: NDArray[np.int64]
    """Index of each sample's first token in its row."""
    B: int
    L: int


def _placed(tokens: _BatchTokens, shape: RowShape) -> _Placement:
    """The samples of a batch, placed in packed rows: as many rows for each cell."""
    count_S = tokens.inputs - shape.common
    by_cell = []
    for k in range(len(tokens.counts)):
        of_cell = tokens.cell == k
        by_cell.append(fill_rows(count_S[of_cell], tokens.lengths[of_cell], shape))
    rows_per_cell = max(filled.count for filled in by_cell)

    packed_row_S = tokens.cell * rows_per_cell
    packed_row_S += np.concatenate([filled.rows for filled in by_cell])
    offset_S = np.concatenate([filled.offsets for filled in by_cell])
    return _Placement(
        count_S=count_S,
        packed_row_S=packed_row_S,
        offset_S=offset_S,
        B=len(by_cell) * rows_per_cell,
        # A small batch does not fill its rows.
        L=int((offset_S + count_S).max()),
    )


def _row_tables(
    tokens: _BatchTokens, placement: _Placement, common: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Input row, position and segment of each packed token, (B, L) each.

    Args:
        tokens: of the batch.
        placement: of its samples.
        common: number of tokens that all samples have in common.
    """
    row_BL = np.zeros((placement.B, placement.L), np.int64)
    position_BL = np.zeros_like(row_BL)
    segment_BL = np.full_like(row_BL, PADDING)
    # The tokens that samples have in common are taken from any of them.
    row_BL[placement.packed_row_S, :common] = tokens.row[:, None]
    position_BL[:, :common] = np.arange(common)
    segment_BL[:, :common] = COMMON

    # The other tokens, sample by sample.
    count_S = placement.count_S
    sample_of_token = np.repeat(np.arange(len(count_S)), count_S)
    index_in_sample = _ranges(count_S)
    flat_index = placement.packed_row_S[sample_of_token] * placement.L
    flat_index += placement.offset_S[sample_of_token] + index_in_sample
    row_BL.flat[flat_index] = tokens.row[sample_of_token]
    position_BL.flat[flat_index] = common + index_in_sample
    segment_BL.flat[flat_index] = 1 + sample_of_token
    return row_BL, position_BL, segment_BL


def _query_table(
    tokens: _BatchTokens, placement: _Placement, common: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index in its row of the token that each query reads, (B, Q), and each scored token's query.

    Scored tokens are in the order of the batch, numbered within their rows.

    Args:
        tokens: of the batch.
        placement: of its samples.
        common: number of tokens that all samples have in common.

    Returns:
        The queries, and the flat index in them of each scored token, (N,).
    """
    row_N = placement.packed_row_S[tokens.sample]
    index_in_row_N = placement.offset_S[tokens.sample] + tokens.predicting - common
    query_N = _number_within(row_N)
    queries_BQ = np.zeros((placement.B, int(query_N.max()) + 1), np.int64)
    queries_BQ[row_N, query_N] = index_in_row_N
    return queries_BQ, row_N * queries_BQ.shape[1] + query_N


def _ranges(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... up to each of some lengths, one after the other."""
    ends = lengths.cumsum()
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)


def _number_within(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many entries of the same group come before each entry."""
    order = np.argsort(groups, kind="stable")
    numbers = np.empty_like(groups)
    numbers[order] = _ranges(np.bincount(groups))
    return numbers


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

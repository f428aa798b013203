"""How samples are laid into packed rows: how long the rows are, and which sample goes where.

Shared by the trainer and the planner. Without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pml_cli.data.cell import PackedSize
from pml_cli.data.source import Sample

# Rows are at least so long, if the samples fill them: longer ones waste less, shorter ones take
# less attention.
MIN_ROW_TOKENS = 96

# Scored tokens that a row may hold, as a multiple of the mean.
SLACK = 1.1

# Packed rows are used if they have at most this share of the tokens of separate ones.
MOST_WORK = 0.9


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the samples of a batch lie in rows."""

    rows: NDArray[np.int64]
    """Row of each sample, (b,)."""

    offsets: NDArray[np.int64]
    """First token of each sample in its row, (b,)."""

    count: int
    """Number of rows."""


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """What the packed rows of a cell have in common, whatever batch they hold."""

    common: int
    """Tokens that all of its samples begin with: they come once a row."""

    tokens: int
    """Length of a row."""


def common_beginning(samples: Sequence[Sample]) -> int:
    """How many tokens all prompts begin with, less one: each sample keeps the last of its own."""
    # Of all prompts, the least and the greatest differ first.
    prompts = [sample.prompt for sample in samples]
    least = min(prompts)
    greatest = max(prompts)
    shortest = min(len(prompt) for prompt in prompts)

    common = 0
    while common < shortest - 1 and least[common] == greatest[common]:
        common += 1
    return common


def input_tokens(sample: Sample) -> int:
    """Input length of a sample: the last token is only predicted."""
    return len(sample.prompt) + len(sample.target) - 1


def shape_of_cells(cells: Sequence[Sequence[Sample]]) -> RowShape | None:
    """The packed rows for the samples of some cells.

    Returns:
        their shape; None where no cell has two samples, or packed rows save little.
    """
    present = [samples for samples in cells if samples]
    if all(len(samples) < 2 for samples in present):
        return None

    common = min(common_beginning(samples) for samples in present)
    longest = max(max(map(input_tokens, samples)) for samples in present)
    fullest = common + max(int(_own_tokens(samples, common).sum()) for samples in present)
    shape = RowShape(common=common, tokens=max(longest, min(MIN_ROW_TOKENS, fullest)))

    # The last layer runs for scored tokens alone, and counts as much as all others.
    packed = 0
    for samples in present:
        scored = np.array([len(sample.target) for sample in samples])
        rows = fill_rows(_own_tokens(samples, common), scored, shape).count
        packed = max(packed, rows * shape.tokens + int(scored.sum()))
    separate = 2 * longest * max(map(len, present))
    return shape if packed <= MOST_WORK * separate else None


def packed_size(samples: Sequence[Sample], batch: int) -> PackedSize | None:
    """The packed rows of a step on some of a cell's samples.

    Args:
        samples: of the cell.
        batch: how many of them a step has.

    Returns:
        the size, of a batch of all lengths; None where each sample is a row.
    """
    shape = shape_of_cells([samples])
    if shape is None:
        return None

    # The middle ones of as many groups of about equal length.
    by_length = sorted(samples, key=input_tokens)
    middles = [(2 * i + 1) * len(samples) // (2 * batch) for i in range(batch)]
    chosen = [by_length[middle] for middle in middles]
    scored = np.array([len(sample.target) for sample in chosen])
    own = _own_tokens(chosen, shape.common)
    placement = fill_rows(own, scored, shape)

    # A small batch does not fill its rows, but any may hold the longest sample.
    longest = input_tokens(by_length[-1])
    most_scored = max(len(sample.target) for sample in samples)
    queries = np.bincount(placement.rows, scored)
    return PackedSize(
        rows=placement.count,
        tokens=max(longest, int((placement.offsets + own).max())),
        queries=max(most_scored, int(queries.max())),
    )


def _own_tokens(samples: Sequence[Sample], common: int) -> NDArray[np.int64]:
    return np.array([input_tokens(sample) - common for sample in samples])


def fill_rows(lengths: NDArray[np.int64], scored: NDArray[np.int64], shape: RowShape) -> Placement:
    """Lay samples into few rows, with about as many scored tokens in each: best-fit decreasing.

    Args:
        lengths: tokens of each sample beyond the common beginning, (b,); b may be 0.
        scored: its target tokens, (b,).
        shape: of the rows.
    """
    capacity = shape.tokens - shape.common
    fewest = max(1, -(-int(lengths.sum()) // capacity))
    # Rows are padded to the most scored tokens of one.
    most_scored = max(int(scored.max(initial=0)), round(SLACK * scored.sum() / fewest))

    rows = np.zeros_like(lengths)
    offsets = np.zeros_like(lengths)
    left = np.full(len(lengths), capacity)
    scored_left = np.full(len(lengths), most_scored)
    count = 0
    for i in np.argsort(-lengths, kind="stable"):
        fits = (left[:count] >= lengths[i]) & (scored_left[:count] >= scored[i])
        row = count
        if fits.any():
            row = int(np.where(fits, left[:count], capacity + 1).argmin())
        count = max(count, row + 1)

        rows[i] = row
        offsets[i] = shape.tokens - left[row]
        left[row] -= lengths[i]
        scored_left[row] -= scored[i]
    return Placement(rows=rows, offsets=offsets, count=count)

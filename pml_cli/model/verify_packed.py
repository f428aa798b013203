"""Verify that samples in packed rows get the outputs that each has in a row of its own.

What is compared are the layers from the adapters' on, with a random adapter, on random hidden
states in two rows of the length that is asked for: one begins with the longest sample, and short
ones fill both. Rounding hides little mistakes where numbers have few digits, so two more passes
show what the samples of a row know of each other:

- The states of every other sample are replaced. The rest may change no more than sums do that are
  computed in another order (a router's experts run on other groups of tokens).
- All samples see those before them, as in a wrong packing. The packed rows must be far nearer to
  separate ones: attention that masks by itself comes near the wrong packing.

Shapes: B rows, L tokens of a row, S queries of a row, T tokens of a sample, D hidden size.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.device import is_fault_of_machine
from pml_cli.model.packed_rows import COMMON, PADDING, PackedRows, PackingMode
from pml_cli.model.verify_split import DEFAULT_TOLERANCE, TOLERANCES, rms

if TYPE_CHECKING:
    from pml_cli.model.split_model import SplitModel

# Random adapters and states; rounding may flip a router for one of them.
SEEDS = range(2)

# Short samples of a row, at most.
MAX_SAMPLES = 8

# Largest difference, as a share of what a wrong packing makes.
MOST_OF_LEAK = 0.2

# Largest change by the states of other samples, as a share of the tolerance of rounding.
MOST_OF_ROUNDING = 0.02


@dataclass(frozen=True, kw_only=True)
class ProbeShape:
    """What packed rows are to be tried with."""

    common: int
    """Tokens at the beginning of a row that all of its samples begin with."""

    tokens: int
    """Length L of a row."""

    longest: int
    """Length T of the longest sample."""


class _Piece(NamedTuple):
    """The own tokens of one sample in a row."""

    row: int
    first: int
    length: int


class _Outputs(NamedTuple):
    """Outputs at the queries, (B, S, D) each in float64."""

    separate: Tensor
    """Outputs for each sample in a row of its own."""

    packed: Tensor
    leaky: Tensor
    """Outputs for samples that see those before them in the row."""

    with_others_replaced: Tensor
    """Outputs for packed rows in which the states of every second sample are replaced."""


def find_packing_mode(model: SplitModel, bank: AdapterBank, shape: ProbeShape) -> PackingMode:
    """The mode of least work in which packed rows equal separate ones.

    Args:
        model: the model.
        bank: tells the sites of the adapters.
        shape: of the rows.
    """
    pieces = _pieces(shape)
    for mode in (PackingMode.KEYS, PackingMode.QUERIES, PackingMode.ALL_TOKENS):
        packed = _probe_rows(model, shape, pieces, mode)
        if any(_matches(model, bank, packed, pieces, seed) for seed in SEEDS):
            return mode
    return PackingMode.SEPARATE


def _pieces(shape: ProbeShape) -> list[_Piece]:
    """Two rows full of samples of unequal lengths, the first of them as long as any."""
    longest = shape.longest - shape.common
    short = min(longest, max(1, (shape.tokens - shape.common) // MAX_SAMPLES))

    pieces = []
    for row in range(2):
        first = shape.common
        for number in itertools.count(row):
            # One token less for every other sample.
            own = longest if number == 0 else max(1, short - number % 2)
            if first + own > shape.tokens:
                break
            pieces.append(_Piece(row=row, first=first, length=own))
            first += own
    return pieces


def _probe_rows(
    model: SplitModel, shape: ProbeShape, pieces: list[_Piece], mode: PackingMode
) -> PackedRows:
    """The rows of some samples, whose own tokens are queries."""
    to_rows = partial(torch.zeros, (2, shape.tokens), dtype=torch.long, device=model.device)
    positions = to_rows()
    positions[:, : shape.common] = torch.arange(shape.common)
    segments = to_rows().fill_(PADDING)
    segments[:, : shape.common] = COMMON

    for sample, piece in enumerate(pieces, start=1):
        own = slice(piece.first, piece.first + piece.length)
        positions[piece.row, own] = torch.arange(shape.common, shape.common + piece.length)
        segments[piece.row, own] = sample

    end = min(int((segments[row] != PADDING).sum()) for row in range(2))
    # Reshaping one head of so many tokens into all heads of fewer must fail.
    if (end - shape.common) % model.heads == 0:
        end -= 1
    queries = torch.arange(shape.common, end, device=model.device)
    return PackedRows(
        # The states are made where they stand.
        rows=to_rows(),
        positions=positions,
        segments=segments,
        queries=queries.repeat(2, 1),
        tokens=shape.longest,
        mode=mode,
    )


@torch.no_grad()
def _matches(
    model: SplitModel, bank: AdapterBank, packed: PackedRows, pieces: list[_Piece], seed: int
) -> bool:
    try:
        outputs = _outputs(model, bank, packed, pieces, seed)
    # A layer may fail in any way on what it is never called with.
    except Exception as error:
        if is_fault_of_machine(error):
            raise
        return False

    rounding = TOLERANCES.get(model.dtype, DEFAULT_TOLERANCE).of_spread * rms(outputs.separate)
    difference = rms(outputs.packed - outputs.separate)
    is_kept = packed.at_queries(packed.segments) % 2 == 0
    change = rms((outputs.with_others_replaced - outputs.packed)[is_kept])

    # Each comparison is false as well if something is not finite.
    is_same = difference <= rounding
    is_far_from_leaky = difference <= MOST_OF_LEAK * rms(outputs.leaky - outputs.separate)
    is_alone = change <= MOST_OF_ROUNDING * rounding
    return is_same and is_far_from_leaky and is_alone


def _outputs(
    model: SplitModel, bank: AdapterBank, packed: PackedRows, pieces: list[_Piece], seed: int
) -> _Outputs:
    generator = torch.Generator().manual_seed(seed)
    adapter = bank.select([0])
    for name, B in adapter.B.items():
        # Drawn on the CPU, so that every device sees the same.
        adapter.B[name] = torch.randn(B.shape, generator=generator, dtype=B.dtype).to(B.device)

    shape = (*packed.rows.shape, model.hidden_size)
    states_BLD = torch.randn(shape, generator=generator).to(model.device, model.dtype)
    other_BLD = torch.randn(shape, generator=generator).to(model.device, model.dtype)
    is_other_BL1 = (packed.segments > COMMON) & (packed.segments % 2 == 1)
    replaced_BLD = torch.where(is_other_BL1[:, :, None], other_BLD, states_BLD)

    def run(states: Tensor, rows: PackedRows) -> Tensor:
        return model.upper(model.prefix_of(states, adapter), adapter, packed=rows).double()

    everything = torch.full_like(packed.segments, COMMON)
    separate_BLD = _separate(model, adapter, states_BLD, pieces)
    return _Outputs(
        separate=packed.at_queries(separate_BLD).double(),
        packed=run(states_BLD, packed),
        leaky=run(states_BLD, dataclasses.replace(packed, segments=everything)),
        with_others_replaced=run(replaced_BLD, packed),
    )


def _separate(
    model: SplitModel, adapter: AdapterBank, states_BLD: Tensor, pieces: list[_Piece]
) -> Tensor:
    """Outputs of each sample by itself, where its own tokens stand in the packed rows."""
    common = min(piece.first for piece in pieces)
    outputs_BLD = torch.zeros_like(states_BLD)
    for length in {piece.length for piece in pieces}:
        alike = [piece for piece in pieces if piece.length == length]
        row = torch.tensor([[piece.row] for piece in alike])
        own = torch.tensor([[piece.first] for piece in alike]) + torch.arange(length)
        tokens = torch.cat([torch.arange(common).expand(len(alike), -1), own], 1)

        prefix = model.prefix_of(states_BLD[row, tokens], adapter)
        outputs_BLD[row, own] = model.upper(prefix, adapter)[:, common:]
    return outputs_BLD

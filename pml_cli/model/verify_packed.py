"""Verify that samples in packed rows get the outputs that each has in a row of its own.

What is compared are the layers from the adapters' on, with a random adapter, on random hidden
states: rows of the length that is asked for, filled with short samples. The difference is measured
against that of a wrong packing, in which samples see those before them: a recurrent layer, or
attention that masks by itself, comes near it.

Shapes: n samples, T tokens of the longest, L tokens of a row, D hidden size.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import TYPE_CHECKING

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

# Samples of the row that is tried, at most.
MAX_SAMPLES = 8

# Largest difference, as a share of what a wrong packing makes.
MOST_OF_LEAK = 0.2


def find_packing_mode(
    model: SplitModel, bank: AdapterBank, common: int, tokens: int
) -> PackingMode:
    """The mode of least work in which packed rows equal separate ones.

    Args:
        model: the model.
        bank: tells the sites of the adapters.
        common: tokens at the beginning of a row that all of its samples begin with.
        tokens: length L of a row.
    """
    for mode in (PackingMode.KEYS, PackingMode.QUERIES, PackingMode.ALL_TOKENS):
        packed = _probe_rows(model, common, tokens, mode)
        if any(_matches(model, bank, packed, seed) for seed in SEEDS):
            return mode
    return PackingMode.SEPARATE


def _probe_rows(model: SplitModel, common: int, tokens: int, mode: PackingMode) -> PackedRows:
    """Two equal rows full of samples of unequal lengths, whose own tokens are queries."""
    share = max(1, (tokens - common) // MAX_SAMPLES)
    rows = [0] * common
    positions = list(range(common))
    segments = [COMMON] * common

    for sample in itertools.count():
        # One token less for every other sample.
        own = max(1, share - sample % 2)
        if len(rows) + own > tokens:
            break
        rows += [sample] * own
        positions += range(common, common + own)
        segments += [1 + sample] * own

    queries = list(range(common, len(rows)))
    # Reshaping one head of so many tokens into all heads of fewer must fail.
    if len(queries) % model.heads == 0:
        queries.pop()
    padding = tokens - len(rows)
    to_rows = partial(torch.tensor, device=model.device)
    return PackedRows(
        rows=to_rows([rows + [0] * padding] * 2),
        positions=to_rows([positions + [0] * padding] * 2),
        segments=to_rows([segments + [PADDING] * padding] * 2),
        queries=to_rows([queries] * 2),
        tokens=common + share,
        mode=mode,
    )


@torch.no_grad()
def _matches(model: SplitModel, bank: AdapterBank, packed: PackedRows, seed: int) -> bool:
    try:
        separate, own, leaky = _outputs(model, bank, packed, seed)
    # A layer may fail in any way on what it is never called with.
    except Exception as error:
        if is_fault_of_machine(error):
            raise
        return False

    tolerance = TOLERANCES.get(model.dtype, DEFAULT_TOLERANCE)
    difference = rms(own - separate)
    # False as well if something is not finite.
    is_rounding = difference <= tolerance.of_spread * rms(separate)
    return is_rounding and difference <= MOST_OF_LEAK * rms(leaky - separate)


def _outputs(
    model: SplitModel, bank: AdapterBank, packed: PackedRows, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs at the queries: of separate rows, of packed ones, and of wrongly packed ones."""
    generator = torch.Generator().manual_seed(seed)
    adapter = bank.select([0])
    for name, B in adapter.B.items():
        # Drawn on the CPU, so that every device sees the same.
        adapter.B[name] = torch.randn(B.shape, generator=generator, dtype=B.dtype).to(B.device)

    samples = int(packed.rows.max()) + 1
    shape = (samples, packed.tokens, model.hidden_size)
    states_nTD = torch.randn(shape, generator=generator).to(model.device, model.dtype)
    # All samples begin with the same tokens.
    common = int((packed.segments[0] == COMMON).sum())
    states_nTD[:, :common] = states_nTD[:1, :common].clone()
    prefix = model.prefix_of(states_nTD, adapter)

    separate_nTD = model.upper(prefix, adapter)
    separate = packed.at_queries(separate_nTD[packed.rows, packed.positions])
    rows = prefix.gather(packed)
    own = model.upper(rows, adapter, packed=packed)
    everything = torch.full_like(packed.segments, COMMON)
    wrong = dataclasses.replace(packed, segments=everything)
    leaky = model.upper(rows, adapter, packed=wrong)
    return separate.double(), own.double(), leaky.double()

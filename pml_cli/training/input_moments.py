"""The second moment of what the adapters of each cell read: C = mean of x' x over its tokens.

x is what a site reads in the base model, over the input tokens of all samples of the cell. Cells
with equal samples share one C.

Shapes: I inputs of a site, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.chunk_sizes import PREFIX_ROWS
from pml_cli.model.split_model import Prefix, SplitModel
from pml_cli.training.energy import Moments, groups, of_width
from pml_cli.training.scoring import PackInputs, zero_adapters

_Inputs: TypeAlias = tuple[tuple[int, int], ...]
"""The samples of a cell: row and number of input tokens of each."""


@torch.no_grad()
def input_moments(base: SplitModel, bank: AdapterBank, inputs: PackInputs) -> list[Moments]:
    """C of each site, (I, I), of each cell; factored where a site is wide.

    Args:
        base: the frozen model.
        bank: its sites tell where the adapters are; its weights do not matter.
        inputs: the samples of its cells.
    """
    data = inputs.data
    # The last token is only predicted.
    prefix = inputs.prefix or base.prefix(data.ids[:, :-1], bank)
    keys: list[_Inputs] = []
    for samples in data.cells:
        rows_and_lengths = []
        for piece in samples:
            tokens = int(data.prompts[piece.row]) + piece.tokens
            rows_and_lengths.append((piece.row, tokens - 1))
        keys.append(tuple(rows_and_lengths))

    moments: dict[_Inputs, Moments] = {key: {} for key in keys}
    # Group by group: the whole moments of all wide sites would not fit into memory at once.
    for names in groups({name: site.inputs for name, site in bank.sites.items()}):
        for key in moments:
            moments[key] |= _moments_of(names, base, bank, prefix, key)
    return [moments[key] for key in keys]


def _moments_of(
    names: Sequence[str], base: SplitModel, bank: AdapterBank, prefix: Prefix, samples: _Inputs
) -> Moments:
    """C of some sites over the samples of one cell."""
    like = torch.empty(0, dtype=base.adapter_dtype, device=base.device)
    sums: dict[str, Tensor] = {}
    for name in names:
        width = bank.sites[name].inputs
        sums[name] = like.new_zeros(width, width)

    # Samples of one length together, cut there: after a shorter one its row holds padding, or the
    # rest of a longer sample that begins alike.
    by_length: dict[int, list[int]] = {}
    for row, tokens in samples:
        by_length.setdefault(tokens, []).append(row)
    for tokens, rows in by_length.items():
        for part in torch.tensor(rows, device=like.device).split(PREFIX_ROWS):
            _add(sums, base, bank, prefix.rows(part, tokens))

    total = sum(tokens for _, tokens in samples)
    # Sums are freed one by one: those of wide sites are large.
    return {name: of_width(sums.pop(name) / total) for name in names}


def _add(sums: Mapping[str, Tensor], base: SplitModel, bank: AdapterBank, prefix: Prefix) -> None:
    """Add what every site reads of some rows to its sum."""
    if bank.is_block:
        # The one site is the MLP block, at whose input the prefix ends.
        (moment,) = sums.values()
        _add_states(moment, prefix.entry)
        return

    with ExitStack() as hooks:
        for name, moment in sums.items():
            handle = base.modules[name].register_forward_hook(partial(_add_call, moment))
            hooks.callback(handle.remove)
        base.upper(prefix, zero_adapters(bank, [0]))


def _add_call(moment: Tensor, _module: Any, inputs: tuple[Tensor, ...], _output: Any) -> None:
    """A forward hook: the site's module was called."""
    _add_states(moment, inputs[0])


def _add_states(moment: Tensor, states: Tensor) -> None:
    """Add x' x of hidden states, (..., I)."""
    x_NI = states.reshape(-1, states.shape[-1]).to(moment.dtype)
    moment.addmm_(x_NI.T, x_NI)

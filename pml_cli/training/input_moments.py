"""The second moment of what the adapters of each cell read: C = mean of x' x over its tokens.

In the base model, over all input tokens of a cell's samples; cells with equal samples share it.

Shapes: I inputs of a site, T input tokens of a sample, n rows.
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
"""The samples of a cell: row and input tokens T of each."""


@torch.no_grad()
def input_moments(base: SplitModel, bank: AdapterBank, inputs: PackInputs) -> list[Moments]:
    """C of each site, (I, I), of each cell; factored where a site is wide.

    Args:
        base: the frozen model.
        bank: its sites tell where the adapters are; its weights do not matter.
        inputs: the samples of its cells.
    """
    data = inputs.data
    # The last token is not an input.
    prefix = inputs.prefix or base.prefix(data.ids[:, :-1], bank)
    keys: list[_Inputs] = []
    for samples in data.cells:
        lengths = [int(data.prompts[piece.row]) + piece.tokens - 1 for piece in samples]
        keys.append(tuple((piece.row, T) for piece, T in zip(samples, lengths, strict=True)))

    moments: dict[_Inputs, Moments] = {key: {} for key in keys}
    # Of wide sites only so many exist whole at once.
    for names in groups({name: site.inputs for name, site in bank.sites.items()}):
        for key in moments:
            moments[key] |= _moments_of(names, base, bank, prefix, key)
    return [moments[key] for key in keys]


def _moments_of(
    names: Sequence[str], base: SplitModel, bank: AdapterBank, prefix: Prefix, samples: _Inputs
) -> Moments:
    like = torch.empty(0, dtype=base.adapter_dtype, device=base.device)
    sums = {name: like.new_zeros(2 * (bank.sites[name].inputs,)) for name in names}

    # Samples of one length together: what follows a shorter one is not its own.
    by_length: dict[int, list[int]] = {}
    for row, tokens in samples:
        by_length.setdefault(tokens, []).append(row)
    for tokens, rows in by_length.items():
        for part in torch.tensor(rows, device=like.device).split(PREFIX_ROWS):
            _add(sums, base, bank, prefix.rows(part, tokens))

    tokens = sum(tokens for _, tokens in samples)
    return {name: of_width(sums.pop(name) / tokens) for name in names}


def _add(sums: Mapping[str, Tensor], base: SplitModel, bank: AdapterBank, prefix: Prefix) -> None:
    """Add what every site reads of some rows to its sum."""
    if bank.is_block:
        (moment,) = sums.values()
        _add_states(moment, prefix.entry)
        return

    with ExitStack() as hooks:
        for name, moment in sums.items():
            see = partial(_add_call, moment)
            hooks.callback(base.modules[name].register_forward_hook(see).remove)
        base.upper(prefix, zero_adapters(bank, [0]))


def _add_call(moment: Tensor, *called: Any) -> None:
    """A forward hook: the site's module was called."""
    _module, inputs, _output = called
    _add_states(moment, inputs[0])


def _add_states(moment: Tensor, states: Tensor) -> None:
    x_NI = states.reshape(-1, states.shape[-1]).to(moment.dtype)
    moment.addmm_(x_NI.T, x_NI)

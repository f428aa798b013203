"""What an adapter does to text that it was not trained on: loss, and the Kullback-Leibler divergence from the base.

Shapes: N scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.training.batches import PackData

TOKENS = 16384  # at once
LOGITS = 2**25  # of one model that exist at once

Measured = dict[str, float | int | None]
NOTHING: Measured = {"tokens": 0, "base_loss": None, "loss": None, "kl": None, "changed": None}


def divergence(base_NV: Tensor, adapted_NV: Tensor) -> Tensor:
    """KL(base || adapted) of each token in nats, from logits; at least in float32."""
    precise = torch.promote_types(base_NV.dtype, torch.float32)
    before, after = log_softmax(base_NV.to(precise), 1), log_softmax(adapted_NV.to(precise), 1)
    return (before.exp() * (before - after)).sum(1)


@torch.no_grad()
def damages(
    base: SplitModel, bank: AdapterBank, cells: Sequence[Sequence[Sample]]
) -> list[Measured]:
    """Of each cell: tokens; loss of the base and with the adapter; KL(base || adapted); share with another first choice.

    Losses and KL are means in nats per token. A cell without text has None.
    """
    out = [dict(NOTHING) for _ in cells]
    left = [k for k, samples in enumerate(cells) if samples]
    while left:
        rows = max(len(cells[k]) for k in left) * max(
            len(s.prompt) + len(s.target) for k in left for s in cells[k]
        )
        now, left = left[: max(1, TOKENS // rows)], left[max(1, TOKENS // rows) :]
        for k, found in zip(
            now, _measured(base, bank.select(now), [cells[k] for k in now]), strict=True
        ):
            out[k] = found
    return out


def _measured(
    base: SplitModel, bank: AdapterBank, cells: Sequence[Sequence[Sample]]
) -> list[Measured]:
    data = PackData(cells, base.device)
    prefix, layout = base.prefix(data.ids[:, :-1], bank), data.layout(data.cells)
    plain = bank.select([0])
    plain.B = {name: torch.zeros_like(B) for name, B in plain.B.items()}
    before_rows = base.upper(prefix, plain)  # each text once, however many adapters read it
    before = before_rows[layout.rows, : layout.tokens].flatten(0, 1)[layout.scored]
    after = base.upper(prefix.rows(layout.rows, layout.tokens), bank).flatten(0, 1)[layout.scored]
    parts = []
    size = max(1, LOGITS // base.head.weight_VD.shape[0])
    for start in range(0, len(layout.targets), size):
        rows = slice(start, start + size)
        parts.append(
            _compared(base.logits(before[rows]), base.logits(after[rows]), layout.targets[rows])
        )
    tokens_K = layout.mask_KS.sum(1)
    means = [
        layout.by_cell(torch.cat(values)).double().sum(1) / tokens_K
        for values in zip(*parts, strict=True)
    ]
    names = ("base_loss", "loss", "kl", "changed")
    return [
        {
            "tokens": int(tokens),
            **{name: float(mean[k]) for name, mean in zip(names, means, strict=True)},
        }
        for k, tokens in enumerate(tokens_K.tolist())
    ]


def _compared(base_NV: Tensor, adapted_NV: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    precise = torch.promote_types(base_NV.dtype, torch.float32)
    losses = [
        torch.nn.functional.cross_entropy(x.to(precise), targets, reduction="none")
        for x in (base_NV, adapted_NV)
    ]
    changed = (base_NV.argmax(1) != adapted_NV.argmax(1)).to(precise)
    return *losses, divergence(base_NV, adapted_NV), changed

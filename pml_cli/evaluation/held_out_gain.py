"""What an adapter gains on a sequence it has not seen, of the source it was trained on.

That gain is knowledge of the source (which words it uses, how its facts look), not memory of the target: the part of dL that
is there at any rank and length, the offset b of the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import token_nll
from pml_cli.model.split_model import SplitModel
from pml_cli.training.batches import PackData

TOKENS = 16384  # at once, so that little memory is needed

Samples = Sequence[Sequence[Sample]]


@torch.no_grad()
def control_gains(base: SplitModel, bank: AdapterBank, cells: Samples) -> list[dict[str, Any]]:
    """Of each cell of the bank: control_base_loss and control_gain, nats per token; None where it has no unseen samples.

    Args:
        bank: trained adapters.
        cells: for each of them, samples that it has not seen.
    """
    out: list[dict[str, Any]] = [{"control_base_loss": None, "control_gain": None} for _ in cells]
    left = [k for k, samples in enumerate(cells) if samples]
    while left:
        longest = max(len(s.prompt) + len(s.target) for k in left for s in cells[k])
        most = max(len(cells[k]) for k in left)
        now, left = (
            left[: max(1, TOKENS // (longest * most))],
            left[max(1, TOKENS // (longest * most)) :],
        )
        chosen = bank.select(now)
        after = _losses(base, chosen, [cells[k] for k in now])
        chosen.B = {name: torch.zeros_like(B) for name, B in chosen.B.items()}
        before = _losses(base, chosen, [cells[k] for k in now])
        for k, first, last in zip(now, before, after, strict=True):
            out[k] = {"control_base_loss": first, "control_gain": first - last}
    return out


def _losses(base: SplitModel, bank: AdapterBank, cells: Samples) -> list[float]:
    """Mean nll of each cell's target tokens, nats."""
    data = PackData(cells, base.device)
    prefix = base.prefix(data.ids[:, :-1], bank)
    layout = data.layout(data.cells)
    hidden = base.upper(prefix.rows(layout.rows, layout.tokens), bank).flatten(0, 1)[layout.scored]
    nll = layout.by_cell(token_nll(hidden, base.head, layout.targets).nll)
    return [float(v) for v in (nll.double() * layout.mask_KS).sum(1) / layout.mask_KS.sum(1)]

"""Does the split forward pass of a model equal its own? Tried with adapters that are felt, in the type it is loaded in.

What is compared is the CHANGE that an adapter makes to the logits, in the split pass and in the model's own: next to the
logits themselves it would drown in the rounding of bfloat16. Sizes are root mean squares over tokens and vocabulary.

Shapes: T tokens, V vocabulary; 2 rows, the first without and the second with the adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank

if TYPE_CHECKING:
    from pml_cli.model.split_model import SplitModel

TOKENS = 8
FELT = 0.5  # size of the change that is looked for, in spreads of the logits over the vocabulary
TRIES = 6  # scales of the adapter; some places (queries, keys) are never felt so much
# What may differ by rounding: a share of the change, and a share of the spread. The largest seen of 19 families, up to 24
# layers deep: 0.023 spreads in bfloat16 (a router that decided otherwise; else 0.010), 0.001 in float16.
ALLOWED = {torch.bfloat16: (0.05, 0.04), torch.float16: (0.02, 0.01)}
ALLOWED_ELSE = (1e-3, 1e-3)  # norms compute in float32 also where the model is float64


@torch.no_grad()
def agrees(base: SplitModel, bank: AdapterBank, seed: int) -> bool:
    """Whether both passes give the same logits, without an adapter and with one drawn at random in the places of `bank`."""
    ids = (torch.arange(1, TOKENS + 1, device=base.device) + seed * TOKENS)[
        None
    ] % base.head.weight_VD.shape[0]
    ids = ids.expand(2, -1)
    probe, split_2TV = _felt(base, ids, bank.select([0, 0]), seed)
    hidden: dict[str, Tensor] = {}
    hook = base.decoder.register_forward_hook(
        lambda _m, _i, out: hidden.update(own=out.last_hidden_state)
    )
    try:
        with probe.attached(base.modules):
            own_2TV = base.model(input_ids=ids, use_cache=False).logits.double()
    finally:
        hook.remove()
    of_change, of_spread = ALLOWED.get(base.dtype, ALLOWED_ELSE)
    rounding = of_spread * _spread(own_2TV)
    change_TV = own_2TV[1] - own_2TV[0]
    head = _size(base.logits(hidden["own"].to(base.dtype)).double() - own_2TV)
    plain = _size(split_2TV[0] - own_2TV[0])
    adapted = _size(split_2TV[1] - split_2TV[0] - change_TV)
    # also false where something is not finite
    return (
        head <= of_spread * _size(own_2TV)
        and plain <= rounding
        and adapted <= of_change * _size(change_TV) + rounding
    )


def _felt(
    base: SplitModel, ids: Tensor, probe: AdapterBank, seed: int
) -> tuple[AdapterBank, Tensor]:
    """Scale a random second adapter until it changes the split pass's logits by about FELT; these logits, (2, T, V)."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for name, B in probe.B.items():
        noise = torch.randn(B.shape[1:], generator=generator, dtype=B.dtype).to(B.device)
        drawn[name] = torch.stack([torch.zeros_like(noise), noise])
    prefix, scale = base.prefix(ids, probe), 0.1
    found: tuple[float, Tensor] | None = None
    for _ in range(TRIES):
        probe.B = {name: noise * scale for name, noise in drawn.items()}
        logits_2TV = base.logits(base.upper(prefix, probe)).double()
        change = _size(logits_2TV[1] - logits_2TV[0]) / max(_spread(logits_2TV), 1e-30)
        if (
            found is not None and not logits_2TV.isfinite().all()
        ):  # float16 overflows: as loud as it gets was before
            scale, logits_2TV = found
            probe.B = {name: noise * scale for name, noise in drawn.items()}
            return probe, logits_2TV
        if FELT / 2 <= change <= FELT * 2:
            break
        found = scale, logits_2TV
        scale *= min(16.0, max(1 / 16, FELT / max(change, 1e-30)))
    return probe, logits_2TV


def _size(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _spread(logits_2TV: Tensor) -> float:
    """Of the plain logits: how far they lie from their mean over the vocabulary."""
    return _size(logits_2TV[0] - logits_2TV[0].mean(-1, keepdim=True))

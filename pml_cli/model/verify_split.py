"""Verify that the split forward pass matches the model's own, in the dtype it is loaded in.

What is compared is the CHANGE that a random adapter makes to the logits, in the split pass and in
the model's own: beside the logits themselves it would drown in the rounding of bfloat16. The
adapter is scaled so that the change is large enough to matter. Sizes are root mean squares over
tokens and vocabulary; the spread of logits is their standard deviation over the vocabulary.

Shapes: T tokens, V vocabulary; 2 rows, the first without and the second with the adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank

if TYPE_CHECKING:
    from pml_cli.model.split_model import SplitModel

TOKENS = 8

# Size of the change that the adapter is scaled to, in spreads of the logits.
TARGET_EFFECT = 0.5

# An effect between half and twice the target is accepted.
EFFECT_TOLERANCE = 2.0

# Scales of the adapter that are tried at most: at some sites (queries, keys) no scale has so large
# an effect.
MAX_TRIES = 6
FIRST_SCALE = 0.1
MAX_SCALE_STEP = 16.0

# Stands in for a change or a spread of 0.
TINY = 1e-30


class Tolerance(NamedTuple):
    """How far the passes may differ by rounding."""

    of_change: float
    """As a share of the change that the adapter makes."""

    of_spread: float
    """As a share of the spread of the logits."""


# The largest difference of 19 families, up to 24 layers deep: 0.023 spreads in bfloat16 (a router
# that decided otherwise; else 0.010), 0.001 in float16.
TOLERANCES = {
    torch.bfloat16: Tolerance(of_change=0.05, of_spread=0.04),
    torch.float16: Tolerance(of_change=0.02, of_spread=0.01),
}

# Norms compute in float32 even if the model is float64.
DEFAULT_TOLERANCE = Tolerance(of_change=1e-3, of_spread=1e-3)


@torch.no_grad()
def split_matches_full(model: SplitModel, bank: AdapterBank, seed: int) -> bool:
    """Whether both passes give the same logits, without an adapter and with a random one.

    Args:
        model: the model to be verified.
        bank: tells the sites of the adapter.
        seed: chooses the tokens and the adapter's weights.
    """
    ids = probe_ids(model, seed)
    probe, split_2TV = scaled_probe(model, ids, bank.select([0, 0]), seed)
    full_2TV, hidden = full_logits(model, ids, probe)
    head_2TV = model.logits(hidden.to(model.dtype)).double()

    # False as well if something is not finite.
    tolerance = TOLERANCES.get(model.dtype, DEFAULT_TOLERANCE)
    same_head = _rms(head_2TV - full_2TV) <= tolerance.of_spread * _rms(full_2TV)
    return same_head and same_logits(split_2TV, full_2TV, model.dtype)


def same_logits(logits_2TV: Tensor, full_2TV: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits are those of the whole pass, but for the rounding of a dtype.

    Args:
        logits_2TV: without an adapter and with one.
        full_2TV: the same of the whole pass.
        dtype: of the model.
    """
    change_TV = full_2TV[1] - full_2TV[0]
    other_change_TV = logits_2TV[1] - logits_2TV[0]
    tolerance = TOLERANCES.get(dtype, DEFAULT_TOLERANCE)
    rounding = tolerance.of_spread * _spread(full_2TV)

    # Each comparison is false as well if something is not finite.
    same_plain = _rms(logits_2TV[0] - full_2TV[0]) <= rounding
    allowed_change = tolerance.of_change * _rms(change_TV) + rounding
    same_change = _rms(other_change_TV - change_TV) <= allowed_change
    return same_plain and same_change


def probe_ids(model: SplitModel, seed: int) -> Tensor:
    """Token ids to compare passes on, (2, T), twice the same.

    Other ones for each seed, as a router may be near a tie for some of them.
    """
    vocabulary = model.head.weight_VD.shape[0]
    first = 1 + seed * TOKENS
    ids = torch.arange(first, first + TOKENS, device=model.device)
    return (ids % vocabulary).expand(2, -1)


def full_logits(model: SplitModel, ids: Tensor, bank: AdapterBank) -> tuple[Tensor, Tensor]:
    """The model's own logits (2, T, V) in float64, and what its head read, (2, T, D)."""
    hidden: list[Tensor] = []

    def keep_hidden(_module: Any, _inputs: Any, output: Any) -> None:
        hidden.append(output.last_hidden_state)

    hook = model.decoder.register_forward_hook(keep_hidden)
    try:
        with bank.attached(model.modules):
            logits: Tensor = model.model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    return logits.double(), hidden[-1]


def scaled_probe(
    model: SplitModel, ids: Tensor, probe: AdapterBank, seed: int
) -> tuple[AdapterBank, Tensor]:
    """Scale a random adapter until it changes the split pass's logits by about TARGET_EFFECT.

    Args:
        model: the model to be verified.
        ids: token ids, (2, T), twice the same.
        probe: a bank of two cells; the first becomes zero, the second random.
        seed: of the random weights.

    Returns:
        The bank, and the logits of the split pass with it, (2, T, V) in float64.
    """
    noise = _random_second_cell(probe, seed)
    prefix = model.prefix(ids, probe)
    scale = FIRST_SCALE
    previous: tuple[float, Tensor] | None = None

    for _ in range(MAX_TRIES):
        probe.B = {name: B * scale for name, B in noise.items()}
        logits_2TV = model.logits(model.upper(prefix, probe)).double()
        if previous is not None and not logits_2TV.isfinite().all():
            # float16 overflows: the previous scale had as large an effect as there is.
            scale, logits_2TV = previous
            probe.B = {name: B * scale for name, B in noise.items()}
            return probe, logits_2TV

        change = _rms(logits_2TV[1] - logits_2TV[0])
        effect = change / max(_spread(logits_2TV), TINY)
        if TARGET_EFFECT / EFFECT_TOLERANCE <= effect <= TARGET_EFFECT * EFFECT_TOLERANCE:
            break
        previous = scale, logits_2TV
        step = max(1 / MAX_SCALE_STEP, TARGET_EFFECT / max(effect, TINY))
        scale *= min(MAX_SCALE_STEP, step)

    return probe, logits_2TV


def _random_second_cell(bank: AdapterBank, seed: int) -> dict[str, Tensor]:
    """For each site a B (2, R, O): zero for the first cell, standard normal for the second."""
    generator = torch.Generator().manual_seed(seed)
    noise = {}
    for name, B in bank.B.items():
        # Drawn on the CPU, so that every device sees the same adapter.
        normal_RO = torch.randn(B.shape[1:], generator=generator, dtype=B.dtype)
        normal_RO = normal_RO.to(B.device)
        noise[name] = torch.stack([torch.zeros_like(normal_RO), normal_RO])
    return noise


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _spread(logits_2TV: Tensor) -> float:
    """Rms distance of the base's logits (of (2, T, V)) from their mean over the vocabulary."""
    plain_TV = logits_2TV[0]
    return _rms(plain_TV - plain_TV.mean(-1, keepdim=True))

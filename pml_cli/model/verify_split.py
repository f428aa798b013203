"""Verify that the split forward pass matches the model's own, in the dtype it is loaded in.

What is compared is the CHANGE that a random adapter makes to the logits, in the split pass and in
the model's own: beside the logits themselves it would drown in the rounding of bfloat16. The
adapter is scaled so that the change is large enough to matter. Sizes are root mean squares over
tokens and vocabulary; the spread of logits is their standard deviation over the vocabulary.

Shapes: T tokens, V vocabulary; 3 rows: the first without and the second with the adapter, the
third without, and with other tokens in its second half, which no token before them may see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.device import is_fault_of_machine

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
    """Largest difference, as a share of the change that the adapter makes."""

    of_spread: float
    """Largest difference, as a share of the spread of the logits."""

    of_head: float
    """Largest difference of pml's head from the model's on equal states, as a share of logits."""


# The largest difference of 19 families, up to 24 layers deep: 0.023 spreads in bfloat16 (a router
# that decided otherwise; else 0.010), 0.001 in float16.
TOLERANCES = {
    torch.bfloat16: Tolerance(of_change=0.05, of_spread=0.04, of_head=0.04),
    torch.float16: Tolerance(of_change=0.02, of_spread=0.01, of_head=0.01),
}

# Norms compute in float32 even if the model is float64.
DEFAULT_TOLERANCE = Tolerance(of_change=1e-3, of_spread=1e-3, of_head=1e-5)


@torch.no_grad()
def split_matches_full(model: SplitModel, bank: AdapterBank, seed: int) -> bool:
    """Whether both passes give the same logits, without an adapter and with a random one.

    And whether attention is causal: no token may see a later one.

    Args:
        model: the model to be verified.
        bank: tells the sites of the adapter.
        seed: chooses the tokens and the adapter's weights.
    """
    ids_3T = probe_ids(model, seed)
    probe, split_3TV = scaled_probe(model, ids_3T, bank.select([0, 0, 0]), seed)
    full_3TV, hidden = full_logits(model, ids_3T, probe)
    head_3TV = model.logits(hidden.to(model.dtype)).double()

    tolerance = TOLERANCES.get(model.dtype, DEFAULT_TOLERANCE)
    rounding = tolerance.of_spread * _spread(full_3TV)

    # Each comparison is false as well if something is not finite.
    same_head = rms(head_3TV - full_3TV) <= tolerance.of_head * rms(full_3TV)
    same_plain = rms(split_3TV[::2] - full_3TV[::2]) <= rounding
    same_change = changes_alike(split_3TV[1] - split_3TV[0], full_3TV, model.dtype)

    first_half_3TV = full_3TV[:, : TOKENS // 2]
    is_causal = rms(first_half_3TV[2] - first_half_3TV[0]) <= rounding
    return same_head and same_plain and same_change and is_causal


def changes_alike(change_TV: Tensor, full_3TV: Tensor, dtype: torch.dtype) -> bool:
    """Whether a change of logits is that of the whole pass, but for the rounding of a dtype.

    Args:
        change_TV: what the random adapter makes of the first row.
        full_3TV: logits of the whole pass.
        dtype: of the model.
    """
    full_change_TV = full_3TV[1] - full_3TV[0]
    tolerance = TOLERANCES.get(dtype, DEFAULT_TOLERANCE)
    rounding = tolerance.of_spread * _spread(full_3TV)
    allowed = tolerance.of_change * rms(full_change_TV) + rounding
    # False as well if something is not finite.
    return rms(change_TV - full_change_TV) <= allowed


def probe_ids(model: SplitModel, seed: int) -> Tensor:
    """Token ids of the three rows, (3, T)."""
    vocabulary = model.head.weight_VD.shape[0]
    # Other tokens for each seed, as a router may be near a tie for some of them.
    first = 1 + seed * TOKENS
    ids = torch.arange(first, first + TOKENS, device=model.device)
    ids_3T = ids.repeat(3, 1)
    ids_3T[2, TOKENS // 2 :] += TOKENS
    return ids_3T % vocabulary


@torch.no_grad()
def cached_matches_full(model: SplitModel) -> bool:
    """Whether tokens that come one after the other to a cache get the logits of one pass.

    Checked in the way of decoding: a row is dropped from the cache, too.
    """
    from transformers import DynamicCache

    ids_3T = probe_ids(model, seed=0)
    # Each pass reads all weights of a streamed model.
    prompt_tokens = TOKENS - 1 if model.stream else TOKENS // 2
    # Rows that differ, so it tells whether the right one was dropped.
    rows = torch.tensor([0, 2], device=model.device)
    full = model.full(ids_3T[rows]).last_hidden_state[:, prompt_tokens:].double()

    try:
        cache = DynamicCache(config=model.model.config.get_text_config())
        model.full(ids_3T[:, :prompt_tokens], cache=cache)
        cache.batch_select_indices(rows)
        steps = []
        for ids in ids_3T[rows, prompt_tokens:].T:
            steps.append(model.full(ids[:, None], cache=cache).last_hidden_state)
        change = torch.cat(steps, 1).double() - full
    # A state of another kind: of recurrent layers, of an indexer, of a cache class of its own.
    except Exception as error:
        if is_fault_of_machine(error):
            raise
        return False

    tolerance = TOLERANCES.get(model.dtype, DEFAULT_TOLERANCE)
    return rms(change) <= tolerance.of_change * rms(full)


def full_logits(model: SplitModel, ids: Tensor, bank: AdapterBank) -> tuple[Tensor, Tensor]:
    """The model's own logits (3, T, V) in float64, and what its head read, (3, T, D)."""
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
        ids: token ids, (3, T).
        probe: a bank of three cells; the second becomes random, the others zero.
        seed: of the random weights.

    Returns:
        The bank, and the logits of the split pass with it, (3, T, V) in float64.
    """
    noise = _random_second_cell(probe, seed)
    prefix = model.prefix(ids, probe)
    scale = FIRST_SCALE
    previous: tuple[float, Tensor] | None = None

    for _ in range(MAX_TRIES):
        probe.B = {name: B * scale for name, B in noise.items()}
        logits_3TV = model.logits(model.upper(prefix, probe)).double()
        if previous is not None and not logits_3TV.isfinite().all():
            # float16 overflows: the previous scale had as large an effect as there is.
            scale, logits_3TV = previous
            probe.B = {name: B * scale for name, B in noise.items()}
            return probe, logits_3TV

        change = rms(logits_3TV[1] - logits_3TV[0])
        effect = change / max(_spread(logits_3TV), TINY)
        if TARGET_EFFECT / EFFECT_TOLERANCE <= effect <= TARGET_EFFECT * EFFECT_TOLERANCE:
            break
        previous = scale, logits_3TV
        step = max(1 / MAX_SCALE_STEP, TARGET_EFFECT / max(effect, TINY))
        scale *= min(MAX_SCALE_STEP, step)

    return probe, logits_3TV


def _random_second_cell(bank: AdapterBank, seed: int) -> dict[str, Tensor]:
    """For each site a B (3, R, O): standard normal for the second cell, zero for the others."""
    generator = torch.Generator().manual_seed(seed)
    noise = {}
    for name, B in bank.B.items():
        # Drawn on the CPU, so that every device sees the same adapter.
        normal_RO = torch.randn(B.shape[1:], generator=generator, dtype=B.dtype)
        normal_RO = normal_RO.to(B.device)
        zero_RO = torch.zeros_like(normal_RO)
        noise[name] = torch.stack([zero_RO, normal_RO, zero_RO])
    return noise


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def _spread(logits_3TV: Tensor) -> float:
    """Rms distance of the base's logits (of (3, T, V)) from their mean over the vocabulary."""
    plain_TV = logits_3TV[0]
    return rms(plain_TV - plain_TV.mean(-1, keepdim=True))

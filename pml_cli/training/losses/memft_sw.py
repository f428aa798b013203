"""MemFT, spatial window (MemFT-SW of the paper).

Shapes as in base.py: K cells, S scored tokens of a cell, M samples of a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pml_cli.config.registry import register
from pml_cli.config.setting import setting
from pml_cli.training.losses.base import (
    LossState,
    TokenLoss,
    Tokens,
    Weighted,
    weighted_cross_entropy,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# A window whose error stays grows by this fraction of itself a step, up to so many times itself.
GROWTH = 0.5
MAX_GROWTH = 4.0

# Anchor of a sample whose tokens are all decoded correctly: beyond every position.
NO_ERROR = 2**40
# Anchor of a sample that no step has had yet.
UNSEEN = -1


@register("loss", "memft_sw")
@dataclass(kw_only=True)
class MemftSwLoss(TokenLoss):
    """MemFT, spatial window: smooth weights around the threshold that decay behind the first error.

    When a sample's first error has stayed in place for `patience` of its steps, the window grows
    by half of itself a step, up to four times; it is reset when that error moves. The defaults
    are the paper's; those of loss=memft_sw_axolotl are Axolotl's.
    """

    kind: str = "memft_sw"
    threshold: float = setting(
        math.log(2),
        help="nll at which the sigmoid is one half",
        unit="nats",
        above=0,
        finite=True,
    )
    kappa: float = setting(
        10.0,
        help="steepness of the sigmoid around the threshold",
        unit="per nat",
        above=0,
        finite=True,
    )
    tau: float = setting(
        20.0,
        help="distance from the first error at which the weight has fallen to 1/e",
        unit="tokens",
        above=0,
        finite=True,
    )
    window: int = setting(
        50, help="length of the window from the first error on", unit="tokens", minimum=1
    )
    floor: float = setting(0.01, help="weight beyond the window", minimum=0, maximum=1)
    patience: int = setting(
        3,
        help="steps that the first error may stay in place before the window grows",
        unit="steps",
        minimum=1,
    )

    def initial_state(self, samples: int, device: torch.device) -> LossState:
        """`anchor`: position of a sample's first error; `stale`: steps that it has stayed there."""
        import torch

        stale = torch.zeros(samples, dtype=torch.int64, device=device)
        return {"anchor": torch.full_like(stale, UNSEEN), "stale": stale}

    def weights(
        self, tokens: Tokens, state: LossState, progress: float
    ) -> tuple[Weighted, LossState]:
        """w = sigmoid(kappa (nll - threshold)) times the factor of the window."""
        import torch

        state = self._track_first_errors(tokens, state)
        steps_grown = (state["stale"] - self.patience + 1).clamp(min=0)
        window_KM = self.window * (1 + GROWTH * steps_grown).clamp(max=MAX_GROWTH)
        window_KS = window_KM.gather(1, tokens.sample)

        # Below 0 before the first error, and everywhere in a sample without an error.
        distance_KS = tokens.position - state["anchor"].gather(1, tokens.sample)
        tokens_behind = distance_KS.clamp(min=0).to(tokens.nll.dtype)
        decay_KS = torch.exp(-tokens_behind / self.tau)
        factor_KS = torch.where(distance_KS < window_KS, decay_KS, self.floor)

        excess_KS = tokens.nll.detach() - self.threshold
        base_KS = torch.sigmoid(self.kappa * excess_KS)
        return weighted_cross_entropy(tokens, tokens.mask * base_KS * factor_KS), state

    @staticmethod
    def _track_first_errors(tokens: Tokens, state: LossState) -> LossState:
        """The state after this step; samples that are not in the batch keep theirs."""
        import torch

        def per_sample(initial_KM: Tensor, values_KS: Tensor, reduction: str) -> Tensor:
            return initial_KM.scatter_reduce(1, tokens.sample, values_KS, reduction)

        # Padding may carry the index of any sample.
        is_token = tokens.mask > 0
        error_position = torch.where(is_token & ~tokens.correct, tokens.position, NO_ERROR)
        no_error = torch.full_like(state["anchor"], NO_ERROR)
        first_error = per_sample(no_error, error_position, "amin")
        in_batch = per_sample(torch.zeros_like(first_error), is_token.long(), "amax") > 0

        # The first sight of a sample is a move too: its anchor was UNSEEN.
        stale = torch.where(first_error == state["anchor"], state["stale"] + 1, 0)
        return {
            "anchor": torch.where(in_batch, first_error, state["anchor"]),
            "stale": torch.where(in_batch, stale, state["stale"]),
        }

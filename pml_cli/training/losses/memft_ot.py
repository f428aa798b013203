"""MemFT, only-threshold (MemFT-OT of the paper)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from pml_cli.config.registry import register
from pml_cli.config.setting import setting
from pml_cli.training.losses.base import (
    LossState,
    TokenLoss,
    Tokens,
    Weighted,
    weighted_cross_entropy,
)


@register("loss", "memft_ot")
@dataclass(kw_only=True)
class MemftOtLoss(TokenLoss):
    """MemFT, only-threshold: mean cross-entropy of the tokens whose nll is above the threshold."""

    kind: str = "memft_ot"
    threshold: float = setting(
        math.log(2),
        help="nll above which a token counts; ln 2 is p = 0.5",
        unit="nats",
        above=0,
        finite=True,
    )
    when_done: str = setting(
        "mean",
        help="when no token is above the threshold: mean over all tokens (as released), or zero",
        choices=("mean", "zero"),
    )

    @property
    def mean_if_unweighted(self) -> bool:
        return self.when_done == "mean"

    def for_micro_batch(self) -> MemftOtLoss:
        """Without the mean over all tokens: only the end of the step shows whether it is due."""
        return dataclasses.replace(self, when_done="zero")

    def weights(
        self, tokens: Tokens, state: LossState, progress: float
    ) -> tuple[Weighted, LossState]:
        """w = 1[nll > threshold]; where that is 0 for all tokens, `when_done` decides."""
        weight = tokens.mask * (tokens.nll.detach() > self.threshold)

        if self.mean_if_unweighted:
            is_active = weight.any(1, keepdim=True)
            weight = weight.where(is_active, tokens.mask)

        return weighted_cross_entropy(tokens, weight), state

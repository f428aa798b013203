"""Plain supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from pml_cli.config.registry import register
from pml_cli.training.losses.base import (
    LossState,
    TokenLoss,
    Tokens,
    Weighted,
    weighted_cross_entropy,
)


@register("loss", "sft")
@dataclass(kw_only=True)
class SftLoss(TokenLoss):
    """Mean cross-entropy over the target tokens."""

    kind: str = "sft"

    @property
    def is_steady(self) -> bool:
        return True

    def weights(
        self, tokens: Tokens, state: LossState, progress: float
    ) -> tuple[Weighted, LossState]:
        """Every token has weight 1."""
        return weighted_cross_entropy(tokens, tokens.mask), state

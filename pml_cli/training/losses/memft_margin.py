"""The margin loss: training goes on until every token wins by a margin, which then grows.

Shapes as in base.py: K cells, S scored tokens of a cell, M samples of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@register("loss", "memft_margin")
@dataclass(kw_only=True)
class MemftMarginLoss(TokenLoss):
    """Ours: cross-entropy on the tokens whose logit margin is below a target, later a hinge.

    Both are means over the tokens below the target. The target is `margin`; once every token of
    the cell seen so far beats it, the target is the smallest of margin x growth, margin x
    growth^2, ... that some token misses, so spare capacity goes into safer margins. For many
    short facts switch=1 is better (loss=memft_margin_facts): the hinge pushes down one rival of a
    token at a time, and another sample brings up the next. With growth=1 margins settle at
    `margin`: train.stop=recalled then needs a train.stop_margin below it.
    """

    kind: str = "memft_margin"
    margin: float = setting(
        0.1,
        help="target margin; a token is recalled when its margin is above 0",
        unit="logits",
        minimum=0,
        finite=True,
    )
    growth: float = setting(
        1.5,
        help="factor on the target margin once every token beats it",
        minimum=1,
        finite=True,
        special={1: "the target stays"},
    )
    switch: float = setting(
        0.5,
        help="share of the steps after which the hinge takes over",
        minimum=0,
        maximum=1,
        special={0: "from the start", 1: "never"},
    )

    def validate(self) -> Iterator[str]:
        # A target of 0 would stay 0 however often it is multiplied.
        if self.margin == 0 and self.growth != 1:
            yield "margin=0: must be above 0 (logits), or 0 with loss.growth=1"

    def id_fields(self) -> dict[str, Any]:
        """Settings whose defaults have changed: runs with the earlier defaults keep their ids."""
        return {"margin": self.margin, "growth": self.growth}

    @property
    def needs_progress(self) -> bool:
        return 0 < self.switch < 1

    def initial_state(self, samples: int, device: torch.device) -> LossState:
        """`least`: smallest margin of a sample's tokens when last seen; infinite before that.

        Nothing where the target does not grow.
        """
        import torch

        if self.growth == 1:
            return {}
        least = torch.full((samples,), torch.inf, device=device)
        return {"least": least}

    def weights(
        self, tokens: Tokens, state: LossState, progress: float
    ) -> tuple[Weighted, LossState]:
        """w = 1[margin < target]; the value is nll, and from `switch` on target - margin."""
        target = self._target_margin(state)
        short_KS = tokens.mask * (tokens.margin.detach() < target)
        # After the target: it depends on what was seen before this step.
        state = self._track_least_margins(tokens, state)

        if progress < self.switch:
            return weighted_cross_entropy(tokens, short_KS), state
        shortfall_KS = target - tokens.margin
        return Weighted(value=shortfall_KS, weight=short_KS, pull=short_KS), state

    def _target_margin(self, state: LossState) -> Tensor | float:
        """The first of margin x growth^k that some token fell short of when last seen, (K, 1)."""
        import torch

        if self.growth == 1:
            return self.margin

        least_K1 = state["least"].amin(1, keepdim=True)
        ratio = least_K1.clamp(min=self.margin) / self.margin
        growths = torch.log(ratio) / math.log(self.growth)
        exponent = torch.floor(growths) + 1
        grown = self.margin * self.growth**exponent
        # Infinite where no sample has been seen yet.
        at_start = (least_K1 < self.margin) | torch.isinf(least_K1)
        return torch.where(at_start, self.margin, grown)

    @staticmethod
    def _track_least_margins(tokens: Tokens, state: LossState) -> LossState:
        """The state after this step; samples that are not in the batch keep theirs."""
        import torch

        if not state:
            return state

        least = state["least"]
        # Padding counts as infinite, as does a sample that is not in the batch.
        margin = torch.where(tokens.mask > 0, tokens.margin.detach(), torch.inf)
        margin = margin.to(least.dtype)
        unseen = torch.full_like(least, torch.inf)
        latest = unseen.scatter_reduce(1, tokens.sample, margin, "amin")
        return {"least": torch.where(torch.isinf(latest), least, latest)}

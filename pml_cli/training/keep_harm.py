"""`loss.keep_harm`: the weight of the penalty, found in training so that the harm meets a limit.

Dual ascent on log lambda. The harm of an adapter is what it adds to the loss of generic text, nats
per token. It is measured on a few windows every ten steps; in between it is taken to be
in proportion to the energy, which every step computes. Where the penalty is a KL, every step
measures the harm on the windows that it reads. Lambda rises while the harm is above the
aim, falls while it is below, and stays in the last steps.

What remains above the limit at the end is taken away: B is scaled down until the harm, measured on
all windows, meets it. So the harm is a promise; what that costs in recall, the scores show.

Shapes: K cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pml_cli.config.schema import Loss

# Lambda at the beginning, where loss.keep is 0, by loss.keep_by.
INITIAL_WEIGHTS = {"energy": 22.0, "kl": 5.0}

# Lambda is kept within these bounds.
LEAST_WEIGHT = 1e-2
MOST_WEIGHT = 1e5

# What is aimed at, as a share of the limit: a few windows are not the whole text.
AIM = 0.85

# Largest change of log lambda in one step, where the harm is e times the aim or more.
STEP = 0.05

# Share of the steps at whose end lambda stays.
HOLD = 0.1

# Weight of the latest measurement in the running means.
LATEST = 0.2

# An adapter that ends above its limit is scaled down to this share of what would just meet it.
SETTLED = 0.99

# Scalings until one that no share of its weights brings within its limit is set to 0.
MOST_SCALINGS = 20

# Stands in for a harm or a penalty of 0, or of less.
_TINY = 1e-9


class HarmLimit:
    """Lambda of each cell, under its limit.

    Attributes:
        limit_K: most harm, nats per token; infinite: no limit, lambda stays as it is.
        weight_K: lambda.
        harm_K: running mean of the harm that was measured.
        penalty_K: running mean of the penalty at those times; 0: not measured yet.
    """

    def __init__(self, weight_K: Tensor, limit_K: Tensor) -> None:
        """Begin at a lambda; see the class for the arguments."""
        self.limit_K = limit_K
        self.weight_K = weight_K
        self.harm_K = torch.zeros_like(limit_K)
        self.penalty_K = torch.zeros_like(limit_K)

    def measured(self, cells: Sequence[int], harm: Tensor, penalty: Tensor) -> None:
        """Take note of the harm of some cells, and of their penalty at the same time."""
        rows = list(cells)
        harm_before = self.harm_K[rows]
        penalty_before = self.penalty_K[rows]
        share = torch.where(penalty_before == 0, 1.0, LATEST).to(harm.dtype)
        self.harm_K[rows] = harm_before.lerp(harm, share)
        self.penalty_K[rows] = penalty_before.lerp(penalty, share)

    def update(self, penalty_K: Tensor, progress: float) -> None:
        """Move lambda, once a step.

        Args:
            penalty_K: the penalty of each cell now; its harm is taken to be in proportion.
            progress: fraction of the training that is done.
        """
        if progress > 1 - HOLD:
            return

        harm_K = self.harm_K * penalty_K / self.penalty_K.clamp(min=_TINY)
        excess_K = (harm_K.clamp(min=_TINY) / (AIM * self.limit_K)).log().clamp(-1, 1)
        moved_K = self.weight_K * (STEP * excess_K).exp()

        moves_K = (self.penalty_K > 0) & self.limit_K.isfinite()
        bounded_K = moved_K.clamp(LEAST_WEIGHT, MOST_WEIGHT)
        self.weight_K = torch.where(moves_K, bounded_K, self.weight_K)

    def retain_cells(self, cells: Sequence[int]) -> None:
        """Keep only the cells at these indices."""
        rows = list(cells)
        self.limit_K = self.limit_K[rows]
        self.restore({name: values[rows] for name, values in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """What changes in training, by name, (K,) each."""
        return {"weight": self.weight_K, "harm": self.harm_K, "penalty": self.penalty_K}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.weight_K = state["weight"]
        self.harm_K = state["harm"]
        self.penalty_K = state["penalty"]


def initial_weight(loss: Loss) -> float:
    """Lambda before the first step."""
    if loss.keep_harm and not loss.keep:
        return INITIAL_WEIGHTS[loss.keep_by]
    return loss.keep


def settle(limit: float, harm: Callable[[], float], scale: Callable[[float], None]) -> None:
    """At the end of a training: scale an adapter down until its harm is within its limit.

    Args:
        limit: most harm, nats per token.
        harm: measures that of the adapter as it is.
        scale: multiplies the adapter by a number.
    """
    for _ in range(MOST_SCALINGS):
        measured = harm()
        if measured <= limit:
            return
        if not math.isfinite(measured):
            break
        # A guess: the harm of a small adapter grows with its square.
        scale(SETTLED * math.sqrt(limit / measured))
    # Weights that are not finite stay so: the training has failed, and its scores say so.
    scale(0.0)

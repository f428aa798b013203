"""What makes a loss of token scores: the weight of each token, per cell; pure functions of arrays.

    L = sum_t w_t v_t / (sum_t w_t + eps)

v is the token's cross-entropy (nll), for the hinge its shortfall in margin; w carries no gradient. Nothing here waits for
the device: state lives in tensors on it.

Shapes: K cells of a pack, S scored tokens of a cell in the batch (padded), M most samples of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pml_cli.config.schema import Loss, MemftMarginLoss, MemftOtLoss, MemftSwLoss, SftLoss

EPS = 1e-8  # in the normaliser of the weighted mean
GROWTH, LARGEST = 0.5, 4.0  # of a window, in windows: what it gains a step, and the most it becomes
NO_ERROR = 2**40  # anchor of a sample whose tokens are all decoded rightly: beyond every position
UNSEEN = -1  # anchor of a sample that no step has had yet

State = Mapping[
    str, Tensor
]  # by name, (K, M) each: what a loss remembers of every sample; empty where it needs nothing


class Tokens(NamedTuple):
    """The scored tokens of one step, (K, S) each; nll and margin carry the gradient."""

    nll: Tensor  # nats
    margin: Tensor  # logits
    correct: Tensor  # whether greedy decoding picks the token
    mask: Tensor  # 1 where there is a token, 0 where there is padding
    sample: Tensor  # which of the cell's samples it belongs to; any where there is padding
    position: Tensor  # within its sample's target, from 0

    def of(self, cells: Tensor) -> Tokens:
        return Tokens(*(values[cells] for values in self))


class Weighted(NamedTuple):
    """The tokens' part in the loss, (K, S) each."""

    value: Tensor  # what is to become small; carries the gradient
    weight: Tensor
    pull: Tensor  # size of the gradient by the token's own logit, before the normaliser

    @property
    def loss(self) -> Tensor:
        """The weighted mean of each cell, (K,)."""
        return weighted_mean(self.value, self.weight)


def weighted_mean(value_KS: Tensor, weight_KS: Tensor) -> Tensor:
    """sum_t w_t v_t / (sum_t w_t + eps) of each cell, shape (K,); the weights carry no gradient."""
    return (weight_KS * value_KS).sum(1) / (weight_KS.sum(1) + EPS)


def fresh_state(losses: Sequence[Loss], samples: int, device: torch.device) -> State:
    """What cells under these losses remember before the first step, one row a cell; empty where none remembers anything."""
    shape, state = (len(losses), samples), {}
    if any(isinstance(loss, MemftSwLoss) for loss in losses):
        state["anchor"] = torch.full(
            shape, UNSEEN, dtype=torch.int64, device=device
        )  # position of the first error
        state["stale"] = torch.zeros(
            shape, dtype=torch.int64, device=device
        )  # steps of the sample that it has stayed there
    if any(isinstance(loss, MemftMarginLoss) and loss.growth > 1 for loss in losses):
        state["least"] = torch.full(
            shape, torch.inf, device=device
        )  # margin of a sample's tokens when last seen; inf: never
    return state


def weigh(loss: Loss, tokens: Tokens, state: State, progress: float) -> tuple[Weighted, State]:
    """Weights and values of each token under a loss, and what is remembered for the next step.

    Args:
        state: of these cells; a row of M for each.
        progress: share of the training that is done, 0 at its first step.
    """
    nll, mask = tokens.nll.detach(), tokens.mask
    if isinstance(loss, SftLoss):
        return _cross_entropy(tokens, mask), state
    if isinstance(loss, MemftOtLoss):  # MemFT-OT: w = 1[nll > threshold]
        active = mask * (nll > loss.threshold)
        if loss.when_done == "mean":
            active = torch.where(active.any(1, keepdim=True), active, mask)
        return _cross_entropy(tokens, active), state
    if isinstance(loss, MemftSwLoss):
        return _spatial(loss, tokens, state)
    if isinstance(loss, MemftMarginLoss):
        aim = _aim(loss, state)
        short = mask * (tokens.margin.detach() < aim)
        state = _least(tokens, state)
        if progress < loss.switch:
            return _cross_entropy(tokens, short), state
        return Weighted(aim - tokens.margin, short, short), state
    raise NotImplementedError(f"loss {loss.kind}")


def _cross_entropy(tokens: Tokens, weight_KS: Tensor) -> Weighted:
    return Weighted(tokens.nll, weight_KS, weight_KS * (1 - torch.exp(-tokens.nll.detach())))


def _spatial(loss: MemftSwLoss, tokens: Tokens, state: State) -> tuple[Weighted, State]:
    """MemFT-SW: sigmoid(kappa (nll - threshold)), times a window that begins at the sample's first error."""
    state = _follow(tokens, state)
    grown = (state["stale"] - loss.patience + 1).clamp(min=0)
    window_KM = loss.window * (1 + GROWTH * grown).clamp(max=LARGEST)
    anchor, window = state["anchor"].gather(1, tokens.sample), window_KM.gather(1, tokens.sample)
    beyond = tokens.position - anchor  # tokens from the first error on; below 0 before it
    decay = torch.exp(-beyond.clamp(min=0).to(tokens.nll.dtype) / loss.tau)
    factor = torch.where(
        beyond < window, decay, loss.floor
    )  # also without an error: then all lie before it
    base = torch.sigmoid(loss.kappa * (tokens.nll.detach() - loss.threshold))
    return _cross_entropy(tokens, tokens.mask * base * factor), state


def _aim(loss: MemftMarginLoss, state: State) -> Tensor | float:
    """The margin to win by, (K, 1): the first of margin x growth^k that some token, when last seen, fell short of."""
    if loss.growth == 1:
        return loss.margin
    least = state["least"].amin(1, keepdim=True)
    times = (
        torch.floor(torch.log(least.clamp(min=loss.margin) / loss.margin) / math.log(loss.growth))
        + 1
    )
    return torch.where(
        (least < loss.margin) | torch.isinf(least), loss.margin, loss.margin * loss.growth**times
    )


def _least(tokens: Tokens, state: State) -> State:
    """The least margin of every sample of this step."""
    if "least" not in state:
        return state
    margin = torch.where(tokens.mask > 0, tokens.margin.detach(), torch.inf).to(
        state["least"].dtype
    )
    now = torch.full_like(state["least"], torch.inf).scatter_reduce(
        1, tokens.sample, margin, "amin"
    )
    return {**state, "least": torch.where(torch.isinf(now), state["least"], now)}


def _follow(tokens: Tokens, state: State) -> State:
    """The first error of every sample of this step, and for how many of its steps it has stayed there."""
    wrong = (tokens.mask > 0) & ~tokens.correct
    position = torch.where(wrong, tokens.position, NO_ERROR)
    first = torch.full_like(state["anchor"], NO_ERROR).scatter_reduce(
        1, tokens.sample, position, "amin"
    )
    seen = (
        torch.zeros_like(first).scatter_reduce(1, tokens.sample, (tokens.mask > 0).long(), "amax")
        > 0
    )
    stale = torch.where(first == state["anchor"], state["stale"] + 1, 0)
    return {
        **state,
        "anchor": torch.where(seen, first, state["anchor"]),
        "stale": torch.where(seen, stale, state["stale"]),
    }

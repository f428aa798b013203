"""The one function that scores tokens, and the weights that make a loss of the scores.

Shapes: N scored tokens, D hidden size, V vocabulary, K cells of a pack, S scored tokens of a cell (padded).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import Loss, MemftOtLoss, SftLoss

EPS = 1e-8  # in the normaliser of the weighted mean
BLOCK = 64  # logits compared at once in the search for the largest


class Head(NamedTuple):
    """The frozen output layer: logits = cap * tanh((hidden @ weight.T + bias) / cap), without a cap the plain product."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    cap: float | None = None


class TokenScores(NamedTuple):
    """Scores of target tokens, each of shape (N,). nll carries the gradient; p = exp(-nll)."""

    nll: Tensor
    margin: Tensor  # logit of the target minus the largest other logit: above 0 exactly when greedy decoding picks it
    argmax: Tensor  # token id that greedy decoding picks

    @property
    def p(self) -> Tensor:
        return torch.exp(-self.nll.detach())


def token_nll(hidden_ND: Tensor, head: Head, target_N: Tensor, chunk: int = 2048) -> TokenScores:
    """Score every target token in one pass over the logits, `chunk` rows at a time, at least in float32.

    Only `chunk` rows of logits exist at once. Where a gradient is wanted, the derivative of each token's nll by its own
    hidden state is formed in the same pass ((softmax - onehot) @ weight), so backward needs neither the logits nor a second
    product; the head gets no gradient.

    Args:
        hidden_ND: final hidden states (after the last norm) at the positions that predict the targets.
        target_N: token ids.

    Returns:
        nll in nats, margin in logits, argmax; the same numbers serve training, logging and recall.
    """
    nll, margin, argmax = _Score.apply(hidden_ND, head, target_N, chunk)  # type: ignore[no-untyped-call]
    return TokenScores(nll, margin, argmax)


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head: Head, target_N: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.promote_types(hidden_ND.dtype, torch.float32)
        nll_N = torch.empty(len(target_N), dtype=precise, device=hidden_ND.device)
        margin_N, argmax_N = torch.empty_like(nll_N), torch.empty_like(target_N)
        wanted = hidden_ND.requires_grad
        grad_ND = torch.empty_like(hidden_ND) if wanted else None
        for start in range(0, len(target_N), chunk):
            rows = slice(start, start + chunk)
            logits, slope = _logits(hidden_ND[rows], head, precise)
            target = target_N[rows, None]
            nll_N[rows], margin_N[rows], argmax_N[rows], error = _score_chunk(logits, target)
            if grad_ND is not None:
                error.scatter_add_(1, target, error.new_full((1, 1), -1.0).expand(target.shape))
                if slope is not None:
                    error *= slope
                grad_ND[rows] = error.to(head.weight_VD.dtype) @ head.weight_VD
            del logits, slope, error  # else two chunks exist at once
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        ctx.mark_non_differentiable(margin_N, argmax_N)
        return nll_N, margin_N, argmax_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_ND,) = ctx.saved_tensors
        return (grads[0][:, None] * grad_ND).to(grad_ND.dtype), None, None, None


def _logits(hidden_ND: Tensor, head: Head, precise: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Logits, and their derivative by the uncapped ones where there is a cap."""
    logits = torch.nn.functional.linear(hidden_ND, head.weight_VD, head.bias_V).to(precise)
    if head.cap is None:
        return logits, None
    bent = torch.tanh(logits / head.cap)
    return head.cap * bent, 1 - bent**2


def _score_chunk(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll, margin, argmax, and the softmax, which takes the place of the logits: few passes over (rows, V)."""
    own = logits.gather(1, target)
    logits.scatter_(1, target, -torch.inf)
    other, rival = _largest(logits)
    logits.scatter_(1, target, own)
    wins = (own > other) | ((own == other) & (target < rival))  # a tie goes to the lower id, as in argmax
    argmax = torch.where(wins, target, rival)
    softmax = torch.softmax(logits, 1, out=logits)  # one pass of max, exp, sum and division, in place
    nll = torch.maximum(own, other) - own - softmax.gather(1, argmax).log()  # the largest softmax is 1 / sum exp(. - top)
    return nll[:, 0], (own - other)[:, 0], argmax[:, 0], softmax


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and its lowest id, (rows, 1) each.

    torch's max with ids is not vectorised on a CPU: there the block that holds the largest is found first.
    """
    if logits.device.type != "cpu" or logits.shape[1] % BLOCK:
        return logits.max(1, keepdim=True)
    blocks = logits.view(len(logits), -1, BLOCK)
    top, block = blocks.amax(2).max(1, keepdim=True)
    within = blocks.gather(1, block[:, :, None].expand(-1, 1, BLOCK)).argmax(2)
    return top, block * BLOCK + within


def weights(loss: Loss, nll_KS: Tensor, mask_KS: Tensor) -> Tensor:
    """The weight of each target token under a loss, per cell; a pure function of the scores.

    Args:
        nll_KS: nats, detached; mask_KS: 1 where there is a token, 0 where there is padding.
    """
    if isinstance(loss, SftLoss):
        return mask_KS
    if isinstance(loss, MemftOtLoss):  # MemFT-OT: w = 1[nll > threshold]
        active = mask_KS * (nll_KS > loss.threshold)
        if loss.when_done == "zero":
            return active
        return torch.where(active.any(1, keepdim=True), active, mask_KS)
    raise NotImplementedError(f"loss {loss.kind}")


def weighted_mean(nll_KS: Tensor, weights_KS: Tensor) -> Tensor:
    """sum_t w_t nll_t / (sum_t w_t + eps) of each cell, shape (K,); the weights carry no gradient."""
    return (weights_KS * nll_KS).sum(1) / (weights_KS.sum(1) + EPS)

"""The one function that scores tokens; what makes a loss of the scores is in weighting.py.

Shapes: N scored tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # logits compared at once in the search for the largest


class Head(NamedTuple):
    """The frozen output layer: logits = cap * tanh((hidden @ weight.T + bias) / cap), without a cap the plain product."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    cap: float | None = None


class TokenScores(NamedTuple):
    """Scores of target tokens, each of shape (N,). nll and margin carry a gradient; p = exp(-nll)."""

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
    product; that of the margin is a difference of two rows of the head. The head gets no gradient.

    Args:
        hidden_ND: final hidden states (after the last norm) at the positions that predict the targets.
        target_N: token ids.

    Returns:
        nll in nats, margin in logits, argmax; the same numbers serve training, logging and recall.
    """
    nll, margin, argmax = _Score.apply(hidden_ND, head, target_N, chunk)  # type: ignore[no-untyped-call]
    return TokenScores(nll, margin, argmax)


def logit_nll(logits_NV: Tensor, target_N: Tensor, chunk: int = 2048) -> TokenScores:
    """The same scores from logits that exist already; backward forms the softmax again, `chunk` rows at a time."""
    nll, margin, argmax = _ScoreLogits.apply(logits_NV, target_N, chunk)  # type: ignore[no-untyped-call]
    return TokenScores(nll, margin, argmax)


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head: Head, target_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.promote_types(hidden_ND.dtype, torch.float32)
        nll_N = torch.empty(len(target_N), dtype=precise, device=hidden_ND.device)
        margin_N, argmax_N, rival_N = (
            torch.empty_like(nll_N),
            torch.empty_like(target_N),
            torch.empty_like(target_N),
        )
        wanted = hidden_ND.requires_grad
        grad_ND = torch.empty_like(hidden_ND) if wanted else None
        slopes_2N = (
            nll_N.new_ones(2, len(target_N)) if head.cap is not None and wanted else None
        )  # target's, rival's
        for start in range(0, len(target_N), chunk):
            rows = slice(start, start + chunk)
            logits, slope = _logits(hidden_ND[rows], head, precise)
            target = target_N[rows, None]
            nll_N[rows], margin_N[rows], argmax_N[rows], rival_N[rows], error = _score_chunk(
                logits, target
            )
            if grad_ND is not None:
                error.scatter_add_(1, target, error.new_full((1, 1), -1.0).expand(target.shape))
                if slope is not None:
                    error *= slope
                    if slopes_2N is not None:
                        slopes_2N[:, rows] = slope.gather(
                            1, torch.cat([target, rival_N[rows, None]], 1)
                        ).T
                grad_ND[rows] = error.to(head.weight_VD.dtype) @ head.weight_VD
            del logits, slope, error  # else two chunks exist at once
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND, head.weight_VD, target_N, rival_N, slopes_2N)
        ctx.mark_non_differentiable(argmax_N)
        ctx.set_materialize_grads(False)
        return nll_N, margin_N, argmax_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_nll, by_margin = grads[:2]
        grad_ND, weight_VD, target_N, rival_N, slopes_2N = ctx.saved_tensors
        out: Tensor | None = None
        if by_nll is not None:
            out = by_nll[:, None] * grad_ND
        if by_margin is not None:
            pull_2N = by_margin.expand(2, -1) if slopes_2N is None else by_margin * slopes_2N
            apart = (
                pull_2N[0, :, None] * weight_VD[target_N] - pull_2N[1, :, None] * weight_VD[rival_N]
            )
            out = apart if out is None else out + apart
        return None if out is None else out.to(grad_ND.dtype), None, None, None


class _ScoreLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, target_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.promote_types(logits_NV.dtype, torch.float32)
        nll_N = torch.empty(len(target_N), dtype=precise, device=logits_NV.device)
        margin_N, argmax_N, rival_N = (
            torch.empty_like(nll_N),
            torch.empty_like(target_N),
            torch.empty_like(target_N),
        )
        for start in range(0, len(target_N), chunk):
            rows = slice(start, start + chunk)
            scored = _score_chunk(logits_NV[rows].to(precise, copy=True), target_N[rows, None])
            nll_N[rows], margin_N[rows], argmax_N[rows], rival_N[rows] = scored[:4]
        ctx.save_for_backward(logits_NV, target_N, rival_N)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(argmax_N)
        ctx.set_materialize_grads(False)
        return nll_N, margin_N, argmax_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_nll, by_margin = grads[:2]
        logits_NV, target_N, rival_N = ctx.saved_tensors
        out = torch.zeros_like(logits_NV)
        for start in range(0, len(target_N), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            target, rival = target_N[rows, None], rival_N[rows, None]
            if by_nll is not None:
                pull = by_nll[rows, None]
                error = (
                    logits_NV[rows]
                    .to(pull.dtype)
                    .softmax(1)
                    .mul_(pull)
                    .scatter_add_(1, target, -pull)
                )
                out[rows] = error.to(out.dtype)
            if by_margin is not None:
                pull = by_margin[rows, None].to(out.dtype)
                out[rows] = out[rows].scatter_add(1, target, pull).scatter_add(1, rival, -pull)
        return out, None, None


def _logits(hidden_ND: Tensor, head: Head, precise: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Logits, and their derivative by the uncapped ones where there is a cap."""
    logits = torch.nn.functional.linear(hidden_ND, head.weight_VD, head.bias_V).to(precise)
    if head.cap is None:
        return logits, None
    bent = torch.tanh(logits / head.cap)
    return head.cap * bent, 1 - bent**2


def _score_chunk(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """nll, margin, argmax, the rival, and the softmax, which takes the place of the logits: few passes over (rows, V)."""
    own = logits.gather(1, target)
    logits.scatter_(1, target, -torch.inf)
    other, rival = _largest(logits)
    logits.scatter_(1, target, own)
    wins = (own > other) | (
        (own == other) & (target < rival)
    )  # a tie goes to the lower id, as in argmax
    argmax, top = torch.where(wins, target, rival), torch.maximum(own, other)
    if logits.device.type == "cpu":
        softmax = torch.softmax(
            logits, 1, out=logits
        )  # one pass of max, exp, sum and division, in place
    else:  # where no one says that the output may be the input
        softmax = logits.sub_(top).exp_()
        softmax.div_(softmax.sum(1, keepdim=True))
    nll = top - own - softmax.gather(1, argmax).log()  # the largest softmax is 1 / sum exp(. - top)
    return nll[:, 0], (own - other)[:, 0], argmax[:, 0], rival[:, 0], softmax


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

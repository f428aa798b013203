"""Chunked cross-entropy of the frozen head: nll, margin and argmax of target tokens.

The logits of all tokens never exist at once. What makes a training loss of these scores lies in
training/losses.

Shapes: N scored tokens, D hidden size, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pml_cli.model.chunk_sizes import HEAD_CHUNK

# Logits compared at once in the search for the largest one on a CPU.
BLOCK = 64


class Head(NamedTuple):
    """The frozen output layer.

    logits = factor * (hidden @ weight.T + bias); with a cap, cap * tanh(logits / cap).
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    cap: float | None = None
    factor: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., D), as the model's own head has them."""
        logits = self.uncapped(hidden)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def uncapped(self, hidden: Tensor) -> Tensor:
        """The same before the cap."""
        logits = F.linear(hidden, self.weight_VD, self.bias_V)
        return logits if self.factor is None else logits * self.factor


class TokenScores(NamedTuple):
    """Scores of target tokens. nll and margin carry a gradient, argmax does not."""

    nll: Tensor
    """Negative log-likelihood in nats, (N,)."""

    margin: Tensor
    """Logit of the target minus the largest other logit, (N,).

    Above 0 exactly when greedy decoding picks the target.
    """

    argmax: Tensor
    """Token id that greedy decoding picks, (N,)."""

    @property
    def p(self) -> Tensor:
        """Probability of the target, exp(-nll), (N,), without a gradient."""
        return torch.exp(-self.nll.detach())


def token_nll(
    hidden_ND: Tensor, head: Head, target_N: Tensor, chunk: int = HEAD_CHUNK
) -> TokenScores:
    """Score target tokens from final hidden states, at least in float32.

    If a gradient is needed, the derivative of each token's nll by its own hidden state, (softmax -
    onehot) @ weight, is formed in the same pass, so backward needs neither the logits nor a second
    product; that of the margin is a difference of two rows of the head. The head gets no gradient.

    Args:
        hidden_ND: final hidden states (after the last norm) at the positions that predict the
            targets, (N, D).
        head: the output layer.
        target_N: token ids, (N,).
        chunk: tokens whose logits exist at once.
    """
    scores = _HiddenScores.apply(hidden_ND, head, target_N, chunk)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)


def logit_nll(logits_NV: Tensor, target_N: Tensor, chunk: int = HEAD_CHUNK) -> TokenScores:
    """The same scores from logits that exist already; backward forms the softmax again.

    Args:
        logits_NV: logits at the positions that predict the targets, (N, V).
        target_N: token ids, (N,).
        chunk: tokens whose softmax exists at once.
    """
    scores = _LogitScores.apply(logits_NV, target_N, chunk)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)


class _ChunkScores(NamedTuple):
    """Scores of one chunk."""

    nll: Tensor
    """(C,)."""

    margin: Tensor
    """(C,)."""

    argmax: Tensor
    """(C,)."""

    rival: Tensor
    """Id of the largest logit other than the target's, (C,)."""

    softmax: Tensor
    """(C, V), in the memory of the logits."""


class _Scores(NamedTuple):
    """Scores of all tokens, filled chunk by chunk; fields as in `_ChunkScores`."""

    nll: Tensor
    margin: Tensor
    argmax: Tensor
    rival: Tensor

    @classmethod
    def empty(cls, target_N: Tensor, dtype: torch.dtype) -> _Scores:
        nll_N = torch.empty(len(target_N), dtype=dtype, device=target_N.device)
        return cls(
            nll=nll_N,
            margin=torch.empty_like(nll_N),
            argmax=torch.empty_like(target_N),
            rival=torch.empty_like(target_N),
        )

    def fill(self, rows: slice, chunk: _ChunkScores) -> None:
        self.nll[rows] = chunk.nll
        self.margin[rows] = chunk.margin
        self.argmax[rows] = chunk.argmax
        self.rival[rows] = chunk.rival


def _chunks(tokens: int, chunk: int) -> Iterator[slice]:
    for start in range(0, tokens, chunk):
        yield slice(start, start + chunk)


class _HiddenScores(torch.autograd.Function):
    """Scores from hidden states; the gradient of the nll is formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head: Head, target_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        scorer = _HiddenScorer(hidden_ND, head, target_N)
        for rows in _chunks(len(target_N), chunk):
            # Logits are local to this call, so those of two chunks never exist at once.
            scorer.score(rows)

        scores = scorer.scores
        ctx.save_for_backward(
            scorer.nll_by_hidden_ND,
            head.weight_VD,
            target_N,
            scores.rival,
            scorer.cap_slopes_2N,
        )
        ctx.factor = head.factor
        ctx.mark_non_differentiable(scores.argmax)
        ctx.set_materialize_grads(False)
        return scores.nll, scores.margin, scores.argmax

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        nll_grad_N, margin_grad_N = grads[:2]
        nll_by_hidden_ND, weight_VD, target_N, rival_N, cap_slopes_2N = ctx.saved_tensors

        total_ND: Tensor | None = None
        if nll_grad_N is not None:
            total_ND = nll_grad_N[:, None] * nll_by_hidden_ND
        if margin_grad_N is not None:
            if ctx.factor is not None:
                margin_grad_N = margin_grad_N * ctx.factor
            # Derivatives by the uncapped logits of target and rival.
            if cap_slopes_2N is None:
                logit_grad_2N = margin_grad_N.expand(2, -1)
            else:
                logit_grad_2N = margin_grad_N * cap_slopes_2N
            target_part = logit_grad_2N[0, :, None] * weight_VD[target_N]
            rival_part = logit_grad_2N[1, :, None] * weight_VD[rival_N]
            difference_ND = target_part - rival_part
            total_ND = difference_ND if total_ND is None else total_ND + difference_ND

        hidden_grad = None if total_ND is None else total_ND.to(nll_by_hidden_ND.dtype)
        return hidden_grad, None, None, None


class _HiddenScorer:
    """One pass over hidden states: scores and, if a gradient is needed, the derivative of the nll.

    Attributes:
        scores: scores of the chunks so far.
        nll_by_hidden_ND: derivative of each token's nll by its hidden state, (N, D); None if no
            gradient is needed.
        cap_slopes_2N: derivative of the capped logits by the uncapped ones, of target and rival,
            (2, N); None without a cap or if no gradient is needed.
    """

    def __init__(self, hidden_ND: Tensor, head: Head, target_N: Tensor) -> None:
        self._hidden_ND = hidden_ND
        self._head = head
        self._target_N = target_N
        self._dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        self.scores = _Scores.empty(target_N, self._dtype)

        self.nll_by_hidden_ND: Tensor | None = None
        self.cap_slopes_2N: Tensor | None = None
        if hidden_ND.requires_grad:
            self.nll_by_hidden_ND = torch.empty_like(hidden_ND)
            if head.cap is not None:
                self.cap_slopes_2N = self.scores.nll.new_ones(2, len(target_N))

    def score(self, rows: slice) -> None:
        """Score one chunk."""
        logits_CV, slope_CV = self._logits(rows)
        target_C1 = self._target_N[rows, None]
        chunk = _score_logits(logits_CV, target_C1)
        self.scores.fill(rows, chunk)
        if self.nll_by_hidden_ND is None:
            return

        # softmax - onehot, in place.
        error_CV = chunk.softmax
        minus_one = error_CV.new_full((1, 1), -1.0).expand(target_C1.shape)
        error_CV.scatter_add_(1, target_C1, minus_one)

        if slope_CV is not None and self.cap_slopes_2N is not None:
            error_CV *= slope_CV
            pairs_C2 = torch.cat([target_C1, chunk.rival[:, None]], 1)
            self.cap_slopes_2N[:, rows] = slope_CV.gather(1, pairs_C2).T

        weight_VD = self._head.weight_VD
        nll_by_hidden_CD = error_CV.to(weight_VD.dtype) @ weight_VD
        if self._head.factor is not None:
            nll_by_hidden_CD *= self._head.factor
        self.nll_by_hidden_ND[rows] = nll_by_hidden_CD

    def _logits(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Logits of a chunk, (C, V), and with a cap their derivative by the uncapped ones."""
        head = self._head
        hidden_CD = self._hidden_ND[rows]
        logits_CV = head.uncapped(hidden_CD).to(self._dtype)
        if head.cap is None:
            return logits_CV, None

        tanh_CV = torch.tanh(logits_CV / head.cap)
        return head.cap * tanh_CV, 1 - tanh_CV**2


class _LogitScores(torch.autograd.Function):
    """Scores from logits; backward forms the softmax again, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, target_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        scores = _Scores.empty(target_N, dtype)

        for rows in _chunks(len(target_N), chunk):
            # A copy, because scoring overwrites the logits.
            logits_CV = logits_NV[rows].to(dtype, copy=True)
            scores.fill(rows, _score_logits(logits_CV, target_N[rows, None]))

        ctx.save_for_backward(logits_NV, target_N, scores.rival)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(scores.argmax)
        ctx.set_materialize_grads(False)
        return scores.nll, scores.margin, scores.argmax

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        nll_grad_N, margin_grad_N = grads[:2]
        logits_NV, target_N, rival_N = ctx.saved_tensors
        total_NV = torch.zeros_like(logits_NV)

        for rows in _chunks(len(target_N), ctx.chunk):
            target_C1 = target_N[rows, None]
            rival_C1 = rival_N[rows, None]
            if nll_grad_N is not None:
                # grad * (softmax - onehot), in place.
                grad_C1 = nll_grad_N[rows, None]
                softmax_CV = logits_NV[rows].to(grad_C1.dtype).softmax(1)
                error_CV = softmax_CV.mul_(grad_C1)
                error_CV.scatter_add_(1, target_C1, -grad_C1)
                total_NV[rows] = error_CV.to(total_NV.dtype)
            if margin_grad_N is not None:
                grad_C1 = margin_grad_N[rows, None].to(total_NV.dtype)
                with_target = total_NV[rows].scatter_add(1, target_C1, grad_C1)
                total_NV[rows] = with_target.scatter_add(1, rival_C1, -grad_C1)
        return total_NV, None, None


def _score_logits(logits_CV: Tensor, target_C1: Tensor) -> _ChunkScores:
    """Scores of one chunk in few passes over its logits, which become the softmax.

    Args:
        logits_CV: logits, (C, V); overwritten.
        target_C1: targets, (C, 1).
    """
    # Take the target out while the largest of the others is found.
    target_logit = logits_CV.gather(1, target_C1)
    logits_CV.scatter_(1, target_C1, -torch.inf)
    rival_logit, rival = _largest(logits_CV)
    logits_CV.scatter_(1, target_C1, target_logit)

    # A tie goes to the lower id, as in argmax.
    wins_tie = (target_logit == rival_logit) & (target_C1 < rival)
    target_wins = (target_logit > rival_logit) | wins_tie
    argmax = torch.where(target_wins, target_C1, rival)
    largest_logit = torch.maximum(target_logit, rival_logit)

    softmax_CV = _softmax_in_place(logits_CV, largest_logit)
    # The largest softmax is 1 / sum(exp(logit - largest logit)).
    minus_log_sum = softmax_CV.gather(1, argmax).log()
    nll = largest_logit - target_logit - minus_log_sum
    return _ChunkScores(
        nll=nll[:, 0],
        margin=(target_logit - rival_logit)[:, 0],
        argmax=argmax[:, 0],
        rival=rival[:, 0],
        softmax=softmax_CV,
    )


def _softmax_in_place(logits_CV: Tensor, largest_C1: Tensor) -> Tensor:
    """Softmax of each row in the memory of its logits."""
    if logits_CV.device.type == "cpu":
        # One fused pass of max, exp, sum and division.
        return torch.softmax(logits_CV, 1, out=logits_CV)

    # On other devices nothing promises that softmax's output may be its input.
    softmax_CV = logits_CV.sub_(largest_C1).exp_()
    return softmax_CV.div_(softmax_CV.sum(1, keepdim=True))


def _largest(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and its lowest id, (C, 1) each.

    On a CPU, torch's max with indices is not vectorised; there the block that holds the largest
    logit is found first.
    """
    vocabulary = logits_CV.shape[1]
    if logits_CV.device.type != "cpu" or vocabulary % BLOCK:
        return logits_CV.max(1, keepdim=True)

    blocks = logits_CV.view(len(logits_CV), -1, BLOCK)
    largest, block = blocks.amax(2).max(1, keepdim=True)
    index = block[:, :, None].expand(-1, 1, BLOCK)
    within_block = blocks.gather(1, index).argmax(2)
    return largest, block * BLOCK + within_block

"""Cross-entropy of the frozen head, a block of the vocabulary at a time: nll, margin and argmax.

The logits of all tokens and words never exist at once. A chunk of tokens passes over the blocks
with an online softmax (Milakov and Gimelshein, arXiv 1805.02867), as queries pass over blocks of
keys in FlashAttention (arXiv 2205.14135). It keeps the largest logit so far, m, and the sum of
exp(logit - m); a block with a larger logit rescales the sum by exp(old m - new m). The rows of the
head are the keys and the values: their sum under the same weights, FlashAttention's output, is
accumulated beside it, for the gradient. What makes a training loss of these scores lies in
training/losses.

The target is kept apart from the other words. With o = log sum exp(logit) over the others and
x = o - target logit,

    nll = log(1 + exp(x)) = softplus(x),
    1 - p = sigmoid(x),
    derivative of the nll by the hidden state = (1 - p) (sum_j q_j row_j - target's row),

where q is the softmax over the others and row_j a row of the head (its factor and cap aside). So
all three keep their digits where p is nearly 1. The rival is the largest of the others, with the
logit m.

A token is a position to be predicted, a word an entry of the vocabulary.

Shapes: N scored tokens, D hidden size, V vocabulary, C tokens of a chunk, W words of a block,
E tokens of a chunk whose derivative is formed, the first ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pml_cli.model.chunk_sizes import CPU_HEAD_WORDS, HEAD_CHUNK, HEAD_WORDS

# Logits compared at once in the search for the largest one on a CPU.
COMPARED = 64


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
        return self.capped(self.uncapped(hidden))

    def uncapped(self, hidden: Tensor) -> Tensor:
        """Logits before the cap."""
        logits = F.linear(hidden, self.weight_VD, self.bias_V)
        return logits if self.factor is None else logits * self.factor

    def capped(self, logits: Tensor) -> Tensor:
        """Logits after the cap."""
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def cap_slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of capped logits by the uncapped ones."""
        return 1.0 if self.cap is None else 1 - (logits / self.cap) ** 2

    def words(self, block: slice) -> Head:
        """The output layer of some words of the vocabulary."""
        bias = None if self.bias_V is None else self.bias_V[block]
        return self._replace(weight_VD=self.weight_VD[block], bias_V=bias)


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


class NeededTokens:
    """The tokens whose nll had a gradient in the last backward pass, of steps on the same tokens.

    A gate or a hinge leaves many tokens without one, and a token that needed none seldom needs one
    in the next step. So the forward pass forms the derivatives of those that needed one, and
    backward those that are missing: this changes when they are formed, not what they are. Where
    their number would be a wait for the device, it is all of them or none.

    Attributes:
        mask_N: (N,), bool; None: all of them.
        count: how many.
    """

    def __init__(self) -> None:
        self.mask_N: Tensor | None = None
        self.count = 0

    def note(self, nll_grad_N: Tensor | None, target_N: Tensor) -> None:
        """Keep which tokens have a gradient.

        Args:
            nll_grad_N: gradient of each token's nll; None: no token has one.
            target_N: ids of the tokens.
        """
        if nll_grad_N is None:
            self.mask_N = torch.zeros_like(target_N, dtype=torch.bool)
            self.count = 0
        elif nll_grad_N.device.type == "cpu":
            self.restore(nll_grad_N != 0)
        else:
            self.mask_N = None

    def restore(self, mask_N: Tensor) -> None:
        """Take over a mask; waits for the device."""
        self.mask_N = mask_N
        self.count = int(mask_N.sum())

    @property
    def every_token(self) -> bool:
        """Whether every token needs one."""
        return self.mask_N is None or self.count == len(self.mask_N)

    def order(self) -> Tensor | None:
        """Indices of all tokens, (N,), those that need a gradient first; None: as they are."""
        if self.mask_N is None or self.count == 0:
            return None
        return torch.argsort(self.mask_N.byte(), descending=True, stable=True)


def token_nll(
    hidden_ND: Tensor,
    head: Head,
    target_N: Tensor,
    chunk: int = HEAD_CHUNK,
    *,
    needed: NeededTokens | None = None,
) -> TokenScores:
    """Score target tokens from final hidden states, at least in float32.

    If a gradient is needed, the derivative of each token's nll by its own hidden state is formed
    in the same pass, so backward needs neither the logits nor a second product; that of the margin
    is a difference of two rows of the head. The head gets no gradient.

    Args:
        hidden_ND: final hidden states (after the last norm) at the positions that predict the
            targets, (N, D).
        head: the output layer.
        target_N: token ids, (N,).
        chunk: tokens that are scored at once.
        needed: of steps on the same tokens: what the step before has found, which this one's
            backward pass replaces; None: every token needs a gradient.
    """
    scoring = _Scoring(head, target_N, chunk, needed)
    scores = _HiddenScores.apply(hidden_ND, scoring)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)


def logit_nll(logits_NV: Tensor, target_N: Tensor, chunk: int = HEAD_CHUNK) -> TokenScores:
    """Scores from logits that exist already; backward forms the softmax.

    Args:
        logits_NV: logits at the positions that predict the targets, (N, V).
        target_N: token ids, (N,).
        chunk: tokens whose softmax exists at once.
    """
    scores = _LogitScores.apply(logits_NV, target_N, chunk)  # type: ignore[no-untyped-call]
    return TokenScores(*scores)


class _Scores(NamedTuple):
    """Scores of some tokens and what a backward pass needs of them, (N,) each."""

    nll: Tensor
    margin: Tensor
    argmax: Tensor

    target_logit: Tensor

    rival_logit: Tensor
    """The largest logit other than the target's."""

    rival: Tensor
    """Its id."""

    @classmethod
    def empty(cls, target_N: Tensor, dtype: torch.dtype) -> _Scores:
        """Room for the scores of N tokens."""

        def numbers() -> Tensor:
            return torch.empty(target_N.shape, dtype=dtype, device=target_N.device)

        def ids() -> Tensor:
            return torch.empty_like(target_N)

        return cls(
            nll=numbers(),
            margin=numbers(),
            argmax=ids(),
            target_logit=numbers(),
            rival_logit=numbers(),
            rival=ids(),
        )

    def fill(self, rows: slice | Tensor, part: _Scores) -> None:
        """Put the scores of some tokens in their places."""
        for values, values_of_part in zip(self, part, strict=True):
            values[rows] = values_of_part


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


class _Scoring(NamedTuple):
    """What is scored, and how: the arguments of `token_nll`."""

    head: Head
    target_N: Tensor
    chunk: int
    needed: NeededTokens | None


class _HiddenScores(torch.autograd.Function):
    """Scores from hidden states; the gradient of the nll is formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, scoring: _Scoring) -> tuple[Tensor, Tensor, Tensor]:
        target_N, needed = scoring.target_N, scoring.needed
        scorer = _HiddenScorer(hidden_ND, scoring)

        # The tokens whose derivative is formed here; None: all of them, or no gradient is needed.
        formed_N = None
        if not hidden_ND.requires_grad:
            scorer.score(None, derivatives=0)
        elif needed is None or needed.every_token:
            scorer.score(None, derivatives=len(target_N))
        else:
            formed_N = needed.mask_N
            scorer.score(needed.order(), derivatives=needed.count)

        scores = scorer.scores
        ctx.scoring = scoring
        ctx.save_for_backward(
            # For the derivatives that backward forms.
            None if formed_N is None else hidden_ND,
            scorer.nll_by_hidden_ND,
            formed_N,
            scores.target_logit,
            scores.rival_logit,
            scores.rival,
        )
        ctx.mark_non_differentiable(scores.argmax)
        ctx.set_materialize_grads(False)
        return scores.nll, scores.margin, scores.argmax

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        nll_grad_N, margin_grad_N = grads[:2]
        hidden_ND, nll_by_hidden_ND, formed_N, *of_margin = ctx.saved_tensors
        needed = ctx.scoring.needed
        if needed is not None:
            needed.note(nll_grad_N, ctx.scoring.target_N)

        hidden_grad_ND: Tensor | None = None
        if nll_grad_N is not None:
            if hidden_ND is not None:
                missing = torch.nonzero(~formed_N & (nll_grad_N != 0))[:, 0]
                scorer = _HiddenScorer(hidden_ND, ctx.scoring)
                scorer.score(missing, derivatives=len(missing))
                # Each is 0 where the other is not.
                nll_by_hidden_ND = nll_by_hidden_ND + scorer.nll_by_hidden_ND
            hidden_grad_ND = nll_grad_N[:, None] * nll_by_hidden_ND

        if margin_grad_N is not None:
            margin_part_ND = _margin_backward(margin_grad_N, ctx.scoring, *of_margin)
            hidden_grad_ND = (
                margin_part_ND if hidden_grad_ND is None else hidden_grad_ND + margin_part_ND
            )
        if hidden_grad_ND is not None:
            hidden_grad_ND = hidden_grad_ND.to(nll_by_hidden_ND.dtype)
        return hidden_grad_ND, None


def _margin_backward(
    margin_grad_N: Tensor,
    scoring: _Scoring,
    target_logit_N: Tensor,
    rival_logit_N: Tensor,
    rival_N: Tensor,
) -> Tensor:
    """The gradient that the margins send to the hidden states, (N, D): two rows of the head."""
    head, target_N = scoring.head, scoring.target_N
    if head.factor is not None:
        margin_grad_N = margin_grad_N * head.factor

    # Gradients of the uncapped logits of target and rival.
    target_grad_N1 = (margin_grad_N * head.cap_slope(target_logit_N))[:, None]
    rival_grad_N1 = (margin_grad_N * head.cap_slope(rival_logit_N))[:, None]
    weight_VD = head.weight_VD
    return target_grad_N1 * weight_VD[target_N] - rival_grad_N1 * weight_VD[rival_N]


class _HiddenScorer:
    """Scores of hidden states and, of as many as is asked for, the derivative of the nll.

    Attributes:
        scores: of the tokens that were scored.
        nll_by_hidden_ND: derivative of each token's nll by its hidden state, (N, D), in the dtype
            of the hidden states; 0 where it was not formed. None: no gradient is needed.
    """

    def __init__(self, hidden_ND: Tensor, scoring: _Scoring) -> None:
        self._hidden_ND = hidden_ND
        self._head = scoring.head
        self._target_N = scoring.target_N
        self._chunk_size = scoring.chunk
        self._block_size = CPU_HEAD_WORDS if hidden_ND.device.type == "cpu" else HEAD_WORDS
        self._dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        self.scores = _Scores.empty(self._target_N, self._dtype)
        self.nll_by_hidden_ND = torch.zeros_like(hidden_ND) if hidden_ND.requires_grad else None

    def score(self, tokens: Tensor | None, derivatives: int) -> None:
        """Score tokens, chunk by chunk.

        Args:
            tokens: their indices; None: all.
            derivatives: for how many of them, the first ones, the derivative is formed.
        """
        count = len(self._target_N) if tokens is None else len(tokens)
        for rows in _slices(count, self._chunk_size):
            chunk = rows if tokens is None else tokens[rows]
            derivatives_here = min(max(derivatives - rows.start, 0), rows.stop - rows.start)
            softmax = self._pass_over_vocabulary(chunk, derivatives_here)
            self.scores.fill(chunk, softmax.scores())

            derivative_ED = softmax.nll_by_hidden(self._head)
            if self.nll_by_hidden_ND is not None and derivative_ED is not None:
                first = slice(rows.start, rows.start + derivatives_here)
                first_tokens = first if tokens is None else tokens[first]
                self.nll_by_hidden_ND[first_tokens] = derivative_ED.to(self._hidden_ND.dtype)

    def _pass_over_vocabulary(self, tokens: slice | Tensor, derivatives: int) -> _OnlineSoftmax:
        """The softmax of one chunk, after all blocks."""
        head = self._head
        hidden_CD = self._hidden_ND[tokens]
        target_C1 = self._target_N[tokens, None]
        softmax = _OnlineSoftmax(target_C1, self._dtype, derivatives)
        for block in _slices(len(head.weight_VD), self._block_size):
            block_head = head.words(block)
            softmax.add_block(self._logits(hidden_CD, block_head), block.start, block_head)
        return softmax

    def _logits(self, hidden_CD: Tensor, head: Head) -> Tensor:
        """Logits of a chunk and block; the cap in float32 at least, for the sake of its slope."""
        return head.capped(head.uncapped(hidden_CD).to(self._dtype))


class _OnlineSoftmax:
    """Softmax of a chunk's tokens over all words other than the target, block by block.

    Attributes:
        rival_logit: running maximum: the largest logit so far, (C, 1).
        rival: its id, the lowest of equal ones, (C, 1).
        sum_exp: running sum of exp(logit - rival_logit), (C, 1).
        weighted_rows: running sum of the head's rows, each times its exp(logit - rival_logit) and
            the slope of its cap, (E, D); None before the first block, or if no derivative is
            wanted.
        target_logit: (C, 1); nan until the block that has the target.
    """

    def __init__(self, target_C1: Tensor, dtype: torch.dtype, derivatives: int) -> None:
        """
        Args:
            target_C1: ids of the targets.
            dtype: of the sums.
            derivatives: for how many tokens, the first E, the derivative is wanted.
        """
        self._target_C1 = target_C1
        self._derivatives = derivatives

        self.sum_exp = torch.zeros_like(target_C1, dtype=dtype)
        self.rival_logit = torch.full_like(self.sum_exp, -torch.inf)
        self.rival = torch.zeros_like(target_C1)
        self.weighted_rows: Tensor | None = None
        # A target that no block has is outside of the vocabulary: no number may come of it.
        self.target_logit = torch.full_like(self.sum_exp, torch.nan)

    def add_block(self, logits_CW: Tensor, start: int, head: Head | None = None) -> None:
        """Take in one block.

        Args:
            logits_CW: its logits, overwritten.
            start: id of its first word.
            head: the output layer of its words; needed for the derivative.
        """
        self._mask_target(logits_CW, start)
        rescale_C1 = self._update_maximum(logits_CW, start)

        slope_EW = None
        if head is not None and head.cap is not None and self._derivatives:
            # The target's -inf, which its exp of 0 is to silence, has no slope.
            slope_EW = head.cap_slope(logits_CW[: self._derivatives].clamp(min=-head.cap))

        exp_CW = logits_CW.sub_(self.rival_logit).exp_()
        self.sum_exp = self.sum_exp * rescale_C1 + exp_CW.sum(1, keepdim=True)
        if head is None or not self._derivatives:
            return

        weight_EW = exp_CW[: self._derivatives]
        if slope_EW is not None:
            weight_EW = weight_EW * slope_EW
        block_ED = weight_EW.to(head.weight_VD.dtype) @ head.weight_VD
        if self.weighted_rows is None:
            self.weighted_rows = block_ED.to(exp_CW.dtype)
        else:
            rescale_E1 = rescale_C1[: self._derivatives]
            self.weighted_rows = (self.weighted_rows * rescale_E1).add_(block_ED)

    def _mask_target(self, logits_CW: Tensor, start: int) -> None:
        """Note the target's logit where the block has it, and put -inf in its place."""
        words = logits_CW.shape[1]
        index_C1 = self._target_C1 - start
        is_here = (index_C1 >= 0) & (index_C1 < words)
        index_C1 = index_C1.clamp(0, words - 1)

        found_C1 = logits_CW.gather(1, index_C1)
        self.target_logit = torch.where(is_here, found_C1, self.target_logit)
        logits_CW.scatter_(1, index_C1, found_C1.masked_fill(is_here, -torch.inf))

    def _update_maximum(self, logits_CW: Tensor, start: int) -> Tensor:
        """Take in the block's largest logit.

        Returns:
            exp(old maximum - new one), (C, 1): by it the running sums are multiplied.
        """
        largest_C1, index_C1 = _largest(logits_CW)
        is_larger = largest_C1 > self.rival_logit
        self.rival = torch.where(is_larger, start + index_C1, self.rival)
        old_maximum_C1 = self.rival_logit
        self.rival_logit = torch.maximum(old_maximum_C1, largest_C1)
        # exp(-inf) before the first block.
        return torch.exp(old_maximum_C1 - self.rival_logit)

    def scores(self) -> _Scores:
        """The scores, after all blocks."""
        # A tie goes to the lower id, as in argmax.
        wins_tie = (self.target_logit == self.rival_logit) & (self._target_C1 < self.rival)
        target_wins = (self.target_logit > self.rival_logit) | wins_tie
        error_logit_C1 = self._error_logit()
        # softplus; torch's own is linear above 20, where float64 still has digits.
        nll_C1 = torch.logaddexp(error_logit_C1, torch.zeros_like(error_logit_C1))
        return _Scores(
            nll=nll_C1[:, 0],
            margin=(self.target_logit - self.rival_logit)[:, 0],
            argmax=torch.where(target_wins, self._target_C1, self.rival)[:, 0],
            target_logit=self.target_logit[:, 0],
            rival_logit=self.rival_logit[:, 0],
            rival=self.rival[:, 0],
        )

    def nll_by_hidden(self, head: Head) -> Tensor | None:
        """Derivative of the nll by the hidden state, (E, D), after all blocks; None: not wanted."""
        if self.weighted_rows is None:
            return None
        first = slice(0, self._derivatives)
        # 1 - p
        error_E1 = torch.sigmoid(self._error_logit()[first])
        if head.factor is not None:
            error_E1 = error_E1 * head.factor

        target_ED = head.weight_VD[_inside(self._target_C1[first, 0], len(head.weight_VD))]
        target_slope_E1 = head.cap_slope(self.target_logit[first])
        others_part_ED = self.weighted_rows * (error_E1 / self.sum_exp[first])
        return others_part_ED.sub_((error_E1 * target_slope_E1) * target_ED)

    def _error_logit(self) -> Tensor:
        """Log odds of a wrong token, log((1 - p) / p), (C, 1).

        The others' log sum exp minus the target's logit.
        """
        return self.rival_logit - self.target_logit + self.sum_exp.log()


class _LogitScores(torch.autograd.Function):
    """Scores from logits; backward forms the softmax again, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, target_N: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(logits_NV.dtype, torch.float32)
        scores = _Scores.empty(target_N, dtype)

        for rows in _slices(len(target_N), chunk):
            # A copy, because scoring overwrites the logits.
            logits_CV = logits_NV[rows].to(dtype, copy=True)
            softmax = _OnlineSoftmax(target_N[rows, None], dtype, derivatives=0)
            # The whole vocabulary is one block.
            softmax.add_block(logits_CV, start=0)
            scores.fill(rows, softmax.scores())

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

        for rows in _slices(len(target_N), ctx.chunk):
            target_C1 = _inside(target_N[rows, None], logits_NV.shape[1])
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


def _inside(ids: Tensor, vocabulary: int) -> Tensor:
    """Ids that can be looked up.

    One outside of the vocabulary stands for any: its scores are nan, and so are their gradients.
    """
    return ids.clamp(0, vocabulary - 1)


def _largest(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and its lowest id, (C, 1) each.

    On a CPU, torch's max with indices is not vectorised; there the block that holds the largest
    logit is found first.
    """
    vocabulary = logits_CV.shape[1]
    if logits_CV.device.type != "cpu" or vocabulary % COMPARED:
        return logits_CV.max(1, keepdim=True)

    blocks = logits_CV.view(len(logits_CV), -1, COMPARED)
    largest, block = blocks.amax(2).max(1, keepdim=True)
    index = block[:, :, None].expand(-1, 1, COMPARED)
    within_block = blocks.gather(1, index).argmax(2)
    return largest, block * COMPARED + within_block

"""`loss.keep_by=kl`: a penalty on KL(base || adapted), in nats per token of generic text.

Every step reads some windows of the text with each adapter. What lies below the adapters and the
base's final hidden states are there already; its logits are formed again, as those of all windows
would take more memory than most devices have.

Shapes: K cells, b windows of each with S scored tokens, B = K b rows, N tokens, D hidden size, V
vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import Head
from pml_cli.training.keep_text import KeepText
from pml_cli.training.limits import KL_LOGITS, KL_TOKENS


class Reading(NamedTuple):
    """How an adapter differs from the base on some windows, means over their tokens."""

    kl: Tensor
    """KL(base || adapted) of each cell, nats."""

    harm: Tensor
    """What each adds to the loss, nats."""


class KlPenalty:
    """The divergences of the cells of a pack, and their gradients.

    Args:
        text: generic text.
        checkpointing: activation checkpointing, as in the training steps.
    """

    def __init__(self, text: KeepText, *, checkpointing: bool) -> None:
        self._text = text
        self._checkpointing = checkpointing

    def add_gradient(
        self,
        bank: AdapterBank,
        grads: Sequence[Tensor],
        weight_K: Tensor,
        cells: Sequence[int],
        rows_Cb: Tensor,
    ) -> Reading:
        """Add the gradient of weight * KL of some cells, in place.

        Args:
            bank: the adapters of all cells.
            grads: gradients of its parameters, in the order of `AdapterBank.parameters`.
            weight_K: weight of each cell's divergence.
            cells: those with a divergence, C of them.
            rows_Cb: the windows that each of them reads.
        """
        tokens = rows_Cb.shape[1] * self._text.tokens
        at_once = max(1, KL_TOKENS // tokens)

        readings = []
        for start in range(0, len(cells), at_once):
            part = cells[start : start + at_once]
            rows_Kb = rows_Cb[start : start + at_once]
            part_bank = bank.select(part).requires_grad_()
            # Once on the device: each use of a list would copy it there and wait.
            part_K = torch.tensor(part, device=weight_K.device)
            reading, part_grads = self._gradient(part_bank, weight_K[part_K], rows_Kb)
            readings.append(reading)
            for grad, part_grad in zip(grads, part_grads, strict=True):
                grad[part_K] += part_grad
        return Reading(*(torch.cat(values) for values in zip(*readings, strict=True)))

    def _gradient(
        self, bank: AdapterBank, weight_K: Tensor, rows_Kb: Tensor
    ) -> tuple[Reading, Sequence[Tensor]]:
        """The gradient by the parameters of a bank."""
        text = self._text
        rows = rows_Kb.flatten()
        hidden_BSD = text.hidden(bank, rows, checkpointing=self._checkpointing)
        compared = compare(
            text.base.head,
            text.hidden_nSD[rows].flatten(0, 1),
            hidden_BSD.detach().flatten(0, 1),
            text.targets_nS[rows].flatten(),
        )

        # Each token's share in the mean of its cell.
        mask_KbS = text.mask_nS[rows_Kb]
        tokens_K = mask_KbS.sum((1, 2))
        share_KbS = mask_KbS * (weight_K / tokens_K)[:, None, None]
        slopes_BSD = compared.kl_by_hidden_ND.view(hidden_BSD.shape)
        slopes_BSD *= share_KbS.flatten(0, 1)[:, :, None].to(slopes_BSD.dtype)
        grads = torch.autograd.grad(hidden_BSD, bank.parameters(), slopes_BSD)

        kl_K = text.mean(compared.kl_N.view(mask_KbS.shape), rows_Kb)
        harm_K = text.rise(compared.nll_N.view(mask_KbS.shape), rows_Kb)
        return Reading(kl=kl_K, harm=harm_K), grads


class Compared(NamedTuple):
    """The predictions of an adapted model beside those of the base, token by token."""

    kl_N: Tensor
    """KL(base || adapted), nats."""

    nll_N: Tensor
    """Loss of the adapted model, nats."""

    kl_by_hidden_ND: Tensor
    """Derivative of the divergence by the adapted hidden state."""


@torch.no_grad()
def compare(head: Head, base_ND: Tensor, adapted_ND: Tensor, target_N: Tensor) -> Compared:
    """Compare predictions from final hidden states, at least in float32.

    Args:
        head: the output layer.
        base_ND: hidden states of the base.
        adapted_ND: hidden states of the adapted model at the same tokens.
        target_N: what is to be predicted.
    """
    size = max(1, KL_LOGITS // head.weight_VD.shape[0])
    all_tokens = torch.arange(len(target_N), device=target_N.device)

    chunks = []
    for tokens in all_tokens.split(size):
        chunk = _compare_chunk(head, base_ND[tokens], adapted_ND[tokens], target_N[tokens])
        chunks.append(chunk)
    return Compared(*(torch.cat(values) for values in zip(*chunks, strict=True)))


def _compare_chunk(head: Head, base_CD: Tensor, adapted_CD: Tensor, target_C: Tensor) -> Compared:
    dtype = torch.promote_types(adapted_CD.dtype, torch.float32)
    base_log_p = head.logits(base_CD).to(dtype).log_softmax(1)
    logits_CV = head.logits(adapted_CD).to(dtype)
    log_p = logits_CV.log_softmax(1)
    nll_C = -log_p.gather(1, target_C[:, None])[:, 0]

    base_p = base_log_p.exp()
    # In place, for memory: a (C, V) tensor may be large.
    log_ratio_CV = base_log_p.sub_(log_p)
    kl_C = (base_p * log_ratio_CV).sum(1)

    # By the logits it is p - base_p.
    slope_CV = log_p.exp_().sub_(base_p)
    if head.cap is not None:
        slope_CV *= 1 - (logits_CV / head.cap) ** 2
    kl_by_hidden_CD = slope_CV.to(head.weight_VD.dtype) @ head.weight_VD
    if head.factor is not None:
        kl_by_hidden_CD *= head.factor
    return Compared(kl_N=kl_C, nll_N=nll_C, kl_by_hidden_ND=kl_by_hidden_CD)

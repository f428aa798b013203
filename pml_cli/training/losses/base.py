"""What every loss is made of: scored tokens in, a weight and a value for each token out.

The loss of a cell is the weighted mean of its tokens' values,

    L = sum_t w_t v_t / (sum_t w_t + eps)

where v is usually the token's cross-entropy (nll). Weights carry no gradient. Nothing here waits
for the device: what a loss remembers between steps lives in tensors on it.

Shapes: K cells of a pack, S scored tokens of a cell in the batch (padded), M most samples of a
cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pml_cli.config.schema import Loss

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Added to the sum of weights, so that a step without any weight has loss 0.
EPS = 1e-8

LossState: TypeAlias = "Mapping[str, Tensor]"
"""What a loss remembers of every sample, by name; each (K, M) or, of one cell, (M,)."""


class Tokens(NamedTuple):
    """The scored tokens of one step, (K, S) each; nll and margin carry the gradient."""

    nll: Tensor
    """Cross-entropy, nats."""
    margin: Tensor
    """Logit of the target minus the largest other logit."""
    correct: Tensor
    """Whether greedy decoding picks the token."""
    mask: Tensor
    """1 where there is a token, 0 where there is padding."""
    sample: Tensor
    """Index of the cell's sample that the token belongs to; any value where there is padding."""
    position: Tensor
    """Position within its sample's target, from 0."""

    def of_cells(self, cells: Tensor) -> Tokens:
        """The tokens of some of the K cells, by their indices (any number of them,)."""
        return Tokens(*(values[cells] for values in self))


class Weighted(NamedTuple):
    """What the tokens contribute to the loss, (K, S) each."""

    value: Tensor
    """What is minimised; carries the gradient."""
    weight: Tensor
    pull: Tensor
    """Size of the gradient with respect to the token's own logit, before normalisation."""

    @property
    def loss(self) -> Tensor:
        """The weighted mean of each cell, (K,)."""
        return weighted_mean(self.value, self.weight)


def weighted_mean(value_KS: Tensor, weight_KS: Tensor) -> Tensor:
    """sum_t w_t v_t / (sum_t w_t + eps) of each cell, (K,)."""
    weights_K = weight_KS.sum(1)
    return (weight_KS * value_KS).sum(1) / (weights_K + EPS)


def weighted_cross_entropy(tokens: Tokens, weight_KS: Tensor) -> Weighted:
    """Cross-entropy under some weights; its gradient by the target's logit is w (1 - p)."""
    p_KS = (-tokens.nll.detach()).exp()
    return Weighted(value=tokens.nll, weight=weight_KS, pull=weight_KS * (1 - p_KS))


@dataclass(kw_only=True)
class TokenLoss(Loss, ABC):
    """A loss. Its fields are its settings; these methods say what it does with scored tokens."""

    @abstractmethod
    def weights(
        self, tokens: Tokens, state: LossState, progress: float
    ) -> tuple[Weighted, LossState]:
        """Weight and value of each token, and what is remembered for the next step.

        Args:
            tokens: scored tokens of K cells under this loss.
            state: what was remembered of their samples, (K, M) each; not modified.
            progress: fraction of the training that is done, 0 at its first step.
        """

    def initial_state(self, samples: int, device: torch.device) -> LossState:
        """What is remembered of samples that no step has had yet.

        Args:
            samples: number of samples.
            device: where the tokens are scored.

        Returns:
            tensors by name, (samples,) each; by default none.
        """
        return {}

    @property
    def needs_progress(self) -> bool:
        """Whether the weights depend on how much of the training is done."""
        return False

    @property
    def mean_if_unweighted(self) -> bool:
        """Whether a step without any weight is the plain mean instead of no update."""
        return False

    def for_micro_batch(self) -> TokenLoss:
        """The loss with which one micro-batch of an accumulated step is weighted.

        A loss whose weights depend on the step as a whole leaves that out here; the trainer that
        accumulates then applies `mean_if_unweighted` to the sums of the step.
        """
        return self


def as_token_loss(loss: Loss) -> TokenLoss:
    """The loss, checked to be one that can be trained with.

    Raises:
        NotImplementedError: it has settings but no weights.
    """
    if not isinstance(loss, TokenLoss):
        raise NotImplementedError(f"loss {loss.kind}")
    return loss

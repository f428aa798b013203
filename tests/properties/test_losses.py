"""A cell's loss and gradients: those of plain torch, whatever it is packed, padded or split with.

Shapes: K cells, S slots of scored tokens, M samples of a cell, V words of the vocabulary.
"""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pml_cli.training.loss_groups import LossGroups
from pml_cli.training.losses.base import Tokens, weighted_mean
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss

CPU = torch.device("cpu")
M, V = 3, 5
PROGRESS = 0.4
LOSSES = [
    SftLoss(),
    MemftOtLoss(),
    MemftOtLoss(when_done="zero"),
    MemftOtLoss(threshold=2.0),
    MemftSwLoss(window=2, tau=1.5, patience=1),
    MemftMarginLoss(margin=0.5, growth=1.0, switch=0.0),
    MemftMarginLoss(margin=0.5, growth=2.0, switch=1.0),
]
# Of a step that is split: those whose weights do not depend on the samples of the other part.
SPLITTABLE = [loss for loss in LOSSES if not isinstance(loss, MemftMarginLoss)]


@dataclasses.dataclass(kw_only=True)
class Case:
    """The logits of one cell's tokens, (S, V) in float64; sample and position of each, (S,)."""

    loss: object
    logits: torch.Tensor
    targets: torch.Tensor
    sample: torch.Tensor
    position: torch.Tensor


@st.composite
def cells(draw, losses=LOSSES):
    """A cell with one to M samples of a few tokens."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=M))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    count = sum(lengths)
    scale = draw(st.sampled_from([0.3, 3.0]))
    logits = torch.randn(count, V, generator=generator, dtype=torch.float64) * scale
    targets = torch.randint(V, (count,), generator=generator)
    # Some samples are learned, or all of them.
    learned = draw(st.sampled_from([0, lengths[0], count]))
    logits[torch.arange(learned), targets[:learned]] += 20
    return Case(
        loss=draw(st.sampled_from(losses)),
        logits=logits,
        targets=targets,
        sample=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        position=torch.cat([torch.arange(length) for length in lengths]),
    )


@st.composite
def packs(draw):
    """Cells of any losses, or all of one."""
    packed = draw(st.lists(cells(), min_size=1, max_size=4))
    if draw(st.booleans()):
        packed = [dataclasses.replace(case, loss=packed[0].loss) for case in packed]
    return packed


def scored(case, logits):
    """nll, margin and whether each token is picked, (S,), as the trainer scores them."""
    nll = functional.cross_entropy(logits, case.targets, reduction="none")
    own = logits.gather(1, case.targets[:, None])[:, 0]
    others = logits.scatter(1, case.targets[:, None], -math.inf)
    margin = own - others.amax(1)
    return nll, margin, margin > 0


def padded(case, logits, slots, garbage, padding_sample=0):
    """The tokens of a cell in so many slots, (1, slots); `garbage` fills what is left."""
    nll, margin, correct = scored(case, logits)
    missing = slots - len(nll)

    def filled(values, filler):
        return torch.cat([values, torch.full((missing,), filler, dtype=values.dtype)])[None]

    return Tokens(
        nll=filled(nll, garbage),
        margin=filled(margin, -garbage),
        correct=filled(correct, False),
        mask=filled(torch.ones_like(nll), 0.0),
        sample=filled(case.sample, padding_sample),
        position=filled(case.position, 0),
    )


def in_one_pack(parts):
    """Tokens of K cells, (K, S) each."""
    return Tokens(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def alone(case, steps=2):
    """Loss and gradient by the logits, (S, V), of a cell by itself at its last step."""
    logits = case.logits.clone().requires_grad_()
    groups = LossGroups([case.loss], M, CPU)
    for _ in range(steps):
        tokens = padded(case, logits, len(logits), 0.0)
        loss = groups.weights(tokens, PROGRESS).loss[0]
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def assert_close(values, expected):
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


PADDINGS = st.tuples(st.floats(0, 50), st.integers(0, M - 1))


@settings(max_examples=3 * settings().max_examples)
@given(packs(), st.integers(0, 3), PADDINGS)
def test_pack_mates_and_padding_change_neither_loss_nor_gradient(packed, more, padding):
    slots = max(len(case.logits) for case in packed) + more
    logits = [case.logits.clone().requires_grad_() for case in packed]
    groups = LossGroups([case.loss for case in packed], M, CPU)
    for _ in range(2):
        parts = [
            padded(case, own, slots, *padding) for case, own in zip(packed, logits, strict=True)
        ]
        losses = groups.weights(in_one_pack(parts), PROGRESS).loss
    gradients = torch.autograd.grad(losses.sum(), logits)

    for case, loss, gradient in zip(packed, losses, gradients, strict=True):
        own_loss, own_gradient = alone(case)
        assert_close(loss.detach(), own_loss)
        assert_close(gradient, own_gradient)


@given(cells(), st.randoms(use_true_random=False))
def test_the_order_of_the_tokens_does_not_count(case, random):
    order = list(range(len(case.logits)))
    random.shuffle(order)
    names = ("logits", "targets", "sample", "position")
    moved = dataclasses.replace(case, **{name: getattr(case, name)[order] for name in names})
    loss, gradient = alone(case)
    moved_loss, moved_gradient = alone(moved)
    assert_close(moved_loss, loss)
    assert_close(moved_gradient, gradient[order])


@settings(max_examples=2 * settings().max_examples)
@given(cells(losses=SPLITTABLE))
def test_a_step_in_two_micro_batches_is_the_step_as_a_whole(case):
    """Split between samples; sums of weights and of weighted values are added up."""
    expected, expected_gradient = alone(case, steps=1)
    logits = case.logits.clone().requires_grad_()
    loss = case.loss.for_micro_batch()
    groups = LossGroups([loss], M, CPU)
    values, weights, plain = [], [], []
    for part in (case.sample == 0, case.sample != 0):
        if not part.any():
            continue
        tokens = padded(case, logits, len(logits), 0.0)
        tokens = tokens._replace(mask=tokens.mask * part)
        weighted = groups.weights(tokens, PROGRESS)
        values.append((weighted.weight * weighted.value).sum())
        weights.append(weighted.weight.sum())
        plain.append((tokens.mask * tokens.nll).sum())

    total = sum(values) / (sum(weights) + 1e-8)
    if case.loss.mean_if_unweighted and sum(weights) == 0:
        total = sum(plain) / (len(logits) + 1e-8)
    assert_close(total.detach(), expected)
    assert_close(torch.autograd.grad(total, logits)[0], expected_gradient)


# -- the losses once more, token by token


def weight_by_hand(case, k, nll, correct):
    """The weight of token k at the first step that its sample is seen."""
    loss = case.loss
    if isinstance(loss, SftLoss):
        return 1.0
    if isinstance(loss, MemftOtLoss):
        is_done = loss.when_done == "mean" and not (nll > loss.threshold).any()
        return float(is_done or nll[k] > loss.threshold)

    # The window begins at the first error of the sample.
    weight = 1 / (1 + math.exp(-loss.kappa * (nll[k] - loss.threshold)))
    of_sample = case.sample == case.sample[k]
    errors = case.position[of_sample & ~correct]
    if not len(errors):
        return weight
    distance = int(case.position[k] - errors.min())
    # Patience 1: it grows from the first step on at which the error has stayed.
    if distance >= loss.window:
        return weight * loss.floor
    return weight * math.exp(-max(distance, 0) / loss.tau)


@given(cells(losses=SPLITTABLE))
def test_losses_are_those_of_plain_torch(case):
    logits = case.logits.clone().requires_grad_()
    nll, _, correct = scored(case, logits)
    weights = [weight_by_hand(case, k, nll.detach(), correct) for k in range(len(nll))]
    weight = torch.tensor(weights, dtype=torch.float64)
    by_hand = (weight * nll).sum() / (weight.sum() + 1e-8)
    (gradient,) = torch.autograd.grad(by_hand, logits)

    loss, ours = alone(case, steps=1)
    assert_close(loss, by_hand.detach())
    assert_close(ours, gradient)


@given(cells(losses=[SftLoss()]))
def test_plain_fine_tuning_is_cross_entropy(case):
    logits = case.logits.clone().requires_grad_()
    expected = functional.cross_entropy(logits, case.targets)
    loss, gradient = alone(case, steps=1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-6, atol=1e-9
    )


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), min_size=1, max_size=20))
def test_a_weighted_mean_lies_among_its_values(pairs):
    value, weight = torch.tensor(pairs, dtype=torch.float64).T[:, None]
    mean = weighted_mean(value, weight).item()
    assert 0 <= mean <= value.max().item() * (1 + 1e-12)

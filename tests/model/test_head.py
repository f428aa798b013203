"""Scores of the head and their gradients, against torch's own."""

import math

import pytest
import torch
from torch.nn import functional as F

from pml_cli.model.head import Head, logit_nll, token_nll

N, D, V = 23, 12, 37


def parts(dtype=torch.float64, bias=False):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=dtype).requires_grad_()
    head = torch.randn(V, D, generator=g, dtype=dtype)
    target = torch.randint(V, (N,), generator=g)
    return hidden, head, torch.randn(V, generator=g, dtype=dtype) if bias else None, target


def torch_logits(hidden, head):
    logits = F.linear(hidden, head.weight_VD, head.bias_V)
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


@pytest.mark.parametrize("chunk", [1, 5, 23, 2048])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_nll_and_its_gradient_are_those_of_cross_entropy(chunk, bias, cap):
    hidden, weight, b, target = parts(bias=bias)
    head, pull = (
        Head(weight, b, cap),
        torch.linspace(-1, 2, N, dtype=torch.float64),
    )  # each token its own weight
    scores = token_nll(hidden, head, target, chunk)
    theirs = F.cross_entropy(torch_logits(hidden, head), target, reduction="none")
    torch.testing.assert_close(scores.nll, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scores.p, torch.exp(-theirs), rtol=1e-12, atol=1e-12)
    (ours,) = torch.autograd.grad((scores.nll * pull).sum(), hidden)
    (gradient,) = torch.autograd.grad((theirs * pull).sum(), hidden)
    torch.testing.assert_close(ours, gradient, rtol=1e-10, atol=1e-12)


def torch_margin(logits, target):
    own = logits.gather(1, target[:, None])[:, 0]
    return own - logits.scatter(1, target[:, None], -math.inf).amax(1)


@pytest.mark.parametrize("chunk", [5, 2048])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_the_gradient_of_the_margin_is_autograds(chunk, bias, cap):
    """Alone, and together with that of the nll."""
    hidden, weight, b, target = parts(bias=bias)
    head, pull = Head(weight, b, cap), torch.linspace(-1, 2, N, dtype=torch.float64)
    for share in (0.0, 0.7):
        scores, logits = token_nll(hidden, head, target, chunk), torch_logits(hidden, head)
        mine = (scores.margin * pull).sum() + (share * scores.nll.sum() if share else 0)
        theirs = (torch_margin(logits, target) * pull).sum() + share * F.cross_entropy(
            logits, target, reduction="sum"
        )
        torch.testing.assert_close(
            scores.margin, torch_margin(logits, target), rtol=1e-12, atol=1e-12
        )
        expected = torch.autograd.grad(theirs, hidden)[0]
        torch.testing.assert_close(
            torch.autograd.grad(mine, hidden)[0], expected, rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("chunk", [5, 2048])
def test_scores_of_logits_are_those_of_hidden_states_and_so_are_their_gradients(chunk):
    hidden, weight, _, target = parts()
    logits, before = hidden @ weight.T, (hidden @ weight.T).detach()
    theirs, ours = token_nll(hidden, Head(weight), target), logit_nll(logits, target, chunk)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    pull = torch.linspace(-1, 2, N, dtype=torch.float64)
    for name in ("nll", "margin"):
        (mine,) = torch.autograd.grad((getattr(ours, name) * pull).sum(), hidden, retain_graph=True)
        (other,) = torch.autograd.grad(
            (getattr(theirs, name) * pull).sum(), hidden, retain_graph=True
        )
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    both = torch.autograd.grad((ours.nll * pull).sum() + ours.margin.sum(), hidden)[0]
    again = torch.autograd.grad((theirs.nll * pull).sum() + theirs.margin.sum(), hidden)[0]
    torch.testing.assert_close(both, again, rtol=1e-10, atol=1e-12)
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_low_precision_scores_are_float32(dtype, tolerance):
    hidden, weight, _, target = parts(dtype)
    scores = token_nll(hidden, Head(weight), target, 4)
    assert scores.nll.dtype == scores.margin.dtype == torch.float32
    theirs = F.cross_entropy((hidden @ weight.T).float(), target, reduction="none")
    torch.testing.assert_close(scores.nll, theirs, rtol=tolerance, atol=tolerance)
    (ours,) = torch.autograd.grad(scores.nll.mean(), hidden)
    (gradient,) = torch.autograd.grad(theirs.mean(), hidden)
    assert ours.dtype == dtype
    assert (ours - gradient).abs().max() <= tolerance * gradient.abs().max() + 1e-7


def test_scoring_without_gradient_is_the_same_and_leaves_the_hidden_states_alone():
    hidden, weight, b, target = parts(bias=True)
    before = hidden.detach().clone()
    with torch.no_grad():
        quiet = token_nll(hidden.detach(), Head(weight, b), target)
    torch.testing.assert_close(
        quiet.nll, token_nll(hidden, Head(weight, b), target).nll.detach(), rtol=0, atol=0
    )
    assert torch.equal(hidden.detach(), before)


@pytest.mark.parametrize("chunk", [3, 2048])
def test_margin_and_argmax(chunk):
    hidden, weight, b, target = parts(bias=True)
    scores = token_nll(hidden, Head(weight, b), target, chunk)
    logits = torch_logits(hidden, Head(weight, b)).detach()
    assert torch.equal(scores.argmax, logits.argmax(1))
    for n in range(N):
        others = torch.cat([logits[n, : target[n]], logits[n, target[n] + 1 :]])
        assert scores.margin[n].item() == pytest.approx(
            (logits[n, target[n]] - others.max()).item()
        )
    assert ((scores.margin > 0) == (scores.argmax == target)).all()


@pytest.mark.parametrize(("target", "picked"), [(1, 1), (3, 1), (4, 1), (0, 1)])
def test_ties_go_to_the_lowest_id_as_in_argmax(target, picked):
    """Tokens 1, 3 and 4 share the largest logit."""
    weight = torch.tensor([[0.0], [2.0], [1.0], [2.0], [2.0]])
    hidden = torch.ones(1, 1)
    assert (hidden @ weight.T).argmax(1).item() == picked
    scores = token_nll(hidden, Head(weight), torch.tensor([target]))
    assert scores.argmax.item() == picked
    assert scores.margin.item() == (-2.0 if target == 0 else 0.0)


def test_more_than_half_is_the_argmax():
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(4000, 3, generator=g) * 4
    target = torch.randint(5, (4000,), generator=g)
    scores = token_nll(hidden, Head(torch.randn(5, 3, generator=g)), target)
    sure = scores.nll < math.log(2)
    assert 300 < sure.sum() < 3700
    assert (scores.argmax[sure] == target[sure]).all()
    assert (scores.argmax[~sure] == target[~sure]).any()  # sufficient, not necessary

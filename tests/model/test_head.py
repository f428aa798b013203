"""Scores of the head and their gradients, against torch's own."""

import math

import pytest
import torch
from torch.nn import functional as F

from pml_cli.model import head as head_module
from pml_cli.model.head import Head, NeededTokens, logit_nll, token_nll

N = 23
D = 12
V = 37

# A weight of its own for each token.
TOKEN_WEIGHTS = torch.linspace(-1, 2, N, dtype=torch.float64)

EXACT = {"rtol": 1e-12, "atol": 1e-12}
GRADIENT = {"rtol": 1e-10, "atol": 1e-12}


def random_inputs(dtype=torch.float64, *, bias=False, cap=None, factor=None):
    """Hidden states (N, D), a head and targets (N,)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=dtype)
    target = torch.randint(V, (N,), generator=generator)
    bias_V = torch.randn(V, generator=generator, dtype=dtype) if bias else None
    return hidden, Head(weight, bias_V, cap, factor), target


def torch_logits(hidden, head):
    logits = F.linear(hidden, head.weight_VD, head.bias_V)
    logits = logits if head.factor is None else logits * head.factor
    return logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)


def torch_nll(logits, target):
    return F.cross_entropy(logits, target, reduction="none")


def torch_margin(logits, target):
    target_logit = logits.gather(1, target[:, None])[:, 0]
    return target_logit - logits.scatter(1, target[:, None], -math.inf).amax(1)


def gradient(loss, hidden):
    return torch.autograd.grad(loss, hidden, retain_graph=True)[0]


@pytest.fixture(params=[18, 2048], autouse=True)
def words(request, monkeypatch):
    """Blocks of the vocabulary of 37 words: three with a single word in the last, or one."""
    monkeypatch.setattr(head_module, "CPU_HEAD_WORDS", request.param)


@pytest.mark.parametrize("chunk", [1, 5, 23, 2048])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("factor", [None, 0.3])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_nll_and_its_gradient_are_those_of_cross_entropy(chunk, bias, cap, factor):
    hidden, head, target = random_inputs(bias=bias, cap=cap, factor=factor)
    scores = token_nll(hidden, head, target, chunk)
    expected = torch_nll(torch_logits(hidden, head), target)
    torch.testing.assert_close(scores.nll, expected, **EXACT)
    torch.testing.assert_close(scores.p, torch.exp(-expected), **EXACT)

    grad = gradient((scores.nll * TOKEN_WEIGHTS).sum(), hidden)
    expected_grad = gradient((expected * TOKEN_WEIGHTS).sum(), hidden)
    torch.testing.assert_close(grad, expected_grad, **GRADIENT)


@pytest.mark.parametrize("nll_weight", [0.0, 0.7])
@pytest.mark.parametrize("chunk", [5, 2048])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("factor", [None, 0.3])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_the_gradient_of_the_margin_is_autograds(chunk, bias, cap, factor, nll_weight):
    """Alone, and together with that of the nll."""
    hidden, head, target = random_inputs(bias=bias, cap=cap, factor=factor)
    scores = token_nll(hidden, head, target, chunk)
    logits = torch_logits(hidden, head)
    expected_margin = torch_margin(logits, target)
    torch.testing.assert_close(scores.margin, expected_margin, **EXACT)

    loss = (scores.margin * TOKEN_WEIGHTS).sum()
    expected_loss = (expected_margin * TOKEN_WEIGHTS).sum()
    # Without the nll, backward gets no gradient for it at all.
    if nll_weight:
        loss = loss + nll_weight * scores.nll.sum()
        expected_loss = expected_loss + nll_weight * torch_nll(logits, target).sum()
    torch.testing.assert_close(gradient(loss, hidden), gradient(expected_loss, hidden), **GRADIENT)


@pytest.mark.parametrize("chunk", [5, 2048])
def test_scores_of_logits_are_those_of_hidden_states_and_so_are_their_gradients(chunk):
    hidden, head, target = random_inputs()
    logits = hidden @ head.weight_VD.T
    original = logits.detach().clone()
    expected = token_nll(hidden, head, target)
    scores = logit_nll(logits, target, chunk)
    for score, expected_score in zip(scores, expected, strict=True):
        torch.testing.assert_close(score, expected_score, **EXACT)

    losses = [
        lambda scores: (scores.nll * TOKEN_WEIGHTS).sum(),
        lambda scores: (scores.margin * TOKEN_WEIGHTS).sum(),
        lambda scores: (scores.nll * TOKEN_WEIGHTS).sum() + scores.margin.sum(),
    ]
    for loss in losses:
        grad = gradient(loss(scores), hidden)
        torch.testing.assert_close(grad, gradient(loss(expected), hidden), **GRADIENT)
    assert torch.equal(logits.detach(), original)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_low_precision_scores_are_float32(dtype, tolerance):
    hidden, head, target = random_inputs(dtype)
    scores = token_nll(hidden, head, target, 4)
    assert scores.nll.dtype == scores.margin.dtype == torch.float32
    expected = torch_nll((hidden @ head.weight_VD.T).float(), target)
    torch.testing.assert_close(scores.nll, expected, rtol=tolerance, atol=tolerance)

    grad = gradient(scores.nll.mean(), hidden)
    expected_grad = gradient(expected.mean(), hidden)
    assert grad.dtype == dtype
    difference = (grad - expected_grad).abs().max()
    assert difference <= tolerance * expected_grad.abs().max() + 1e-7


def test_scoring_without_gradient_is_the_same_and_leaves_the_hidden_states_alone():
    hidden, head, target = random_inputs(bias=True)
    original = hidden.detach().clone()
    with torch.no_grad():
        without_gradient = token_nll(hidden.detach(), head, target)
    with_gradient = token_nll(hidden, head, target)
    assert torch.equal(without_gradient.nll, with_gradient.nll.detach())
    assert torch.equal(hidden.detach(), original)


@pytest.mark.parametrize("chunk", [3, 2048])
def test_margin_and_argmax(chunk):
    hidden, head, target = random_inputs(bias=True)
    scores = token_nll(hidden, head, target, chunk)
    logits = torch_logits(hidden, head).detach()
    assert torch.equal(scores.argmax, logits.argmax(1))
    assert ((scores.margin > 0) == (scores.argmax == target)).all()

    for n, token in enumerate(target.tolist()):
        rivals = torch.cat([logits[n, :token], logits[n, token + 1 :]])
        expected = (logits[n, token] - rivals.max()).item()
        assert scores.margin[n].item() == pytest.approx(expected)


@pytest.mark.parametrize(("target", "margin"), [(1, 0.0), (3, 0.0), (4, 0.0), (0, -2.0)])
def test_ties_go_to_the_lowest_id_as_in_argmax(target, margin):
    """Tokens 1, 3 and 4 share the largest logit."""
    weight = torch.tensor([[0.0], [2.0], [1.0], [2.0], [2.0]])
    hidden = torch.ones(1, 1)
    assert (hidden @ weight.T).argmax(1).item() == 1
    scores = token_nll(hidden, Head(weight), torch.tensor([target]))
    assert scores.argmax.item() == 1
    assert scores.margin.item() == margin


@pytest.mark.parametrize("vocabulary", [64, 256, 300])
def test_the_largest_logit_is_found_with_and_without_blocks(vocabulary):
    """A vocabulary that is a multiple of 64 is searched in blocks; ties cross their borders."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randint(-2, 3, (50, 2), generator=generator).float()
    weight = torch.randint(-2, 3, (vocabulary, 2), generator=generator).float()
    target = torch.randint(vocabulary, (50,), generator=generator)
    scores = token_nll(hidden, Head(weight), target)
    logits = hidden @ weight.T
    assert torch.equal(scores.argmax, logits.argmax(1))
    torch.testing.assert_close(scores.margin, torch_margin(logits, target))


def test_more_than_half_is_the_argmax():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4000, 3, generator=generator) * 4
    target = torch.randint(5, (4000,), generator=generator)
    weight = torch.randn(5, 3, generator=generator)
    scores = token_nll(hidden, Head(weight), target)

    above_half = scores.nll < math.log(2)
    is_argmax = scores.argmax == target
    assert 300 < above_half.sum() < 3700
    assert is_argmax[above_half].all()
    # Sufficient, not necessary.
    assert is_argmax[~above_half].any()


@pytest.mark.parametrize("excess", [-30.0, -12.0, 0.0, 30.0])
def test_a_learned_token_keeps_all_digits_of_its_loss_and_gradient(excess):
    """Where p is nearly 1, 1 - p has lost its digits in float32 if it is formed as a difference."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    head = Head(torch.tensor([[0.0], [excess], [excess - 1]]))
    scores = token_nll(hidden, head, torch.tensor([0]))
    exact = math.log1p(math.exp(excess) + math.exp(excess - 1))
    assert scores.nll.item() == pytest.approx(exact, rel=1e-6)

    double = hidden.detach().double().requires_grad_()
    expected = torch_nll(torch_logits(double, Head(head.weight_VD.double())), torch.tensor([0]))
    exact_grad = gradient(expected.sum(), double).item()
    assert gradient(scores.nll.sum(), hidden).item() == pytest.approx(exact_grad, rel=1e-5)


@pytest.mark.parametrize("chunk", [5, 2048])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.5])
def test_derivatives_that_the_step_before_did_not_need_are_formed_in_backward(chunk, bias, cap):
    """Each step needs other tokens: all, few, others, none but margins, all again."""
    hidden, head, target = random_inputs(bias=bias, cap=cap, factor=0.3)
    generator = torch.Generator().manual_seed(3)
    gates = [torch.ones(N).double()]
    gates += [(torch.rand(N, generator=generator) < 0.3).double() for _ in range(3)]
    gates += [torch.zeros(N).double(), torch.ones(N).double()]

    needed = NeededTokens()
    for gate in gates:
        scores = token_nll(hidden, head, target, chunk, needed=needed)
        plain = token_nll(hidden, head, target, chunk)
        for score, expected in zip(scores, plain, strict=True):
            torch.testing.assert_close(score, expected, **EXACT)

        grad = gradient((scores.nll * gate * TOKEN_WEIGHTS).sum(), hidden)
        expected_grad = gradient((plain.nll * gate * TOKEN_WEIGHTS).sum(), hidden)
        torch.testing.assert_close(grad, expected_grad, **GRADIENT)
        assert torch.equal(needed.mask_N, gate * TOKEN_WEIGHTS != 0)

    scores = token_nll(hidden, head, target, chunk, needed=needed)
    torch.testing.assert_close(
        gradient(scores.margin.sum(), hidden), gradient(plain.margin.sum(), hidden), **GRADIENT
    )
    assert needed.count == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cap_is_float32_whatever_the_dtype_of_the_model(dtype):
    """Near the cap a slope of bfloat16 has hardly a digit."""
    hidden, head, target = random_inputs(dtype, cap=1.5)
    scores = token_nll(hidden, head, target)
    uncapped = (hidden @ head.weight_VD.T).float()
    logits = head.cap * torch.tanh(uncapped / head.cap)
    torch.testing.assert_close(scores.margin, torch_margin(logits, target), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.nll, torch_nll(logits, target), rtol=1e-5, atol=1e-5)


def test_a_target_outside_of_the_vocabulary_has_no_score():
    logits = torch.randn(3, 5, requires_grad=True)
    scores = logit_nll(logits, torch.tensor([1, 5, -1]))
    assert scores.nll.isnan().tolist() == [False, True, True]
    # A GPU, which is not waited for, gets as far as the gradient.
    scores.nll.sum().backward()
    assert logits.grad[0].isfinite().all()

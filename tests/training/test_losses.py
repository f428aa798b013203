"""The weights of each loss by hand, and what a loss remembers of a sample."""

import math

import pytest
import torch

from pml_cli.config.schema import Loss
from pml_cli.training.losses import NO_ERROR, UNSEEN, Tokens, fresh_state, weigh, weighted_mean
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss

LOW, HIGH = 0.3, 1.7  # nats, on either side of ln 2
NLL = torch.tensor(
    [[LOW, HIGH, HIGH, 0.0], [LOW, LOW, LOW, LOW], [HIGH, HIGH, 0.0, 0.0], [LOW, 0.0, 0.0, 0.0]]
)
MASK = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def tokens(nll=None, margin=None, mask=None, sample=None, position=None):
    """Scored tokens of one or more cells; correct where the margin is above 0."""
    first = nll if nll is not None else margin
    nll = torch.full_like(first, 1.0) if nll is None else nll
    margin = torch.ones_like(first) if margin is None else margin
    mask = torch.ones_like(first) if mask is None else mask
    sample = torch.zeros(first.shape, dtype=torch.int64) if sample is None else torch.tensor(sample)
    position = (
        torch.arange(first.shape[1]).expand(first.shape)
        if position is None
        else torch.tensor(position)
    )
    return Tokens(nll, margin, margin > 0, mask, sample, position)


@pytest.mark.parametrize(
    ("loss", "expected", "means"),
    [
        (SftLoss(), MASK, [(LOW + 2 * HIGH) / 3, LOW, HIGH, LOW]),
        (
            MemftOtLoss(),
            [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]],
            [HIGH, LOW, HIGH, LOW],
        ),
        (
            MemftOtLoss(when_done="zero"),
            [[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
            [HIGH, 0, HIGH, 0],
        ),
        (MemftOtLoss(threshold=0.2), MASK, [(LOW + 2 * HIGH) / 3, LOW, HIGH, LOW]),
        (MemftOtLoss(threshold=2, when_done="zero"), torch.zeros(4, 4), [0, 0, 0, 0]),
    ],
)
def test_plain_and_threshold_weights(loss, expected, means):
    found, state = weigh(loss, tokens(NLL, mask=MASK), {}, 0.5)
    assert torch.equal(found.weight.float(), torch.as_tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(
        found.loss, torch.tensor(means, dtype=torch.float32), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(found.pull, found.weight * (1 - torch.exp(-NLL)))
    assert state == {}


def test_exactly_at_the_threshold_is_done():
    at = torch.tensor([[0.5, 0.5000001, 0.4999999]])
    assert weigh(MemftOtLoss(threshold=0.5), tokens(at), {}, 0.0)[0].weight.tolist() == [[0, 1, 0]]


def test_weights_carry_no_gradient():
    nll, margin = (
        torch.tensor([[0.5, 2.0]]).requires_grad_(),
        torch.tensor([[-1.0, 0.2]]).requires_grad_(),
    )
    for loss in (SftLoss(), MemftOtLoss(), MemftSwLoss(), MemftMarginLoss()):
        found, _ = weigh(loss, tokens(nll, margin), fresh_state([loss], 1, nll.device), 0.0)
        assert not found.weight.requires_grad
        assert not found.pull.requires_grad
        assert found.value.requires_grad


def test_an_unknown_loss_is_refused():
    with pytest.raises(NotImplementedError):
        weigh(Loss(kind="nope"), tokens(NLL), {}, 0.0)


# -- the spatial window

SW = MemftSwLoss(window=4, tau=2.0, floor=0.1, patience=3)


def follow(loss, steps, samples=1, **more):
    """Weights and state after each of several steps; a step is the margins of one cell's tokens, all at nll ln 2."""
    state, out = fresh_state([loss], samples, torch.device("cpu")), []
    for margins in steps:
        margin = torch.tensor([margins])
        found, state = weigh(
            loss, tokens(torch.full_like(margin, math.log(2)), margin, **more), state, 0.0
        )
        out.append((found.weight[0].double() * 2, state))  # the sigmoid is 1/2 at the threshold
    return out


def test_the_base_weight_is_a_sigmoid_around_the_threshold():
    nll = torch.tensor([[math.log(2), math.log(2) + 0.1, math.log(2) - 0.2, 5.0]])
    found, _ = weigh(MemftSwLoss(), tokens(nll), fresh_state([SW], 1, nll.device), 0.0)
    by_hand = [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2)), 1.0]
    torch.testing.assert_close(found.weight, torch.tensor([by_hand]), rtol=1e-5, atol=1e-6)
    assert found.loss.item() == pytest.approx(
        sum(w * x for w, x in zip(by_hand, nll[0].tolist(), strict=True)) / sum(by_hand)
    )
    softer, _ = weigh(MemftSwLoss(kappa=1.0), tokens(nll), fresh_state([SW], 1, nll.device), 0.0)
    assert softer.weight[0, 1].item() == pytest.approx(1 / (1 + math.exp(-0.1)))


def test_the_window_decays_from_the_first_error_and_ends_at_the_floor():
    margins = [1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0]  # the first error is at position 2
    ((weight, _),) = follow(SW, [margins])
    expected = [1, 1, 1, math.exp(-0.5), math.exp(-1), math.exp(-1.5), 0.1, 0.1]
    torch.testing.assert_close(
        weight, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7
    )


def test_without_an_error_there_is_no_window():
    ((weight, state),) = follow(SW, [[0.5] * 9])
    assert weight.tolist() == [1.0] * 9
    assert state["anchor"].tolist() == [[NO_ERROR]]


def inside(weight):
    """Tokens of the window, from an error at 0 on."""
    return int(((weight - 0.1).abs() > 1e-6).sum())


def test_the_window_grows_by_half_of_itself_after_three_steps_up_to_four_and_is_reset():
    stays, moved = [-1.0] + [1.0] * 29, [1.0, -1.0] + [1.0] * 28
    seen = follow(SW, [stays] * 11 + [moved] * 5 + [[1.0] * 30] + [moved] * 4)
    lengths = [inside(weight) for weight, _ in seen]
    # steps 1 to 3 after the first sight it has not moved; window 4, then 6, 8 and so on up to 16
    assert lengths[:11] == [4, 4, 4, 6, 8, 10, 12, 14, 16, 16, 16]
    # at 1 the window is new, with one token before it; grows again at the third step without a move
    assert lengths[11:16] == [5, 5, 5, 7, 9]
    assert lengths[16] == 30  # no error: no window
    assert lengths[17:] == [5, 5, 5, 7]  # and that was a move
    assert [state["stale"].item() for _, state in seen[:4]] == [0, 1, 2, 3]


def test_patience_is_a_setting():
    patient = MemftSwLoss(window=4, tau=2.0, floor=0.1, patience=1)
    assert [inside(w) for w, _ in follow(patient, [[-1.0] + [1.0] * 29] * 3)] == [4, 6, 8]


def test_what_is_remembered_belongs_to_the_sample_and_not_to_the_slot():
    """Samples 0, 1 and 2 of five tokens come two at a time in changing places; each has its own first error."""
    errors = {0: 1, 1: 3, 2: 0}
    state = fresh_state([SW], 3, torch.device("cpu"))
    for pair in ((0, 1), (2, 0), (1, 0), (0, 2)):
        margin = torch.ones(1, 10)
        for slot, sample in enumerate(pair):
            margin[0, 5 * slot + errors[sample]] = -1
        where = {"sample": [[pair[0]] * 5 + [pair[1]] * 5], "position": [[*range(5), *range(5)]]}
        found, state = weigh(SW, tokens(margin=margin, **where), state, 0.0)
        for slot, sample in enumerate(pair):
            part = found.weight[0, 5 * slot : 5 * slot + 5]
            beyond = torch.arange(5) - errors[sample]
            window = 6 if sample == 0 and pair == (0, 2) else 4
            expected = torch.where(
                beyond < window, torch.exp(-beyond.clamp(min=0) / 2), torch.tensor(0.1)
            )
            torch.testing.assert_close(part / part.max(), expected, rtol=1e-5, atol=1e-6)
    assert state["anchor"].tolist() == [[1, 3, 0]]
    assert state["stale"].tolist() == [[3, 1, 1]]  # times seen without a move, wherever it lay


def test_a_sample_that_is_not_in_the_batch_and_padding_leave_no_trace():
    state = fresh_state([SW, SW], 4, torch.device("cpu"))
    margin = torch.tensor([[-1.0, 1, 1, -1], [1.0, -1, -1, -1]])
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    where = {"sample": [[2, 2, 3, 3], [1, 1, 0, 0]], "position": [[0, 1, 0, 1], [0, 1, 0, 0]]}
    found, state = weigh(SW, tokens(margin=margin, mask=mask, **where), state, 0.0)
    assert state["anchor"].tolist() == [[UNSEEN, UNSEEN, 0, 1], [UNSEEN, 1, UNSEEN, UNSEEN]]
    assert found.weight[1, 2:].tolist() == [0, 0]


# -- ours: the margin

MARGIN = torch.tensor([[-2.0, 0.1, 0.4, 3.0], [0.9, 0.8, 0.7, 0.6]])


def test_margin_gates_cross_entropy_first_and_is_the_objective_later():
    nll, loss = (
        torch.tensor([[3.0, 1.0, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5]]),
        MemftMarginLoss(margin=0.5, growth=1.0, switch=0.25),
    )
    first, _ = weigh(loss, tokens(nll, MARGIN), {}, 0.24)
    assert first.weight.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert first.loss.tolist() == pytest.approx([(3 + 1 + 0.9) / 3, 0])
    later, _ = weigh(loss, tokens(nll, MARGIN), {}, 0.25)
    assert later.loss.tolist() == pytest.approx(
        [(2.5 + 0.4 + 0.1) / 3, 0]
    )  # of those that fall short
    assert later.pull.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("switch", "hinge"),
    [(1.0, [False, False, False]), (0.0, [True, True, True]), (0.5, [False, True, True])],
)
def test_when_the_hinge_takes_over(switch, hinge):
    for progress, wanted in zip((0.0, 0.5, 0.999), hinge, strict=True):
        margin = MARGIN.clone().requires_grad_()
        found, _ = weigh(
            MemftMarginLoss(growth=1.0, switch=switch), tokens(margin=margin), {}, progress
        )
        assert found.value.requires_grad == wanted


def test_the_aim_grows_once_every_sample_wins_by_it():
    """By hand: margin 0.5 and growth 2 aim at 0.5, 1, 2, ...: the first that some token, when last seen, fell short of."""
    loss = MemftMarginLoss(margin=0.5, growth=2.0, switch=0.0)
    where = {"sample": [[0, 0, 1, 1]], "position": [[0, 1, 0, 1]]}
    state = fresh_state([loss], 2, torch.device("cpu"))
    aims = []
    for values in (
        [3.0, 0.4, 2.0, 2.0],
        [3.0, 0.6, 2.0, 0.7],
        [3.0, 1.2, 2.0, 1.1],
        [5.0, 5.0, 5.0, 5.0],
        [0.2, 5.0, 5.0, 5.0],
    ):
        found, state = weigh(loss, tokens(margin=torch.tensor([values]), **where), state, 0.5)
        aims.append(float((found.value + torch.tensor([values]))[0, 0]))
    assert aims == [0.5, 0.5, 1.0, 2.0, 8.0]  # one step late: of what was seen before
    assert state["least"][0].tolist() == pytest.approx([0.2, 5.0])
    found, state = weigh(loss, tokens(margin=torch.tensor([[9.0, 9, 9, 9]]), **where), state, 0.5)
    assert found.weight.tolist() == [[0, 0, 0, 0]]  # the aim is back at 0.5, and all are beyond it


def test_a_sample_that_fell_short_when_last_seen_holds_the_aim_back():
    loss = MemftMarginLoss(margin=0.5, growth=2.0, switch=0.0)
    state = {"least": torch.tensor([[0.1, torch.inf]])}
    second = {"sample": [[1, 1]], "position": [[0, 1]]}
    for _ in range(2):  # a batch of the second sample alone
        found, state = weigh(loss, tokens(margin=torch.tensor([[0.7, 0.9]]), **second), state, 0.5)
        assert found.weight.tolist() == [[0, 0]]
    assert state["least"][0].tolist() == pytest.approx([0.1, 0.7])


def test_no_weight_at_all_is_no_loss():
    assert weighted_mean(torch.tensor([[3.0]]), torch.tensor([[0.0]])).tolist() == [0.0]

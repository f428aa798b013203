"""The weights of each loss by hand, and what a loss remembers of a sample."""

import dataclasses
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import pml_cli
from pml_cli.config import registry
from pml_cli.config.schema import Loss
from pml_cli.training.loss_groups import LossGroups
from pml_cli.training.losses.base import TokenLoss, Tokens, weighted_cross_entropy, weighted_mean
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import NO_ERROR, UNSEEN, MemftSwLoss
from pml_cli.training.losses.sft import SftLoss

CPU = torch.device("cpu")

# Cross-entropies on either side of ln 2, in nats.
LOW = 0.3
HIGH = 1.7
NLL = torch.tensor(
    [[LOW, HIGH, HIGH, 0.0], [LOW, LOW, LOW, LOW], [HIGH, HIGH, 0.0, 0.0], [LOW, 0.0, 0.0, 0.0]]
)
MASK = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def make_tokens(nll=None, margin=None, mask=None, sample=None, position=None):
    """Scored tokens of one or more cells; correct where the margin is above 0."""
    template = margin if nll is None else nll
    if nll is None:
        nll = torch.ones_like(template)
    if margin is None:
        margin = torch.ones_like(template)
    if mask is None:
        mask = torch.ones_like(template)
    if sample is None:
        sample = torch.zeros(template.shape, dtype=torch.int64)
    if position is None:
        position = torch.arange(template.shape[1]).expand(template.shape)
    return Tokens(
        nll=nll,
        margin=margin,
        correct=margin > 0,
        mask=mask,
        sample=torch.as_tensor(sample),
        position=torch.as_tensor(position),
    )


def initial_state(loss, samples=1, cells=1):
    """The state of cells before the first step, (cells, samples) each."""
    state = loss.initial_state(samples, CPU)
    return {name: values.repeat(cells, 1) for name, values in state.items()}


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
    weighted, state = loss.weights(make_tokens(NLL, mask=MASK), {}, 0.5)
    expected = torch.as_tensor(expected, dtype=torch.float32)
    assert torch.equal(weighted.weight.float(), expected)
    torch.testing.assert_close(weighted.loss, torch.tensor(means).float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(weighted.pull, weighted.weight * (1 - torch.exp(-NLL)))
    assert state == {}


def test_a_token_exactly_at_the_threshold_has_no_weight():
    nll = torch.tensor([[0.5, 0.5000001, 0.4999999]])
    weighted, _ = MemftOtLoss(threshold=0.5).weights(make_tokens(nll), {}, 0.0)
    assert weighted.weight.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("loss", [SftLoss(), MemftOtLoss(), MemftSwLoss(), MemftMarginLoss()])
def test_weights_carry_no_gradient(loss):
    nll = torch.tensor([[0.5, 2.0]]).requires_grad_()
    margin = torch.tensor([[-1.0, 0.2]]).requires_grad_()
    weighted, _ = loss.weights(make_tokens(nll, margin), initial_state(loss), 0.0)
    assert not weighted.weight.requires_grad
    assert not weighted.pull.requires_grad
    assert weighted.value.requires_grad


def test_no_weight_at_all_is_loss_zero():
    assert weighted_mean(torch.tensor([[3.0]]), torch.tensor([[0.0]])).tolist() == [0.0]


# -- registration, and losses side by side in a pack


def test_settings_without_weights_are_refused():
    with pytest.raises(NotImplementedError, match="nope"):
        LossGroups([Loss(kind="nope")], 1, CPU)


def test_every_loss_is_found_without_torch():
    code = (
        "import sys; from pml_cli.config import registry; "
        "print(*registry.declared('loss'), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(pml_cli.__file__).parents[1],
    )
    *losses, torch_imported = done.stdout.split()
    assert {"memft_margin", "memft_ot", "memft_sw", "sft"} <= set(losses)
    assert torch_imported == "False"
    assert all(issubclass(loss, TokenLoss) for loss in registry.declared("loss").values())


@dataclass(kw_only=True)
class CountingLoss(TokenLoss):
    """A loss that no other code knows: a token weighs as much as its sample has been seen."""

    kind: str = "counting"

    def initial_state(self, samples, device):
        return {"seen": torch.zeros(samples, device=device)}

    def weights(self, tokens, state, progress):
        in_batch = torch.zeros_like(state["seen"]).scatter_reduce(
            1, tokens.sample, tokens.mask, "amax"
        )
        seen = state["seen"] + in_batch
        return weighted_cross_entropy(tokens, tokens.mask * seen.gather(1, tokens.sample)), {
            "seen": seen
        }


def test_each_cell_of_a_pack_is_weighted_under_its_own_loss():
    """Against each loss by itself; also after a cell has left and from a stored state."""
    losses = [CountingLoss(), MemftSwLoss(window=2, patience=1), CountingLoss(), MemftMarginLoss()]
    generator = torch.Generator().manual_seed(0)
    together = LossGroups(losses, 3, CPU)
    apart = [LossGroups([loss], 3, CPU) for loss in losses]
    cells = [0, 1, 2, 3]
    for step in range(6):
        tokens = make_tokens(
            nll=torch.rand(4, 6, generator=generator),
            margin=torch.randn(4, 6, generator=generator),
            sample=torch.randint(3, (4, 6), generator=generator),
        )
        if step == 2:
            together.retain_cells([1, 2, 3])
            cells = [1, 2, 3]
        if step == 4:
            stored = together.state()
            together = LossGroups([losses[k] for k in cells], 3, CPU)
            together.restore(stored)
        weighted = together.weights(tokens.of_cells(torch.tensor(cells)), 0.25)
        for row, k in enumerate(cells):
            expected = apart[k].weights(tokens.of_cells(torch.tensor([k])), 0.25)
            for ours, theirs in zip(weighted, expected, strict=True):
                assert torch.equal(ours[row], theirs[0])
    assert set(together.state()) == {"seen", "anchor", "stale", "least"}
    assert together.state()["seen"].shape == (3, 3)


# -- the spatial window

WINDOW = MemftSwLoss(window=4, tau=2.0, floor=0.1, patience=3)


def run_steps(loss, steps, samples=1, **more):
    """Weights and state after each step; a step is the margins of one cell, at nll ln 2."""
    state = initial_state(loss, samples)
    results = []
    for margins in steps:
        margin = torch.tensor([margins])
        nll = torch.full_like(margin, math.log(2))
        weighted, state = loss.weights(make_tokens(nll, margin, **more), state, 0.0)
        # The sigmoid is 1/2 at the threshold.
        results.append((weighted.weight[0].double() * 2, state))
    return results


def test_the_base_weight_is_a_sigmoid_around_the_threshold():
    nll = torch.tensor([[math.log(2), math.log(2) + 0.1, math.log(2) - 0.2, 5.0]])
    weighted, _ = MemftSwLoss().weights(make_tokens(nll), initial_state(WINDOW), 0.0)
    by_hand = [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2)), 1.0]
    torch.testing.assert_close(weighted.weight, torch.tensor([by_hand]), rtol=1e-5, atol=1e-6)
    weighted_sum = sum(w * x for w, x in zip(by_hand, nll[0].tolist(), strict=True))
    assert weighted.loss.item() == pytest.approx(weighted_sum / sum(by_hand))

    softer, _ = MemftSwLoss(kappa=1.0).weights(make_tokens(nll), initial_state(WINDOW), 0.0)
    assert softer.weight[0, 1].item() == pytest.approx(1 / (1 + math.exp(-0.1)))


def test_the_window_decays_from_the_first_error_and_ends_at_the_floor():
    # The first error is at position 2.
    margins = [1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, 1.0]
    ((weight, _),) = run_steps(WINDOW, [margins])
    expected = [1, 1, 1, math.exp(-0.5), math.exp(-1), math.exp(-1.5), 0.1, 0.1]
    torch.testing.assert_close(weight, torch.tensor(expected).double(), rtol=1e-6, atol=1e-7)


def test_without_an_error_there_is_no_window():
    ((weight, state),) = run_steps(WINDOW, [[0.5] * 9])
    assert weight.tolist() == [1.0] * 9
    assert state["anchor"].tolist() == [[NO_ERROR]]


def tokens_in_window(weight):
    """Tokens of the window, from an error at 0 on."""
    return int(((weight - 0.1).abs() > 1e-6).sum())


def test_the_window_grows_by_half_of_itself_after_three_steps_up_to_four_and_is_reset():
    stays = [-1.0] + [1.0] * 29
    moved = [1.0, -1.0] + [1.0] * 28
    results = run_steps(WINDOW, [stays] * 11 + [moved] * 5 + [[1.0] * 30] + [moved] * 4)
    lengths = [tokens_in_window(weight) for weight, _ in results]

    # Steps 1 to 3 after the first sight it has not moved: window 4, then 6, 8 and so on up to 16.
    assert lengths[:11] == [4, 4, 4, 6, 8, 10, 12, 14, 16, 16, 16]
    # At position 1 the window is new, with one token before it; it grows at the third step again.
    assert lengths[11:16] == [5, 5, 5, 7, 9]
    # No error: no window. Afterwards the error counts as moved.
    assert lengths[16] == 30
    assert lengths[17:] == [5, 5, 5, 7]
    assert [state["stale"].item() for _, state in results[:4]] == [0, 1, 2, 3]


def test_patience_is_a_setting():
    patient = dataclasses.replace(WINDOW, patience=1)
    results = run_steps(patient, [[-1.0] + [1.0] * 29] * 3)
    assert [tokens_in_window(weight) for weight, _ in results] == [4, 6, 8]


def test_the_state_belongs_to_the_sample_and_not_to_the_slot():
    """Samples 0, 1 and 2 come two at a time in changing slots; each has its own first error."""
    errors = {0: 1, 1: 3, 2: 0}
    state = initial_state(WINDOW, samples=3)
    for pair in ((0, 1), (2, 0), (1, 0), (0, 2)):
        margin = torch.ones(1, 10)
        for slot, sample in enumerate(pair):
            margin[0, 5 * slot + errors[sample]] = -1
        tokens = make_tokens(
            margin=margin,
            sample=[[pair[0]] * 5 + [pair[1]] * 5],
            position=[[*range(5), *range(5)]],
        )
        weighted, state = WINDOW.weights(tokens, state, 0.0)

        for slot, sample in enumerate(pair):
            weight = weighted.weight[0, 5 * slot : 5 * slot + 5]
            distance = torch.arange(5) - errors[sample]
            window = 6 if sample == 0 and pair == (0, 2) else 4
            decay = torch.exp(-distance.clamp(min=0) / 2)
            expected = torch.where(distance < window, decay, torch.tensor(0.1))
            torch.testing.assert_close(weight / weight.max(), expected, rtol=1e-5, atol=1e-6)
    assert state["anchor"].tolist() == [[1, 3, 0]]
    # Times seen without a move, in whatever slot.
    assert state["stale"].tolist() == [[3, 1, 1]]


def test_samples_outside_the_batch_and_padding_leave_no_trace():
    state = initial_state(WINDOW, samples=4, cells=2)
    tokens = make_tokens(
        margin=torch.tensor([[-1.0, 1, 1, -1], [1.0, -1, -1, -1]]),
        mask=torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]]),
        sample=[[2, 2, 3, 3], [1, 1, 0, 0]],
        position=[[0, 1, 0, 1], [0, 1, 0, 0]],
    )
    weighted, state = WINDOW.weights(tokens, state, 0.0)
    assert state["anchor"].tolist() == [[UNSEEN, UNSEEN, 0, 1], [UNSEEN, 1, UNSEEN, UNSEEN]]
    assert weighted.weight[1, 2:].tolist() == [0, 0]


# -- the margin

MARGIN = torch.tensor([[-2.0, 0.1, 0.4, 3.0], [0.9, 0.8, 0.7, 0.6]])


def test_margin_gates_cross_entropy_first_and_is_the_objective_later():
    nll = torch.tensor([[3.0, 1.0, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5]])
    loss = MemftMarginLoss(margin=0.5, growth=1.0, switch=0.25)

    early, _ = loss.weights(make_tokens(nll, MARGIN), {}, 0.24)
    assert early.weight.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert early.loss.tolist() == pytest.approx([(3 + 1 + 0.9) / 3, 0])

    # The mean shortfall of the tokens that fall short.
    late, _ = loss.weights(make_tokens(nll, MARGIN), {}, 0.25)
    assert late.loss.tolist() == pytest.approx([(2.5 + 0.4 + 0.1) / 3, 0])
    assert late.pull.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("switch", "hinge"),
    [(1.0, [False, False, False]), (0.0, [True, True, True]), (0.5, [False, True, True])],
)
def test_when_the_hinge_takes_over(switch, hinge):
    loss = MemftMarginLoss(growth=1.0, switch=switch)
    assert loss.needs_progress == (switch == 0.5)
    for progress, expected in zip((0.0, 0.5, 0.999), hinge, strict=True):
        margin = MARGIN.clone().requires_grad_()
        weighted, _ = loss.weights(make_tokens(margin=margin), {}, progress)
        assert weighted.value.requires_grad == expected


def test_the_target_grows_once_every_sample_beats_it():
    """By hand: of 0.5, 1, 2, ... the first that some token, when last seen, fell short of."""
    loss = MemftMarginLoss(margin=0.5, growth=2.0, switch=0.0)
    slots = {"sample": [[0, 0, 1, 1]], "position": [[0, 1, 0, 1]]}
    state = initial_state(loss, samples=2)
    targets = []
    for margins in (
        [3.0, 0.4, 2.0, 2.0],
        [3.0, 0.6, 2.0, 0.7],
        [3.0, 1.2, 2.0, 1.1],
        [5.0, 5.0, 5.0, 5.0],
        [0.2, 5.0, 5.0, 5.0],
    ):
        margin = torch.tensor([margins])
        weighted, state = loss.weights(make_tokens(margin=margin, **slots), state, 0.5)
        targets.append(float((weighted.value + margin)[0, 0]))
    # One step late: by what was seen before.
    assert targets == [0.5, 0.5, 1.0, 2.0, 8.0]
    assert state["least"][0].tolist() == pytest.approx([0.2, 5.0])

    # The target is back at 0.5, and all are beyond it.
    margin = torch.tensor([[9.0, 9, 9, 9]])
    weighted, state = loss.weights(make_tokens(margin=margin, **slots), state, 0.5)
    assert weighted.weight.tolist() == [[0, 0, 0, 0]]


def test_a_sample_that_fell_short_when_last_seen_holds_the_target_back():
    loss = MemftMarginLoss(margin=0.5, growth=2.0, switch=0.0)
    state = {"least": torch.tensor([[0.1, torch.inf]])}
    # Two batches of the second sample alone.
    for _ in range(2):
        tokens = make_tokens(margin=torch.tensor([[0.7, 0.9]]), sample=[[1, 1]], position=[[0, 1]])
        weighted, state = loss.weights(tokens, state, 0.5)
        assert weighted.weight.tolist() == [[0, 0]]
    assert state["least"][0].tolist() == pytest.approx([0.1, 0.7])

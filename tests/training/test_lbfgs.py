"""L-BFGS for each cell, against torch's own, in a pack, and interrupted."""

import math

import numpy as np
import pytest
import torch
from support.packs import assert_all_same, train_packed, train_solo

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.sources.random import RandomData
from pml_cli.model.adapter_bank import AdapterBank, Site
from pml_cli.training.energy import factored
from pml_cli.training.input_moments import input_moments
from pml_cli.training.optimizers.convergence import expected_gain
from pml_cli.training.optimizers.lbfgs import LBFGS
from pml_cli.training.optimizers.line_search import Point, cubic_minimum, strong_wolfe
from pml_cli.training.optimizers.secants import Secants
from pml_cli.training.optimizers.whitening import RIDGE, inverse
from pml_cli.training.scoring import PackInputs
from pml_cli.training.trainer import RUNAWAY, Cell, Trainer, TrainingObserver

RANKS = [2, 3, 1]
PASSES = 60


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def crooked_loss(A, B, x, y):
    """Not convex, so that line searches take several trials; of each cell."""
    error = ((x @ A @ B - y).tanh() ** 2).mean((-1, -2))
    return error + 0.03 * torch.sin(3 * A).sum((-1, -2)) + 0.001 * (B**4).sum((-1, -2))


def planted_bank():
    bank = AdapterBank.initial(
        [Site(name="a", inputs=6, outputs=5)],
        MlpBlockAdapter(),
        ranks=RANKS,
        seeds=[0, 1, 2],
        dtype=torch.float64,
    )
    for k, rank in enumerate(RANKS):
        bank.B["a"][k, :rank] = normal(rank, 5, seed=k)
    return bank


def our_losses(bank, x, y):
    """The loss of every cell at each pass, (PASSES, K)."""
    weights = bank.parameters()
    padding = [(weight != 0).double() for weight in weights]
    optimizer = LBFGS(bank, torch.zeros(len(RANKS)), warm_up=0)
    lr_K = torch.ones(len(RANKS), dtype=torch.float64)
    losses = []
    for _ in range(PASSES):
        leaves = [weight.detach().clone().requires_grad_() for weight in weights]
        loss_K = crooked_loss(*leaves, x, y)
        losses.append(loss_K.detach())
        grads = torch.autograd.grad(loss_K.sum(), leaves)
        grads = [grad * mask for grad, mask in zip(grads, padding, strict=True)]
        optimizer.step(weights, grads, lr_K=lr_K, loss_K=loss_K.detach())
    return torch.stack(losses)


def torchs_losses(A, B, x, y):
    weights = [A.clone().requires_grad_(), B.clone().requires_grad_()]
    optimizer = torch.optim.LBFGS(
        weights,
        max_iter=10**6,
        max_eval=PASSES,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = crooked_loss(*weights, x, y)
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    return losses


def test_directions_and_line_searches_are_torchs_for_each_cell():
    """Trial by trial, also where a search takes several; packed beside other ranks."""
    x, y = normal(3, 20, 6, seed=5), 3 * normal(3, 20, 5, seed=6)
    bank = planted_bank()
    start = [weight.clone() for weight in bank.parameters()]
    ours = our_losses(bank, x, y)
    # Trials that were refused: searches had work to do.
    assert (ours.diff(dim=0) > 0).any(0).all()

    for k, rank in enumerate(RANKS):
        theirs = torchs_losses(start[0][k, :, :rank], start[1][k, :rank], x[k], y[k])
        count = min(PASSES, len(theirs))
        np.testing.assert_allclose(ours[:count, k], theirs[:count], rtol=1e-7)
    assert bank.A["a"][2, :, 1:].abs().max() == 0


def line(function, slope, first):
    """The end of a search along a function, and its trials."""
    search = strong_wolfe(Point(0.0, function(0.0), slope(0.0)), first, 1.0)
    trials = []
    t = next(search)
    while True:
        trials.append(t)
        try:
            t = search.send(Point(t, function(t), slope(t)))
        except StopIteration as ended:
            return ended.value, trials


@pytest.mark.parametrize("first", [1e-3, 0.5, 30.0])
def test_a_search_ends_where_the_strong_wolfe_conditions_hold(first):
    end, _ = line(lambda t: math.cos(t) - 0.3 * t, lambda t: -math.sin(t) - 0.3, first)
    assert end.loss < 1 - 1e-4 * end.t * 0.3
    assert abs(end.slope) <= 0.9 * 0.3


def test_a_search_retreats_from_a_loss_that_is_not_finite():
    def function(t):
        return (t - 1) ** 2 if t < 2 else math.inf

    end, trials = line(function, lambda t: 2 * (t - 1), 500.0)
    assert trials[0] == 500
    assert 0 < end.t < 2


def test_a_retreat_to_the_trial_before_goes_on():
    """A cubic with its minimum far away: the second trial is ten times as far, and not finite."""

    def function(t):
        return -t - t**2 + 0.001 * t**3 if t <= 1 else math.inf

    end, trials = line(function, lambda t: -1 - 2 * t + 0.003 * t**2, 1.0)
    assert trials[:3] == [1, 10, 1]
    assert 0 < end.t <= 1


def test_a_search_that_finds_nothing_lower_stays():
    end, trials = line(lambda t: t, lambda t: -1.0, 1.0)
    assert end.t == 0
    assert 2 < len(trials) <= 30


def test_the_minimum_of_a_cubic():
    def point(t):
        return Point(t, t**3 - 3 * t, 3 * t**2 - 3)

    assert cubic_minimum(point(0.0), point(3.0), (0.0, 3.0)) == pytest.approx(1)
    assert cubic_minimum(point(3.0), point(0.0), (1.5, 3.0)) == 1.5


def test_the_expected_gain_of_planted_curves():
    """At least what three times as many passes again do gain."""
    for power in (0.2, 0.7, 2.0):
        curve = [5 + 3 * n**-power for n in range(1, 401)]
        truth = 3 * 400**-power - 3 * 1600**-power
        assert truth < expected_gain(curve, 0.0) < 10 * truth
    # One that gains as much with every doubling goes on as before.
    steady = [5 - math.log(n) for n in range(1, 401)]
    assert expected_gain(steady, 0.0) == pytest.approx(2 * math.log(2), rel=1e-6)
    growing = [5 - 0.01 * n for n in range(1, 401)]
    assert expected_gain(growing, 0.0) == pytest.approx(0.01 * 1200, rel=1e-6)

    assert expected_gain(curve, 0.9) == 0.9
    assert expected_gain(curve[:50], 0.0) == math.inf
    assert expected_gain([1.0] * 100, 0.0) == 0


def test_a_cell_that_stays_on_a_slope_has_not_converged():
    """In rounded numbers a search may find nothing lower where the gradient is still large."""
    bank = planted_bank()
    weights = bank.parameters()
    optimizer = LBFGS(bank, torch.zeros(len(RANKS)), warm_up=0)
    ones = torch.ones(len(RANKS), dtype=torch.float64)
    for _ in range(100):
        grads = [weight.sign() for weight in weights]
        optimizer.step(weights, grads, lr_K=ones, loss_K=ones)

    assert not any(optimizer.is_searching(k) for k in range(len(RANKS)))
    slope = sum(float(weight[0].count_nonzero()) for weight in weights)
    assert optimizer.expected_gain(0) == pytest.approx(slope / 2, rel=0.2)


def test_a_first_trial_that_rounding_hides_is_followed_by_a_longer_one():
    """Of half the sum of squares, rounded up to steps of 16, only the minimum looks lower."""
    bank = planted_bank()
    weights = bank.parameters()
    optimizer = LBFGS(bank, torch.zeros(len(RANKS)), warm_up=0)
    ones = torch.ones(len(RANKS), dtype=torch.float64)
    losses = []
    for _ in range(60):
        squares_K = sum(weight.square().sum((-1, -2)) for weight in weights)
        losses.append(16 * torch.ceil(squares_K / 32))
        grads = [weight.clone() for weight in weights]
        optimizer.step(weights, grads, lr_K=ones, loss_K=losses[-1])

    # Else every cell would stay where its first search had found nothing.
    assert losses[0].tolist() == losses[1].tolist() == [16, 16, 16]
    assert losses[-1].max() == 0


def test_a_first_guess_is_a_change_of_coordinates():
    """With G = W W', directions are W times those for gradients W' g without a guess."""
    W = torch.eye(9, dtype=torch.float64) + 0.2 * normal(9, 9, seed=1)
    hessian = W.T @ torch.diag(torch.arange(1.0, 10.0, dtype=torch.float64)) @ W
    cells = torch.tensor([1])
    plain = Secants(torch.zeros(3, 9, dtype=torch.float64), pairs=4)
    guessed = Secants(torch.zeros(3, 9, dtype=torch.float64), pairs=4)
    guessed.first_guess = lambda _cells, vectors: vectors @ (W @ W.T)

    for step in range(7):
        s = normal(1, 9, seed=step)
        guessed.push(cells, s, s @ hessian)
        plain.push(cells, torch.linalg.solve(W, s.T).T, s @ hessian @ W)
        grad = normal(1, 9, seed=100 + step)
        expected = plain.direction(cells, grad @ W) @ W.T
        torch.testing.assert_close(guessed.direction(cells, grad), expected)


@pytest.mark.parametrize("directions", [None, 30])
def test_whitening_inverts_the_second_moment(directions):
    x = normal(50, 40, seed=1) * torch.linspace(0.1, 3, 40)
    C = x.T @ x / 50
    ridge = RIDGE * C.diagonal().mean() * torch.eye(40)
    kept = C if directions is None else factored(C, directions)
    product = inverse(kept) @ ((C + ridge) / C.diagonal().mean())
    # The small directions of a factored one are only known in the mean.
    main = torch.linalg.eigh(C)[1][:, -20:].double()
    torch.testing.assert_close(product @ main, main, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adapter", [MlpBlockAdapter(), LinearAdapter(targets=["c_fc"])])
def test_second_moments_are_of_the_tokens_of_each_cell_alone(double_base, adapter):
    """Beside a longer cell as alone; cells of the same samples share theirs."""
    cells = [cell_of(double_base, 2, seqlen, adapter=adapter) for seqlen in (7, 20, 7)]
    bank = AdapterBank.initial(
        double_base.sites(adapter), adapter, ranks=[2], seeds=[0], dtype=torch.float64
    )
    inputs = PackInputs(double_base, bank, [cell.samples for cell in cells], packed=True)
    short, longer, same = input_moments(double_base, bank, inputs)
    assert same is short

    alone = PackInputs(double_base, bank, [cells[0].samples])
    (expected,) = input_moments(double_base, bank, alone)
    for name, C in expected.items():
        torch.testing.assert_close(short[name], C)
        assert not torch.allclose(longer[name], C)
        # Six input tokens span at most so many directions.
        assert torch.linalg.matrix_rank(C) <= 7


def cell_of(base, rank, seqlen, *, adapter=None, **train):
    run = Run(
        rank=rank,
        seqlen=seqlen,
        seed=rank,
        model=base.settings,
        data=RandomData(),
        adapter=adapter or MlpBlockAdapter(),
        train=Train(optimizer="lbfgs", **train),
    )
    return Cell(run=run, samples=source_of(run).take(seqlen))


def test_packed_is_solo(double_base):
    cells = []
    for rank, seqlen in ((2, 20), (5, 12)):
        cells.append(cell_of(double_base, rank, seqlen, steps=32, log_every=8))
    packed = train_packed(double_base, cells)
    # A line search amplifies rounding.
    assert_all_same(packed, train_solo(double_base, cells), 1e-6)
    for cell in packed:
        assert cell.final.nll.mean() < cell.initial.nll.mean() - 0.1
        assert cell.converged is False
        # The trial under way at the end is not the outcome.
        losses = np.concatenate([table["loss"] for table in cell.curve])
        assert cell.final.nll.mean() <= losses[20:].min() + 1e-6


def test_converged_cells_leave_the_pack_at_their_best_point(double_base):
    """The others are not touched, and have their own logged steps alone."""
    settings = {"stop": "converged", "steps": 100, "log_every": 40}
    cells = [
        cell_of(double_base, 8, 6, tolerance=0.1, **settings),
        cell_of(double_base, 1, 20, tolerance=1e-6, **settings),
    ]
    done, going_on = train_packed(double_base, cells)
    assert done.converged
    assert done.expected_gain <= 0.1
    assert 80 <= done.steps_run < 100
    assert done.logged[-1]["step"].iloc[0] == done.steps_run
    assert going_on.converged is False
    assert going_on.steps_run == 100
    assert [table["step"].iloc[0] for table in going_on.logged] == [0, 40, 80, 100]


def test_a_trained_adapter_is_not_warmed_up(double_base, tmp_path):
    """Muon's rate would lose what it knows."""
    first = train_packed(double_base, [cell_of(double_base, 4, 20, steps=60)])[0]
    first.adapter.save(0, tmp_path, "double")
    start = str(tmp_path / "adapter_model.safetensors")
    (going_on,) = train_packed(double_base, [cell_of(double_base, 4, 20, steps=25, start=start)])
    losses = np.concatenate([table["loss"] for table in going_on.curve])
    assert losses.max() < losses[0] + 1e-4
    assert going_on.final.nll.mean() < first.final.nll.mean()


class Explosion(TrainingObserver):
    """One trial lies far too far away."""

    def before_step(self, step):
        if step == 32:
            for B in self.trainer.pack.bank.B.values():
                B.detach().mul_(1e15)
            self.largest = self.trainer.pack.bank.largest_weights()[0]


def test_a_trial_that_explodes_at_a_logged_step_is_no_failure(double_base):
    cell = cell_of(double_base, 2, 20, steps=60, log_every=32)
    observer = Explosion()
    observer.trainer = Trainer(double_base, [cell], observer)
    observer.trainer.train()
    assert observer.largest > RUNAWAY
    assert cell.failure is None
    assert cell.final.nll.mean() < cell.initial.nll.mean() - 0.1

"""L-BFGS for each cell, against torch's own, in a pack, and interrupted."""

import math

import numpy as np
import pytest
import torch
from support.packs import assert_all_same, train_packed, train_solo

from pml_cli.config.schema import MlpBlockAdapter, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.sources.random import RandomData
from pml_cli.model.adapter_bank import AdapterBank, Site
from pml_cli.training.optimizers.convergence import expected_gain
from pml_cli.training.optimizers.lbfgs import LBFGS
from pml_cli.training.optimizers.line_search import Point, cubic_minimum, strong_wolfe
from pml_cli.training.trainer import Cell

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


def test_a_search_that_finds_nothing_lower_stays():
    end, trials = line(lambda t: t, lambda t: -1.0, 1.0)
    assert end.t == 0
    assert 2 < len(trials) <= 30


def test_the_minimum_of_a_cubic():
    def point(t):
        return Point(t, t**3 - 3 * t, 3 * t**2 - 3)

    assert cubic_minimum(point(0.0), point(3.0), (0.0, 3.0)) == pytest.approx(1)
    assert cubic_minimum(point(3.0), point(0.0), (1.5, 3.0)) == 1.5


def test_the_expected_gain_of_a_planted_curve():
    """Of a slow power of the passes it is what three times as many again do gain."""
    curve = [5 + 3 * n**-0.2 for n in range(1, 401)]
    truth = 3 * 400**-0.2 - 3 * 1600**-0.2
    assert expected_gain(curve, 0.0) == pytest.approx(truth, rel=1e-6)
    assert expected_gain(curve, 0.9) == 0.9
    assert expected_gain(curve[:50], 0.0) == math.inf
    # Of a fast one it is more than that.
    fast = [5 + 3 * n**-1.5 for n in range(1, 401)]
    assert expected_gain(fast, 0.0) > 2 * (3 * 400**-1.5)
    # A curve that falls as fast after every doubling goes on as before.
    steady = [5 - math.log(n) for n in range(1, 401)]
    assert expected_gain(steady, 0.0) == pytest.approx(2 * math.log(2), rel=1e-6)
    assert expected_gain([1.0] * 100, 0.0) == 0


def cell_of(base, rank, seqlen, **train):
    run = Run(
        rank=rank,
        seqlen=seqlen,
        seed=rank,
        model=base.settings,
        data=RandomData(),
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

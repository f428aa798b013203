"""loss.keep_harm: lambda follows the harm, and the harm ends within its limit."""

import dataclasses
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from support.adapters import random_bank
from support.marks import slow
from support.packs import assert_all_same, digest, train_packed, train_solo

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model, Run, Train
from pml_cli.data.generic_text import generic_windows
from pml_cli.data.opened import source_of
from pml_cli.data.python_docs import held_out_text
from pml_cli.evaluation import forgetting
from pml_cli.model.loading import load_model
from pml_cli.training.keep import KeepPenalty
from pml_cli.training.keep_harm import (
    HOLD,
    INITIAL_WEIGHTS,
    LEAST_WEIGHT,
    MOST_SCALINGS,
    MOST_WEIGHT,
    HarmLimit,
    settle,
)
from pml_cli.training.keep_text import WindowOrder
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.trainer import Cell, Trainer, TrainingObserver

LINEAR = LinearAdapter(targets=["q_proj", "down_proj"], layers=[2, 4], alpha=3.0)


@pytest.fixture(scope="module")
def float64_base():
    return load_model(Model(dtype="float64", device="cpu"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of a few windows."""
    path = tmp_path_factory.mktemp("generic") / "text.txt"
    path.write_text(held_out_text()[:6000], "utf-8")
    return str(path)


def run_of(base, text, loss=None, **settings):
    loss = dataclasses.replace(loss or SftLoss(keep_harm=0.1), keep_text=text)
    train = Train(steps=24, log_every=12, lr=6e-2)
    settings = {"rank": 4, "seqlen": 24, "model": base.settings, "train": train} | settings
    return Run(loss=loss, **settings)


def cell_of(run):
    return Cell(run=run, samples=source_of(run).take(run.seqlen))


def limit_of(*limits, weight=1.0):
    limit_K = torch.tensor(limits)
    return HarmLimit(torch.full_like(limit_K, weight), limit_K)


def test_lambda_rises_above_the_limit_and_falls_below():
    limit = limit_of(0.1, 0.1, 0.1, math.inf)
    one = torch.ones(4)
    limit.update(one, 0.0)
    assert limit.weight_K.tolist() == [1, 1, 1, 1]

    limit.measured(range(4), torch.tensor([0.5, 0.01, -0.02, 9.0]), one)
    limit.update(one, 0.1)
    high, low, gain, unlimited = limit.weight_K.tolist()
    assert high > 1 > low >= gain and unlimited == 1

    # Between two measurements the harm is taken to follow the penalty.
    limit.update(one / 100, 0.2)
    assert limit.weight_K[0] < high

    # It stays at the end, and within bounds.
    held = limit.weight_K.clone()
    limit.update(one, 1 - HOLD / 2)
    assert torch.equal(limit.weight_K, held)
    for _ in range(1000):
        limit.update(one, 0.5)
    np.testing.assert_allclose(limit.weight_K[:3], [MOST_WEIGHT, LEAST_WEIGHT, LEAST_WEIGHT])


def test_the_order_of_windows_is_the_cells_own():
    order = WindowOrder([3, 5, 8, 9], seed=1)
    first = [row for number in range(2) for row in order.draw(number, 2)]
    second = [row for number in range(2, 4) for row in order.draw(number, 2)]
    assert sorted(first) == sorted(second) == [3, 5, 8, 9]
    assert order.draw(1, 2) == first[2:]
    assert [WindowOrder([3, 5, 8, 9], seed=s).draw(0, 4) for s in range(5)] != [first] * 5
    assert WindowOrder([7], seed=1).draw(4, 2) == [7, 7]


@pytest.mark.parametrize("adapter", [MlpBlockAdapter(), LINEAR], ids=["block", "linear"])
def test_the_harm_is_what_the_plain_model_says(float64_base, text, adapter):
    """By the whole model with hooks, and as `pml lasting` measures it."""
    base = float64_base
    bank = random_bank(base, adapter, [2, 4], scale=5.0)
    runs = [run_of(base, text, adapter=adapter), run_of(base, None, SftLoss(), adapter=adapter)]
    penalty = KeepPenalty(base, bank, runs)
    harm = penalty.harm(bank, 0)
    assert penalty.harm(bank, 1) is None

    windows = generic_windows(runs[0])
    (measured,) = forgetting.measure(base, bank.select([0]), [windows])
    assert harm == pytest.approx(measured["loss"] - measured["base_loss"], abs=1e-9)
    assert abs(harm) > 1e-3


@pytest.mark.slow
def test_the_limit_is_met_packed_as_alone(float64_base, text):
    """Cells with limits of their own, beside one with a fixed lambda and one without."""
    losses = [
        SftLoss(keep_harm=0.05),
        MemftMarginLoss(keep_harm=0.2, keep=3.0),
        SftLoss(keep=5.0),
        SftLoss(),
    ]
    runs = [run_of(float64_base, text, loss, seed=i) for i, loss in enumerate(losses)]
    packed = train_packed(float64_base, [cell_of(run) for run in runs])
    alone = train_solo(float64_base, [cell_of(run) for run in runs])
    assert_all_same(packed, alone, 1e-8)
    for cell, other in zip(packed, alone, strict=True):
        assert cell.keep == pytest.approx(other.keep, rel=1e-8)

    assert packed[0].keep_harm <= 0.05 and packed[0].keep != INITIAL_WEIGHTS["energy"]
    assert packed[1].keep_harm <= 0.2 and packed[1].keep != 3.0
    assert packed[2].keep == 5.0 and packed[2].keep_harm > 0
    assert (packed[3].keep, packed[3].keep_harm) == (0.0, None)
    for cell in packed[:3]:
        windows = generic_windows(cell.run)
        (measured,) = forgetting.measure(float64_base, cell.adapter, [windows])
        harm = measured["loss"] - measured["base_loss"]
        assert cell.keep_harm == pytest.approx(harm, abs=1e-9)


def test_an_adapter_that_ends_above_its_limit_is_scaled_down(tiny_base, text):
    """Too few steps for lambda: B alone is scaled, and the scores are those of what is left."""
    train = Train(steps=6, lr=0.3, log_every=3)
    free, limited = (
        train_packed(tiny_base, [cell_of(run_of(tiny_base, text, loss, train=train))])[0]
        for loss in (SftLoss(keep=INITIAL_WEIGHTS["energy"]), SftLoss(keep_harm=0.02))
    )
    assert limited.keep_harm <= 0.02 < free.keep_harm
    (site,) = limited.adapter.sites
    assert torch.equal(limited.adapter.A[site], free.adapter.A[site])
    ratio = limited.adapter.B[site] / free.adapter.B[site]
    torch.testing.assert_close(ratio, ratio[:1, :1, :1].expand_as(ratio))
    assert limited.final.nll.mean() > free.final.nll.mean()


@pytest.mark.parametrize(
    ("harm_of", "scalings"),
    [
        # By the share of its weights that an adapter has left.
        (lambda share: 0.1 * share, 0),
        (lambda share: 3 * share**2, 1),
        (lambda share: 3 * share, 8),
        (lambda share: 0.11 if share else 0.0, MOST_SCALINGS + 1),
        (lambda share: math.inf if share else 0.0, 1),
        (lambda share: math.nan, 1),
    ],
    ids=["within", "square", "linear", "the same at any size", "infinite", "lost"],
)
def test_settling_ends(harm_of, scalings):
    shares = [1.0]
    settle(0.1, lambda: harm_of(shares[-1]), lambda factor: shares.append(shares[-1] * factor))
    assert len(shares) - 1 == scalings
    harm = harm_of(shares[-1])
    assert harm <= 0.1 or math.isnan(harm)


def test_a_text_does_not_keep_its_model_in_memory(text):
    base = load_model(Model(device="cpu"))
    bank = random_bank(base, MlpBlockAdapter(), [2], scale=1.0)
    penalty = KeepPenalty(base, bank, [run_of(base, text)])
    alive = weakref.ref(base)
    del base, bank, penalty
    gc.collect()
    assert alive() is None


def test_a_cell_stops_early_only_within_its_limit(tiny_base, text):
    train = Train(steps=60, lr=5e-2, log_every=3, stop="recalled", stop_margin=0.0)
    losses = [MemftMarginLoss(keep=1e-3), MemftMarginLoss(keep=1e-3, keep_harm=0.03)]
    runs = [run_of(tiny_base, text, loss, seqlen=6, rank=8, train=train) for loss in losses]
    free, limited = train_packed(tiny_base, [cell_of(run) for run in runs])
    assert free.steps_run < limited.steps_run
    assert limited.keep_harm <= 0.03 < free.keep_harm


@pytest.mark.parametrize("by", ["energy", slow("kl")])
def test_interrupted_equals_undisturbed_bit_for_bit(tiny_base, text, by):
    runs = [
        run_of(tiny_base, text, SftLoss(keep_harm=harm, keep_by=by), seed=i)
        for i, harm in enumerate((0.02, 0.1))
    ]

    class State(TrainingObserver):
        trainer = None
        state = None

        def before_step(self, step):
            if step == 17:
                self.state = self.trainer.state(step)

    cells = [cell_of(run) for run in runs]
    observer = State()
    observer.trainer = Trainer(tiny_base, cells, observer)
    observer.trainer.train()

    resumed = [cell_of(run) for run in runs]
    Trainer(tiny_base, resumed).train(observer.state)
    for cell, other in zip(resumed, cells, strict=True):
        assert digest(cell) == digest(other)
        assert (cell.keep, cell.keep_harm) == (other.keep, other.keep_harm)


def test_a_lost_cell_fails_as_it_does_without_a_limit(tiny_base, text):
    train = Train(steps=4, lr=1e18, log_every=4)
    run = run_of(tiny_base, text, SftLoss(keep_harm=0.1), train=train)
    (cell,) = train_packed(tiny_base, [cell_of(run)])
    assert "no longer" in cell.failure

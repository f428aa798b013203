"""Packed equals solo, cached equals uncached, the same seed gives the same bits: what the loop promises."""

import dataclasses
import hashlib

import numpy as np
import pandas as pd
import pytest
import torch

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.scores import summarise
from pml_cli.training.trainer import Cell, learning_rate, train_pack

STEPS = 50
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


def cell(base, rank=4, seqlen=16, seed=0, adapter=None, loss=None, data=None, **train):
    run = Run(
        rank=rank,
        seqlen=seqlen,
        seed=seed,
        model=base.settings,
        data=data or RandomData(),
        adapter=adapter or MlpBlockAdapter(),
        loss=loss or SftLoss(),
        train=Train(**({"steps": STEPS, "log_every": 10, "lr": 3e-3} | train)),
    )
    return Cell(run=run, samples=source_of(run).take(seqlen))


def fresh(cells):
    return [Cell(run=c.run, samples=c.samples) for c in cells]


def trained(base, cells, cached=True):
    """The same cells, trained as one pack."""
    cells = fresh(cells)
    train_pack(base, cells, cached=cached)
    return cells


def solo(base, cells, cached=True):
    return [trained(base, [c], cached)[0] for c in cells]


def assert_same(ours, theirs, tolerance):
    """Adapters, scores and curves of two trainings of one cell."""
    assert (ours.failure is None) == (theirs.failure is None)
    assert ours.steps_run == theirs.steps_run
    if ours.failure is not None:
        return
    for mine, other in ((ours.adapter.A, theirs.adapter.A), (ours.adapter.B, theirs.adapter.B)):
        for name in mine:
            rank = ours.run.rank
            at = (
                (slice(None), slice(rank))
                if mine is ours.adapter.B
                else (slice(None), slice(None), slice(rank))
            )
            assert (mine[name][at] - other[name][at]).abs().max().item() <= tolerance
    np.testing.assert_allclose(ours.final.nll, theirs.final.nll, rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours.initial.nll, theirs.initial.nll, rtol=0, atol=tolerance)
    one, two = pd.concat(ours.curve), pd.concat(theirs.curve)
    assert list(one["step"]) == list(two["step"])
    for column in ("loss", "nll", "weight_above", "gradient_above", "grad_norm", "lr"):
        np.testing.assert_allclose(one[column], two[column], rtol=tolerance, atol=tolerance)


def mixed_pack(base, adapter):
    """Ranks 1 to 16, and lengths, learning rates, seeds, losses, schedules, decay and clipping that differ."""
    ranks = (1, 2, 4, 8, 16)
    losses = (SftLoss(), MemftOtLoss(), MemftSwLoss(window=5))
    return [
        cell(
            base,
            rank,
            seqlen=9 + 7 * i,
            seed=i,
            adapter=adapter,
            loss=losses[i % 3],
            data=RandomData(seed=i),
            lr=(1e-3, 3e-3, 1e-2, 2e-3, 5e-3)[i],
            schedule=("linear", "constant", "cosine")[i % 3],
            weight_decay=(0.0, 0.1)[i % 2],
            clip=(1.0, 0.0, 0.3)[i % 3],
        )
        for i, rank in enumerate(ranks)
    ]


ADAPTERS = {
    "block": MlpBlockAdapter(),
    "block_dropout": MlpBlockAdapter(dropout=0.2),
    "linear_dropout": LinearAdapter(targets=["c_attn", "c_fc"], layers=[1, 2], dropout=0.2),
}


HALFWAY = 7.1  # nats: where tokens of the small random model are after some tens of steps
EVERY_LOSS = [
    SftLoss(),
    MemftOtLoss(threshold=HALFWAY),
    MemftOtLoss(threshold=HALFWAY + 0.2, when_done="zero"),
    MemftSwLoss(threshold=HALFWAY, window=3, tau=4, patience=2),
    MemftSwLoss(threshold=HALFWAY, kappa=1, tau=64, window=64, floor=0),
    MemftMarginLoss(),
    MemftMarginLoss(margin=0.0, growth=1.0, switch=1.0),
    MemftMarginLoss(margin=1.0, switch=0.0),
]


def every_loss(base, data, lengths, **train):
    """A cell for each loss, and two under the first window; ranks, lengths, seeds and texts differ."""
    return [
        cell(
            base,
            4 + i,
            length,
            seed=i,
            data=dataclasses.replace(data, seed=i),
            loss=loss,
            lr=5e-2,
            steps=24,
            **train,
        )
        for i, (loss, length) in enumerate(zip([*EVERY_LOSS, EVERY_LOSS[3]], lengths, strict=True))
    ]


KINDS_OF_DATA = {
    "one sample": (RandomData(), range(8, 17), {}),
    "all samples": (PhonebookData(), (20, 10, 30, 20, 20, 10, 30, 20, 10), {}),
    "minibatches": (PhonebookData(), (40, 50, 30, 50, 40, 60, 70, 40, 30), {"batch": 2}),
    "curriculum": (
        PhonebookData(),
        (40, 50, 30, 50, 40, 60, 70, 40, 30),
        {"batch": 2, "curriculum": [2, 5]},
    ),
    "all samples in use": (
        PhonebookData(),
        (20, 10, 30, 20, 20, 10, 30, 20, 10),
        {"curriculum": [2, 5, 20]},
    ),
}


@pytest.mark.parametrize("kind", KINDS_OF_DATA)
def test_every_loss_packed_with_every_other_equals_solo(double_base, kind):
    data, lengths, train = KINDS_OF_DATA[kind]
    cells = every_loss(double_base, data, lengths, **train)
    packed = trained(double_base, cells)
    for ours, theirs in zip(packed, solo(double_base, cells), strict=True):
        assert ours.failure is None
        assert_same(ours, theirs, 1e-8)
    assert any(done.final.correct.mean() > 0 for done in packed)
    same = trained(
        double_base, [cells[3], cells[8]]
    )  # a pack of one loss goes another way through the code
    for ours, theirs in zip(same, (packed[3], packed[8]), strict=True):
        assert_same(ours, theirs, 1e-8)


def test_losses_differ(double_base):
    """Else the tests above would hold also if a loss were never looked at."""
    done = trained(
        double_base, [cell(double_base, 8, 8, loss=loss, lr=5e-2) for loss in EVERY_LOSS]
    )
    assert len({digest(one) for one in done}) == len(EVERY_LOSS)


def test_the_curve_says_what_was_spent_on_tokens_above_the_threshold(tiny_base):
    """From the logged tokens: plain training spends on all tokens alike, OT on none of them, as long as one is below."""
    cells = [
        cell(tiny_base, 12, 24, loss=loss, lr=2e-2, steps=100)
        for loss in (SftLoss(), MemftOtLoss())
    ]
    plain, threshold = trained(tiny_base, cells)
    seen = 0
    for table in plain.logged[1:-1]:
        (now,) = (
            pd.concat(plain.curve)
            .set_index("step")
            .loc[table["step"].iloc[0] : table["step"].iloc[0]]
            .itertuples()
        )
        above, pull = table["p"] > 0.5, 1 - table["p"]
        assert now.weight_above == pytest.approx(above.mean(), abs=1e-5)
        assert now.gradient_above == pytest.approx(pull[above].sum() / pull.sum(), abs=1e-4)
        seen += 0 < above.mean() < 1
    assert seen
    curve = pd.concat(threshold.curve)
    assert (curve.loc[curve["share_above_threshold"] < 1, "weight_above"] == 0).all()


@pytest.mark.parametrize("kind", ADAPTERS)
def test_packed_equals_solo_in_float64(double_base, kind):
    cells = mixed_pack(double_base, ADAPTERS[kind])
    for ours, theirs in zip(trained(double_base, cells), solo(double_base, cells), strict=True):
        assert ours.failure is None
        assert ours.final.nll.mean() < ours.initial.nll.mean()
        assert_same(ours, theirs, 1e-8)


def test_packed_equals_solo_in_float32(tiny_base):
    cells = mixed_pack(tiny_base, MlpBlockAdapter(dropout=0.1))
    for ours, theirs in zip(trained(tiny_base, cells), solo(tiny_base, cells), strict=True):
        assert_same(ours, theirs, 1e-3)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_cached_equals_uncached_in_float64(double_base, kind):
    cells = mixed_pack(double_base, ADAPTERS[kind])
    for ours, theirs in zip(
        trained(double_base, cells), trained(double_base, cells, cached=False), strict=True
    ):
        assert_same(ours, theirs, 1e-8)


def test_cached_equals_uncached_in_float32(tiny_base):
    cells = mixed_pack(tiny_base, MlpBlockAdapter())[:3]
    for ours, theirs in zip(
        trained(tiny_base, cells), trained(tiny_base, cells, cached=False), strict=True
    ):
        assert_same(ours, theirs, 1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_minibatches_packed_solo_and_uncached_agree(double_base, dropout):
    cells = [
        cell(
            double_base,
            rank,
            seqlen,
            seed=seed,
            adapter=MlpBlockAdapter(dropout=dropout),
            loss=loss,
            data=PhonebookData(seed=seed),
            batch=batch,
            lr=lr,
        )
        for rank, seqlen, seed, loss, batch, lr in (
            (1, 60, 0, SftLoss(), 2, 1e-3),
            (4, 110, 1, MemftOtLoss(), 4, 3e-3),
            (16, 90, 2, SftLoss(), 5, 1e-2),
        )
    ]
    assert (
        len({len(s.prompt) for c in cells for s in c.samples}) > 2
    )  # padding differs between batches
    packed = trained(double_base, cells)
    for ours, theirs in zip(packed, solo(double_base, cells), strict=True):
        assert_same(ours, theirs, 1e-8)
    for ours, theirs in zip(packed, trained(double_base, cells, cached=False), strict=True):
        assert_same(ours, theirs, 1e-8)


def test_all_samples_a_step_packed_with_cells_of_other_sample_counts(double_base):
    cells = [
        cell(double_base, r, n, seed=r, data=PhonebookData(), lr=3e-3)
        for r, n in ((2, 30), (8, 100), (3, 60))
    ]
    assert len({len(c.samples) for c in cells}) == 3
    for ours, theirs in zip(trained(double_base, cells), solo(double_base, cells), strict=True):
        assert_same(ours, theirs, 1e-8)


@pytest.mark.parametrize("batch", [0, 2])
def test_a_cell_that_fails_and_one_that_stops_leave_the_others_as_they_are(double_base, batch):
    base, data = double_base, {"data": PhonebookData()} if batch else {}
    adapter = MlpBlockAdapter(dropout=0.1)
    steps = {"steps": 120, "batch": batch}
    cells = [
        cell(base, 2, 40, seed=1, adapter=adapter, **data, **steps),
        cell(base, 4, 30, seed=2, adapter=adapter, lr=1e300, **data, **steps),
        cell(
            base,
            16,
            20,
            seed=3,
            adapter=adapter,
            lr=0.1,
            stop="recalled",
            stop_margin=0.05,
            **data,
            **steps,
        ),
        cell(base, 8, 50, seed=4, adapter=adapter, loss=MemftOtLoss(), **data, **steps),
    ]
    packed = trained(base, cells)
    assert packed[1].failure is not None
    assert "train.lr" in packed[1].failure
    assert packed[1].steps_run < 120
    assert packed[2].failure is None
    assert 0 < packed[2].steps_run < 120
    assert packed[0].steps_run == packed[3].steps_run == 120
    for ours, theirs in zip(packed, solo(base, cells), strict=True):
        assert_same(ours, theirs, 1e-8)


@pytest.mark.parametrize("lr", [1e300, 1e-3])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_trainings_end_also_when_they_fail(double_base, steps, lr):
    """Also when the last cell of the pack is lost only at the very end."""
    ended, other = trained(
        double_base,
        [
            cell(double_base, steps=steps, lr=lr, log_every=0),
            cell(double_base, steps=steps, log_every=0),
        ],
    )
    assert other.failure is None
    (alone,) = trained(double_base, [cell(double_base, steps=steps, lr=lr, log_every=0)])
    assert alone.steps_run == ended.steps_run
    assert (alone.failure is None) == (ended.failure is None)
    if lr < 1 or steps == 3:
        assert (ended.failure is None) == (lr < 1)


def test_padding_beyond_the_rank_stays_zero(double_base):
    small, _ = trained(double_base, [cell(double_base, 2), cell(double_base, 9)])
    for A, B in zip(small.adapter.A.values(), small.adapter.B.values(), strict=True):
        assert A.shape[2] == B.shape[1] == 9
        assert A[:, :, 2:].abs().max() == 0
        assert B[:, 2:].abs().max() == 0
        assert B[:, :2].abs().max() > 0


def test_no_violation_of_the_threshold_and_the_trained_tokens_are_recalled(tiny_base):
    (done,) = trained(tiny_base, [cell(tiny_base, 16, 24, lr=1e-2, steps=150, data=TextData())])
    summary = summarise(done.final)
    assert summary["violations"] == 0
    assert summary["token_accuracy"] == 1.0
    assert summary["first_failure"] is None
    assert summary["share_above_threshold"] > 0.9
    for table in done.logged:
        sure = table[table["p"] > 0.5 + 1e-6]
        assert sure["correct"].all()


def test_the_logged_steps_and_the_curve_cover_the_training(double_base):
    (done,) = trained(double_base, [cell(double_base, steps=23, log_every=10)])
    assert [int(t["step"].iloc[0]) for t in done.logged] == [0, 10, 20, 23]
    assert list(pd.concat(done.curve)["step"]) == list(range(23))
    assert pd.concat(done.curve)["lr"].iloc[0] == pytest.approx(3e-3)


@pytest.mark.parametrize(
    ("schedule", "middle", "late"),
    [("linear", 0.5, 0.1), ("constant", 1, 1), ("cosine", 0.5, 0.024472)],
)
def test_learning_rates(schedule, middle, late):
    train = Train(lr=2.0, schedule=schedule)
    assert learning_rate(train, 0, 100) == 2.0
    assert learning_rate(train, 50, 100) == pytest.approx(2 * middle)
    assert learning_rate(train, 90, 100) == pytest.approx(2 * late, rel=1e-4)


def digest(done):
    whole = hashlib.sha256(done.final.nll.tobytes())
    for tensor in (*done.adapter.A.values(), *done.adapter.B.values()):
        whole.update(tensor.detach().numpy().tobytes())
    return whole.hexdigest()


def noisy(base, seed):
    return cell(
        base,
        4,
        40,
        seed=seed,
        adapter=MlpBlockAdapter(dropout=0.1),
        data=PhonebookData(),
        batch=2,
        steps=12,
    )


def test_same_seed_same_bits(tiny_base):
    """Between two processes: test_sweep.py."""
    first, again, other = (trained(tiny_base, [noisy(tiny_base, seed)])[0] for seed in (5, 5, 6))
    assert digest(first) == digest(again)
    assert digest(first) != digest(other)


def test_the_seed_decides_initial_weights_dropout_and_order_one_by_one(double_base):
    """Two seeds differ in each of the three, also where the other two are switched off."""
    same = {"data": PhonebookData(), "steps": 3}
    for batch, dropout in ((0, 0.0), (2, 0.0), (0, 0.3)):
        kind = MlpBlockAdapter(dropout=dropout)
        one, two = (
            trained(
                double_base, [cell(double_base, 4, 60, seed=s, adapter=kind, batch=batch, **same)]
            )[0]
            for s in (1, 2)
        )
        assert digest(one) != digest(two)


def test_dropout_is_off_in_evaluation(double_base):
    """With a learning rate of next to nothing the scores stay those of the base, whatever was dropped."""
    kind = MlpBlockAdapter(dropout=0.5)
    (done,) = trained(double_base, [cell(double_base, adapter=kind, lr=1e-12)])
    np.testing.assert_allclose(done.final.nll, done.initial.nll, atol=1e-6)


def test_equal_settings_equal_objects(double_base):
    """A trained cell keeps its own settings: nothing of the pack leaks into its run."""
    cells = mixed_pack(double_base, MlpBlockAdapter())
    before = [dataclasses.asdict(c.run) for c in cells]
    assert [dataclasses.asdict(c.run) for c in trained(double_base, cells)] == before


def plain_loop(base, run, samples):
    """A cell as anyone would train it: the whole model every step, torch's cross-entropy, AdamW and clipping; by hand."""
    (sample,) = samples
    ids = torch.tensor([[*sample.prompt, *sample.target]])
    start = len(sample.prompt) - 1
    bank = AdapterBank.initial(
        base.sites(run.adapter),
        run.adapter,
        ranks=[run.rank],
        seeds=[run.seed],
        dtype=base.adapter_dtype,
    ).requires_grad_()
    optimizer = torch.optim.AdamW(
        bank.parameters(), lr=run.train.lr, weight_decay=run.train.weight_decay
    )

    def nll():
        with bank.attached(base.modules):
            logits = base.model(input_ids=ids[:, :-1], use_cache=False).logits[0, start:]
        return torch.nn.functional.cross_entropy(logits, ids[0, start + 1 :], reduction="none")

    first = nll().detach()
    for step in range(run.train.steps):
        optimizer.param_groups[0]["lr"] = run.train.lr * (1 - step / run.train.steps)
        values = nll()
        active = (
            values.detach() > run.loss.threshold
            if isinstance(run.loss, MemftOtLoss)
            else torch.ones_like(values)
        )
        active = active if active.any() else torch.ones_like(values)
        loss = (values * active).sum() / active.sum()
        grads = torch.autograd.grad(loss, bank.parameters())
        for parameter, grad in zip(bank.parameters(), grads, strict=True):
            parameter.grad = grad
        torch.nn.utils.clip_grad_norm_(bank.parameters(), run.train.clip)
        optimizer.step()
    return first, nll().detach(), bank


@pytest.mark.parametrize(
    ("precise", "loss", "steps", "tolerance"),
    [
        (True, SftLoss(), 30, 1e-8),
        pytest.param(True, MemftOtLoss(threshold=HALFWAY), 30, 1e-8, marks=pytest.mark.slow),
        pytest.param(False, SftLoss(), 40, 2e-3, marks=pytest.mark.slow),
    ],
)
def test_a_small_law_grid_is_what_the_plain_loop_gives(
    double_base, tiny_base, precise, loss, steps, tolerance
):
    """Packs as the planner cuts them, prefix cached, own head and optimiser, against none of it; float64 and float32."""
    base = double_base if precise else tiny_base
    train = Train(steps=steps, lr=5e-2 if precise else 2e-2)
    runs = [
        Run(rank=rank, seqlen=n, model=base.settings, loss=loss, train=train)
        for rank in (1, 6)
        for n in (9, 16, 40)
    ]
    packs = make_packs(check(runs), Packing(pack_tokens=100))
    assert [len(pack.cells) for pack in packs] == [2, 4]
    found = {}
    for pack in packs:
        for done in trained(base, [Cell(run=c.run, samples=c.samples) for c in pack.cells]):
            found[done.run.rank, done.run.seqlen] = done
    gains = []
    for planned in check(runs):
        first, last, bank = plain_loop(base, planned.run, planned.samples)
        ours = found[planned.run.rank, planned.run.seqlen]
        np.testing.assert_allclose(ours.initial.nll, first, rtol=0, atol=tolerance)
        assert ours.final.nll.mean() == pytest.approx(last.mean().item(), abs=tolerance)
        for name in bank.A if precise else ():
            assert (
                ours.adapter.A[name][..., : planned.run.rank] - bank.A[name]
            ).abs().max().item() <= tolerance
            assert (
                ours.adapter.B[name][:, : planned.run.rank] - bank.B[name]
            ).abs().max().item() <= tolerance
        gains.append((first - last).mean().item())
    assert min(gains) > 0.1
    assert max(gains) > 0.4  # else nothing was learned that could differ

"""What the training loop promises: packed equals solo, cached equals uncached, the seed decides."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from support.facts import facts
from support.marks import slow
from support.models import local
from support.packs import assert_all_same, digest, train_packed, train_solo, untrained

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.loading import load_model
from pml_cli.training.keep import KeepPenalty
from pml_cli.training.losses.base import Weighted
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.scores import summarise
from pml_cli.training.trainer import Cell, Trainer, learning_rate, tokens_by_cell

# Largest difference of two trainings that differ in the order of sums alone.
FLOAT64 = 1e-8
FLOAT32 = 1e-3


def make_cell(base, rank=4, seqlen=16, seed=0, adapter=None, loss=None, data=None, **train):
    settings = {"steps": 50, "log_every": 10, "lr": 3e-3} | train
    run = Run(
        rank=rank,
        seqlen=seqlen,
        seed=seed,
        model=base.settings,
        data=data or RandomData(),
        adapter=adapter or MlpBlockAdapter(),
        loss=loss or SftLoss(),
        train=Train(**settings),
    )
    return Cell(run=run, samples=source_of(run).take(seqlen))


def mixed_pack(base, adapter):
    """Five cells that differ in rank, length, seed, loss and all settings of the training."""
    ranks = (1, 2, 4, 8, 16)
    rates = (1e-3, 3e-3, 1e-2, 2e-3, 5e-3)
    losses = (SftLoss(), MemftOtLoss(), MemftSwLoss(window=5))
    schedules = ("linear", "constant", "cosine")
    clips = (1.0, 0.0, 0.3)
    cells = []
    for i, rank in enumerate(ranks):
        cell = make_cell(
            base,
            rank,
            seqlen=9 + 7 * i,
            seed=i,
            adapter=adapter,
            loss=losses[i % 3],
            data=RandomData(seed=i),
            lr=rates[i],
            schedule=schedules[i % 3],
            weight_decay=0.1 * (i % 2),
            clip=clips[i % 3],
        )
        cells.append(cell)
    return cells


ADAPTERS = {
    "block": MlpBlockAdapter(),
    "block_dropout": MlpBlockAdapter(dropout=0.2),
    "linear_dropout": LinearAdapter(targets=["c_attn", "c_fc"], layers=[1, 2], dropout=0.2),
}


# Where tokens of the small random model are after some tens of steps, in nats.
HALFWAY = 7.1
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
    """A cell for each loss, two for the first window; ranks, lengths, seeds and texts differ."""
    cells = []
    losses = [*EVERY_LOSS, EVERY_LOSS[3]]
    for i, (loss, length) in enumerate(zip(losses, lengths, strict=True)):
        cell = make_cell(
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
        cells.append(cell)
    return cells


FEW_FACTS = (20, 10, 30, 20, 20, 10, 30, 20, 10)
MORE_FACTS = (40, 50, 30, 50, 40, 60, 70, 40, 30)
KINDS_OF_DATA = {
    "one sample": (RandomData(), range(8, 17), {}),
    "all samples": (PhonebookData(), FEW_FACTS, {}),
    "minibatches": (PhonebookData(), MORE_FACTS, {"batch": 2}),
    "curriculum": (PhonebookData(), MORE_FACTS, {"batch": 2, "curriculum": [2, 5]}),
    "all samples in use": (PhonebookData(), FEW_FACTS, {"curriculum": [2, 5, 20]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_OF_DATA)
def test_every_loss_packed_with_every_other_equals_solo(double_base, kind):
    data, lengths, train = KINDS_OF_DATA[kind]
    cells = every_loss(double_base, data, lengths, **train)
    packed = train_packed(double_base, cells)
    assert all(cell.failure is None for cell in packed)
    assert_all_same(packed, train_solo(double_base, cells), FLOAT64)
    assert any(cell.final.correct.mean() > 0 for cell in packed)

    # A pack of one loss goes another way through the code.
    same_loss = train_packed(double_base, [cells[3], cells[8]])
    assert_all_same(same_loss, [packed[3], packed[8]], FLOAT64)


def test_losses_differ(double_base):
    """Else the tests above would hold also if a loss were never looked at."""
    cells = [make_cell(double_base, 8, 8, loss=loss, lr=5e-2) for loss in EVERY_LOSS]
    digests = {digest(cell) for cell in train_packed(double_base, cells)}
    assert len(digests) == len(EVERY_LOSS)


def test_the_curve_says_what_was_spent_on_tokens_above_the_threshold(tiny_base):
    """From the logged tokens: SFT spends on all alike, OT on none above it while one is below."""
    losses = (SftLoss(), MemftOtLoss())
    cells = [make_cell(tiny_base, 12, 24, loss=loss, lr=2e-2, steps=100) for loss in losses]
    sft, memft_ot = train_packed(tiny_base, cells)

    sft_curve = pd.concat(sft.curve).set_index("step")
    partly_learned = 0
    for table in sft.logged[1:-1]:
        row = sft_curve.loc[table["step"].iloc[0]]
        is_above = table["p"] > 0.5
        pull = 1 - table["p"]
        assert row["weight_above"] == pytest.approx(is_above.mean(), abs=1e-5)
        expected = pull[is_above].sum() / pull.sum()
        assert row["gradient_above"] == pytest.approx(expected, abs=1e-4)
        partly_learned += 0 < is_above.mean() < 1
    assert partly_learned

    curve = pd.concat(memft_ot.curve)
    is_unfinished = curve["share_above_threshold"] < 1
    assert (curve.loc[is_unfinished, "weight_above"] == 0).all()


@pytest.mark.parametrize("kind", ["block", "block_dropout", slow("linear_dropout")])
def test_packed_equals_solo_in_float64(double_base, kind):
    cells = mixed_pack(double_base, ADAPTERS[kind])
    packed = train_packed(double_base, cells)
    for cell in packed:
        assert cell.failure is None
        assert cell.final.nll.mean() < cell.initial.nll.mean()
    assert_all_same(packed, train_solo(double_base, cells), FLOAT64)


def test_packed_equals_solo_in_float32(tiny_base):
    cells = mixed_pack(tiny_base, MlpBlockAdapter(dropout=0.1))
    assert_all_same(train_packed(tiny_base, cells), train_solo(tiny_base, cells), FLOAT32)


@pytest.mark.parametrize("kind", [slow("block"), slow("block_dropout"), "linear_dropout"])
def test_cached_equals_uncached_in_float64(double_base, kind):
    cells = mixed_pack(double_base, ADAPTERS[kind])
    uncached = train_packed(double_base, cells, cached=False)
    assert_all_same(train_packed(double_base, cells), uncached, FLOAT64)


def test_cached_equals_uncached_in_float32(tiny_base):
    cells = mixed_pack(tiny_base, MlpBlockAdapter())[:3]
    uncached = train_packed(tiny_base, cells, cached=False)
    assert_all_same(train_packed(tiny_base, cells), uncached, FLOAT32)


@pytest.mark.parametrize("dropout", [slow(0.0), 0.2])
def test_minibatches_packed_solo_and_uncached_agree(double_base, dropout):
    adapter = MlpBlockAdapter(dropout=dropout)
    cells = []
    for rank, seqlen, seed, loss, batch, lr in (
        (1, 60, 0, SftLoss(), 2, 1e-3),
        (4, 110, 1, MemftOtLoss(), 4, 3e-3),
        (16, 90, 2, SftLoss(), 5, 1e-2),
    ):
        data = PhonebookData(seed=seed)
        settings = {"adapter": adapter, "loss": loss, "data": data, "batch": batch, "lr": lr}
        cells.append(make_cell(double_base, rank, seqlen, seed=seed, **settings))

    # Padding differs between batches.
    prompt_lengths = {len(sample.prompt) for cell in cells for sample in cell.samples}
    assert len(prompt_lengths) > 2

    packed = train_packed(double_base, cells)
    assert_all_same(packed, train_solo(double_base, cells), FLOAT64)
    assert_all_same(packed, train_packed(double_base, cells, cached=False), FLOAT64)


@pytest.mark.parametrize("batch", [0, 7])
@pytest.mark.parametrize("adapter", [MlpBlockAdapter(), LinearAdapter(targets=["c_attn", "c_fc"])])
def test_packed_rows_train_as_separate_rows(double_base, adapter, batch):
    """Facts of unequal lengths behind a common beginning; uncached, every fact is a row."""
    cells = []
    for seed, loss in enumerate((SftLoss(), MemftMarginLoss(margin=1.0), MemftSwLoss(window=3))):
        train = {"batch": batch, "lr": 3e-2, "steps": 10, "log_every": 5}
        cell = make_cell(double_base, 4, seed=seed, adapter=adapter, loss=loss, **train)
        cell.samples = facts(20 + 3 * seed, common=4)
        cells.append(cell)

    trainer = Trainer(double_base, untrained(cells))
    assert trainer.pack.inputs.shape.common == 4
    packed = train_packed(double_base, cells)
    assert_all_same(packed, train_packed(double_base, cells, cached=False), FLOAT64)
    assert_all_same(packed, train_solo(double_base, cells), FLOAT64)
    assert all(cell.final.nll.mean() < cell.initial.nll.mean() - 0.01 for cell in packed)


def test_cells_of_one_sample_have_separate_rows(tiny_base):
    cells = mixed_pack(tiny_base, MlpBlockAdapter())
    assert Trainer(tiny_base, untrained(cells)).pack.inputs.shape is None


def test_all_samples_a_step_packed_with_cells_of_other_sample_counts(double_base):
    cells = []
    for rank, seqlen in ((2, 30), (8, 100), (3, 60)):
        cells.append(make_cell(double_base, rank, seqlen, seed=rank, data=PhonebookData()))
    assert len({len(cell.samples) for cell in cells}) == 3
    assert_all_same(train_packed(double_base, cells), train_solo(double_base, cells), FLOAT64)


@pytest.mark.parametrize("batch", [0, slow(2)])
def test_a_cell_that_fails_and_one_that_stops_leave_the_others_as_they_are(double_base, batch):
    settings = {"adapter": MlpBlockAdapter(dropout=0.1), "steps": 120, "batch": batch}
    if batch:
        settings["data"] = PhonebookData()
    early_stop = {"lr": 0.1, "stop": "recalled", "stop_margin": 0.05}
    cells = [
        make_cell(double_base, 2, 40, seed=1, **settings),
        make_cell(double_base, 4, 30, seed=2, lr=1e300, **settings),
        make_cell(double_base, 16, 20, seed=3, **early_stop, **settings),
        make_cell(double_base, 8, 50, seed=4, loss=MemftOtLoss(), **settings),
    ]
    packed = train_packed(double_base, cells)
    first, exploded, stopped, last = packed

    assert exploded.failure is not None
    assert "train.lr" in exploded.failure
    assert exploded.steps_run < 120
    assert stopped.failure is None
    assert 0 < stopped.steps_run < 120
    assert first.steps_run == last.steps_run == 120
    assert_all_same(packed, train_solo(double_base, cells), FLOAT64)


@pytest.mark.parametrize("lr", [1e300, 1e-3])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_trainings_end_also_when_they_fail(double_base, steps, lr):
    """Also when the last cell of the pack is lost only at the very end."""
    settings = {"steps": steps, "log_every": 0}
    cell = make_cell(double_base, lr=lr, **settings)
    packed, other = train_packed(double_base, [cell, make_cell(double_base, **settings)])
    assert other.failure is None

    (alone,) = train_packed(double_base, [cell])
    assert alone.steps_run == packed.steps_run
    assert (alone.failure is None) == (packed.failure is None)
    if lr < 1 or steps == 3:
        assert (packed.failure is None) == (lr < 1)


def test_padding_beyond_the_rank_stays_zero(double_base):
    small, _ = train_packed(double_base, [make_cell(double_base, 2), make_cell(double_base, 9)])
    for name, A in small.adapter.A.items():
        B = small.adapter.B[name]
        assert A.shape[2] == B.shape[1] == 9
        assert A[:, :, 2:].abs().max() == 0
        assert B[:, 2:].abs().max() == 0
        assert B[:, :2].abs().max() > 0


def test_no_violation_of_the_threshold_and_the_trained_tokens_are_recalled(tiny_base):
    cell = make_cell(tiny_base, 16, 24, lr=1e-2, steps=150, data=TextData())
    (trained,) = train_packed(tiny_base, [cell])
    summary = summarise(trained.final)
    assert summary["violations"] == 0
    assert summary["token_accuracy"] == 1.0
    assert summary["first_failure"] is None
    assert summary["share_above_threshold"] > 0.9
    for table in trained.logged:
        assert table.loc[table["p"] > 0.5 + 1e-6, "correct"].all()


def test_the_logged_steps_and_the_curve_cover_the_training(double_base):
    (trained,) = train_packed(double_base, [make_cell(double_base, steps=23, log_every=10)])
    assert [int(table["step"].iloc[0]) for table in trained.logged] == [0, 10, 20, 23]
    curve = pd.concat(trained.curve)
    assert list(curve["step"]) == list(range(23))
    assert curve["lr"].iloc[0] == pytest.approx(3e-3)


@pytest.mark.parametrize(
    ("schedule", "middle", "late"),
    [("linear", 0.5, 0.1), ("constant", 1, 1), ("cosine", 0.5, 0.024472)],
)
def test_learning_rates(schedule, middle, late):
    train = Train(lr=2.0, schedule=schedule)
    assert learning_rate(train, 0, 100) == 2.0
    assert learning_rate(train, 50, 100) == pytest.approx(2 * middle)
    assert learning_rate(train, 90, 100) == pytest.approx(2 * late, rel=1e-4)


def test_same_seed_same_bits(tiny_base):
    """Between two processes: test_sweep.py."""
    digests = []
    for seed in (5, 5, 6):
        settings = {"adapter": MlpBlockAdapter(dropout=0.1), "batch": 2, "steps": 12}
        cell = make_cell(tiny_base, 4, 40, seed=seed, data=PhonebookData(), **settings)
        digests += [digest(trained) for trained in train_packed(tiny_base, [cell])]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


@pytest.mark.parametrize(("batch", "dropout"), [(0, 0.0), (2, 0.0), (0, 0.3)])
def test_the_seed_decides_initial_weights_order_and_dropout(double_base, batch, dropout):
    """Two seeds differ in each of the three, also where the other two are switched off."""
    settings = {"adapter": MlpBlockAdapter(dropout=dropout), "batch": batch, "steps": 3}
    digests = set()
    for seed in (1, 2):
        cell = make_cell(double_base, 4, 60, seed=seed, data=PhonebookData(), **settings)
        digests |= {digest(trained) for trained in train_packed(double_base, [cell])}
    assert len(digests) == 2


def test_dropout_is_off_in_evaluation(double_base):
    """With a tiny learning rate the scores stay those of the base, whatever was dropped."""
    cell = make_cell(double_base, adapter=MlpBlockAdapter(dropout=0.5), lr=1e-12)
    (trained,) = train_packed(double_base, [cell])
    np.testing.assert_allclose(trained.final.nll, trained.initial.nll, atol=1e-6)


def test_training_changes_no_settings(double_base):
    """A trained cell keeps its own settings: nothing of the pack leaks into its run."""
    cells = mixed_pack(double_base, MlpBlockAdapter())
    settings = [dataclasses.asdict(cell.run) for cell in cells]
    trained = train_packed(double_base, cells)
    assert [dataclasses.asdict(cell.run) for cell in trained] == settings


def plain_loop(base, run, samples):
    """A cell as anyone would train it: whole model, torch's cross-entropy, AdamW and clipping."""
    (sample,) = samples
    ids = torch.tensor([[*sample.prompt, *sample.target]])
    first_target = len(sample.prompt)
    bank = AdapterBank.initial(
        base.sites(run.adapter),
        run.adapter,
        ranks=[run.rank],
        seeds=[run.seed],
        dtype=base.adapter_dtype,
    ).requires_grad_()
    parameters = bank.parameters()
    train = run.train
    optimizer = torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)

    def token_losses():
        with bank.attached(base.modules):
            logits = base.model(input_ids=ids[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits[0, first_target - 1 :], ids[0, first_target:], reduction="none"
        )

    initial = token_losses().detach()
    for step in range(train.steps):
        optimizer.param_groups[0]["lr"] = train.lr * (1 - step / train.steps)
        nll = token_losses()
        active = torch.ones_like(nll, dtype=torch.bool)
        if isinstance(run.loss, MemftOtLoss) and (nll > run.loss.threshold).any():
            active = nll.detach() > run.loss.threshold
        loss = nll[active].mean()

        grads = torch.autograd.grad(loss, parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        torch.nn.utils.clip_grad_norm_(parameters, train.clip)
        optimizer.step()
    return initial, token_losses().detach(), bank


@pytest.mark.parametrize(
    ("is_double", "loss", "steps", "tolerance"),
    [
        (True, SftLoss(), 30, 1e-8),
        pytest.param(True, MemftOtLoss(threshold=HALFWAY), 30, 1e-8, marks=pytest.mark.slow),
        pytest.param(False, SftLoss(), 40, 2e-3, marks=pytest.mark.slow),
    ],
)
def test_a_small_law_grid_is_what_the_plain_loop_gives(
    double_base, tiny_base, is_double, loss, steps, tolerance
):
    """Packs of the planner, with cached prefix, own head and optimiser, against none of these."""
    base = double_base if is_double else tiny_base
    train = Train(steps=steps, lr=5e-2 if is_double else 2e-2)
    runs = []
    for rank in (1, 6):
        for seqlen in (9, 16, 40):
            run = Run(rank=rank, seqlen=seqlen, model=base.settings, loss=loss, train=train)
            runs.append(run)

    packs = make_packs(check(runs), Packing(pack_tokens=100))
    assert [len(pack.cells) for pack in packs] == [2, 4]
    trained = {}
    for pack in packs:
        cells = [Cell(run=plan.run, samples=plan.samples) for plan in pack.cells]
        for cell in train_packed(base, cells):
            trained[cell.run.rank, cell.run.seqlen] = cell

    gains = []
    for plan in check(runs):
        initial, final, bank = plain_loop(base, plan.run, plan.samples)
        gains.append((initial - final).mean().item())
        cell = trained[plan.run.rank, plan.run.seqlen]
        np.testing.assert_allclose(cell.initial.nll, initial, rtol=0, atol=tolerance)
        assert cell.final.nll.mean() == pytest.approx(final.mean().item(), abs=tolerance)
        # In float32 AdamW amplifies the rounding of tiny gradients.
        if is_double:
            rank = plan.run.rank
            for name in bank.sites:
                A_difference = cell.adapter.A[name][..., :rank] - bank.A[name]
                B_difference = cell.adapter.B[name][:, :rank] - bank.B[name]
                assert A_difference.abs().max().item() <= tolerance
                assert B_difference.abs().max().item() <= tolerance

    # Else nothing was learned that could differ.
    assert min(gains) > 0.1
    assert max(gains) > 0.4


def saved(cell, folder):
    """The file of a trained cell's adapter."""
    folder.mkdir()
    cell.adapter.save(0, folder, "double")
    return str(folder / "adapter_model.safetensors")


def test_a_cell_goes_on_from_an_adapter_alone_as_in_a_pack(double_base, tmp_path):
    first = train_packed(double_base, [make_cell(double_base, 2, steps=20)])[0]
    start = saved(first, tmp_path / "first")
    longer = make_cell(double_base, 2, seqlen=24, steps=20, start=start)
    other = make_cell(double_base, 4, seqlen=20, steps=20, seed=3)

    solo = train_solo(double_base, [longer, other])
    packed = train_packed(double_base, [longer, other])
    assert_all_same(packed, solo, FLOAT64)

    # It begins where the other ended, and is compared with the base model all the same.
    before = pd.concat(packed[0].logged).query("step == 0")["nll"].to_numpy()
    np.testing.assert_allclose(before[:16], first.final.nll, rtol=1e-5)
    np.testing.assert_allclose(packed[0].initial.nll[:16], first.initial.nll, atol=FLOAT64)


def test_an_adapter_of_other_modules_is_no_start(double_base, tmp_path):
    adapter = LinearAdapter(targets=["c_fc"])
    first = train_packed(double_base, [make_cell(double_base, 2, steps=2, adapter=adapter)])[0]
    start = saved(first, tmp_path / "first")
    moved = LinearAdapter(targets=["c_fc"], layers=[0])
    with pytest.raises(UserError, match=r"train\.start=.*it has no weights for"):
        train_packed(double_base, [make_cell(double_base, 2, adapter=moved, start=start)])


def test_small_gradients_survive_float16(model_folder):
    """Of nearly learned tokens of a long text; each cell has a scale of its own."""
    base = load_model(local(model_folder("llama"), dtype="float16"))
    exact = load_model(local(model_folder("llama"), dtype="float32"))
    grads = {}
    for name, model in (("float16", base), ("float32", exact)):
        cells = [make_cell(model, 2, seqlen, loss=SftLoss()) for seqlen in (64, 8)]
        trainer = Trainer(model, cells)
        layout, scores = trainer._forward()
        loss_K = scores_loss(trainer, layout, scores)
        # As of tokens with p near 1.
        grads[name] = trainer._gradients(
            1e-3 * loss_K, layout.mask_KS.sum(1), trainer.pack.bank.parameters()
        )

    for coarse, fine in zip(grads["float16"], grads["float32"], strict=True):
        for k in range(2):
            size = fine[k].norm()
            if size > 0:
                assert (coarse[k] - fine[k]).norm() < 0.05 * size


def test_the_gradient_of_few_active_tokens_does_not_overflow_float16(model_folder, monkeypatch):
    """Of 200 tokens a gate leaves one: its share of the mean is all of it, not a 200th."""
    grads = {}
    for dtype in ("float16", "float32"):
        base = load_model(local(model_folder("llama"), dtype=dtype))
        trainer = Trainer(base, [make_cell(base, 2, 200, loss=SftLoss())])

        def weights(tokens, _progress):
            weight = torch.zeros_like(tokens.nll)
            weight[:, 0] = 1
            # As steep as losses of deep models may be.
            return Weighted(value=3e4 * tokens.nll, weight=weight, pull=weight)

        def step(_parameters, found, dtype=dtype, **_):
            grads[dtype] = [grad.clone() for grad in found]

        monkeypatch.setattr(trainer.pack.losses, "weights", weights)
        monkeypatch.setattr(trainer.pack.optimizer, "step", step)
        trainer._update(0, *trainer._forward())

    for coarse, fine in zip(grads["float16"], grads["float32"], strict=True):
        assert torch.isfinite(coarse).all()
        assert (coarse - fine).norm() <= 0.05 * fine.norm()


@pytest.mark.parametrize("optimizer", ["adamw", "lbfgs", "muon"])
def test_a_model_in_float16_learns(model_folder, optimizer):
    base = load_model(local(model_folder("llama"), dtype="float16"))
    learnt = train_packed(base, [make_cell(base, 8, 8, steps=40, optimizer=optimizer)])[0]
    assert learnt.failure is None
    assert learnt.final.nll.mean() < learnt.initial.nll.mean() - 0.03


def scores_loss(trainer, layout, scores):
    """The loss of every cell, (K,)."""
    return trainer.pack.losses.weights(tokens_by_cell(layout, scores), 0.0).loss


def test_a_cell_whose_kept_text_overflows_fails_with_its_reason(tiny_base, monkeypatch):
    monkeypatch.setattr(KeepPenalty, "harm", lambda penalty, bank, k: math.nan if k == 0 else 0.5)
    cells = [make_cell(tiny_base, rank, 8, steps=2) for rank in (1, 2)]
    lost, fine = train_packed(tiny_base, cells)
    assert lost.failure == "the loss on the text of loss.keep is no longer finite"
    assert (fine.failure, fine.keep_harm) == (None, 0.5)

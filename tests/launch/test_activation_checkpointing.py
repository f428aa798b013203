"""Activation checkpointing: the same bits from less memory, chosen where one cell does not fit."""

import dataclasses

import pandas as pd
import pytest
import torch
from support.families import FAMILIES
from support.marks import slow
from support.models import adapter_of, local
from support.pricing import (
    BLOCK,
    Counter,
    measured_adapter,
    model,
    one_step,
    pack,
    peak,
    saved,
    trainer,
)
from support.sweeps import FEW, quick, result_times
from support.workers import OUT_OF_MEMORY, Workplace, assert_same_runs, faulty, planned

from pml_cli.config.schema import Model, Run, Train
from pml_cli.launch import cost_model
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing, check, make_packs, with_checkpointing
from pml_cli.model.adapter_bank import Dropout
from pml_cli.model.loading import load_model
from pml_cli.results.folder import RunFolder
from pml_cli.results.run_id import run_id
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.trainer import Cell, Trainer

__all__ = ["quick"]


def train(base, plans, *, checkpointing):
    """The cells of some plans, trained as one pack."""
    cells = [Cell(run=plan.run, samples=plan.samples) for plan in plans]
    Trainer(base, cells, checkpointing=checkpointing).train()
    return cells


@pytest.mark.parametrize(
    ("kind", "dropout"), [("mlp_block", 0.2), ("linear", 0.0), ("linear", 0.2)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_the_same_to_the_last_bit(model_folder, family, kind, dropout):
    """Also with dropout in a recomputed layer: it repeats its draws, and draws no more."""
    base = load_model(local(model_folder(family)))
    adapter = dataclasses.replace(adapter_of(kind, family), dropout=dropout)
    runs = []
    for i, loss in enumerate((SftLoss(), MemftOtLoss())):
        run = Run(
            rank=3 - i,
            seqlen=12 + i,
            seed=i,
            model=base.settings,
            adapter=adapter,
            loss=loss,
            train=Train(steps=5, log_every=2, lr=3e-2),
        )
        runs.append(run)
    plans = check(runs)

    plain = train(base, plans, checkpointing=False)
    recomputed = train(base, plans, checkpointing=True)
    for cell, expected in zip(recomputed, plain, strict=True):
        parameters = cell.adapter.parameters()
        for parameter, other in zip(parameters, expected.adapter.parameters(), strict=True):
            assert parameter.abs().max() > 0
            assert torch.equal(parameter, other)
        for name in ("curve", "logged"):
            tables = pd.concat(getattr(cell, name))
            expected_tables = pd.concat(getattr(expected, name))
            pd.testing.assert_frame_equal(tables, expected_tables, check_exact=True)


def test_the_layers_do_run_twice_and_draw_twice(model_folder, monkeypatch):
    """Else the test above would hold without anything being done."""
    base = load_model(local(model_folder("llama")))
    adapter = dataclasses.replace(adapter_of("linear", "llama"), dropout=0.1)
    settings = {"model": base.settings, "adapter": adapter, "train": Train(steps=4)}
    plans = check([Run(rank=2, seqlen=9, **settings)])

    with_gradient = []
    base.layers[2].register_forward_pre_hook(
        lambda *_: with_gradient.append(torch.is_grad_enabled())
    )
    draws = []
    draw = Dropout.__call__

    def counted(self, x, shape):
        draws.append(shape)
        return draw(self, x, shape)

    monkeypatch.setattr(Dropout, "__call__", counted)

    counts = []
    for checkpointing in (False, True):
        with_gradient.clear()
        draws.clear()
        train(base, plans, checkpointing=checkpointing)
        counts.append((sum(with_gradient), len(draws)))
    (plain_passes, plain_draws), (passes, all_draws) = counts
    assert passes == 2 * plain_passes == 8
    assert all_draws == 2 * plain_draws > 0


DEEP = {"num_hidden_layers": 12, "vocab_size": 512}


@pytest.mark.parametrize(
    ("adapter", "dtype"),
    [(BLOCK, "float32"), slow(measured_adapter("qwen3"), "bfloat16")],
    ids=["block", "linear"],
)
def test_the_memory_it_saves_is_what_the_cost_model_says(adapter, dtype):
    """Twelve layers, the adapter in the third: peak of the allocated bytes of a step."""
    settings = dataclasses.replace(model("llama", dtype, **DEEP), layer=2)
    plain = pack(settings, adapter, 400)
    recomputing = with_checkpointing(plain)
    base = load_model(settings)
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())

    peaks = []
    for planned_pack in (plain, recomputing):

        def two_steps(planned_pack=planned_pack):
            cells = [Cell(run=plan.run, samples=plan.samples) for plan in planned_pack.cells]
            trainer = Trainer(base, cells, checkpointing=planned_pack.checkpointing)
            for step in range(2):
                trainer._update(step, *trainer._forward())

        peaks.append(peak(two_steps))
        priced = cost_model.peak_memory(planned_pack) - weights
        assert priced == pytest.approx(peaks[-1], rel=0.3)
    assert peaks[1] < 0.5 * peaks[0]

    flops = cost_model.step_flops(plain)
    assert flops < cost_model.step_flops(recomputing) < 1.6 * flops


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_and_saved_bytes_of_a_step(family, kind):
    """As torch counts them: layers are recomputed up to the last product that a gradient needs."""
    adapter = BLOCK if kind == "mlp_block" else measured_adapter(family)
    recomputing = with_checkpointing(pack(model(family), adapter, 100))
    pack_trainer = trainer(recomputing)
    assert pack_trainer.checkpointing

    with Counter() as counter:
        one_step(pack_trainer)
    flops = counter.get_total_flops()
    assert cost_model.step_flops(recomputing) == pytest.approx(flops, rel=0.005)
    assert cost_model.saved_bytes(recomputing) == pytest.approx(saved(pack_trainer), rel=0.15)


def test_one_cell_that_does_not_fit_keeps_less_unless_told_otherwise():
    base = dataclasses.replace(model("llama", **DEEP), layer=2)
    plans = check([Run(rank=rank, seqlen=300, model=base) for rank in (2, 4)])
    alone = [cost_model.peak_memory(Pack(cells=[plan])) for plan in plans]
    for memory, expected in (
        (None, [False]),
        (3 * max(alone), [False]),
        (max(alone), [False, False]),
    ):
        packs = make_packs(plans, Packing(memory=memory))
        assert [pack.checkpointing for pack in packs] == expected

    too_little = Packing(memory=min(alone) - 1)
    packs = make_packs(plans, too_little)
    assert [pack.checkpointing for pack in packs] == [True, True]
    assert max(cost_model.peak_memory(pack) for pack in packs) < min(alone)
    packed_ids = [plan.id for pack in packs for plan in pack.cells]
    assert sorted(packed_ids) == sorted(plan.id for plan in plans)

    for choice in (True, False):
        chosen = dataclasses.replace(base, checkpointing=choice)
        runs = [dataclasses.replace(plan.run, model=chosen) for plan in plans]
        for packing in (too_little, Packing()):
            packs = make_packs(check(runs), packing)
            assert {pack.checkpointing for pack in packs} == {choice}
        assert [run_id(run) for run in runs] == [plan.id for plan in plans]


def test_it_is_not_chosen_where_it_saves_nothing():
    """No layer runs above an adapter in the last one."""
    base = dataclasses.replace(model("llama"), layer=5)
    plans = check([Run(rank=4, seqlen=40, model=base)])
    (only,) = make_packs(plans, Packing(memory=1))
    assert not only.checkpointing


class OutOfMemoryUnlessCheckpointing(Trainer):
    """Lacks memory at step 3, unless activation checkpointing is on."""

    def _update(self, step, layout, scores):
        if step == 3 and not self.checkpointing:
            raise OUT_OF_MEMORY[0]
        super()._update(step, layout, scores)


@pytest.mark.parametrize("choice", [None, False])
def test_out_of_memory_with_one_cell_tries_it_before_the_cell_fails(
    tmp_path, tiny_base, monkeypatch, choice
):
    (plan,) = planned(ranks=(2,))
    chosen = Model(device="cpu", checkpointing=choice)
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, model=chosen))
    with Workplace(tmp_path / "plain", tiny_base) as plain:
        plain.train([plan])

    monkeypatch.setattr("pml_cli.launch.pack_run.Trainer", OutOfMemoryUnlessCheckpointing)
    with Workplace(tmp_path / "sparing", tiny_base) as sparing:
        sparing.trainer._base = (repr(plan.run.model), tiny_base)
        sparing.train([plan])
        events = [event["cell"] for event in sparing.events("checkpointing")]

    if choice is None:
        assert events == [plan.id]
        assert sparing.reported == {plan.id: None}
        assert_same_runs(tmp_path / "plain", tmp_path / "sparing", [plan])
    else:
        assert events == []
        failure = RunFolder(sparing.out, plan.id).failure()
        assert "does not fit into memory (OutOfMemoryError" in failure


@pytest.mark.slow
def test_memory_that_never_suffices_still_ends_with_its_reason(tmp_path, tiny_base, monkeypatch):
    (plan,) = planned(ranks=(2,))
    faulty(monkeypatch, lambda ranks: True, OUT_OF_MEMORY[0])
    with Workplace(tmp_path, tiny_base) as workplace:
        workplace.train([plan])
        assert len(workplace.events("checkpointing")) == 1
    assert "does not fit into memory (OutOfMemoryError" in workplace.reported[plan.id]


def test_on_the_command_line(tmp_path, quick):
    """It is the same run: nothing is trained again. A dry run says where it is chosen."""
    sweep = ("sweep", "rank=1", "seqlen=20", "out=runs", *FEW)
    assert quick(*sweep).returncode == 0
    times = result_times(tmp_path / "runs")
    done = quick(*sweep, "model.checkpointing=true")
    assert done.returncode == 0, done.stderr
    assert result_times(tmp_path / "runs") == times

    dry_run = ("sweep", "rank=2,4", "seqlen=900", "model.layer=0", "--dry-run", *FEW)
    line = (
        "2 of 2 packs run the layers above the adapter twice a step, to keep less "
        "(activation checkpointing)"
    )
    assert line in quick(*dry_run, "launch.device_gb=0.02").stdout
    assert "twice" not in quick(*dry_run, "launch.device_gb=4").stdout
    assert (
        "twice" not in quick(*dry_run, "launch.device_gb=0.02", "model.checkpointing=false").stdout
    )

    faults = quick("sweep", "rank=1", "model.checkpointing=maybe", *FEW)
    assert faults.returncode == 2
    assert "model.checkpointing" in faults.stderr


def test_the_memory_of_the_papers_longest_texts():
    """Qwen3-8B at 10,000 tokens: what its twelve upper layers keep, without and with it, GB."""
    architecture = {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
    }
    base = Model(
        name="qwen",
        weights="random",
        architecture=architecture,
        layer=24,
        dtype="bfloat16",
        device="cpu",
    )
    plain = Pack(cells=check([Run(rank=16, seqlen=10000, model=base)]))
    assert cost_model.saved_bytes(plain) / 1e9 > 15
    assert cost_model.saved_bytes(with_checkpointing(plain)) / 1e9 < 2

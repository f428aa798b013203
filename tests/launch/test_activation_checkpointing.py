"""Activation checkpointing above the adapter: the same bits from less memory, chosen where one cell does not fit."""

import dataclasses

import pandas as pd
import pytest
import torch
from support.families import FAMILIES
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
from pml_cli.data.sources.random import RandomData
from pml_cli.launch import cost_model
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing, check, make_packs, with_checkpointing
from pml_cli.model.adapter_bank import Dropout
from pml_cli.model.loading import load_model
from pml_cli.runs.folder import RunFolder
from pml_cli.runs.run_id import run_id
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.trainer import Cell, Trainer

__all__ = ["quick"]


def ends(base, cells, checkpointing):
    """Adapters, last scores, curves and logged tokens of every cell."""
    trained = [Cell(run=cell.run, samples=cell.samples) for cell in cells]
    Trainer(base, trained, checkpointing=checkpointing).train()
    parameters = [p for cell in trained for p in cell.adapter.parameters()]
    return (
        parameters,
        [pd.concat(cell.curve) for cell in trained],
        [pd.concat(cell.logged) for cell in trained],
    )


@pytest.mark.parametrize(
    ("kind", "dropout"), [("mlp_block", 0.2), ("linear", 0.0), ("linear", 0.2)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_the_same_to_the_last_bit(model_folder, family, kind, dropout):
    """Also where dropout lies in a layer that runs twice: what it drew first, and no draw more, else later steps differ."""
    base = load_model(local(model_folder(family)))
    adapter = dataclasses.replace(adapter_of(kind, family), dropout=dropout)
    losses = (SftLoss(), MemftOtLoss())
    train = Train(steps=5, log_every=2, lr=3e-2)
    runs = [
        Run(
            rank=3 - i,
            seqlen=12 + i,
            seed=i,
            model=base.settings,
            data=RandomData(),
            adapter=adapter,
            loss=loss,
            train=train,
        )
        for i, loss in enumerate(losses)
    ]
    cells = check(runs)
    (plain, *tables), (again, *others) = (
        ends(base, cells, checkpointing) for checkpointing in (False, True)
    )
    assert all(p.abs().max() > 0 and torch.equal(p, q) for p, q in zip(plain, again, strict=True))
    for ours, theirs in zip(
        [x for many in tables for x in many], [x for many in others for x in many], strict=True
    ):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_the_layers_do_run_twice_and_draw_twice(model_folder, monkeypatch):
    """Else the test above would hold without anything being done."""
    base = load_model(local(model_folder("llama")))
    runs, drawn = [], []
    base.layers[2].register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    own = Dropout.__call__
    monkeypatch.setattr(
        Dropout, "__call__", lambda self, x, shape: (drawn.append(1), own(self, x, shape))[1]
    )
    adapter = dataclasses.replace(adapter_of("linear", "llama"), dropout=0.1)
    counts = []
    for checkpointing in (False, True):
        runs.clear()
        drawn.clear()
        ends(
            base,
            check(
                [Run(rank=2, seqlen=9, model=base.settings, adapter=adapter, train=Train(steps=4))]
            ),
            checkpointing,
        )
        counts.append((sum(runs), len(drawn)))
    (once, draws), (twice, redraws) = counts
    assert twice == 2 * once == 8
    assert redraws == 2 * draws > 0


DEEP = {"num_hidden_layers": 12, "vocab_size": 512}


@pytest.mark.parametrize(
    ("adapter", "dtype"),
    [(BLOCK, "float32"), (measured_adapter("qwen3"), "bfloat16")],
    ids=["block", "linear"],
)
def test_what_it_saves_is_what_is_priced(adapter, dtype):
    """Twelve layers, the adapter in the third: peak of the allocated bytes of a step."""
    whole = pack(model("llama", dtype, **DEEP), adapter, 400)
    planned_base = dataclasses.replace(whole.cells[0].run.model, layer=2)
    whole = pack(planned_base, adapter, 400)
    base, peaks = load_model(planned_base), []
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    for one in (whole, with_checkpointing(whole)):

        def run(one=one):
            made = Trainer(
                base,
                [Cell(run=c.run, samples=c.samples) for c in one.cells],
                checkpointing=one.checkpointing,
            )
            for step in range(2):
                made._update(step, *made._forward())

        peaks.append(peak(run))
        assert cost_model.peak_memory(one) - weights == pytest.approx(peaks[-1], rel=0.3)
    assert peaks[1] < 0.5 * peaks[0]
    assert (
        cost_model.step_flops(whole)
        < cost_model.step_flops(with_checkpointing(whole))
        < 1.6 * cost_model.step_flops(whole)
    )


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_and_saved_bytes_of_a_step(family, kind):
    """As torch counts them: the layers are run again up to the last product that a gradient needs."""
    one = with_checkpointing(
        pack(model(family), BLOCK if kind == "mlp_block" else measured_adapter(family), 100)
    )
    made = trainer(one)
    assert made.checkpointing
    with Counter() as counted:
        one_step(made)
    assert cost_model.step_flops(one) == pytest.approx(counted.get_total_flops(), rel=0.005)
    assert cost_model.saved_bytes(one) == pytest.approx(saved(made), rel=0.15)


def test_one_cell_that_does_not_fit_keeps_less_unless_told_otherwise():
    base = dataclasses.replace(model("llama", **DEEP), layer=2)
    cells = check([Run(rank=rank, seqlen=300, model=base) for rank in (2, 4)])
    alone = [cost_model.peak_memory(Pack([cell])) for cell in cells]
    for memory, expected in (
        (None, [False]),
        (3 * max(alone), [False]),
        (max(alone), [False, False]),
    ):
        assert [p.checkpointing for p in make_packs(cells, Packing(memory=memory))] == expected
    packs = make_packs(cells, Packing(memory=min(alone) - 1))
    assert [p.checkpointing for p in packs] == [True, True]
    assert max(cost_model.peak_memory(p) for p in packs) < min(alone)
    assert sorted(c.id for p in packs for c in p.cells) == sorted(c.id for c in cells)
    for told in (True, False):
        runs = [
            dataclasses.replace(c.run, model=dataclasses.replace(base, checkpointing=told))
            for c in cells
        ]
        assert {
            p.checkpointing for p in make_packs(check(runs), Packing(memory=min(alone) - 1))
        } == {told}
        assert {p.checkpointing for p in make_packs(check(runs))} == {told}
        assert [run_id(run) for run in runs] == [c.id for c in cells]


def test_it_is_not_chosen_where_it_saves_nothing():
    """No layer runs above an adapter in the last one."""
    base = dataclasses.replace(model("llama"), layer=5)
    (only,) = make_packs(check([Run(rank=4, seqlen=40, model=base)]), Packing(memory=1))
    assert not only.checkpointing


@pytest.mark.parametrize("told", [None, False])
def test_out_of_memory_with_one_cell_tries_it_before_the_cell_fails(
    tmp_path, tiny_base, monkeypatch, told
):
    (cell,) = planned(ranks=(2,))
    cell = dataclasses.replace(
        cell, run=dataclasses.replace(cell.run, model=Model(device="cpu", checkpointing=told))
    )
    with Workplace(tmp_path / "plain", tiny_base) as here:
        here.train([cell])
    whole = Trainer._update

    class Large(Trainer):
        def _update(self, step, layout, scores):
            if step == 3 and not self.checkpointing:
                raise OUT_OF_MEMORY[0]
            whole(self, step, layout, scores)

    monkeypatch.setattr("pml_cli.launch.pack_run.Trainer", Large)
    with Workplace(tmp_path / "sparing", tiny_base) as here:
        here.trainer._base = (repr(cell.run.model), tiny_base)
        here.train([cell])
        assert [event["cell"] for event in here.events("checkpointing")] == (
            [cell.id] if told is None else []
        )
    if told is None:
        assert here.reported == {cell.id: None}
        assert_same_runs(tmp_path / "plain", tmp_path / "sparing", [cell])
    else:
        assert RunFolder(here.out, cell.id).failure().startswith("OutOfMemoryError")


def test_memory_that_never_suffices_still_ends_with_its_reason(tmp_path, tiny_base, monkeypatch):
    (cell,) = planned(ranks=(2,))
    faulty(monkeypatch, lambda ranks: True, OUT_OF_MEMORY[0])
    with Workplace(tmp_path, tiny_base) as here:
        here.train([cell])
        assert len(here.events("checkpointing")) == 1
    assert here.reported[cell.id].startswith("OutOfMemoryError")


def test_on_the_command_line(tmp_path, quick):
    """Asked for, it is the same run: nothing is trained again. A dry run says where it is chosen."""
    assert quick("sweep", "rank=1", "seqlen=20", "out=runs", *FEW).returncode == 0
    before = result_times(tmp_path / "runs")
    done = quick("sweep", "rank=1", "seqlen=20", "out=runs", "model.checkpointing=true", *FEW)
    assert done.returncode == 0, done.stderr
    assert result_times(tmp_path / "runs") == before
    asked = ("sweep", "rank=2,4", "seqlen=900", "model.layer=0", "--dry-run", *FEW)
    line = "2 of 2 packs run the layers above the adapter twice a step, to keep less (activation checkpointing)"
    assert line in quick(*asked, "launch.device_gb=0.02").stdout
    assert "twice" not in quick(*asked, "launch.device_gb=4").stdout
    assert "twice" not in quick(*asked, "launch.device_gb=0.02", "model.checkpointing=false").stdout
    faults = quick("sweep", "rank=1", "model.checkpointing=maybe", *FEW)
    assert faults.returncode == 2
    assert "model.checkpointing" in faults.stderr


def test_the_price_of_the_papers_longest_texts():
    """Qwen3-8B at 10,000 tokens: what its twelve upper layers keep, without and with it, GB."""
    architecture = {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "num_hidden_layers": 36,
    }
    architecture |= {
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
    }
    architecture |= {"max_position_embeddings": 40960, "tie_word_embeddings": False}
    base = Model(
        name="qwen",
        weights="random",
        architecture=architecture,
        layer=24,
        dtype="bfloat16",
        device="cpu",
    )
    whole = Pack(check([Run(rank=16, seqlen=10000, model=base)]))
    assert cost_model.saved_bytes(whole) / 1e9 > 15
    assert cost_model.saved_bytes(with_checkpointing(whole)) / 1e9 < 2

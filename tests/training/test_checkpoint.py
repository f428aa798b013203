"""Interrupted equals undisturbed, bit for bit; and what a checkpoint on disk is good for."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from pml_cli.config.schema import (
    LinearAdapter,
    MlpBlockAdapter,
    Run,
    Train,
)
from pml_cli.data.opened import source_of
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.training.checkpoint import Checkpoints
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.trainer import Cell, Trainer, TrainingObserver

STEPS, BREAK = 30, 17


def cells_of(base, **train):
    """Ranks, lengths, losses' seeds that differ; the first is recalled early where cells may stop."""
    adapter = train.pop("adapter", MlpBlockAdapter())
    data, lengths = train.pop("data", RandomData()), train.pop("lengths", (3, 24, 40))
    losses = train.pop("losses", [SftLoss()] * 3)
    settings = Train(**({"steps": STEPS, "log_every": 5, "lr": 2e-2} | train))
    runs = [
        Run(
            rank=rank,
            seqlen=length,
            seed=rank,
            model=base.settings,
            data=data,
            adapter=adapter,
            loss=loss,
            train=settings,
        )
        for rank, length, loss in zip((8, 2, 5), lengths, losses, strict=True)
    ]
    return [Cell(run=run, samples=source_of(run).take(run.seqlen)) for run in runs]


def trained(base, cells, state=None, keep=None):
    """Train a fresh copy of the cells; `keep` takes the state at step BREAK."""
    cells = [Cell(run=cell.run, samples=cell.samples) for cell in cells]

    class StateAtBreak(TrainingObserver):
        def before_step(self, step):
            if keep is not None and step == BREAK:
                keep.append(trainer.state(step))

    trainer = Trainer(base, cells, StateAtBreak())
    trainer.train(state)
    return cells


def assert_bits(ours, theirs):
    for one, two in zip(ours, theirs, strict=True):
        assert one.steps_run == two.steps_run
        for mine, other in ((one.adapter.A, two.adapter.A), (one.adapter.B, two.adapter.B)):
            assert all(torch.equal(mine[name], other[name]) for name in mine)
        for name in ("nll", "margin", "argmax_id"):
            np.testing.assert_array_equal(getattr(one.final, name), getattr(two.final, name))
            np.testing.assert_array_equal(getattr(one.initial, name), getattr(two.initial, name))
        for name in ("logged", "curve"):
            whole = [pd.concat(getattr(cell, name), ignore_index=True) for cell in (one, two)]
            pd.testing.assert_frame_equal(*whole, check_exact=True)


KINDS = {
    "plain": {},
    "minibatch and dropout": {
        "data": PhonebookData(), "lengths": (30, 50, 90), "batch": 2, "adapter": MlpBlockAdapter(dropout=0.2),
    },
    "linear with dropout": {"adapter": LinearAdapter(dropout=0.1), "weight_decay": 0.1, "schedule": "cosine"},
    "pending curve": {"log_every": 7},
    "windows": {"losses": [MemftSwLoss(window=2, tau=4, patience=1)] * 3},
    "windows among others, few samples at a time": {
        "losses": [MemftMarginLoss(), MemftSwLoss(window=2, patience=1), MemftSwLoss(patience=2)],
        "data": PhonebookData(), "lengths": (30, 90, 60), "batch": 2,
    },
    "curriculum": {
        "losses": [MemftSwLoss(window=2, patience=1), SftLoss(), MemftMarginLoss()],
        "data": PhonebookData(), "lengths": (90, 50, 60), "batch": 2, "curriculum": [3, 6, 20],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_equals_undisturbed_bit_for_bit(tiny_base, tmp_path, kind):
    cells, kept = cells_of(tiny_base, **KINDS[kind]), []
    whole = trained(tiny_base, cells, keep=kept)
    names = [f"cell{i}" for i in range(len(cells))]
    store = Checkpoints(tmp_path)
    store.save(store.path(names), names, kept[0], seconds=4.5)
    (found,) = store.find(names)
    assert (found.step, found.pack, found.cells, found.seconds) == (BREAK, names, names, 4.5)
    assert_bits(trained(tiny_base, cells, store.load(found, names, names)), whole)


def test_windows_are_part_of_what_is_kept(tiny_base):
    """Without them what follows would be another training: so the tests above can fail."""
    cells, kept = cells_of(tiny_base, **KINDS["windows"]), []
    whole = trained(tiny_base, cells, keep=kept)
    assert (kept[0].tensors["loss.stale"] > 1).any()
    for name in ("anchor", "stale"):
        kept[0].tensors[f"loss.{name}"].zero_()
    again = trained(tiny_base, cells, kept[0])
    assert any(
        not np.array_equal(one.final.nll, two.final.nll)
        for one, two in zip(again, whole, strict=True)
    )


def test_a_window_cell_goes_on_without_the_larger_one_it_was_packed_with(tiny_base, tmp_path):
    cells, kept = cells_of(tiny_base, **KINDS["windows among others, few samples at a time"]), []
    whole = trained(tiny_base, cells, keep=kept)
    store = Checkpoints(tmp_path)
    store.save(store.path(["a", "b", "c"]), ["a", "b", "c"], kept[0], 0.0)
    (found,) = store.find(["c", "x"])
    (again,) = trained(tiny_base, cells[2:], store.load(found, ["c"], ["c"]))
    np.testing.assert_allclose(again.final.nll, whole[2].final.nll, atol=1e-3)


def test_a_checkpoint_with_other_columns_in_its_curve_is_passed_over(
    tiny_base, tmp_path, monkeypatch
):
    kept = []
    trained(tiny_base, cells_of(tiny_base), keep=kept)
    store = Checkpoints(tmp_path)
    store.save(store.path(["a", "b", "c"]), ["a", "b", "c"], kept[0], 0.0)
    monkeypatch.setattr("pml_cli.training.checkpoint.COLUMNS", ("loss",))
    assert store.find(["a"]) == []


def test_a_cell_that_had_left_before_stays_out(tiny_base, tmp_path):
    cells, kept = cells_of(tiny_base, stop="recalled", stop_margin=0.1, lr=5e-2), []
    whole = trained(tiny_base, cells, keep=kept)
    assert whole[0].steps_run < BREAK < whole[1].steps_run
    names, store = ["a", "b", "c"], Checkpoints(tmp_path)
    store.save(store.path(names), names, kept[0], 0.0)
    (found,) = store.find(["b", "c"])
    assert found.cells == ["b", "c"]
    again = trained(tiny_base, cells, store.load(found, names, found.cells))
    assert_bits(again[1:], whole[1:])


def test_part_of_a_pack_goes_on_within_the_tolerance_of_packed_and_solo(tiny_base, tmp_path):
    cells, kept = cells_of(tiny_base), []
    whole = trained(tiny_base, cells, keep=kept)
    store = Checkpoints(tmp_path)
    store.save(store.path(["a", "b", "c"]), ["a", "b", "c"], kept[0], 0.0)
    (found,) = store.find(["c", "x"])
    (again,) = trained(tiny_base, cells[2:], store.load(found, ["c"], ["c"]))
    np.testing.assert_allclose(again.final.nll, whole[2].final.nll, atol=1e-3)


def test_damaged_and_foreign_checkpoints_are_passed_over(tiny_base, tmp_path):
    kept = []
    trained(tiny_base, cells_of(tiny_base), keep=kept)
    store = Checkpoints(tmp_path)
    store.save(store.path(["a", "b", "c"]), ["a", "b", "c"], kept[0], 0.0)
    path = store.path(["a", "b", "c"])
    assert store.find(["z"]) == []
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x00" * 64):
        path.write_bytes(damaged)
        assert store.find(["a"]) == []
    path.write_bytes(whole)
    assert len(store.find(["a"])) == 1


def test_the_furthest_checkpoint_comes_first(tiny_base, tmp_path):
    kept = []
    trained(tiny_base, cells_of(tiny_base), keep=kept)
    store = Checkpoints(tmp_path)
    store.save(store.path(["a", "b", "c"]), ["a", "b", "c"], kept[0], 0.0)
    store.save(
        store.path(["a", "b", "d"]), ["a", "b", "d"], dataclasses.replace(kept[0], step=25), 0.0
    )
    assert [found.step for found in store.find(["a"])] == [25, BREAK]

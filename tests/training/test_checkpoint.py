"""Interrupted equals undisturbed, bit for bit; and what a checkpoint on disk is good for."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.packs import untrained

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.training.checkpoint import Checkpoints
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.optimizers import lbfgs
from pml_cli.training.trainer import Cell, Trainer, TrainerState, TrainingObserver

STEPS = 30
BREAK = 17
NAMES = ["a", "b", "c"]


def make_cells(base, *, adapter=None, data=None, lengths=(3, 24, 40), losses=None, **train):
    """Cells of different ranks and lengths; the first is recalled early where cells may stop."""
    settings = Train(**({"steps": STEPS, "log_every": 5, "lr": 2e-2} | train))
    cells = []
    for rank, length, loss in zip((8, 2, 5), lengths, losses or [SftLoss()] * 3, strict=True):
        run = Run(
            rank=rank,
            seqlen=length,
            seed=rank,
            model=base.settings,
            data=data or RandomData(),
            adapter=adapter or MlpBlockAdapter(),
            loss=loss,
            train=settings,
        )
        cells.append(Cell(run=run, samples=source_of(run).take(length)))
    return cells


class StateAtBreak(TrainingObserver):
    """Takes the state of a trainer at step BREAK."""

    def __init__(self):
        self.trainer = None
        self.state = None

    def before_step(self, step):
        if step == BREAK:
            self.state = self.trainer.state(step)


def train(base, cells):
    """Fresh copies of the cells, trained to the end; and the state at step BREAK."""
    copies = untrained(cells)
    observer = StateAtBreak()
    observer.trainer = Trainer(base, copies, observer)
    observer.trainer.train()
    return copies, observer.state


def go_on(base, cells, state):
    """Fresh copies of the cells, trained from a state on."""
    copies = untrained(cells)
    Trainer(base, copies).train(state)
    return copies


def assert_equal_bits(cells, expected):
    for cell, expected_cell in zip(cells, expected, strict=True):
        assert cell.steps_run == expected_cell.steps_run
        parameters = cell.adapter.parameters()
        for parameter, other in zip(parameters, expected_cell.adapter.parameters(), strict=True):
            assert torch.equal(parameter, other)
        for scores, other in (
            (cell.final, expected_cell.final),
            (cell.initial, expected_cell.initial),
        ):
            np.testing.assert_array_equal(scores.nll, other.nll)
            np.testing.assert_array_equal(scores.margin, other.margin)
            np.testing.assert_array_equal(scores.argmax_id, other.argmax_id)
        for tables, other in (
            (cell.logged, expected_cell.logged),
            (cell.curve, expected_cell.curve),
        ):
            pd.testing.assert_frame_equal(
                pd.concat(tables, ignore_index=True),
                pd.concat(other, ignore_index=True),
                check_exact=True,
            )


PHONEBOOK = PhonebookData()
KINDS = {
    "plain": {},
    "minibatch and dropout": {
        "data": PHONEBOOK,
        "lengths": (30, 50, 90),
        "batch": 2,
        "adapter": MlpBlockAdapter(dropout=0.2),
    },
    "linear with dropout": {
        "adapter": LinearAdapter(dropout=0.1),
        "weight_decay": 0.1,
        "schedule": "cosine",
    },
    "pending curve": {"log_every": 7},
    "muon": {"optimizer": "muon", "lr": None},
    "line searches": {"optimizer": "lbfgs", "lr": None, "log_every": 7},
    "gates": {
        "losses": [MemftMarginLoss(switch=0.3), MemftOtLoss(), MemftMarginLoss(switch=1)],
        "lr": 0.1,
    },
    "windows": {"losses": [MemftSwLoss(window=2, tau=4, patience=1)] * 3},
    "windows among others, few samples at a time": {
        "losses": [MemftMarginLoss(), MemftSwLoss(window=2, patience=1), MemftSwLoss(patience=2)],
        "data": PHONEBOOK,
        "lengths": (30, 90, 60),
        "batch": 2,
    },
    "curriculum": {
        "losses": [MemftSwLoss(window=2, patience=1), SftLoss(), MemftMarginLoss()],
        "data": PHONEBOOK,
        "lengths": (90, 50, 60),
        "batch": 2,
        "curriculum": [3, 6, 20],
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_equals_undisturbed_bit_for_bit(tiny_base, tmp_path, monkeypatch, kind):
    # So that searches are under way at the interruption.
    monkeypatch.setattr(lbfgs, "WARM_UP", 5)
    cells = make_cells(tiny_base, **KINDS[kind])
    undisturbed, state = train(tiny_base, cells)

    store = Checkpoints(tmp_path)
    store.save(store.path(NAMES), dict.fromkeys(NAMES, ""), state, seconds=4.5)
    (header,) = store.find(NAMES)
    assert header.step == BREAK
    assert header.pack == header.cells == NAMES
    assert header.seconds == 4.5

    resumed = go_on(tiny_base, cells, store.load(header, NAMES, NAMES))
    assert_equal_bits(resumed, undisturbed)


def test_the_state_of_a_loss_is_part_of_a_checkpoint(tiny_base):
    """Without it what follows would be another training: so the tests above can fail."""
    cells = make_cells(tiny_base, **KINDS["windows"])
    undisturbed, state = train(tiny_base, cells)
    assert (state.tensors["loss.stale"] > 1).any()
    for name in ("anchor", "stale"):
        state.tensors[f"loss.{name}"].zero_()

    changed = []
    for cell, expected in zip(go_on(tiny_base, cells, state), undisturbed, strict=True):
        changed.append(not np.array_equal(cell.final.nll, expected.final.nll))
    assert any(changed)


def saved(base, folder, **settings):
    """Cells, their undisturbed training, and a store with a checkpoint of it."""
    cells = make_cells(base, **settings)
    undisturbed, state = train(base, cells)
    store = Checkpoints(folder)
    store.save(store.path(NAMES), dict.fromkeys(NAMES, ""), state, seconds=0.0)
    return cells, undisturbed, store


@pytest.mark.parametrize("kind", ["plain", "windows among others, few samples at a time"])
def test_a_cell_goes_on_without_those_it_was_packed_with(tiny_base, tmp_path, kind):
    """Within the tolerance of packed and solo; also where the others had more samples."""
    cells, undisturbed, store = saved(tiny_base, tmp_path, **KINDS[kind])
    (header,) = store.find(["c", "x"])
    (resumed,) = go_on(tiny_base, cells[2:], store.load(header, ["c"], ["c"]))
    np.testing.assert_allclose(resumed.final.nll, undisturbed[2].final.nll, atol=1e-3)


def test_cells_go_on_in_a_pack_of_another_order(tiny_base, tmp_path):
    cells, undisturbed, store = saved(tiny_base, tmp_path)
    (header,) = store.find(NAMES)
    order = ["c", "a", "b"]
    state = store.load(header, order, ["a", "c"])
    assert state.cells == [0, 1]

    resumed = go_on(tiny_base, [cells[2], cells[0], cells[1]], state)
    np.testing.assert_allclose(resumed[0].final.nll, undisturbed[2].final.nll, atol=1e-3)
    np.testing.assert_allclose(resumed[1].final.nll, undisturbed[0].final.nll, atol=1e-3)
    assert resumed[2].final is None


def test_a_cell_that_had_left_before_stays_out(tiny_base, tmp_path):
    early_stop = {"stop": "recalled", "stop_margin": 0.1, "lr": 5e-2}
    cells, undisturbed, store = saved(tiny_base, tmp_path, **early_stop)
    assert undisturbed[0].steps_run < BREAK < undisturbed[1].steps_run

    (header,) = store.find(["b", "c"])
    assert header.cells == ["b", "c"]
    resumed = go_on(tiny_base, cells, store.load(header, NAMES, header.cells))
    assert_equal_bits(resumed[1:], undisturbed[1:])


def test_a_checkpoint_with_other_columns_in_its_curve_is_passed_over(
    tiny_base, tmp_path, monkeypatch
):
    _, _, store = saved(tiny_base, tmp_path)
    monkeypatch.setattr("pml_cli.training.checkpoint.COLUMNS", ("loss",))
    assert store.find(["a"]) == []


def test_a_cell_goes_on_only_with_the_tokens_that_it_had_learned(tiny_base, tmp_path):
    _, state = train(tiny_base, make_cells(tiny_base))
    store = Checkpoints(tmp_path)
    store.save(store.path(NAMES), {"a": "x", "b": "y", "c": ""}, state, seconds=0.0)
    (header,) = store.find(["a"])
    assert header.holds("a", "x")
    assert not header.holds("a", "y")
    # Of an earlier version, or of a cell that is not compared.
    assert header.holds("c", "x")
    assert header.holds("a", "")
    assert not header.holds("d", "x")


def test_a_checkpoint_is_found_under_whatever_front_the_ids_have(tiny_base, tmp_path):
    """Also that of an earlier version, which wrote whole ids, no hashes of tokens and no digest."""
    old = [f"old-{number:010x}" for number in range(3)]
    new = [f"new-{number:010x}" for number in range(3)]
    cells = make_cells(tiny_base)
    expected, state = train(tiny_base, cells)
    store = Checkpoints(tmp_path)
    path = store.path(old)
    store.save(path, dict.fromkeys(old, ""), state, seconds=0.0)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["pml"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["hashes"], header["digest"]
    header |= {"pack": old, "cells": [old[position] for position in state.cells]}
    save_file(tensors, path, metadata={"pml": json.dumps(header)})

    assert store.path(new) == path
    (found,) = store.find(new[1:])
    assert all(found.holds(name, "any") for name in new)
    resumed = go_on(tiny_base, cells, store.load(found, new, new))
    assert_equal_bits(resumed, expected)


def test_damaged_and_foreign_checkpoints_are_passed_over(tiny_base, tmp_path):
    _, _, store = saved(tiny_base, tmp_path)
    path = store.path(NAMES)
    assert store.find(["z"]) == []

    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"\x00" * 64):
        path.write_bytes(damaged)
        assert store.find(["a"]) == []
    path.write_bytes(content)
    (header,) = store.find(["a"])
    assert store.load(header, NAMES, NAMES) is not None

    # One bit of a tensor: the head says nothing of it.
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (header,) = store.find(["a"])
    assert store.load(header, NAMES, NAMES) is None


def test_the_furthest_checkpoint_comes_first(tiny_base, tmp_path):
    _, state = train(tiny_base, make_cells(tiny_base))
    store = Checkpoints(tmp_path)
    store.save(store.path(NAMES), dict.fromkeys(NAMES, ""), state, seconds=0.0)
    others = ["a", "b", "d"]
    later = dataclasses.replace(state, step=25)
    store.save(store.path(others), dict.fromkeys(others, ""), later, seconds=0.0)
    assert [header.step for header in store.find(["a"])] == [25, BREAK]


@pytest.mark.parametrize("damage", ["no table", "no parquet", "rows of another pack"])
def test_a_checkpoint_of_another_shape_without_a_digest_is_passed_over(tmp_path, damage):
    tables = [pd.DataFrame({"step": [1]})] * 2
    state = TrainerState(
        step=1,
        cells=[0, 1],
        tensors={"A": torch.ones(2, 3)},
        logged=tables,
        curve=tables,
        draws=[0, 0],
    )
    names = ["a", "b"]
    store = Checkpoints(tmp_path)
    path = store.path(names)
    store.save(path, dict.fromkeys(names, ""), state, seconds=0.0)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["pml"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["digest"]

    def load():
        save_file(tensors, path, metadata={"pml": json.dumps(header)})
        (found,) = store.find(names)
        return store.load(found, names, names)

    assert load() is not None
    if damage == "no table":
        del tensors["table.logged"]
    elif damage == "no parquet":
        tensors["table.curve"] = torch.zeros(9, dtype=torch.uint8)
    else:
        tensors["A"] = torch.ones(3, 3)
    assert load() is None


def test_a_checkpoint_holds_which_tokens_needed_a_gradient(tiny_base):
    """What a step computes when decides its last bits: so the test of gates above can fail."""
    cells = make_cells(tiny_base, **KINDS["gates"])
    _, state = train(tiny_base, cells)
    needed = state.tensors["needed"]
    assert 0 < needed.sum() < needed.numel()

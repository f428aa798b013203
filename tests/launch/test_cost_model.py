"""Prices against what the engine really does: FLOPs as torch counts them, bytes as they are kept and allocated."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES
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

from pml_cli import format
from pml_cli.config.request import load
from pml_cli.config.schema import LinearAdapter, Model, Run, Train
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.launch import cost_model
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check
from pml_cli.launch.throughput import MAX_POINTS, Throughput
from pml_cli.model import head
from pml_cli.model.device import device_memory
from pml_cli.model.dims import BYTES, decoder_shape
from pml_cli.model.loading import load_model
from pml_cli.training.batches import PackData
from pml_cli.training.trainer import Cell, Trainer

SPREAD = LinearAdapter(targets=["k_proj", "self_attn.o_proj"], layers=[])


@pytest.mark.parametrize(("name", "gflop"), [("qwen3_8b", 11.0), ("llama31_8b", 13.4)])
def test_a_step_of_the_papers_models_takes_what_design_says(name, gflop):
    """GFLOP per token and step, adapter at the paper's layer, at lengths at which attention's scores hardly count."""
    planned = Pack(
        check(load("probe", [f"model={name}", "model.weights=random", "rank=1", "seqlen=64"]).runs)
    )
    assert cost_model.step_flops(planned) / planned.step_tokens == pytest.approx(
        gflop * 1e9, rel=0.01
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seqlen", [20, 300])
@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_and_saved_bytes_of_a_step(family, kind, seqlen, dtype):
    planned = pack(
        model(family, dtype),
        BLOCK if kind == "mlp_block" else measured_adapter(family),
        seqlen,
    )
    made = trainer(planned)
    with Counter() as counted:
        one_step(made)
    assert cost_model.step_flops(planned) == pytest.approx(counted.get_total_flops(), rel=0.02)
    assert cost_model.saved_bytes(planned) == pytest.approx(saved(made), rel=0.25)


@pytest.mark.parametrize(
    "targets", [["q_proj"], ["o_proj"], ["up_proj"], ["down_proj"], ["k_proj", "mlp.down_proj"]]
)
@pytest.mark.parametrize("layers", [[1, 4], [], None, [5]])
def test_the_gradient_reaches_no_further_than_the_first_adapter(targets, layers):
    planned = pack(model("llama"), LinearAdapter(targets=targets, layers=layers))
    made = trainer(planned)
    with Counter() as counted:
        one_step(made)
    assert cost_model.step_flops(planned) == pytest.approx(counted.get_total_flops(), rel=0.005)
    if (targets, layers) != (
        ["up_proj"],
        [5],
    ):  # the MLP then keeps one tensor of three: priced as three
        assert cost_model.saved_bytes(planned) == pytest.approx(saved(made), rel=0.25)


@pytest.mark.parametrize("train", [{"steps": 4}, {"steps": 9, "batch": 4, "log_every": 2}])
@pytest.mark.parametrize("adapter", [BLOCK, LinearAdapter(targets=["q_proj"], dropout=0.1)])
def test_flops_of_a_whole_training(adapter, train):
    """The prefix, every step and the evaluations: of all samples in every step, and of minibatches."""
    planned = pack(Model(device="cpu"), adapter, 100, data=PhonebookData(), **train)
    base = load_model(planned.cells[0].run.model)
    cells = [Cell(run=c.run, samples=c.samples) for c in planned.cells]
    base.check_split(trainer(planned).pack.bank)
    made = Trainer(base, cells)
    with Counter() as counted:
        base.prefix(made.pack.inputs.data.ids[:, :-1], made.pack.bank)
        made.train()
    assert cost_model.training_flops(planned) == pytest.approx(counted.get_total_flops(), rel=0.05)


def test_rows_of_the_prefix_are_shared_as_the_engine_shares_them():
    base = Model(device="cpu")
    runs = [
        Run(rank=4, seqlen=n, seed=0, model=base, data=data)
        for n in (30, 31, 60)
        for data in (RandomData(), RandomData(seed=1), PhonebookData())
    ]
    planned = Pack(check(runs))
    data = PackData([c.samples for c in planned.cells], torch.device("cpu"))
    assert cost_model.unique_rows(planned) == len(data.rows)
    assert cost_model.unique_rows(pack(base, ranks=(1, 2, 3))) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "adapter", "seqlen", "ranks", "fields"),
    [
        ("qwen3", BLOCK, 300, (4, 2), {}),
        ("qwen3", BLOCK, 900, (4,), {"vocab_size": 9000}),  # mostly logits
        ("llama", BLOCK, 600, (4,) * 4, {"vocab_size": 3000}),  # two chunks of logits
        ("llama", SPREAD, 300, (64, 2), {}),
        ("gpt2", BLOCK, 300, (4,), {}),
        ("gpt_neox", BLOCK, 300, (4,), {}),
        ("gemma2", BLOCK, 300, (4,), {}),
        ("gemma3_text", BLOCK, 300, (4,), {}),
    ],
)
def test_memory_against_the_peak_of_allocated_bytes(family, adapter, seqlen, ranks, fields, dtype):
    base = model(family, dtype, **fields)
    runs = [
        Run(rank=r, seqlen=seqlen, seed=s, model=base, data=RandomData(seed=s), adapter=adapter)
        for s, r in enumerate(ranks)
    ]
    planned = Pack(check(runs))
    loaded = load_model(base)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    assert decoder_shape(base).parameters * BYTES[dtype] == pytest.approx(weights, rel=0.01)

    def run():
        made = Trainer(loaded, [Cell(run=c.run, samples=c.samples) for c in planned.cells])
        one_step(made)
        one_step(made)
        made.evaluate()

    assert cost_model.peak_memory(planned) - weights == pytest.approx(peak(run), rel=0.3)


def test_the_constants_are_those_of_the_engine():
    assert inspect.signature(head.token_nll).parameters["chunk"].default == cost_model.HEAD_CHUNK


def test_pricing_does_not_import_torch():
    code = """
import sys
from pml_cli.config.schema import Run
from pml_cli.launch.cost_model import peak_memory, training_flops
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check
from pml_cli.launch.throughput import Throughput
from pml_cli.model.device import device_memory

pack = Pack(check([Run()]))
assert training_flops(pack) > 0 and peak_memory(pack) > 0
Throughput().expected_seconds("", "", "", pack)
device_memory("cuda")
sys.exit("torch" in sys.modules or "transformers" in sys.modules)
"""
    env = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PATH": "/usr/bin:/bin",
        "HOME": "/nowhere",
    }
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


# -- measured speed


@pytest.fixture
def rates(tmp_path, monkeypatch):
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "cache"))
    return Throughput()


TINY = Model(device="cpu")
SHORT, MIDDLE, LONG, LONGEST = (
    pack(TINY, seqlen=n, steps=s) for n, s in ((16, 10), (64, 20), (256, 5), (900, 7))
)


def test_where_the_rates_lie(tmp_path, monkeypatch):
    for name in ("PML_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Throughput().path == tmp_path / ".cache/pml/rates.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert Throughput().path == tmp_path / "x/pml/rates.json"
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "own"))
    assert Throughput().path == tmp_path / "own/rates.json"


def test_a_planted_overhead_and_rate_are_recovered(rates):
    def true(p):
        return p.cells[0].steps * 0.003 + cost_model.training_flops(p) / 2e10

    for p in (SHORT, MIDDLE, LONG):
        rates.record("cpu", "float32", "tiny", p, true(p))
    for p in (SHORT, MIDDLE, LONG, LONGEST):
        assert Throughput().expected_seconds("cpu", "float32", "tiny", p) == pytest.approx(
            true(p), rel=1e-6
        )


def test_one_or_two_points_give_a_ratio(rates):
    rates.record("cpu", "float32", "tiny", MIDDLE, 2.0)
    assert rates.expected_seconds("cpu", "float32", "tiny", MIDDLE) == pytest.approx(2.0)
    per_flop = 2.0 / cost_model.training_flops(MIDDLE)
    assert rates.expected_seconds("cpu", "float32", "tiny", LONG) == pytest.approx(
        per_flop * cost_model.training_flops(LONG)
    )
    rates.record("cpu", "float32", "tiny", LONG, per_flop * cost_model.training_flops(LONG))
    assert rates.expected_seconds("cpu", "float32", "tiny", LONGEST) == pytest.approx(
        per_flop * cost_model.training_flops(LONGEST)
    )


def test_neither_overhead_nor_rate_is_negative(rates):
    for p, per_step in (
        (SHORT, 0.03),
        (MIDDLE, 0.02),
        (LONG, 0.01),
    ):  # larger steps that took less time
        rates.record("cpu", "float32", "tiny", p, per_step * p.cells[0].steps)
    assert (
        0.01
        <= rates.expected_seconds("cpu", "float32", "tiny", LONGEST) / LONGEST.cells[0].steps
        <= 0.03
    )


def test_nothing_known_and_another_model_in_its_place(rates):
    assert rates.expected_seconds("cpu", "float32", "tiny", SHORT) is None
    rates.record("cpu", "float32", "other", SHORT, 1.0)
    assert rates.expected_seconds("cpu", "float32", "tiny", SHORT) == pytest.approx(1.0)
    rates.record("cpu", "float32", "tiny", SHORT, 5.0)
    assert rates.expected_seconds("cpu", "float32", "tiny", SHORT) == pytest.approx(5.0)
    assert rates.expected_seconds("cpu", "bfloat16", "tiny", SHORT) is None
    assert rates.expected_seconds("NVIDIA H200", "float32", "tiny", SHORT) is None


def test_only_the_last_points_are_kept(rates):
    for seconds in (1.0,) * 5 + (3.0,) * MAX_POINTS:
        rates.record("cpu", "float32", "tiny", SHORT, seconds)
    assert rates.expected_seconds("cpu", "float32", "tiny", SHORT) == pytest.approx(3.0)
    (points,) = json.loads(rates.path.read_text())["cpu"]["float32"].values()
    assert len(points) == MAX_POINTS
    assert [p.name for p in rates.path.parent.iterdir()] == ["rates.json"]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "7",
        '{"cpu": 3}',
        '{"cpu": {"float32": {"tiny": [[1]]}}}',
        '{"cpu": {"float32": {"tiny": "x"}}}',
    ],
)
def test_a_damaged_file_counts_as_empty(rates, damage):
    rates.path.parent.mkdir()
    rates.path.write_text(damage)
    assert rates.expected_seconds("cpu", "float32", "tiny", SHORT) is None
    rates.record("cpu", "float32", "tiny", SHORT, 1.0)
    assert rates.expected_seconds("cpu", "float32", "tiny", SHORT) == pytest.approx(1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_cannot_be_are_not_used(rates, seconds):
    rates.record("cpu", "float32", "tiny", SHORT, seconds)
    assert rates.expected_seconds("cpu", "float32", "tiny", SHORT) is None


def test_a_cache_that_cannot_be_written_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PML_CACHE", str(tmp_path / "file"))
    Throughput().record("cpu", "float32", "tiny", SHORT, 1.0)
    assert Throughput().expected_seconds("cpu", "float32", "tiny", SHORT) is None


# -- the machine, and words


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 81559; echo 40960; echo 81559", 40960 * 2**20),
        ("echo '[N/A]'", None),
        ("exit 9", None),
        ("true", None),
    ],
)
def test_memory_of_the_gpus(tmp_path, monkeypatch, script, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert device_memory("cuda") == expected


def test_memory_of_this_machine(tmp_path, monkeypatch):
    assert 2**20 < device_memory("cpu") < 2**50
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_memory("cuda") is None


def test_numbers_for_people():
    counts = (0, 950, 1234, 9.96e6, 999.6e6, 1.2e12, 3.45e15, 7e21)
    words = [
        "0 FLOP",
        "950 FLOP",
        "1.2 kFLOP",
        "10 MFLOP",
        "1 GFLOP",
        "1.2 TFLOP",
        "3.5 PFLOP",
        "7000 EFLOP",
    ]
    assert [format.flops_text(c) for c in counts] == words
    assert [format.bytes_text(b) for b in (640 * 2**20, 5.5 * 2**30, 1023, 2**40)] == [
        "640 MiB",
        "5.5 GiB",
        "1 KiB",
        "1 TiB",
    ]
    times = (0.04, 45, 12 * 60, 3.4 * 3600, 2.1 * 86400, 89.9)
    assert [format.duration_text(t) for t in times] == [
        "0 s",
        "45 s",
        "12 min",
        "3.4 h",
        "2.1 days",
        "90 s",
    ]


def test_a_curriculum_is_priced_by_the_samples_that_it_draws():
    """Four boundaries in 10 epochs of 13 samples, two at a time: 3 6 8 11 and 13 in use for two epochs each."""
    train = Train(epochs=10, batch=2, curriculum=[2, 4, 6, 8])
    (cell,) = check(
        [Run(rank=4, seqlen=130, data=PhonebookData(), model=Model(device="cpu"), train=train)]
    )
    assert len(cell.samples) == 13
    assert cell.steps == 2 * (2 + 3 + 4 + 6 + 7)
    assert cost_model.batch_fill(cell) == pytest.approx(
        2 * (3 + 6 + 8 + 11 + 13) / (2 * cell.steps)
    )

"""The cost model against the trainer: FLOPs as torch counts them, bytes saved and allocated."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.facts import facts
from support.families import FAMILIES
from support.marks import slow
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

from pml_cli.config.request import load
from pml_cli.config.schema import LinearAdapter, Model, Run, Train
from pml_cli.data.python_docs import held_out_text
from pml_cli.data.row_packing import input_tokens, packed_size
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.launch import cost_model
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import check
from pml_cli.model import head
from pml_cli.model.dims import BYTES, decoder_shape
from pml_cli.model.loading import load_model
from pml_cli.training.batches import PackData
from pml_cli.training.limits import MEASURE_EVERY
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.trainer import Cell, Trainer

SPREAD = LinearAdapter(targets=["k_proj", "self_attn.o_proj"], layers=[])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of a few windows."""
    path = tmp_path_factory.mktemp("generic") / "text.txt"
    path.write_text(held_out_text()[:6000], "utf-8")
    return str(path)


@pytest.mark.parametrize(("name", "gflop"), [("qwen3_8b", 11.0), ("llama31_8b", 13.4)])
def test_a_step_of_the_papers_models_takes_what_design_says(name, gflop):
    """GFLOP per token and step, adapter at the paper's layer; attention's scores hardly count."""
    request = load("probe", [f"model={name}", "model.weights=random", "rank=1", "seqlen=64"])
    planned = Pack(cells=check(request.runs))
    per_token = cost_model.step_flops(planned) / planned.step_tokens
    assert per_token == pytest.approx(gflop * 1e9, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", slow("bfloat16")])
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


def test_the_masks_of_dropout_are_priced():
    """Beside the inputs that they are multiplied with, of every adapter."""
    adapter = LinearAdapter(
        targets=["q_proj", "o_proj", "gate_proj", "down_proj"], layers=[], dropout=0.1
    )
    planned = pack(model("qwen3"), adapter, 100)
    made = trainer(planned)
    one_step(made)
    assert cost_model.saved_bytes(planned) == pytest.approx(saved(made), rel=0.12)


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2"])
def test_flops_and_saved_bytes_of_a_step_on_packed_rows(family, kind):
    adapter = BLOCK if kind == "mlp_block" else measured_adapter(family)
    planned = pack(model(family), adapter)
    samples = facts(60, vocabulary=512)
    cells = []
    for cell in planned.cells:
        packed = packed_size(samples, len(samples))
        longest = max(map(input_tokens, samples))
        changes = {"rows": len(samples), "tokens": longest, "packed": packed}
        cells.append(dataclasses.replace(cell, samples=samples, **changes))
    planned = Pack(cells=cells)

    made = trainer(planned)
    layout = made.fixed_batch.layout
    assert planned.step_tokens == layout.packed.rows.numel()
    assert cost_model.PackWork(planned).step_queries == layout.packed.queries.numel()
    with Counter() as counted:
        one_step(made)
    assert cost_model.step_flops(planned) == pytest.approx(counted.get_total_flops(), rel=0.03)
    assert cost_model.saved_bytes(planned) == pytest.approx(saved(made), rel=0.3)


@pytest.mark.parametrize(
    "adapter", [BLOCK, LinearAdapter(targets=["q_proj", "down_proj"], layers=[])], ids=repr
)
def test_the_penalty_of_keep_is_priced(text, adapter):
    base = Model(device="cpu")
    penalised = Run(
        rank=4, seqlen=8, model=base, adapter=adapter, loss=SftLoss(keep=1e-3, keep_text=text)
    )
    without = Run(rank=2, seqlen=8, model=base, adapter=adapter)
    other = dataclasses.replace(without, loss=SftLoss(keep=1e-2, keep_text=text))

    planned = Pack(cells=check([penalised, without, other]))
    free = Pack(cells=check([dataclasses.replace(penalised, loss=SftLoss()), without]))
    made = trainer(planned)
    with Counter() as counted:
        grads = [torch.zeros_like(x) for x in made.pack.bank.parameters()]
        made.pack.penalty.add_gradient(made.pack.bank, grads, 0, 1)
    work = cost_model.PackWork(planned)
    assert work.penalty_flops() == counted.get_total_flops() > 0
    assert cost_model.PackWork(free).penalty_flops() == 0

    # One matrix a site, however many cells read it; and the states of the windows.
    shared = made.pack.penalty._energy._moments[0]
    assert shared is made.pack.penalty._energy._moments[2]
    moments = sum(C.nbytes for C in shared.values())
    text = made.pack.penalty._text
    states = [text.prefix.entry, text.prefix.block, text.hidden_nSD]
    assert work.penalty_bytes() == moments + sum(x.nbytes for x in states if x is not None)
    assert cost_model.PackWork(free).penalty_bytes() == 0


@pytest.mark.parametrize(
    "adapter", [BLOCK, slow(LinearAdapter(targets=["q_proj", "down_proj"], layers=[]))], ids=repr
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_reads_text_in_training_is_priced(text, adapter, checkpointing):
    """A KL in every step, and the harm under a limit in every tenth."""
    base = Model(device="cpu", checkpointing=checkpointing)
    runs = []
    losses = [SftLoss(keep=1.0, keep_by="kl", keep_text=text)]
    losses.append(SftLoss(keep_harm=0.1, keep_text=text))
    for rank, loss in enumerate(losses, 3):
        runs.append(Run(rank=rank, seqlen=8, model=base, adapter=adapter, loss=loss))
    planned = Pack(cells=check(runs))
    made = trainer(planned)
    with Counter() as counted:
        grads = [torch.zeros_like(x) for x in made.pack.bank.parameters()]
        for step in range(1, MEASURE_EVERY + 1):
            made.pack.penalty.add_gradient(made.pack.bank, grads, step, 100)
    flops = counted.get_total_flops() / MEASURE_EVERY
    assert cost_model.PackWork(planned).penalty_flops() == pytest.approx(flops, rel=0.03)


def test_wide_sites_cost_nothing_without_a_penalty():
    adapter = LinearAdapter(targets=["down_proj"], layers=[])
    request = load("probe", ["model=qwen3_8b", "model.weights=random", "rank=1", "seqlen=64"])
    (run,) = request.runs
    run = dataclasses.replace(run, adapter=adapter)
    assert cost_model.PackWork(Pack(cells=check([run]))).penalty_bytes() == 0


def test_the_penalty_is_the_same_for_a_small_minibatch():
    """Five samples in batches of four: the second one has a single sample."""
    train = Train(steps=10, batch=4)
    flops = {}
    for keep in (0.0, 1.0):
        loss = SftLoss(keep=keep, keep_by="kl")
        run = Run(data=PhonebookData(), seqlen=64, train=train, loss=loss)
        planned = Pack(cells=check([run]))
        assert planned.cells[0].rows < len(planned.cells[0].samples)
        work = cost_model.PackWork(planned)
        once = work.kept_text_flops() + work.steps * work.penalty_flops()
        flops[keep] = cost_model.training_flops(planned) - once
    assert flops[1.0] == pytest.approx(flops[0.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", [SftLoss(keep_harm=0.1), SftLoss(keep=1.0, keep_by="kl")], ids=repr
)
def test_memory_of_the_text_against_the_peak_of_allocated_bytes(loss):
    base = Model(device="cpu")
    planned = Pack(cells=check([Run(rank=4, seqlen=8, model=base, loss=loss)]))
    loaded = load_model(base)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())

    def run():
        made = Trainer(loaded, [Cell(run=c.run, samples=c.samples) for c in planned.cells])
        for step in (1, MEASURE_EVERY):
            made._update(step, *made._forward())
        made.pack.penalty.harm(made.pack.bank, 0)

    measured = peak(run)
    assert measured < cost_model.peak_memory(planned) - weights < 1.6 * measured


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
    """The prefix, every step and the evaluations; of all samples in a step, and of minibatches."""
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
    planned = Pack(cells=check(runs))
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
def test_memory_against_the_peak_of_allocated_bytes(
    family, adapter, seqlen, ranks, fields, dtype, monkeypatch
):
    # Priced for a GPU: a CPU has fewer logits at once.
    monkeypatch.setattr(head, "CPU_HEAD_WORDS", head.HEAD_WORDS)
    base = model(family, dtype, **fields)
    runs = [
        Run(rank=r, seqlen=seqlen, seed=s, model=base, data=RandomData(seed=s), adapter=adapter)
        for s, r in enumerate(ranks)
    ]
    planned = Pack(cells=check(runs))
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

pack = Pack(cells=check([Run()]))
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


def test_a_curriculum_is_priced_by_the_samples_that_it_draws():
    """Four boundaries, 13 samples, two at a time: 3 6 8 11 and 13 in use for two epochs each."""
    train = Train(epochs=10, batch=2, curriculum=[2, 4, 6, 8])
    (cell,) = check(
        [Run(rank=4, seqlen=143, data=PhonebookData(), model=Model(device="cpu"), train=train)]
    )
    assert len(cell.samples) == 13
    assert cell.steps == 2 * (2 + 3 + 4 + 6 + 7)
    assert cost_model.batch_fill(cell) == pytest.approx(
        2 * (3 + 6 + 8 + 11 + 13) / (2 * cell.steps)
    )

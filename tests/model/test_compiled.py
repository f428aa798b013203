"""model.compile: which layers are compiled, and the same numbers from them."""

import dataclasses
import shutil

import pytest
import torch
from support.marks import slow
from support.models import local

from pml_cli.config.schema import LinearAdapter, Model, Run, Train
from pml_cli.data.source import Sample
from pml_cli.errors import UserError
from pml_cli.launch.packing import check
from pml_cli.model import compiled
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.layer_calls import LayerCall
from pml_cli.model.loading import load_model
from pml_cli.results.run_id import run_id
from pml_cli.training.trainer import Cell, Trainer

LAYERS = 6


def bank(base, adapter):
    sites = base.sites(adapter)
    return AdapterBank.initial(sites, adapter, ranks=[1], seeds=[0], dtype=base.adapter_dtype)


def compiled_layers(base, adapter):
    """Indices of the layers that are compiled, for plain rows."""
    calls = base._layer_calls(1, 8)
    of_bank = bank(base, adapter) if adapter else None
    chosen = base._compiled(calls, of_bank)
    return [i for i, call in enumerate(chosen) if not isinstance(call, LayerCall)]


def test_layers_that_carry_an_adapter_are_not_compiled():
    """Hooks that come and go would have them compiled in every step."""
    base = load_model(Model(device="cpu", compile=True))
    assert len(base.layers) == LAYERS
    assert compiled_layers(base, None) == [0, 1, 2, 3, 4, 5]

    one_layer = LinearAdapter(targets=["q_proj"], layers=[3])
    assert compiled_layers(base, one_layer) == [0, 1, 2, 4, 5]
    everywhere = LinearAdapter(targets=["q_proj"], layers=[])
    assert compiled_layers(base, everywhere) == []


def test_nothing_is_compiled_by_default(tiny_base):
    calls = tiny_base._layer_calls(1, 8)
    assert tiny_base._compiled(calls, None) is calls


def test_it_does_not_change_the_id():
    plain = Run(model=Model())
    assert run_id(dataclasses.replace(plain, model=Model(compile=True))) == run_id(plain)


def trained(model, *, facts=False, checkpointing=False):
    """Cells of some ranks after a few steps: one text each, or short facts in packed rows."""
    train = Train(steps=3, log_every=3, decode=False, lr=3e-2)
    samples = [Sample(prompt=(5, 6), target=tuple(range(9 + i, 14 + i))) for i in range(8)]
    cells = []
    for rank in (1, 3):
        run = Run(rank=rank, seqlen=12 + rank, model=model, train=train)
        (planned,) = check([run])
        cells.append(Cell(run=run, samples=samples if facts else planned.samples))
    Trainer(load_model(model), cells, checkpointing=checkpointing).train()
    return cells


@pytest.fixture
def graphs(monkeypatch):
    """What torch.compile would compile; the layers run as they are."""
    recorded = []

    def backend(graph, _inputs):
        recorded.append(graph)
        return graph.forward

    torch._dynamo.reset()
    function = torch.compile(compiled._run_layer, dynamic=True, backend=backend)
    monkeypatch.setattr(compiled, "_compiled_layer", lambda: function)
    yield recorded
    torch._dynamo.reset()


def assert_same_bits(cells, expected):
    for cell, other in zip(cells, expected, strict=True):
        for matrix, of_other in zip(
            cell.adapter.parameters(), other.adapter.parameters(), strict=True
        ):
            assert torch.equal(matrix, of_other)


@pytest.mark.parametrize(
    ("stream", "checkpointing"),
    [(True, True), slow(False, False), slow(True, False), slow(False, True)],
)
def test_all_layers_share_their_graphs(model_folder, graphs, stream, checkpointing):
    """With and without gradients; hooks and checkpoints, which run a layer again, do not matter.

    One more for the first tokens of all, 8, which heads of 8 have taken for their size.
    """
    model = dataclasses.replace(local(model_folder("llama")), layer=0, stream=stream)
    plain = trained(model, checkpointing=checkpointing)
    assert not graphs
    with_compiler = trained(dataclasses.replace(model, compile=True), checkpointing=checkpointing)
    assert len(graphs) == 3
    assert_same_bits(with_compiler, plain)


@slow
def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    def broken(_graph, _inputs):
        raise RuntimeError("no such instruction")

    torch._dynamo.reset()
    function = torch.compile(compiled._run_layer, dynamic=True, backend=broken)
    monkeypatch.setattr(compiled, "_compiled_layer", lambda: function)
    with pytest.raises(UserError, match=r"model\.compile=true: torch.compile fails .*instruction"):
        trained(Model(device="cpu", compile=True))
    torch._dynamo.reset()


def test_a_machine_without_a_compiler_is_refused_before_anything_is_written(quick, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    refused = quick("sweep", "rank=1", "seqlen=8", "model.compile=true", "model.device=cpu")
    assert refused.returncode == 2
    expected = "error: model.compile=true: needs a compiler, and there is no /nowhere/c++\n"
    assert refused.stderr == expected


@slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_layers_give_what_the_layers_give(dtype):
    """Beside rounding: values are rounded to the model's dtype where the layer rounds them."""
    model = Model(device="cpu", dtype=dtype)
    compiled_model = dataclasses.replace(model, compile=True)
    for facts in (False, True):
        plain = trained(model, facts=facts)
        with_compiler = trained(compiled_model, facts=facts)
        for cell, expected in zip(with_compiler, plain, strict=True):
            assert cell.failure is None
            difference = abs(cell.final.nll - expected.final.nll).max()
            assert difference <= (1e-4 if dtype == "float32" else 0.05)
            for matrix, other in zip(
                cell.adapter.parameters(), expected.adapter.parameters(), strict=True
            ):
                # One step moves a weight by about the learning rate.
                torch.testing.assert_close(matrix, other, rtol=0, atol=1e-3)

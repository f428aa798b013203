"""Whether a model is read layer by layer: decided once, by the memory that the plan grants."""

import dataclasses
import io

import pytest
from rich.console import Console
from support.models import local
from support.workers import Workplace

from pml_cli.config.schema import Model, Request, Run, Train
from pml_cli.launch import devices
from pml_cli.launch.cost_model import peak_memory
from pml_cli.launch.executors.inline import InlineLaunch
from pml_cli.launch.executors.local import LocalLaunch
from pml_cli.launch.executors.slurm import SlurmLaunch
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing, check, make_packs, packing_for
from pml_cli.launch.queue import model_key
from pml_cli.model import device
from pml_cli.model.dims import BYTES, decoder_shape
from pml_cli.report.tables import dry_run

TINY = Model(layer=0, device="cpu")


def cells_of(model):
    return check([Run(rank=rank, seqlen=16, model=model, train=Train(steps=2)) for rank in (1, 2)])


def bytes_of(model):
    return decoder_shape(model).parameters * BYTES[model.dtype]


def planned(packs):
    """What the packs are told, a value each."""
    return [pack.model.stream for pack in packs]


def test_workers_that_share_a_device_stream_what_their_share_does_not_hold(monkeypatch):
    """The weights fit the whole device, and not the half of it."""
    cells = cells_of(TINY)
    memory = int(1.5 * bytes_of(TINY) / device.MEMORY_SHARE)
    monkeypatch.setattr(devices, "device_memory", lambda kind: memory)
    alone = packing_for(InlineLaunch(), cells)
    shared = packing_for(LocalLaunch(devices=2), cells)
    assert set(planned(make_packs(cells, alone))) == {False}
    assert set(planned(make_packs(cells, shared))) == {True}


@pytest.mark.parametrize("login_node", [2**40, 4 * 2**20])
@pytest.mark.parametrize(("granted", "expected"), [(1.5, False), (0.9, True)])
def test_the_device_of_the_sweep_decides_not_that_of_this_machine(
    tmp_path, monkeypatch, login_node, granted, expected
):
    """The packs, and their price, are the same in every process of the sweep."""
    cells = cells_of(TINY)
    launch = SlurmLaunch(device_gb=granted * bytes_of(TINY) / 2**30)
    cut = packing_for(launch, cells)
    packs = make_packs(cells, cut)
    manifest = SweepManifest.write(tmp_path, packs, cut)

    monkeypatch.setattr(device, "_machine_memory", lambda: login_node)
    monkeypatch.setattr(device, "_smallest_gpu_memory", lambda: login_node)
    again = SweepManifest.read(manifest.path).plan_packs()
    assert set(planned(packs)) == {expected}
    assert again == packs
    for pack in again:
        whole = Pack(cells=[dataclasses.replace(cell, stream=False) for cell in pack.cells])
        assert (peak_memory(pack) < peak_memory(whole)) is expected


def test_without_a_known_memory_it_is_left_to_the_workers(monkeypatch):
    """As on Slurm without launch.device_gb; the price is that of a whole model."""
    monkeypatch.setattr(device, "_machine_memory", lambda: 1)
    (pack,) = make_packs(cells_of(TINY), packing_for(SlurmLaunch(devices=1), cells_of(TINY)))
    assert pack.model.stream is None
    assert peak_memory(pack) > bytes_of(TINY)


@pytest.mark.parametrize("kinds", [("cpu", "cuda"), ("cuda", "cpu")])
def test_each_cell_is_decided_by_the_memory_of_its_own_kind_of_device(tmp_path, monkeypatch, kinds):
    """The weights fit this machine, and not its GPU."""
    memory = {"cpu": 2**40, "cuda": 2**20}
    monkeypatch.setattr(devices, "device_memory", memory.get)
    cells = [cell for kind in kinds for cell in cells_of(dataclasses.replace(TINY, device=kind))]
    # They would have the ids of the same runs.
    cells = check([dataclasses.replace(cell.run, seed=n) for n, cell in enumerate(cells)])
    cut = packing_for(InlineLaunch(), cells)
    packs = make_packs(cells, cut)
    assert {(pack.model.device, pack.model.stream) for pack in packs} == {
        ("cpu", False),
        ("cuda", True),
    }
    assert SweepManifest.read(SweepManifest.write(tmp_path, packs, cut).path).plan_packs() == packs
    # Each cell on the GPU by itself, as nothing fits there.
    assert sorted(len(pack.cells) for pack in packs) == [1, 1, 2]


@pytest.mark.parametrize("choice", [True, False])
@pytest.mark.parametrize("memory", [None, 1, 2**40])
def test_what_the_user_says_stands(choice, memory):
    cells = cells_of(dataclasses.replace(TINY, stream=choice))
    assert set(planned(make_packs(cells, Packing(memory=memory)))) == {choice}
    assert [cell.id for cell in cells] == [cell.id for cell in cells_of(TINY)]


def test_random_weights_are_not_streamed():
    cells = cells_of(dataclasses.replace(TINY, weights="random"))
    assert set(planned(make_packs(cells, Packing(memory=1)))) == {False}


@pytest.mark.parametrize("stream", [True, False])
def test_the_worker_loads_as_planned_whatever_its_machine_holds(
    tmp_path, model_folder, monkeypatch, stream
):
    cells = cells_of(local(model_folder("llama")))
    weights = bytes_of(cells[0].run.model)
    pack = make_packs(cells, Packing(memory=weights - 1 if stream else 2**40))[0]
    monkeypatch.setattr(device, "_machine_memory", lambda: 2**40 if stream else 1)
    with Workplace(tmp_path, base=None) as place:
        assert (place.trainer.base_for(pack).stream is not None) is stream
        # The next pack of this model is taken before one that another would be loaded for.
        assert place.trainer.loaded_model == model_key(pack)
    # config.yaml of the run: another machine that asks its adapter decides by itself.
    assert pack.cells[0].run.model.stream is None


def test_the_dry_run_says_what_is_streamed(tmp_path):
    cells = cells_of(TINY)
    request = Request(
        runs=[cell.run for cell in cells], out=tmp_path, launch=InlineLaunch(), swept=["rank"]
    )
    said = "read the layers below the adapter one at a time (model.stream)"
    for memory, expected in ((1, [f"2 of 2 packs {said}"]), (2**40, [])):
        out = io.StringIO()
        console = Console(file=out, width=200)
        dry_run.show(console, request, cells, make_packs(cells, Packing(memory=memory)))
        assert [line for line in out.getvalue().splitlines() if said in line] == expected

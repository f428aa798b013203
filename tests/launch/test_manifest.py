"""The manifest of a sweep: the same packs in every process, and data, never code."""

import json
import pickle
import time

import pytest

from pml_cli.config.request import load
from pml_cli.config.schema import LinearAdapter, Model, Run, Train
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.errors import UserError
from pml_cli.launch.cost_model import peak_memory
from pml_cli.launch.manifest import SweepManifest, read_manifests
from pml_cli.launch.packing import Packing, check, make_packs, plan_requested
from pml_cli.training.losses.memft_ot import MemftOtLoss

CPU = Model(device="cpu")


def run(rank=4, seqlen=32, **more):
    return Run(rank=rank, seqlen=seqlen, **({"model": CPU} | more))


def grid(**more):
    return [run(rank, seqlen, **more) for rank in (1, 2, 4, 8) for seqlen in (16, 24, 32)]


MIXED = [
    *grid(),
    *(run(rank, 64, adapter=LinearAdapter(layers=[1, 2], alpha=8.0)) for rank in (1, 2)),
    run(seqlen=50, data=PhonebookData(), train=Train(batch=2), loss=MemftOtLoss(threshold=0.5)),
]
PACKINGS = {
    "default": Packing(),
    "a small budget": Packing(pack_tokens=200),
    "devices": Packing(devices=3),
    "memory": Packing(memory=int(peak_memory(make_packs(check(MIXED))[0]) * 0.9)),
    "one at a time": Packing(memory=1),
    "no GPU": Packing(gpu=False),
}


def write(out, runs, packing=None):
    packing = packing or Packing()
    return SweepManifest.write(out, make_packs(check(runs), packing), packing)


def ids(packs):
    return [[cell.id for cell in pack.cells] for pack in packs]


@pytest.mark.parametrize("name", PACKINGS)
def test_every_process_plans_the_same_packs(tmp_path, name):
    packs = make_packs(check(MIXED), PACKINGS[name])
    written = SweepManifest.write(tmp_path, packs, PACKINGS[name])
    read = SweepManifest.read(written.path)
    assert read == written
    assert read.work == {
        cell.id: cell.step_tokens * cell.steps for pack in packs for cell in pack.cells
    }
    planned = read.plan_packs()
    assert ids(planned) == ids(packs)
    assert [pack.cells for pack in planned] == [pack.cells for pack in packs]


def test_workers_go_on_with_what_an_earlier_version_took(tmp_path):
    """Ten facts: batches that hold all of them, and steps that end before all are in use."""

    def cell(**train):
        return run(seqlen=110, data=PhonebookData(), train=Train(**train))

    runs = [cell(batch=10), cell(batch=99), cell(batch=2, steps=3, curriculum=[3])]
    with pytest.raises(UserError, match=r"^train\.curriculum=\[3\]: .*\ntrain\.batch=99: "):
        check(runs)
    packs = make_packs(plan_requested(runs))
    manifest = SweepManifest.write(tmp_path, packs, Packing())
    assert ids(manifest.plan_packs()) == ids(packs)


def test_shared_settings_are_written_once(tmp_path):
    body = json.loads(write(tmp_path, MIXED).path.read_text())
    assert {group: len(entries) for group, entries in body["settings"].items()} == {
        "model": 1,
        "data": 2,
        "adapter": 2,
        "loss": 2,
        "train": 2,
    }


def test_the_same_cells_are_one_sweep_whatever_the_packing(tmp_path):
    first = write(tmp_path, grid())
    second = write(tmp_path, grid()[::-1], Packing(devices=4))
    assert first.path == second.path
    assert json.loads(second.path.read_text())["packing"]["devices"] == 4
    assert write(tmp_path, grid()[1:]).path != first.path


def test_the_last_requested_sweep_is_read_last(tmp_path):
    first = write(tmp_path, grid())
    second = write(tmp_path, grid()[1:])
    assert read_manifests(tmp_path) == [first, second]
    again = write(tmp_path, grid())
    assert [manifest.key for manifest in read_manifests(tmp_path)] == [second.key, again.key]


@pytest.mark.slow
def test_ten_thousand_cells_are_written_and_read_quickly(tmp_path):
    overrides = ["rank=range(1,51)", "seqlen=range(10,30)", "seed=range(0,10)", "model.device=cpu"]
    request = load("sweep", overrides)
    cells = check(request.runs)
    assert len(cells) == 10_000
    packs = make_packs(cells)

    began = time.perf_counter()
    manifest = SweepManifest.write(tmp_path, packs, Packing())
    runs = SweepManifest.read(manifest.path).read_runs()
    seconds = time.perf_counter() - began
    assert runs == [cell.run for pack in packs for cell in pack.cells]
    print(f"{manifest.path.stat().st_size / 1e6:.1f} MB in {seconds:.2f} s")
    assert manifest.path.stat().st_size < 5e6
    assert seconds < 10


# -- damaged, changed and old files


def test_a_truncated_manifest_is_one_line(tmp_path):
    path = write(tmp_path, grid()).path
    path.write_text(path.read_text()[:50])
    for read in (SweepManifest.read, lambda path: read_manifests(tmp_path)):
        with pytest.raises(
            UserError, match=r"not readable as JSON .*; delete it and run the sweep again"
        ):
            read(path)


def first_record(body):
    return next(iter(body["cells"].values()))


def set_unknown_setting(body):
    body["settings"]["model"][0]["loader"] = "os.system"


def set_wrong_type(body):
    body["settings"]["train"][0]["lr"] = ["0.01"]


def set_unknown_class(body):
    body["settings"]["loss"][0]["kind"] = "builtins.eval"


def set_out_of_range(body):
    first_record(body)["run"]["rank"] = 0


def set_rank_to_text(body):
    first_record(body)["run"]["rank"] = "__import__('os')"


def set_missing_index(body):
    first_record(body)["run"]["data"] = 99


def set_negative_index(body):
    first_record(body)["run"]["data"] = -1


def set_settings_to_list(body):
    body["settings"]["adapter"] = [[1, 2]]


def set_cells_to_text(body):
    body["cells"] = "all"


def set_id_that_leads_elsewhere(body):
    body["cells"] = {"../../elsewhere": first_record(body)}


DAMAGES = [
    (set_unknown_setting, "model.loader: no such setting"),
    (set_wrong_type, "train.lr="),
    (set_unknown_class, "loss.kind=builtins.eval"),
    (set_out_of_range, "rank=0: must be from 1 to 1,000,000"),
    (set_rank_to_text, "rank=__import__"),
    (set_missing_index, "index out of range"),
    (set_negative_index, "data=-1: not an index"),
    (set_settings_to_list, "adapter: must be a mapping"),
    (set_cells_to_text, "cells=all: must be a dictionary"),
    (set_id_that_leads_elsewhere, "../../elsewhere: is not allowed as a name"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[f.__name__ for f, _ in DAMAGES])
def test_a_changed_manifest_is_one_line(tmp_path, damage, message):
    path = write(tmp_path, grid()).path
    body = json.loads(path.read_text())
    damage(body)
    path.write_text(json.dumps(body))
    with pytest.raises(UserError) as refused:
        SweepManifest.read(path).plan_packs()
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_settings_of_other_cells_are_refused(tmp_path):
    """As where a data file has changed since the sweep was requested."""
    path = write(tmp_path, grid()).path
    body = json.loads(path.read_text())
    first_record(body)["run"]["seed"] = 5
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match="other run ids"):
        SweepManifest.read(path).plan_packs()


def test_a_file_alone_cannot_allow_a_models_own_code(tmp_path):
    trusting = Model(device="cpu", trust_remote_code=True)
    manifest = write(tmp_path, [run(model=trusting)])
    with pytest.raises(UserError, match="trust_remote_code"):
        manifest.plan_packs()
    assert len(manifest.plan_packs(remote_code=True)) == 1


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_the_pickle_of_the_first_version_is_never_loaded(tmp_path):
    """Its sweeps are still shown, and writing the manifest anew mends them."""
    path = write(tmp_path, grid()).path
    body = json.loads(path.read_text())
    shown = {"model": "tiny", "data": "random", "loss": "sft", "rank": 1, "seqlen": 16, "seed": 0}
    old_cells = {name: shown | {"work": cell["work"]} for name, cell in body["cells"].items()}
    path.write_text(json.dumps({"format": 1, "asked": body["asked"], "cells": old_cells}))
    marker = tmp_path / "unpickled"
    path.with_suffix(".pkl").write_bytes(pickle.dumps(Harmful(marker)))

    old = SweepManifest.read(path)
    assert old.work == {name: cell["work"] for name, cell in old_cells.items()}
    with pytest.raises(
        UserError, match=r"written by an older pml.*run the same sweep command again"
    ):
        old.plan_packs()
    assert write(tmp_path, grid()).path == path
    assert len(SweepManifest.read(path).plan_packs()) >= 1
    assert not marker.exists()

    pickle.loads(path.with_suffix(".pkl").read_bytes())
    assert marker.exists(), "the planted pickle is harmless, so the test proves nothing"

"""A results folder into which others may write: what lies there leads nowhere and stops nobody."""

import json
import os

import pytest
from support.sweeps import FEW

from pml_cli.config.request import load
from pml_cli.config.schema import Model, Run
from pml_cli.errors import UserError
from pml_cli.io import own_folder
from pml_cli.launch.executors.base import SweepJob, last_log_line
from pml_cli.launch.executors.local import LocalLaunch
from pml_cli.launch.lease import WorkerLease, cancel_processes
from pml_cli.launch.liveness import process_identity
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.results.folder import RunFolder

SWEEP = ("sweep", "rank=1", "seqlen=8", "out=runs", *FEW)
STRANGER = 4321

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.fixture
def treasure(tmp_path):
    """A folder outside of the results folder; afterwards it holds what it held."""
    folder = tmp_path / "outside"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "thesis.doc").write_text("years of work")
    (folder / "error.json").write_text("{}")
    yield folder
    assert (folder / "adapter" / "thesis.doc").read_text() == "years of work"
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert found == ["adapter", "adapter/thesis.doc", "error.json"]


@pytest.fixture
def run_id():
    """The id of the sweep's cell, which anybody can foresee."""
    (cell,) = check(load("sweep", list(SWEEP[1:]), None, None).runs)
    return cell.id


@pytest.mark.slow
def test_a_link_in_place_of_a_run_folder_is_not_followed(tmp_path, quick, treasure, run_id):
    run = tmp_path / "runs" / run_id
    run.parent.mkdir()
    run.symlink_to(treasure)
    done = quick(*SWEEP)
    assert done.returncode == 0, done.stderr
    assert not run.is_symlink()
    assert (run / "result.json").exists()


def test_a_probe_follows_no_link_either(tmp_path, treasure):
    folder = RunFolder(tmp_path, "run")
    folder.path.symlink_to(treasure)
    folder.forget_failure()
    assert not folder.path.is_symlink()


def test_a_link_in_place_of_an_adapter_is_not_followed(tmp_path, quick, treasure, run_id):
    run = tmp_path / "runs" / run_id
    run.mkdir(parents=True)
    (run / "adapter").symlink_to(treasure / "adapter")
    done = quick(*SWEEP)
    assert done.returncode == 0, done.stderr
    assert (run / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["", "locks", "checkpoints", "requests", "cancel", "jobs", "logs"])
def test_links_among_pmls_own_folders_are_refused(tmp_path, quick, treasure, name):
    link = tmp_path / "runs" / ".pml" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(treasure)
    done = quick(*SWEEP)
    assert done.returncode == 2
    shown = f"runs/.pml/{name}".rstrip("/")
    assert done.stderr.startswith(f"error: {shown}: a link, where pml writes files of its own")


def test_a_link_among_the_figures_is_refused(tmp_path, treasure):
    (tmp_path / "figures").symlink_to(treasure)
    with pytest.raises(UserError, match="figures: a link"):
        own_folder(tmp_path, "figures", "group")


def test_a_note_to_cancel_is_not_written_through_a_link(tmp_path, treasure):
    cancel = own_folder(tmp_path, ".pml", "cancel")
    (cancel / "worker").symlink_to(treasure / "new")
    cancel_processes(tmp_path, ["worker"])


def test_hard_links_are_replaced_and_not_written_through(tmp_path, quick, run_id):
    run = tmp_path / "runs" / run_id
    run.mkdir(parents=True)
    for name in ("config.yaml", "env.json", "tokens.parquet", "result.json"):
        victim = tmp_path / f"victim-{name}"
        victim.write_text("theirs")
        os.link(victim, run / name)
    assert quick(*SWEEP).returncode == 0
    assert {path.read_text() for path in tmp_path.glob("victim-*")} == {"theirs"}


@needs_root
def test_a_stranger_cannot_cancel_and_the_owner_can(tmp_path):
    with WorkerLease(tmp_path, "inline", launch="abcd") as one:
        for name in (one.name, "abcd"):
            note = tmp_path / ".pml" / "cancel" / name
            note.touch()
            os.chown(note, STRANGER, STRANGER)
            assert not one.check_cancelled()
            note.unlink()
        (tmp_path / ".pml" / "cancel" / "abcd").touch()
        assert one.check_cancelled()


@needs_root
def test_a_strangers_record_takes_no_device(tmp_path):
    cells = check([Run(rank=1, seqlen=8, model=Model(device="cpu"))])
    packs = make_packs(cells, Packing())
    manifest = SweepManifest.write(tmp_path, packs, Packing())
    job = SweepJob(out=tmp_path, manifest=manifest, packs=packs, fail_fast=False)
    executor = LocalLaunch(devices=1).executor(job)
    record = tmp_path / ".pml" / "workers" / "w.json"
    fields = {"name": "w", "kind": "local", "state": "running", "shown": 0.0, "slot": 0}
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(process_identity() | fields | {"order": manifest.key}))
    assert executor.count_workers() == 1
    os.chown(record, STRANGER, STRANGER)
    assert executor.count_workers() == 0


def test_logs_that_are_no_files_are_not_read(tmp_path):
    logs = own_folder(tmp_path, ".pml", "logs")
    os.mkfifo(logs / "pipe.err")
    (tmp_path / "secret").write_text("secret\n")
    (logs / "link.err").symlink_to(tmp_path / "secret")
    (logs / "dangling.err").symlink_to(tmp_path / "nowhere")
    assert last_log_line(tmp_path) == str(logs)
    (logs / "w.err").write_text("died of \x1b[31mred\n")
    assert last_log_line(tmp_path) == f"died of \\x1b[31mred ({logs / 'w.err'})"


def test_the_users_umask_is_kept(tmp_path, quick):
    before = os.umask(0o077)
    try:
        assert quick(*SWEEP).returncode == 0
    finally:
        os.umask(before)
    open_to_others = [path for path in tmp_path.rglob("runs/**/*") if path.lstat().st_mode & 0o077]
    assert [path for path in open_to_others if not path.is_symlink()] == []


def test_what_a_killed_process_left_of_a_run_is_removed(tmp_path):
    folder = RunFolder(tmp_path, "run")
    (folder.path / ".adapter.0123abcd").mkdir(parents=True)
    (folder.path / ".tokens.parquet.0123abcd").touch()
    (folder.path / ".note").touch()
    folder.begin("")
    assert [path.name for path in folder.path.iterdir()] == [".note"]


def test_a_damaged_manifest_of_another_hides_no_sweep_and_stops_no_cancel(tmp_path, quick):
    cells = check([Run(rank=1, seqlen=8, model=Model(device="cpu"))])
    SweepManifest.write(tmp_path / "runs", make_packs(cells, Packing()), Packing())
    requests = tmp_path / "runs" / ".pml" / "requests"
    (requests / "0000000000.json").write_text("{}")
    done = quick("status", "runs")
    assert done.returncode == 0, done.stderr
    assert "left out: runs/.pml/requests/0000000000.json" in done.stdout

    for path in requests.glob("*.json"):
        path.write_text("{}")
    with WorkerLease(tmp_path / "runs", "inline") as one:
        assert quick("cancel", "runs").returncode == 2
        assert one.check_cancelled()


@pytest.mark.parametrize("place", ["workers", "jobs"])
def test_a_record_that_tells_nothing_is_named_and_stops_no_cancel(tmp_path, quick, place):
    """What it names may run: that nothing runs would be a lie."""
    cells = check([Run(rank=1, seqlen=8, model=Model(device="cpu"))])
    SweepManifest.write(tmp_path / "runs", make_packs(cells, Packing()), Packing())
    record = tmp_path / "runs" / ".pml" / place / "1.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text("{}")
    with WorkerLease(tmp_path / "runs", "inline") as one:
        done = quick("cancel", "runs")
        assert one.check_cancelled()
    assert done.returncode == 2
    assert "1 process asked" in done.stdout
    assert done.stderr.startswith(f"error: runs/.pml/{place}/1.json: ")
    assert done.stderr.endswith("; what it names may still run\n")
    assert done.stderr.count("\n") == 1


def test_a_process_with_a_record_that_tells_nothing_is_named_by_status(tmp_path, quick):
    cells = check([Run(rank=1, seqlen=8, model=Model(device="cpu"))])
    SweepManifest.write(tmp_path / "runs", make_packs(cells, Packing()), Packing())
    (tmp_path / "runs/.pml/workers").mkdir(exist_ok=True)
    (tmp_path / "runs/.pml/workers/1.json").write_text("{}")
    line = "left out: runs/.pml/workers/1.json: no record of a process; what it names may still run"
    assert line in quick("status", "runs").stdout
    done = quick("status", "runs", "--json")
    assert json.loads(done.stdout)["queued"] == 1
    assert done.stderr == f"{line}\n"

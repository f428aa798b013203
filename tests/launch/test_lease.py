"""Claims among real processes that race, freeze and are killed.

Only a process of another machine is planted, as its record in the folder.
"""

import errno
import json
import multiprocessing
import os
import signal
import socket
import time

import psutil
import pytest

from pml_cli.errors import UserError
from pml_cli.launch import lease as lease_module
from pml_cli.launch import liveness
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.liveness import process_identity

SPAWN = multiprocessing.get_context("spawn")
CELLS = [f"cell{i}" for i in range(200)]

# Stale seconds for which there are ten heartbeats a second.
FAST_HEARTBEAT = 0.8

# Many such heartbeats, and less than the pause between two with the usual stale seconds.
SOON = 3.0


def claim_at_once(out, cells, together, won):
    """Claim all at the same moment as others do.

    It stays until they are through: what a dead process holds is free again.
    """
    with WorkerLease(out, "inline") as lease:
        together.wait()
        won.put([cell for cell in cells if lease.claim(cell)])
        together.wait()


def claim_and_stay(out, cells, ready):
    """Claim the cells and stay."""
    with WorkerLease(out, "inline") as lease:
        ready.put((lease.name, [cell for cell in cells if lease.claim(cell)]))
        time.sleep(600)


def start_holder(out, *cells):
    """A process that holds the cells; returns it and its name."""
    ready = SPAWN.Queue()
    process = SPAWN.Process(target=claim_and_stay, args=(out, cells, ready), daemon=True)
    process.start()
    name, got = ready.get(timeout=60)
    assert got == list(cells)
    return process, name


def kill(process):
    process.kill()
    process.join()


def race(out, cells, count=3):
    """What each of several processes won."""
    together, won = SPAWN.Barrier(count), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=claim_at_once, args=(out, cells, together, won), daemon=True)
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    won_by_process = [won.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return won_by_process


def plant(out, *cells, age=0.0, **changes):
    """A process with a lease, as it looks from here: its record, its locks, its last heartbeat."""
    name = f"planted-{len(list((out / '.pml' / 'workers').glob('*.json')))}"
    record = (
        process_identity()
        | {"name": name, "kind": "slurm", "state": "running", "doing": {}, "shown": time.time()}
        | changes
    )
    path = out / ".pml" / "workers" / f"{name}.json"
    path.write_text(json.dumps(record))
    seen = path.stat().st_mtime - age
    os.utime(path, (seen, seen))
    for cell in cells:
        (out / ".pml" / "locks" / cell).symlink_to(name)
    return name


def lock(out, cell):
    return os.readlink(out / ".pml" / "locks" / cell)  # noqa: PTH115


def journal_events(out):
    journals = [path.read_text() for path in (out / ".pml" / "journal").iterdir()]
    return [json.loads(line) for journal in journals for line in journal.splitlines()]


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def lease(tmp_path):
    with WorkerLease(tmp_path, "inline") as own_lease:
        yield own_lease


@pytest.fixture
def slurm_job(monkeypatch):
    """slurm_job(restart): this process is such a start of job 77."""

    def become(restart):
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        process_identity.cache_clear()

    yield become
    process_identity.cache_clear()


# -- claims


def test_of_many_processes_one_wins_each_cell(tmp_path):
    won_by_process = race(tmp_path, CELLS)
    assert sorted(cell for cells in won_by_process for cell in cells) == sorted(CELLS)


def test_a_claim_is_kept_until_it_is_released(tmp_path, lease):
    with WorkerLease(tmp_path, "inline") as other:
        assert lease.claim("a")
        assert lease.claim("a")
        assert lease.holds("a")
        assert not other.claim("a")
        assert not other.holds("a")
        lease.release("a")
        assert not lease.holds("a")
        assert other.claim("a")


def test_release_never_takes_anothers_lock(tmp_path, lease):
    with WorkerLease(tmp_path, "inline") as other:
        assert other.claim("a")
        lease.release("a")
        assert lock(tmp_path, "a") == other.name
        assert other.holds("a")


def test_claims_of_an_ended_process_are_free_at_once(tmp_path, lease):
    with WorkerLease(tmp_path, "inline") as other:
        assert other.claim("a")
    assert (
        json.loads((tmp_path / ".pml" / "workers" / f"{other.name}.json").read_text())["state"]
        == "ended"
    )
    assert lease.claim("a")


# -- dead processes


@pytest.mark.slow
def test_of_several_successors_one_takes_over_and_each_cell_is_won_once(tmp_path):
    victim, name = start_holder(tmp_path, *CELLS)
    kill(victim)
    won_by_process = race(tmp_path, CELLS)
    assert sorted(cell for cells in won_by_process for cell in cells) == sorted(CELLS)
    assert [(note["event"], note["dead"]) for note in journal_events(tmp_path)] == [
        ("take_over", name)
    ]


@pytest.mark.slow
def test_successors_that_race_for_many_dead_processes_share_them_out(tmp_path, lease):
    """A process for each cell, so that the race for a takeover is run a hundred times."""
    dead = [plant(tmp_path, cell, ticks=1) for cell in CELLS[:100]]
    won_by_process = race(tmp_path, CELLS[:100])
    assert sorted(cell for cells in won_by_process for cell in cells) == sorted(CELLS[:100])
    assert sorted(note["dead"] for note in journal_events(tmp_path)) == sorted(dead)


def test_a_chain_of_deaths(tmp_path, lease):
    """A dies, its successor B dies; what A still held is taken over through B."""
    first, one = start_holder(tmp_path, "a", "b")
    kill(first)
    second, two = start_holder(tmp_path, "a")
    assert [lock(tmp_path, cell) for cell in "ab"] == [two, one]
    with WorkerLease(tmp_path, "inline") as other:
        assert not other.claim("b")  # the successor lives
    kill(second)
    assert lease.claim("b")
    assert lease.claim("a")
    with WorkerLease(tmp_path, "inline") as other:
        assert not other.claim("a")
        assert not other.claim("b")


def test_a_killed_child_that_nobody_has_reaped_is_dead(tmp_path, lease):
    victim, _ = start_holder(tmp_path, "a")
    victim.kill()
    assert wait_until(lambda: psutil.Process(victim.pid).status() == psutil.STATUS_ZOMBIE)
    assert lease.claim("a")
    victim.join()


def test_a_reused_process_number_is_dead(tmp_path, lease):
    ours = process_identity()
    plant(tmp_path, "mine")
    plant(tmp_path, "reused", ticks=ours["ticks"] - 100)
    # Of an earlier version, which knew the time of day alone.
    plant(tmp_path, "old", ticks=None)
    plant(tmp_path, "reused old", ticks=None, created=ours["created"] - 100)
    claimed = [lease.claim(cell) for cell in ("mine", "reused", "old", "reused old")]
    assert claimed == [False, True, False, True]


@pytest.mark.parametrize("error", [psutil.NoSuchProcess, psutil.AccessDenied])
def test_a_process_that_this_machine_hides_lives_by_its_heartbeats(
    tmp_path, lease, monkeypatch, error
):
    """Of another user, where /proc is mounted with hidepid."""

    def refuse(pid):
        raise error(pid)

    plant(tmp_path, "lives", pid=1, age=5)
    plant(tmp_path, "silent", pid=1, age=lease.stale_seconds + 5)
    plant(tmp_path, "gone", pid=2, age=5)

    def signal_nobody(pid, number):
        raise PermissionError if pid == 1 else ProcessLookupError

    monkeypatch.setattr(psutil, "Process", refuse)
    monkeypatch.setattr(os, "kill", signal_nobody)
    monkeypatch.setattr(lease_module, "SILENCE_SECONDS", 0.0)
    assert [lease.claim(cell) for cell in ("lives", "silent")] == [False, True]
    if error is psutil.NoSuchProcess:
        assert lease.claim("gone")


@pytest.mark.parametrize("jump", [10, -3600, 86400])
def test_a_clock_that_is_set_kills_nobody_of_this_machine(tmp_path, lease, jump):
    """The start of a process, as a time of day, moves with the clock."""
    plant(tmp_path, "a", created=process_identity()["created"] + jump, age=jump)
    assert not lease.claim("a")


@pytest.mark.parametrize("jump", [-7200, 7200])
def test_a_file_server_whose_clock_is_set_kills_nobody(tmp_path, lease, monkeypatch, jump):
    name = plant(tmp_path, "a", place="elsewhere", age=-jump)
    monkeypatch.setattr(lease_module, "SILENCE_SECONDS", 0.4)
    monkeypatch.setattr(lease_module, "VERDICT_SECONDS", 0.0)
    assert not lease.claim("a")
    time.sleep(0.5)
    # Its next heartbeat, by the clock as it is set now.
    (tmp_path / ".pml" / "workers" / f"{name}.json").touch()
    assert not lease.claim("a")

    old = time.time() + jump
    os.utime(tmp_path / ".pml" / "workers" / f"{name}.json", (old, old))
    assert not lease.claim("a")
    time.sleep(0.5)
    assert lease.claim("a"), "two heartbeats that did not come"


def test_a_lock_without_a_record_is_free(tmp_path, lease):
    (tmp_path / ".pml" / "locks" / "a").symlink_to("nobody")
    assert lease.claim("a")


# -- living processes


@pytest.mark.slow
def test_a_living_process_of_this_machine_keeps_its_claims_without_a_heartbeat(tmp_path, lease):
    """Stopped for an hour, as by Ctrl-Z."""
    sleeper, name = start_holder(tmp_path, "a")
    os.kill(sleeper.pid, signal.SIGSTOP)
    old = time.time() - 3600
    os.utime(tmp_path / ".pml" / "workers" / f"{name}.json", (old, old))
    assert not lease.claim("a")
    kill(sleeper)
    claimed = wait_until(lambda: lease.claim("a"))  # a verdict is cached for two seconds
    assert claimed


@pytest.mark.parametrize("wrong", [0, 3600, -3600])
def test_another_machines_process_is_dead_once_it_is_silent_for_too_long(
    tmp_path, lease, monkeypatch, wrong
):
    """By the file server's clock: this machine's own may be an hour wrong."""
    plant(tmp_path, "silent", place="elsewhere", age=lease.stale_seconds + 5)
    plant(tmp_path, "lives", place="elsewhere", age=lease.stale_seconds - 15)
    monkeypatch.setattr(lease_module, "SILENCE_SECONDS", 0.0)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    assert not lease.claim("lives")
    assert lease.claim("silent")


def test_an_earlier_start_of_the_same_slurm_job_is_dead_at_once(tmp_path, slurm_job):
    slurm_job(restart=2)
    with WorkerLease(tmp_path, "slurm") as lease:
        for cell, job, restart in (
            ("earlier", "77", 1),
            ("same", "77", 2),
            ("later", "77", 3),
            ("other", "78", 0),
        ):
            plant(
                tmp_path,
                cell,
                place="elsewhere",
                slurm={"job": job, "restart": restart, "task": job},
            )
        assert [lease.claim(cell) for cell in ("earlier", "same", "later", "other")] == [
            True,
            False,
            False,
            False,
        ]


# -- fencing and cancellation


def make_silent(out, one):
    """Make a lease look like that of another machine without a heartbeat for long."""
    path = out / ".pml" / "workers" / f"{one.name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"place": "elsewhere"}))
    old = path.stat().st_mtime - one.stale_seconds - 5
    os.utime(path, (old, old))


def test_a_fenced_process_holds_nothing_and_releases_nothing(tmp_path, lease, monkeypatch):
    monkeypatch.setattr(lease_module, "SILENCE_SECONDS", 0.0)
    assert lease.claim("a")
    assert lease.claim("b")
    make_silent(tmp_path, lease)
    with WorkerLease(tmp_path, "inline") as successor:
        assert successor.claim("a")
        assert not lease.fenced
        assert not lease.holds("a")
        assert lease.fenced
        assert not lease.holds("b")  # still its lock, but the successor's to take
        for cell in "ab":
            lease.release(cell)
        assert lock(tmp_path, "a") == successor.name
        assert successor.claim("b")


def test_the_heartbeat_notices_a_takeover(tmp_path):
    with WorkerLease(tmp_path, "inline", stale_seconds=FAST_HEARTBEAT) as one:
        (tmp_path / ".pml" / "dead" / one.name).symlink_to("successor")
        assert wait_until(lambda: one.fenced, SOON)


def test_a_cancellation_is_noticed_by_the_heartbeat(tmp_path):
    with (
        WorkerLease(tmp_path, "inline", stale_seconds=FAST_HEARTBEAT) as one,
        WorkerLease(tmp_path, "inline", stale_seconds=FAST_HEARTBEAT) as other,
    ):
        (tmp_path / ".pml" / "cancel" / one.name).touch()
        assert wait_until(lambda: one.cancelled, SOON)
        assert not other.cancelled


def test_the_record_names_process_machine_and_activity(tmp_path):
    with WorkerLease(tmp_path, "local", stale_seconds=FAST_HEARTBEAT) as one:
        path = tmp_path / ".pml" / "workers" / f"{one.name}.json"
        first = json.loads(path.read_text())
        assert (first["state"], first["kind"], first["pid"]) == ("running", "local", os.getpid())
        assert first["host"] == socket.gethostname()
        one.activity = {"step": 7}
        assert wait_until(lambda: json.loads(path.read_text())["doing"] == {"step": 7}, SOON)
    assert json.loads(path.read_text())["state"] == "ended"


def test_a_record_that_cannot_be_read_just_now_is_no_death(tmp_path, lease, monkeypatch):
    """NFS says ESTALE of a file that is replaced while it is read, as every heartbeat does."""
    plant(tmp_path, "a", place="elsewhere")
    read_regular, faults = liveness.read_regular, [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]

    def read(path):
        if faults:
            raise faults.pop()
        return read_regular(path)

    monkeypatch.setattr(liveness, "read_regular", read)
    assert not lease.claim("a")
    assert not faults


def test_a_fenced_process_claims_nothing_and_two_that_fenced_each_other_are_no_endless_circle(
    tmp_path, lease
):
    """A wakes up after B took it for dead; B is dead by then."""
    (tmp_path / ".pml" / "dead" / lease.name).symlink_to("b")
    assert not lease.claim("cell")
    (tmp_path / ".pml" / "dead" / "b").symlink_to(lease.name)
    with WorkerLease(tmp_path, "inline") as other:
        (tmp_path / ".pml" / "locks" / "cell").symlink_to("b")
        assert other.claim("cell") in (True, False)  # it comes back


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_ring_of_dead_processes_is_named_and_not_walked_for_ever(tmp_path, lease, length):
    for number in range(length):
        mark = tmp_path / ".pml" / "dead" / f"p{number}"
        mark.symlink_to(f"p{(number + 1) % length}")
    (tmp_path / ".pml" / "locks" / "cell").symlink_to("p0")
    with pytest.raises(UserError, match="form a cycle"):
        lease.claim("cell")


def test_a_process_interrupted_while_it_joins_does_not_seem_to_run_on(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerLease, "check_cancelled", interrupted)
    with pytest.raises(KeyboardInterrupt), WorkerLease(tmp_path, "driver"):
        raise AssertionError("it has joined")
    (path,) = (tmp_path / ".pml" / "workers").glob("*.json")
    assert json.loads(path.read_text())["state"] == "ended"

"""Claims among real processes that race, freeze and are killed; only a process of another machine is planted as a record."""

import errno
import json
import multiprocessing
import os
import signal
import socket
import time

import psutil
import pytest

from pml_cli.launch import lease
from pml_cli.launch.lease import WorkerLease, identity

SPAWN = multiprocessing.get_context("spawn")
CELLS = [f"cell{i}" for i in range(200)]
BEATING = 0.8  # stale seconds for which the sign of life comes ten times a second
SOON = 3.0  # seconds: many such beats, and less than one of a process with the usual stale seconds


def racer(out, cells, together, won):
    """Claim all at the same moment as others; stay until they are through, since what the dead hold is free again."""
    with WorkerLease(out, "inline") as member:
        together.wait()
        won.put([cell for cell in cells if member.claim(cell)])
        together.wait()


def holder(out, cells, ready):
    """Claim the cells and stay."""
    with WorkerLease(out, "inline") as member:
        ready.put((member.name, [cell for cell in cells if member.claim(cell)]))
        time.sleep(600)


def started(out, *cells):
    """A process that holds the cells; returns it and its name."""
    ready = SPAWN.Queue()
    process = SPAWN.Process(target=holder, args=(out, cells, ready), daemon=True)
    process.start()
    name, got = ready.get(timeout=60)
    assert got == list(cells)
    return process, name


def killed(process):
    process.kill()
    process.join()


def raced(out, cells, count=3):
    """What each of several processes won."""
    together, won = SPAWN.Barrier(count), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=racer, args=(out, cells, together, won), daemon=True)
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    found = [won.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return found


def plant(out, *cells, age=0.0, **changes):
    """A process with lease, as it would look from here: by its record, its locks and the time of its last sign of life."""
    name = f"planted-{len(list((out / '.pml' / 'workers').glob('*.json')))}"
    record = (
        identity()
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


def noted(out):
    journals = [path.read_text() for path in (out / ".pml" / "journal").iterdir()]
    return [json.loads(line) for journal in journals for line in journal.splitlines()]


def wait_until(true, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


@pytest.fixture
def member(tmp_path):
    with WorkerLease(tmp_path, "inline") as one:
        yield one


@pytest.fixture
def slurm_job(monkeypatch):
    """slurm_job(restart): this process is such a start of job 77."""

    def become(restart):
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        identity.cache_clear()

    yield become
    identity.cache_clear()


# -- claims


def test_of_many_processes_one_wins_each_cell(tmp_path):
    found = raced(tmp_path, CELLS)
    assert sorted(cell for cells in found for cell in cells) == sorted(CELLS)


def test_a_claim_is_kept_until_it_is_released(tmp_path, member):
    with WorkerLease(tmp_path, "inline") as other:
        assert member.claim("a")
        assert member.claim("a")
        assert member.holds("a")
        assert not other.claim("a")
        assert not other.holds("a")
        member.release("a")
        assert not member.holds("a")
        assert other.claim("a")


def test_release_never_takes_anothers_lock(tmp_path, member):
    with WorkerLease(tmp_path, "inline") as other:
        assert other.claim("a")
        member.release("a")
        assert lock(tmp_path, "a") == other.name
        assert other.holds("a")


def test_what_an_ended_member_left_is_free_at_once(tmp_path, member):
    with WorkerLease(tmp_path, "inline") as other:
        assert other.claim("a")
    assert (
        json.loads((tmp_path / ".pml" / "workers" / f"{other.name}.json").read_text())["state"]
        == "ended"
    )
    assert member.claim("a")


# -- the dead


def test_of_several_heirs_one_inherits_and_each_cell_is_won_once(tmp_path):
    victim, name = started(tmp_path, *CELLS)
    killed(victim)
    found = raced(tmp_path, CELLS)
    assert sorted(cell for cells in found for cell in cells) == sorted(CELLS)
    assert [(note["event"], note["dead"]) for note in noted(tmp_path)] == [("inherit", name)]


def test_heirs_that_race_for_many_dead_share_them_out(tmp_path, member):
    """A process for each cell, so that the race for an inheritance is run a hundred times."""
    dead = [plant(tmp_path, cell, place="elsewhere", age=member.stale + 5) for cell in CELLS[:100]]
    found = raced(tmp_path, CELLS[:100])
    assert sorted(cell for cells in found for cell in cells) == sorted(CELLS[:100])
    assert sorted(note["dead"] for note in noted(tmp_path)) == sorted(dead)


def test_a_chain_of_deaths(tmp_path, member):
    """A dies, its heir B dies; what A still held is inherited through B."""
    first, one = started(tmp_path, "a", "b")
    killed(first)
    second, two = started(tmp_path, "a")
    assert [lock(tmp_path, cell) for cell in "ab"] == [two, one]
    with WorkerLease(tmp_path, "inline") as other:
        assert not other.claim("b")  # the heir lives
    killed(second)
    assert member.claim("b")
    assert member.claim("a")
    with WorkerLease(tmp_path, "inline") as other:
        assert not other.claim("a")
        assert not other.claim("b")


def test_a_killed_child_that_nobody_has_reaped_is_dead(tmp_path, member):
    victim, _ = started(tmp_path, "a")
    victim.kill()
    assert wait_until(lambda: psutil.Process(victim.pid).status() == psutil.STATUS_ZOMBIE)
    assert member.claim("a")
    victim.join()


def test_a_reused_process_number_is_dead(tmp_path, member):
    plant(tmp_path, "mine", created=identity()["created"])
    plant(tmp_path, "reused", created=identity()["created"] - 100)
    assert not member.claim("mine")
    assert member.claim("reused")


def test_a_lock_without_a_record_is_free(tmp_path, member):
    (tmp_path / ".pml" / "locks" / "a").symlink_to("nobody")
    assert member.claim("a")


# -- the living


def test_a_living_process_of_this_machine_keeps_its_claims_without_a_sign_of_life(tmp_path, member):
    """Stopped for an hour, as by Ctrl-Z."""
    sleeper, name = started(tmp_path, "a")
    os.kill(sleeper.pid, signal.SIGSTOP)
    old = time.time() - 3600
    os.utime(tmp_path / ".pml" / "workers" / f"{name}.json", (old, old))
    assert not member.claim("a")
    killed(sleeper)
    claimed = wait_until(lambda: member.claim("a"))  # a judgement is kept for two seconds
    assert claimed


@pytest.mark.parametrize("wrong", [0, 3600, -3600])
def test_another_machines_process_is_dead_once_it_is_silent_for_too_long(
    tmp_path, member, monkeypatch, wrong
):
    """By the file server's clock: this machine's own may be an hour wrong."""
    plant(tmp_path, "silent", place="elsewhere", age=member.stale + 5)
    plant(tmp_path, "lives", place="elsewhere", age=member.stale - 15)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    assert not member.claim("lives")
    assert member.claim("silent")


def test_an_earlier_start_of_the_same_slurm_job_is_dead_at_once(tmp_path, slurm_job):
    slurm_job(restart=2)
    with WorkerLease(tmp_path, "slurm") as member:
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
        assert [member.claim(cell) for cell in ("earlier", "same", "later", "other")] == [
            True,
            False,
            False,
            False,
        ]


# -- taken for dead, asked to end


def taken_for_dead(out, one):
    """Make a member look like another machine's that has been silent for long."""
    path = out / ".pml" / "workers" / f"{one.name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"place": "elsewhere"}))
    old = path.stat().st_mtime - one.stale - 5
    os.utime(path, (old, old))


def test_who_was_taken_for_dead_holds_nothing_and_frees_nothing(tmp_path, member):
    assert member.claim("a")
    assert member.claim("b")
    taken_for_dead(tmp_path, member)
    with WorkerLease(tmp_path, "inline") as heir:
        assert heir.claim("a")
        assert not member.buried
        assert not member.holds("a")
        assert member.buried
        assert not member.holds("b")  # still its lock, but the heir's to take
        for cell in "ab":
            member.release(cell)
        assert lock(tmp_path, "a") == heir.name
        assert heir.claim("b")


def test_the_beat_notices_a_burial(tmp_path):
    with WorkerLease(tmp_path, "inline", stale=BEATING) as one:
        (tmp_path / ".pml" / "dead" / one.name).symlink_to("heir")
        assert wait_until(lambda: one.buried, SOON)


def test_a_wish_to_end_is_seen_within_the_beat(tmp_path):
    with (
        WorkerLease(tmp_path, "inline", stale=BEATING) as one,
        WorkerLease(tmp_path, "inline", stale=BEATING) as other,
    ):
        (tmp_path / ".pml" / "cancel" / one.name).touch()
        assert wait_until(lambda: one.cancelled, SOON)
        assert not other.cancelled


def test_the_record_shows_who_where_and_what(tmp_path):
    with WorkerLease(tmp_path, "local", stale=BEATING) as one:
        path = tmp_path / ".pml" / "workers" / f"{one.name}.json"
        first = json.loads(path.read_text())
        assert (first["state"], first["kind"], first["pid"]) == ("running", "local", os.getpid())
        assert first["host"] == socket.gethostname()
        one.doing = {"step": 7}
        assert wait_until(lambda: json.loads(path.read_text())["doing"] == {"step": 7}, SOON)
    assert json.loads(path.read_text())["state"] == "ended"


def test_a_record_that_cannot_be_read_just_now_is_no_death(tmp_path, member, monkeypatch):
    """ESTALE is what NFS says of a file that is replaced while it is being read: every beat is a chance for it."""
    plant(tmp_path, "a", place="elsewhere")
    loads, faults = json.loads, [OSError(errno.ESTALE, os.strerror(errno.ESTALE))]

    def read(text):
        if faults:
            raise faults.pop()
        return loads(text)

    monkeypatch.setattr(lease.json, "loads", read)
    assert not member.claim("a")
    assert not faults


def test_who_was_buried_claims_nothing_more_and_two_who_buried_each_other_end_no_one_in_a_circle(
    tmp_path, member
):
    """A wakes up after B took it for dead; B is dead by then."""
    (tmp_path / ".pml" / "dead" / member.name).symlink_to("b")
    assert not member.claim("cell")
    (tmp_path / ".pml" / "dead" / "b").symlink_to(member.name)
    with WorkerLease(tmp_path, "inline") as other:
        (tmp_path / ".pml" / "locks" / "cell").symlink_to("b")
        assert other.claim("cell") in (True, False)  # it comes back


def test_a_process_interrupted_while_it_joins_does_not_seem_to_run_on(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(WorkerLease, "is_cancelled", interrupted)
    with pytest.raises(KeyboardInterrupt), WorkerLease(tmp_path, "driver"):
        raise AssertionError("it has joined")
    (path,) = (tmp_path / ".pml" / "workers").glob("*.json")
    assert json.loads(path.read_text())["state"] == "ended"

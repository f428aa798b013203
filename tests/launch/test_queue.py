"""The queue and the loop over it.

Packs stay whole, nothing is trained twice, and what a dead process leaves is taken over.
"""

import itertools
import json
import multiprocessing
import os
import threading
import time

import pytest

from pml_cli.config.schema import LinearAdapter, Model, Run
from pml_cli.launch import queue as queue_module
from pml_cli.launch.cost_model import peak_memory
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.launch.queue import PackQueue, run_until_empty
from pml_cli.launch.signals import Stopped
from pml_cli.results.folder import RunFolder
from pml_cli.results.run_folders import run_key

SPAWN = multiprocessing.get_context("spawn")
CPU = Model(device="cpu")


def run(rank=4, seqlen=32, **more):
    return Run(rank=rank, seqlen=seqlen, **({"model": CPU} | more))


def grid(ranks=(1, 2, 4, 8), lengths=(16, 24, 32), **more):
    return [run(rank, seqlen, **more) for rank, seqlen in itertools.product(ranks, lengths)]


def ids(cells):
    return [cell.id for cell in cells]


def as_sets(packs):
    return {frozenset(ids(pack.cells)) for pack in packs}


def finish(out, cells):
    for cell in cells:
        RunFolder(out, cell.id).finish({})


def locks(out):
    return sorted(path.name for path in (out / ".pml" / "locks").iterdir())


def keys(names):
    """The names of the locks of some cells."""
    return sorted(run_key(name) for name in names)


class FunctionTrainer:
    """Trains by a function."""

    loaded_model = ""

    def __init__(self, train, should_stop=lambda: False):
        self.train = train
        self.should_stop = should_stop

    @property
    def stop_requested(self):
        return self.should_stop()


class WaitRecorder(RunObserver):
    """Records the cells of other processes that are waited for."""

    def __init__(self):
        self.cells = []

    def waiting(self, cells):
        self.cells.append(ids(cells))


def run_loop(queue, train, wait=True, should_stop=lambda: False, observer=None):
    trainer = FunctionTrainer(train, should_stop)
    run_until_empty(queue, trainer, observer or RunObserver(), wait=wait)


@pytest.fixture
def packs():
    """Three packs: 4, 5 and 3 cells."""
    return make_packs(check(grid()), Packing(pack_tokens=128))


@pytest.fixture
def lease(tmp_path):
    with WorkerLease(tmp_path, "inline") as lease:
        yield lease


@pytest.fixture
def other(tmp_path):
    with WorkerLease(tmp_path, "inline") as lease:
        yield lease


@pytest.fixture
def short_pauses(monkeypatch):
    """Look at other processes more often than usual."""
    monkeypatch.setattr(queue_module, "WAIT_SECONDS", 0.02)
    monkeypatch.setattr("pml_cli.launch.lease.VERDICT_SECONDS", 0.02)


# -- the queue


def drained(queue, loaded=""):
    """The packs that a queue hands out, each trained at once."""
    while cells := queue.next_pack(loaded):
        yield cells
        finish(queue.out, cells)


def test_packs_are_handed_out_whole_and_once(tmp_path, packs, lease):
    handed_out = [ids(cells) for cells in drained(PackQueue(tmp_path, packs, lease))]
    assert handed_out == [ids(pack.cells) for pack in packs]
    assert locks(tmp_path) == keys(cell.id for pack in packs for cell in pack.cells)


def test_what_is_claimed_is_not_handed_out_to_another(tmp_path, packs, lease, other):
    ours, theirs = PackQueue(tmp_path, packs, lease), PackQueue(tmp_path, packs[:2], other)
    assert ids(ours.next_pack()) == ids(packs[0].cells)
    assert ids(theirs.next_pack()) == ids(packs[1].cells)
    finish(tmp_path, packs[0].cells)
    assert ids(ours.next_pack()) == ids(packs[2].cells)
    finish(tmp_path, packs[1].cells)
    finish(tmp_path, packs[2].cells)
    assert ours.next_pack() == theirs.next_pack() == ours.unfinished() == []


def test_packs_of_the_loaded_model_come_first(tmp_path, lease):
    models = [Model(name=name, layer=layer, device="cpu") for name, layer in (("a", 1), ("b", 2))]
    packs = make_packs(
        check([r for model in models for r in grid(model=model)]), Packing(pack_tokens=128)
    )
    assert [pack.cells[0].run.model.name for pack in packs] == ["a"] * 3 + ["b"] * 3
    queue = PackQueue(tmp_path, packs, lease)
    assert [cells[0].run.model.name for cells in drained(queue, repr(models[1]))] == ["b"] * 3 + [
        "a"
    ] * 3


def test_ended_cells_are_skipped_done_or_failed(tmp_path, packs, lease):
    first, second, *_ = (pack.cells for pack in packs)
    finish(tmp_path, first)
    RunFolder(tmp_path, second[0].id).fail("as planned")
    queue = PackQueue(tmp_path, packs, lease)
    assert ids(queue.next_pack()) == ids(second[1:])
    assert run_key(second[0].id) not in locks(tmp_path)
    assert not set(ids(queue.unfinished())) & {*ids(first), second[0].id}


def test_a_result_that_came_between_the_look_and_the_claim_counts(tmp_path, packs, lease, other):
    """Another process finishes a cell and lets go of it just after it was seen to be missing."""
    queue, cells = PackQueue(tmp_path, packs[:1], lease), packs[0].cells
    claim = lease.claim

    def claim_late(cell):
        if cell == cells[0].id:
            finish(tmp_path, cells[:1])
        return claim(cell)

    lease.claim = claim_late
    assert ids(queue.next_pack()) == ids(cells[1:])
    assert locks(tmp_path) == keys(ids(cells[1:]))


def test_a_run_that_another_process_called_otherwise_is_not_made_twice(
    tmp_path, packs, lease, other
):
    """It is requested while the other one, under another model.name, is at it."""
    cells = packs[0].cells
    others = [f"other-{run_key(cell.id)}" for cell in cells]
    queue = PackQueue(tmp_path, packs[:1], lease)
    assert all(other.claim(name) for name in others)
    assert queue.next_pack() == []

    RunFolder(tmp_path, others[0]).finish({})
    RunFolder(tmp_path, others[1]).path.mkdir()
    for name in others:
        other.release(name)
    # What it has finished counts, and what it began goes on in the folder that is there.
    assert ids(queue.next_pack()) == [others[1], *ids(cells[2:])]


def test_leftovers_of_a_pack_that_another_grid_took_in_part(tmp_path, packs, lease, other):
    cells = packs[0].cells
    assert other.claim(cells[0].id)
    queue = PackQueue(tmp_path, packs[:1], lease)
    assert queue.next_pack() == []
    assert ids(queue.next_remainder()) == ids(cells[1:])
    assert queue.next_pack() == []


def test_a_cell_of_another_grid_within_a_pack_does_not_hold_up_the_rest(
    tmp_path, packs, lease, other
):
    cells = packs[0].cells
    assert other.claim(cells[2].id)
    assert ids(PackQueue(tmp_path, packs[:1], lease).next_pack()) == ids([*cells[:2], *cells[3:]])


# -- the loop


def test_claimed_cells_are_told_before_they_are_trained(tmp_path, packs, lease):
    """The driver counts packs that nobody has claimed; a model may load for minutes."""

    def train(cells):
        assert lease.activity["names"] == ids(cells)
        finish(tmp_path, cells)

    run_loop(PackQueue(tmp_path, packs, lease), train)
    assert lease.activity == {}


def test_the_loop_trains_each_pack_once_and_frees_it(tmp_path, packs, lease):
    trained = []

    def train(cells):
        assert locks(tmp_path) == keys(ids(cells))
        trained.append(ids(cells))
        finish(tmp_path, cells)

    run_loop(PackQueue(tmp_path, packs, lease), train)
    assert trained == [ids(pack.cells) for pack in packs]
    assert locks(tmp_path) == []


def test_without_waiting_it_leaves_others_cells_alone(tmp_path, packs, lease, other, short_pauses):
    theirs = PackQueue(tmp_path, packs, other).next_pack()
    trained = []
    recorder = WaitRecorder()

    def train(cells):
        trained.extend(ids(cells))
        finish(tmp_path, cells)

    queue = PackQueue(tmp_path, packs, lease)
    run_loop(queue, train, wait=False, observer=recorder)
    assert not set(trained) & set(ids(theirs))
    assert recorder.cells[-1] == ids(queue.unfinished()) == ids(theirs)
    assert locks(tmp_path) == keys(ids(theirs))


def test_without_waiting_it_stays_for_what_a_dead_process_of_another_machine_holds(
    tmp_path, packs, lease, short_pauses, monkeypatch
):
    """Its silence is watched first; workers that leave meanwhile would be started for ever."""
    monkeypatch.setattr("pml_cli.launch.lease.SILENCE_SECONDS", 0.5)
    with WorkerLease(tmp_path, "slurm") as dead:
        theirs = PackQueue(tmp_path, packs, dead).next_pack()
    path = tmp_path / ".pml" / "workers" / f"{dead.name}.json"
    record = json.loads(path.read_text()) | {"place": "elsewhere", "state": "running"}
    path.write_text(json.dumps(record))
    old = time.time() - 10 * dead.stale_seconds
    os.utime(path, (old, old))

    trained = []

    def train(cells):
        trained.extend(ids(cells))
        finish(tmp_path, cells)

    run_loop(PackQueue(tmp_path, packs, lease), train, wait=False)
    assert set(ids(theirs)) <= set(trained)


def test_the_loop_also_trains_what_another_grid_has_left_of_a_pack(
    tmp_path, packs, lease, other, short_pauses
):
    cells, trained = packs[0].cells, []
    assert other.claim(cells[0].id)

    def train(cells):
        trained.append(ids(cells))
        finish(tmp_path, cells)

    run_loop(PackQueue(tmp_path, packs, lease), train, wait=False)
    assert trained == [*(ids(pack.cells) for pack in packs[1:]), ids(cells[1:])]


def test_waiting_it_stays_until_others_have_ended_theirs_and_takes_what_they_give_up(
    tmp_path, packs, lease, other, short_pauses
):
    theirs, trained = PackQueue(tmp_path, packs, other).next_pack(), []

    def train(cells):
        trained.extend(ids(cells))
        finish(tmp_path, cells)

    def others_end():
        time.sleep(0.3)
        assert trained
        finish(tmp_path, theirs[1:])
        for cell in theirs:  # the first one without a result
            other.release(cell.id)

    ending = threading.Thread(target=others_end)
    ending.start()
    run_loop(PackQueue(tmp_path, packs, lease), train)
    ending.join()
    everything = [cell.id for pack in packs for cell in pack.cells]
    assert sorted(trained) == sorted(set(everything) - set(ids(theirs[1:])))
    assert all(RunFolder(tmp_path, name).is_done() for name in everything)


def dies_training(out, packs, ready):
    with WorkerLease(out, "inline") as lease:

        def train(cells):
            finish(out, cells[:1])
            ready.put(ids(cells))
            time.sleep(600)

        run_loop(PackQueue(out, packs, lease), train)


def test_what_a_killed_process_left_is_taken_over(tmp_path, packs, lease, short_pauses):
    ready = SPAWN.Queue()
    victim = SPAWN.Process(target=dies_training, args=(tmp_path, packs, ready), daemon=True)
    victim.start()
    theirs, trained = ready.get(timeout=60), []

    def train(cells):
        trained.append(ids(cells))
        finish(tmp_path, cells)
        if victim.is_alive() and len(trained) == len(packs) - 1:
            victim.kill()

    run_loop(PackQueue(tmp_path, packs, lease), train)
    victim.join()
    assert theirs == ids(packs[0].cells)
    assert trained == [*(ids(pack.cells) for pack in packs[1:]), theirs[1:]]
    assert not set(locks(tmp_path)) & set(keys(theirs[1:]))


def shares_the_work(out, runs, together, done):
    packs, trained = make_packs(check(runs), Packing(pack_tokens=128)), []
    with WorkerLease(out, "inline") as lease:

        def train(cells):
            trained.append(ids(cells))
            time.sleep(0.01)
            finish(out, cells)

        together.wait()
        run_loop(PackQueue(out, packs, lease), train)
    done.put(trained)


def test_processes_with_the_same_grid_never_split_a_pack(tmp_path):
    """Asked for in different orders."""
    runs = grid(ranks=range(1, 17))
    together, done = SPAWN.Barrier(3), SPAWN.Queue()
    for order in (runs, runs[::-1], runs[7:] + runs[:7]):
        SPAWN.Process(
            target=shares_the_work, args=(tmp_path, order, together, done), daemon=True
        ).start()
    by_process = [done.get(timeout=60) for _ in range(3)]
    packs = make_packs(check(runs), Packing(pack_tokens=128))
    assert sorted(sorted(cells) for trained in by_process for cells in trained) == sorted(
        sorted(ids(p.cells)) for p in packs
    )
    assert all(by_process)  # each trained some
    assert locks(tmp_path) == []


def test_it_ends_between_packs_when_a_stop_is_requested(tmp_path, packs, lease):
    trained = []

    def train(cells):
        trained.append(ids(cells))
        finish(tmp_path, cells)

    run_loop(PackQueue(tmp_path, packs, lease), train, should_stop=lambda: len(trained) == 2)
    assert trained == [ids(pack.cells) for pack in packs[:2]]
    assert locks(tmp_path) == []


def test_a_cancelled_process_ends_and_frees_what_it_had_claimed(tmp_path, packs):
    with WorkerLease(tmp_path, "inline", stale_seconds=0.8) as lease:
        trained = []

        def train(cells):
            trained.append(ids(cells))
            finish(tmp_path, cells)
            (tmp_path / ".pml" / "cancel" / lease.name).touch()
            deadline = time.monotonic() + 10
            while not lease.cancelled and time.monotonic() < deadline:
                time.sleep(0.02)

        with pytest.raises(Stopped, match="cancelled"):
            run_loop(PackQueue(tmp_path, packs, lease), train)
        assert trained == [ids(packs[0].cells)]
        assert locks(tmp_path) == []


@pytest.mark.parametrize(
    "fault", [Stopped("SIGTERM", 15), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_whatever_ends_the_training_frees_the_pack(tmp_path, packs, lease, fault):
    lease.activity = {"step": 3}

    def train(cells):
        raise fault

    with pytest.raises(type(fault)):
        run_loop(PackQueue(tmp_path, packs, lease), train)
    assert locks(tmp_path) == []
    assert lease.activity == {}


# -- packs for devices


def each_cell_once(packs, cells):
    return sorted(cell.id for pack in packs for cell in pack.cells) == sorted(ids(cells))


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_packs_are_cut_so_that_no_device_has_more_than_its_share(devices):
    cells = check(grid(ranks=range(1, 33), lengths=(30, 32)))
    assert len(make_packs(cells)) == 1
    packs = make_packs(cells, Packing(devices=devices))
    assert each_cell_once(packs, cells)
    assert len(packs) >= devices
    assert max(pack.tokens for pack in packs) * devices <= sum(pack.tokens for pack in packs)


def test_packs_are_cut_to_fit_a_devices_memory_down_to_one_cell():
    cells = check(grid(ranks=(1, 4, 64), lengths=(64, 100)))
    (largest,) = make_packs(cells)
    previous = 1
    for share in (1, 0.9, 0.8, 0.7, 0.0):
        allowed = int(peak_memory(largest) * share)
        packs = make_packs(cells, Packing(memory=allowed))
        assert each_cell_once(packs, cells)
        assert all(peak_memory(pack) <= allowed or len(pack.cells) == 1 for pack in packs)
        assert len(packs) >= previous
        previous = len(packs)
    assert previous == len(cells)


def test_packs_do_not_depend_on_the_order_of_the_runs():
    """One pack of one cell and one of two, the same number of tokens."""
    runs = [run(1, 64), run(4, 32, adapter=LinearAdapter()), run(1, 32, adapter=LinearAdapter())]
    packing = Packing(pack_tokens=64, devices=4)
    assert as_sets(make_packs(check(runs), packing)) == as_sets(
        make_packs(check(runs[::-1]), packing)
    )

"""The queue and the loop over it: packs stay whole, nothing is trained twice, what the dead leave is taken over."""

import itertools
import multiprocessing
import pickle
import threading
import time

import pytest

from pml_cli.config.schema import LinearAdapter, Model, Run, Train
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.errors import UserError
from pml_cli.launch import queue as module
from pml_cli.launch.cost_model import peak_memory
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.launch.queue import Queue, SweepManifest, work
from pml_cli.launch.signals import Stopped
from pml_cli.runs.folder import RunFolder

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


def loop(queue, train, wait=True, ended=lambda: False, **more):
    work(queue, train, lambda: "", wait=wait, ended=ended, **more)


@pytest.fixture
def packs():
    """Three packs: 4, 5 and 3 cells."""
    return make_packs(check(grid()), Packing(pack_tokens=128))


@pytest.fixture
def member(tmp_path):
    with WorkerLease(tmp_path, "inline") as one:
        yield one


@pytest.fixture
def other(tmp_path):
    with WorkerLease(tmp_path, "inline") as one:
        yield one


@pytest.fixture
def hasty(monkeypatch):
    """Look at other processes more often than a user's would."""
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.02)
    monkeypatch.setattr("pml_cli.launch.lease.LOOK_SECONDS", 0.02)


# -- the queue


def drained(queue, loaded=""):
    """What a queue hands out, pack by pack, each trained at once."""
    while cells := queue.next(loaded):
        yield cells
        finish(queue.out, cells)


def test_packs_are_handed_out_whole_and_once(tmp_path, packs, member):
    found = [ids(cells) for cells in drained(Queue(tmp_path, packs, member))]
    assert found == [ids(pack.cells) for pack in packs]
    assert locks(tmp_path) == sorted(cell.id for pack in packs for cell in pack.cells)


def test_what_is_claimed_is_not_handed_out_to_another(tmp_path, packs, member, other):
    ours, theirs = Queue(tmp_path, packs, member), Queue(tmp_path, packs[:2], other)
    assert ids(ours.next()) == ids(packs[0].cells)
    assert ids(theirs.next()) == ids(packs[1].cells)
    finish(tmp_path, packs[0].cells)
    assert ids(ours.next()) == ids(packs[2].cells)
    finish(tmp_path, packs[1].cells)
    finish(tmp_path, packs[2].cells)
    assert ours.next() == theirs.next() == ours.left() == []


def test_packs_of_the_loaded_model_come_first(tmp_path, member):
    models = [Model(name=name, device="cpu") for name in ("a", "b")]
    packs = make_packs(
        check([r for model in models for r in grid(model=model)]), Packing(pack_tokens=128)
    )
    assert [pack.cells[0].run.model.name for pack in packs] == ["a"] * 3 + ["b"] * 3
    queue = Queue(tmp_path, packs, member)
    assert [cells[0].run.model.name for cells in drained(queue, repr(models[1]))] == ["b"] * 3 + [
        "a"
    ] * 3


def test_ended_cells_are_skipped_done_or_failed(tmp_path, packs, member):
    first, second, *_ = (pack.cells for pack in packs)
    finish(tmp_path, first)
    RunFolder(tmp_path, second[0].id).fail("as planned")
    queue = Queue(tmp_path, packs, member)
    assert ids(queue.next()) == ids(second[1:])
    assert second[0].id not in locks(tmp_path)
    assert not set(ids(queue.left())) & {*ids(first), second[0].id}


def test_a_result_that_came_between_the_look_and_the_claim_counts(tmp_path, packs, member, other):
    """Another process finishes a cell and lets go of it just after it was seen to be missing."""
    queue, cells = Queue(tmp_path, packs[:1], member), packs[0].cells
    claim = member.claim

    def claim_late(cell):
        if cell == cells[0].id:
            finish(tmp_path, cells[:1])
        return claim(cell)

    member.claim = claim_late
    assert ids(queue.next()) == ids(cells[1:])
    assert locks(tmp_path) == sorted(ids(cells[1:]))


def test_leftovers_of_a_pack_that_another_grid_took_in_part(tmp_path, packs, member, other):
    cells = packs[0].cells
    assert other.claim(cells[0].id)
    queue = Queue(tmp_path, packs[:1], member)
    assert queue.next() == []
    assert ids(queue.patient()) == ids(cells[1:])
    assert queue.next() == []


def test_a_cell_of_another_grid_within_a_pack_does_not_hold_up_the_rest(
    tmp_path, packs, member, other
):
    cells = packs[0].cells
    assert other.claim(cells[2].id)
    assert ids(Queue(tmp_path, packs[:1], member).next()) == ids([*cells[:2], *cells[3:]])


# -- the loop


def test_the_loop_trains_each_pack_once_and_frees_it(tmp_path, packs, member):
    trained = []

    def train(cells):
        assert locks(tmp_path) == sorted(ids(cells))
        trained.append(ids(cells))
        finish(tmp_path, cells)

    loop(Queue(tmp_path, packs, member), train)
    assert trained == [ids(pack.cells) for pack in packs]
    assert locks(tmp_path) == []


def test_without_waiting_it_leaves_others_cells_alone(tmp_path, packs, member, other, hasty):
    theirs, trained, told = Queue(tmp_path, packs, other).next(), [], []

    def train(cells):
        trained.extend(ids(cells))
        finish(tmp_path, cells)

    queue = Queue(tmp_path, packs, member)
    loop(queue, train, wait=False, waiting=lambda cells: told.append(ids(cells)))
    assert not set(trained) & set(ids(theirs))
    assert told[-1] == ids(queue.left()) == ids(theirs)
    assert locks(tmp_path) == sorted(ids(theirs))


def test_the_loop_also_trains_what_another_grid_has_left_of_a_pack(
    tmp_path, packs, member, other, hasty
):
    cells, trained = packs[0].cells, []
    assert other.claim(cells[0].id)

    def train(cells):
        trained.append(ids(cells))
        finish(tmp_path, cells)

    loop(Queue(tmp_path, packs, member), train, wait=False)
    assert trained == [*(ids(pack.cells) for pack in packs[1:]), ids(cells[1:])]


def test_waiting_it_stays_until_others_have_ended_theirs_and_takes_what_they_give_up(
    tmp_path, packs, member, other, hasty
):
    theirs, trained = Queue(tmp_path, packs, other).next(), []

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
    loop(Queue(tmp_path, packs, member), train)
    ending.join()
    everything = [cell.id for pack in packs for cell in pack.cells]
    assert sorted(trained) == sorted(set(everything) - set(ids(theirs[1:])))
    assert all(RunFolder(tmp_path, name).is_done() for name in everything)


def dies_training(out, packs, ready):
    with WorkerLease(out, "inline") as member:

        def train(cells):
            finish(out, cells[:1])
            ready.put(ids(cells))
            time.sleep(600)

        loop(Queue(out, packs, member), train)


def test_what_a_killed_process_left_is_taken_over(tmp_path, packs, member, hasty):
    ready = SPAWN.Queue()
    victim = SPAWN.Process(target=dies_training, args=(tmp_path, packs, ready), daemon=True)
    victim.start()
    theirs, trained = ready.get(timeout=60), []

    def train(cells):
        trained.append(ids(cells))
        finish(tmp_path, cells)
        if victim.is_alive() and len(trained) == len(packs) - 1:
            victim.kill()

    loop(Queue(tmp_path, packs, member), train)
    victim.join()
    assert theirs == ids(packs[0].cells)
    assert trained == [*(ids(pack.cells) for pack in packs[1:]), theirs[1:]]
    assert not set(locks(tmp_path)) & set(theirs[1:])


def shares_the_work(out, runs, together, done):
    packs, trained = make_packs(check(runs), Packing(pack_tokens=128)), []
    with WorkerLease(out, "inline") as member:

        def train(cells):
            trained.append(ids(cells))
            time.sleep(0.01)
            finish(out, cells)

        together.wait()
        loop(Queue(out, packs, member), train)
    done.put(trained)


def test_processes_with_the_same_grid_never_split_a_pack(tmp_path):
    """Asked for in different orders."""
    runs = grid(ranks=range(1, 17))
    together, done = SPAWN.Barrier(3), SPAWN.Queue()
    for order in (runs, runs[::-1], runs[7:] + runs[:7]):
        SPAWN.Process(
            target=shares_the_work, args=(tmp_path, order, together, done), daemon=True
        ).start()
    found = [done.get(timeout=60) for _ in range(3)]
    packs = make_packs(check(runs), Packing(pack_tokens=128))
    assert sorted(sorted(cells) for trained in found for cells in trained) == sorted(
        sorted(ids(p.cells)) for p in packs
    )
    assert all(found)  # each had a part in it
    assert locks(tmp_path) == []


def test_it_ends_between_packs_when_told(tmp_path, packs, member):
    trained = []

    def train(cells):
        trained.append(ids(cells))
        finish(tmp_path, cells)

    loop(Queue(tmp_path, packs, member), train, ended=lambda: len(trained) == 2)
    assert trained == [ids(pack.cells) for pack in packs[:2]]
    assert locks(tmp_path) == []


def test_a_cancelled_process_ends_and_frees_what_it_had_claimed(tmp_path, packs):
    with WorkerLease(tmp_path, "inline", stale=0.8) as member:
        trained = []

        def train(cells):
            trained.append(ids(cells))
            finish(tmp_path, cells)
            (tmp_path / ".pml" / "cancel" / member.name).touch()
            deadline = time.monotonic() + 10
            while not member.cancelled and time.monotonic() < deadline:
                time.sleep(0.02)

        with pytest.raises(Stopped, match="cancelled"):
            loop(Queue(tmp_path, packs, member), train)
        assert trained == [ids(packs[0].cells)]
        assert locks(tmp_path) == []


@pytest.mark.parametrize(
    "fault", [Stopped("SIGTERM", 15), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_whatever_ends_the_training_frees_the_pack(tmp_path, packs, member, fault):
    member.doing = {"step": 3}

    def train(cells):
        raise fault

    with pytest.raises(type(fault)):
        loop(Queue(tmp_path, packs, member), train)
    assert locks(tmp_path) == []
    assert member.doing == {}


# -- the order on disk


MIXED = [
    *grid(),
    *grid(lengths=(64,), adapter=LinearAdapter()),
    run(seqlen=50, data=PhonebookData(), train=Train(batch=2)),
]
PACKINGS = {
    "as by default": Packing(),
    "a small budget": Packing(pack_tokens=200),
    "devices": Packing(devices=3),
    "memory": Packing(memory=int(peak_memory(make_packs(check(MIXED))[0]) * 0.9)),
    "one at a time": Packing(memory=1),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_an_order_gives_back_the_same_packs(tmp_path, name):
    packs = make_packs(check(MIXED), PACKINGS[name])
    written = SweepManifest.write(tmp_path, packs, PACKINGS[name])
    read = SweepManifest.read(written.path)
    assert read == written
    assert read.cells.keys() == {cell.id for pack in packs for cell in pack.cells}
    again = read.packs()
    assert as_sets(again) == as_sets(packs)
    assert [cell for pack in again for cell in pack.cells] == [
        cell for pack in packs for cell in pack.cells
    ]


def test_a_damaged_order_is_one_line(tmp_path):
    written = SweepManifest.write(tmp_path, make_packs(check(grid())), Packing())
    written.path.write_text(written.path.read_text()[:50])
    with pytest.raises(UserError, match=r"cannot be read .*; delete it and run the sweep again"):
        SweepManifest.read(written.path)


def test_the_same_cells_are_one_order_whatever_the_packing(tmp_path):
    cells = check(grid())
    one = SweepManifest.write(tmp_path, make_packs(cells), Packing())
    two = SweepManifest.write(tmp_path, make_packs(cells, Packing(devices=4)), Packing(devices=4))
    assert one.path == two.path
    assert pickle.loads(two.path.with_suffix(".pkl").read_bytes())[1] == Packing(devices=4)
    other = SweepManifest.write(tmp_path, make_packs(cells[1:]), Packing())
    assert other.path != one.path


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

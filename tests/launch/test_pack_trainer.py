"""From packs to run folders: too little memory, faults of one cell, interruptions by real signals.

The tiny model, few steps.
"""

import contextlib
import errno
import gc
import itertools
import json
import os
import shutil
import signal
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from support.faults import full_disk
from support.marks import slow
from support.workers import (
    BREAK,
    DEFAULTS,
    OUT_OF_MEMORY,
    STEPS,
    Workplace,
    assert_same_runs,
    faulty,
    planned,
    result,
)

from pml_cli.config.schema import MlpBlockAdapter, Model, Run, Train
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.errors import UserError
from pml_cli.launch import pack_trainer
from pml_cli.launch.pack_run import PackRun
from pml_cli.launch.packing import check
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.model import modules
from pml_cli.results.folder import RunFolder
from pml_cli.results.run_folders import run_key
from pml_cli.training.checkpoint import Checkpoints
from pml_cli.training.checkpoint_header import read_header


@pytest.fixture
def workplace(tmp_path, tiny_base):
    """workplace(name): a results folder with a lease, and a trainer that has the base loaded."""
    return lambda name="runs", **more: Workplace(tmp_path / name, tiny_base, **more)


def final_nll(out, cell):
    tokens = pd.read_parquet(RunFolder(out, cell.id).tokens)
    return tokens.loc[tokens["step"] == tokens["step"].max(), "nll"].to_numpy()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_base):
    """The five cells, trained in one go."""
    out = tmp_path_factory.mktemp("undisturbed")
    with Workplace(out, tiny_base) as only:
        only.train(planned())
    return out


def at(step, do):
    """An observer that does something once, at a logged step."""
    return lambda progress: do() if progress.step == step else None


def send(number):
    return lambda: os.kill(os.getpid(), number)


# -- too little memory


@pytest.mark.parametrize(
    "error",
    [OUT_OF_MEMORY[0], *map(slow, OUT_OF_MEMORY[1:])],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_halves_the_pack_and_changes_no_result(
    workplace, undisturbed, monkeypatch, error
):
    cells = planned()
    faulty(monkeypatch, lambda ranks: len(ranks) > 2, error)
    with workplace() as first:
        first.train(cells)
        assert first.reported == {cell.id: None for cell in cells}
        assert [(event["cells"], event["into"]) for event in first.events("split")] == [
            (5, 3),
            (3, 2),
        ]
        assert first.locks() == set()
        assert first.checkpoints() == []
    for cell in cells:
        assert result(first.out, cell)["pack_size"] <= 2
        np.testing.assert_allclose(
            final_nll(first.out, cell), final_nll(undisturbed, cell), atol=1e-3
        )


@pytest.mark.slow
def test_a_single_cell_that_is_too_large_fails_with_its_reason(workplace, monkeypatch):
    cells = planned(ranks=(2, 1))
    faulty(monkeypatch, lambda ranks: 2 in ranks, OUT_OF_MEMORY[0])
    with workplace() as first:
        first.train(cells)
    words = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."
    reason = f"one cell of model=tiny does not fit into memory ({words})"
    assert first.reported == {cells[0].id: reason, cells[1].id: None}
    assert RunFolder(first.out, cells[0].id).failure() == reason


def test_weights_that_find_no_room_are_no_fault_of_the_cells(workplace, monkeypatch):
    """Not loaded again for ever fewer cells; all of them stay for a worker with more room."""
    loads = []

    def load(settings):
        loads.append(settings)
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(pack_trainer, "load_model", load)
    cells = planned()
    with workplace() as first:
        first.trainer.release_base()
        with pytest.raises(UserError, match=r"model=tiny: no room for its weights on cpu .*CUDA"):
            first.train(cells)
        assert first.reported == {}
    assert len(loads) == 1

    with workplace() as second:
        second.train(cells)
    assert second.reported == {cell.id: None for cell in cells}


# -- a fault of one cell


def test_the_cell_that_has_a_fault_fails_alone(workplace, undisturbed, monkeypatch):
    cells = planned()
    faulty(
        monkeypatch, lambda ranks: 3 in ranks, ValueError("rank 3 is not my friend\nsecond line")
    )
    with workplace() as first:
        first.train(cells)
        assert [(event["cells"], event["into"]) for event in first.events("split")] == [(5, 1)]
        assert first.locks() == set()
    bad = next(cell for cell in cells if cell.run.rank == 3)
    folder = RunFolder(first.out, bad.id)
    body = json.loads(folder.error.read_text())
    assert body["reason"] == first.reported[bad.id] == "ValueError: rank 3 is not my friend"
    assert "Traceback" in body["detail"]
    assert "in _update" in body["detail"]
    assert folder.config.exists()
    assert not folder.is_done()
    for cell in (cell for cell in cells if cell is not bad):
        assert first.reported[cell.id] is None
        assert not RunFolder(first.out, cell.id).error.exists()
        np.testing.assert_allclose(
            final_nll(first.out, cell), final_nll(undisturbed, cell), atol=1e-3
        )


def truncated(folder, into):
    shutil.copytree(folder, into)
    weights = into / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return into


@pytest.mark.parametrize("fault", ["its split forward pass differs", "model.path="])
def test_a_model_that_cannot_be_used_fails_its_cells_at_once(
    workplace, model_folder, tmp_path, monkeypatch, fault
):
    """Nothing is split, and what was kept of an earlier training stays: a model may be mended."""
    # Overlooks what Granite multiplies the output of its MLPs by.
    monkeypatch.setattr(modules, "MLP_FACTORS", ())
    folder = (
        truncated(model_folder("llama"), tmp_path / "cut")
        if "path" in fault
        else model_folder("granite")
    )
    model = Model(name="odd", path=str(folder), layer=1, device="cpu")
    cells = check(
        [Run(rank=rank, seqlen=12, model=model, train=Train(**DEFAULTS)) for rank in (2, 1)]
    )
    fine = planned(ranks=(2, 1))
    with workplace() as first:
        first.train(cells)
        assert all(fault in first.reported[cell.id] for cell in cells)
        assert first.events("split") == []
        assert first.locks() == set()
        first.train(fine)
        assert [first.reported[cell.id] for cell in fine] == [None, None]
    for cell in cells:
        folder = RunFolder(first.out, cell.id)
        assert fault in folder.failure()
        assert "\n" not in folder.failure()
        assert folder.config.exists()


def test_a_checkpoint_outlives_a_model_that_does_not_load(workplace, undisturbed, monkeypatch):
    cells = planned()
    with workplace() as first:
        stopped_at(first, cells)
    with workplace() as second, monkeypatch.context() as patched:

        def refuse(_model):
            raise UserError("model.path=x: the disk is away")

        patched.setattr(pack_trainer, "load_model", refuse)
        second.trainer._base = None
        second.train(cells)
        assert set(second.reported.values()) == {"model.path=x: the disk is away"}
        assert len(second.checkpoints()) == 1
    for cell in cells:
        RunFolder(second.out, cell.id).error.unlink()
    with workplace() as last:
        last.train(cells)
        assert [event["step"] for event in last.events("start")] == [BREAK + 1]
    assert_same_runs(last.out, undisturbed, cells)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_no_cells_fault(workplace):
    (cell,) = check([Run(rank=1, seqlen=8, model=Model(device="cuda"), train=Train(**DEFAULTS))])
    with workplace() as first:
        with pytest.raises(UserError, match="no CUDA device here"):
            first.train([cell])
        assert first.reported == {}
    assert not RunFolder(first.out, cell.id).error.exists()


def test_a_loss_that_is_lost_fails_alone_and_leaves_its_mates_their_results(workplace):
    lost, *fine = cells = planned(ranks=(4,), lr=1e30) + planned(ranks=(4, 2))
    with workplace() as first:
        first.train(cells)
        assert first.events("split") == []
    assert "train.lr (now 1e+30)" in first.reported[lost.id]
    assert RunFolder(first.out, lost.id).failure() == first.reported[lost.id]
    assert not RunFolder(first.out, lost.id).adapter.exists()
    assert pd.read_parquet(RunFolder(first.out, lost.id).tokens)["step"].max() < STEPS
    with workplace("alone") as alone:
        alone.train(fine)
    for cell in fine:
        assert result(first.out, cell)["steps_run"] == STEPS
        np.testing.assert_allclose(
            final_nll(first.out, cell), final_nll(alone.out, cell), atol=1e-3
        )


@pytest.mark.parametrize("where", ["a run's folder", "the checkpoints"])
def test_a_folder_that_cannot_be_written_ends_the_work(workplace, where):
    """A full or broken disk is no cell's fault."""
    cells = planned(ranks=(2, 1))
    with workplace(checkpoint_seconds=0.0) as first:
        inside = (
            first.out
            / {"a run's folder": cells[0].id, "the checkpoints": ".pml/checkpoints"}[where]
        )
        inside.write_text("a file in the way")
        with pytest.raises(OSError, match=inside.name):
            first.train(cells)
        assert first.events("split") == []
    assert first.reported == {}
    assert not any(RunFolder(first.out, cell.id).error.exists() for cell in cells)


def test_a_disk_that_fills_up_at_a_checkpoint_leaves_the_one_before_and_it_goes_on_bit_for_bit(
    workplace, undisturbed
):
    cells = planned()
    with contextlib.ExitStack() as full, workplace(checkpoint_seconds=0.0) as first:
        with pytest.raises(OSError, match="File too large"):
            first.train(cells, at(BREAK, lambda: full.enter_context(full_disk(20_000))))
        assert first.events("split") == []
        assert first.reported == {}
        assert len(first.checkpoints()) == 1
        assert len(list(first.checkpoints()[0].parent.iterdir())) == 1  # no half of the next one
    with workplace() as second:
        second.train(cells)
        assert [event["step"] for event in second.events("start")] == [BREAK]
    assert_same_runs(second.out, undisturbed, cells)


def test_a_disk_that_fills_up_at_an_adapter_fails_no_cell_and_keeps_what_was_finished(workplace):
    small, large = cells = planned(ranks=(1,)) + planned(ranks=(64,))
    with workplace() as first:
        with full_disk(40_000), pytest.raises(OSError, match="File too large") as caught:
            first.train(cells)
        # Not the hidden folder in which it is written.
        assert caught.value.filename == str(RunFolder(first.out, large.id).adapter)
        assert first.events("split") == []
        assert first.reported == {small.id: None}
        assert not RunFolder(first.out, large.id).has_ended()
        assert not RunFolder(first.out, large.id).adapter.exists()


@pytest.mark.slow
@pytest.mark.parametrize("written", [1, 2, 4])
def test_stopped_while_its_results_are_written_a_pack_gives_the_same_bits(
    workplace, undisturbed, monkeypatch, written
):
    """control_gain is measured of a batch: also of those that are left it is that of the whole."""
    cells = planned()
    finish = RunFolder.finish
    done = []

    def refuse(folder, result):
        if len(done) == written:
            raise OSError(errno.EIO, "Input/output error", str(folder.result))
        done.append(folder.id)
        finish(folder, result)

    monkeypatch.setattr(RunFolder, "finish", refuse)
    with workplace(checkpoint_seconds=0.0) as first, pytest.raises(OSError, match="Input/output"):
        first.train(cells)
    monkeypatch.undo()
    left = [cell for cell in cells if cell.id not in done]
    with workplace() as second:
        second.train(left, plans={cell.id: cell for cell in cells})
        assert set(second.reported) == {cell.id for cell in left}
    assert_same_runs(second.out, undisturbed, cells)


def test_a_cell_whose_result_is_written_is_reported_before_a_signal_is_obeyed(
    workplace, monkeypatch
):
    finish = RunFolder.finish
    signals = iter([signal.SIGTERM])

    def interrupted(folder, result):
        finish(folder, result)
        for number in signals:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunFolder, "finish", interrupted)
    cells = planned(ranks=(2, 1))
    with workplace() as first:
        with first.trainer.signals, pytest.raises(Stopped):
            first.train(cells)
        # The others had ended as well.
        ids = {cell.id for cell in cells}
        assert {event["cell"] for event in first.events("done")} == ids
        assert set(first.reported) == ids
        assert first.checkpoints() == []


@pytest.mark.parametrize(
    ("error", "is_told"), [(errno.ESTALE, True), (errno.EIO, True), (errno.EACCES, False)]
)
def test_a_checkpoint_that_cannot_be_read_at_the_moment_is_kept(
    workplace, monkeypatch, error, is_told
):
    """A passing fault of the disk is told; another user's checkpoint is let be, and not needed."""
    cells = planned(ranks=(2, 1))
    with workplace() as first:
        stopped_at(first, cells, signal.SIGINT)

    def refuse(path, *_):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr("pml_cli.training.checkpoint.safe_open", refuse)
    with workplace() as second:
        kept = second.checkpoints()
        if is_told:
            with pytest.raises(OSError, match=os.strerror(error)):
                second.train(cells)
            assert second.checkpoints() == kept
        else:
            second.train(cells)
            assert [event["step"] for event in second.events("start")] == [0]
        assert len(kept) == 1
        assert second.events("damaged_checkpoint") == []


def test_a_fault_after_resuming_fewer_cells_removes_the_checkpoint_that_led_to_it(
    workplace, monkeypatch
):
    """Of a pack that a cell has left the checkpoint has another name than that of the rest."""
    cells = planned(ranks=(3, 2, 1))
    with workplace() as first:
        stopped_at(first, cells, signal.SIGINT)
    (culprit,) = first.checkpoints()
    header = read_header(culprit)
    state = Checkpoints(first.out).load(header, header.pack, header.pack)
    hashes = {cell.id: cell.tokens_hash for cell in cells}
    # As after the first has ended.
    Checkpoints(first.out).save(culprit, hashes, state.select([1, 2]), 1.0)
    (first.out / cells[0].id).mkdir(exist_ok=True)
    RunFolder(first.out, cells[0].id).fail("a fault")

    seen = []

    def train(trainer, state=None):
        seen.append(culprit.exists())
        raise RuntimeError("CUDA out of memory" if len(seen) == 1 else "another")

    monkeypatch.setattr("pml_cli.training.trainer.Trainer.train", train)
    with workplace() as second:
        second.train(cells[1:])
    assert seen == [True, False, False]


def test_nothing_of_a_pack_is_left_in_memory_when_it_has_ended(workplace, monkeypatch):
    """Without Python's search for circles, which comes late: on a GPU the next pack needs it."""
    runs = []
    decoding = []
    begin, finish = pack_trainer.PackRun.__init__, pack_trainer.PackRun.on_finished

    def remember(run, *arguments):
        begin(run, *arguments)
        runs.extend([weakref.ref(run), weakref.ref(run.trainer), weakref.ref(run.trainer.pack)])

    def look(run, cells):
        decoding.append((run.trainer.fixed_batch, run.trainer.pack.inputs.prefix))
        finish(run, cells)

    monkeypatch.setattr(pack_trainer.PackRun, "__init__", remember)
    monkeypatch.setattr(pack_trainer.PackRun, "on_finished", look)
    gc.disable()
    try:
        with workplace() as place:
            place.train(planned(ranks=(2, 1)))
            assert [reference() for reference in runs] == [None] * 3
    finally:
        gc.enable()
    assert decoding == [(None, None)]


@pytest.mark.slow
def test_nothing_is_left_behind_by_a_pack_that_fell_apart_after_a_checkpoint(
    workplace, monkeypatch
):
    cells = planned(ranks=(2, 1))
    faulty(monkeypatch, lambda ranks: 2 in ranks, ValueError("no"))
    with workplace(checkpoint_seconds=0.0) as first:
        first.train(cells)
        assert first.checkpoints() == []


# -- asked to end


def stopped_at(first, cells, number=signal.SIGTERM):
    with first.trainer.signals, pytest.raises(Stopped) as caught:
        first.train(cells, at(BREAK, send(number)))
    return caught.value


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_training_with_a_checkpoint_and_it_goes_on_bit_for_bit(
    workplace, undisturbed, number
):
    cells = planned()
    with workplace() as first:
        assert stopped_at(first, cells, number).signum == number
        assert [event["step"] for event in first.events("checkpoint")] == [BREAK + 1]
        assert first.reported == {}
        assert first.locks() == {
            run_key(cell.id) for cell in cells
        }  # whoever claimed them frees them
        assert len(first.checkpoints()) == 1
    with workplace() as second:
        second.train(cells)
        assert [event["step"] for event in second.events("start")] == [BREAK + 1]
        assert second.checkpoints() == []
    assert_same_runs(second.out, undisturbed, cells)


def test_the_seconds_of_a_cell_are_its_share_whoever_goes_on(workplace, monkeypatch):
    """500 s spent on five cells are 100 s of each.

    Also where a changed grid goes on with some of them, and is interrupted second.
    """
    cells, find = planned(), Checkpoints.find
    with workplace() as first:
        stopped_at(first, cells)
    with monkeypatch.context() as patched:
        patched.setattr(
            Checkpoints,
            "find",
            lambda *asked: [replace(kept, seconds=500.0) for kept in find(*asked)],
        )
        with workplace(signals=Signals()) as second, second.trainer.signals, pytest.raises(Stopped):
            second.train(cells[:2], at(12, send(signal.SIGTERM)))
        with workplace() as third:
            third.train(cells[2:], plans={cell.id: cell for cell in cells})
    with workplace() as last:
        last.train(cells[:1])
        last.train(cells[1:2])
        assert [event["step"] for event in last.events("start")] == [13, 13]
    assert [result(last.out, cell)["seconds"] for cell in cells] == pytest.approx([100] * 5, abs=20)


@pytest.mark.slow
def test_interrupted_three_times_with_minibatches_dropout_and_cells_that_leave(workplace):
    """A cell ends early, a second one is lost; what is left goes on from each checkpoint."""
    data = {
        "data": PhonebookData(),
        "adapter": MlpBlockAdapter(dropout=0.1),
        "batch": 2,
        "seqlen": 50,
    }
    quick = planned((8,), **data | {"seqlen": 30}, stop="recalled", stop_margin=-100.0)
    cells = quick + planned((4, 2), **data) + planned((3,), **data, lr=1e30)
    with workplace("whole") as whole:
        whole.train(cells)
    assert result(whole.out, cells[0])["stopped_early"]
    plans = {cell.id: cell for cell in cells}
    for step in (8, 12, 16):
        with workplace(signals=Signals()) as first, first.trainer.signals, pytest.raises(Stopped):
            left = [cell for cell in cells if not RunFolder(first.out, cell.id).has_ended()]
            first.train(left, at(step, send(signal.SIGTERM)), plans)
    with workplace() as last:
        last.train(
            [cell for cell in cells if not RunFolder(last.out, cell.id).has_ended()], plans=plans
        )
        assert [event["step"] for event in last.events("start")] == [17]
        assert last.checkpoints() == []
    assert_same_runs(last.out, whole.out, cells[:3])
    assert RunFolder(last.out, cells[3].id).failure() == RunFolder(whole.out, cells[3].id).failure()


def signal_between_looks(monkeypatch, number):
    """Send a signal while the trainer asks whether a checkpoint is due, as a clock may have it."""
    looks = itertools.count()
    is_checkpoint_due = PackRun._is_checkpoint_due

    def interrupted(self):
        if next(looks) == BREAK:
            os.kill(os.getpid(), number)
        return is_checkpoint_due(self)

    monkeypatch.setattr(PackRun, "_is_checkpoint_due", interrupted)


def test_a_signal_between_two_looks_at_it_leaves_a_checkpoint(workplace, monkeypatch):
    signal_between_looks(monkeypatch, signal.SIGTERM)
    with workplace() as first:
        with first.trainer.signals, pytest.raises(Stopped):
            first.train(planned(ranks=(2, 1)))
        assert [event["step"] for event in first.events("checkpoint")] == [BREAK + 1]


def test_a_request_between_two_looks_at_it_is_not_lost(workplace, monkeypatch):
    signal_between_looks(monkeypatch, signal.SIGUSR2)
    with workplace() as first, first.trainer.signals:
        first.train(planned(ranks=(2, 1)))
        assert [event["step"] for event in first.events("checkpoint")] == [BREAK + 1]


def test_a_cancellation_leaves_a_checkpoint(workplace):
    cells = planned(ranks=(2, 1))
    with workplace() as first:
        with pytest.raises(Stopped, match="cancelled"):
            first.train(cells, at(BREAK, lambda: setattr(first.lease, "cancelled", True)))
        assert [event["step"] for event in first.events("checkpoint")] == [BREAK + 1]


GOING_ON = {"SIGUSR2": (False, signal.SIGUSR2), "SIGTERM on Slurm": (True, signal.SIGTERM)}


@pytest.mark.parametrize("name", GOING_ON)
def test_signals_that_want_a_checkpoint_and_no_end(workplace, undisturbed, name):
    on_slurm, number = GOING_ON[name]
    cells = planned()
    with workplace(signals=Signals(on_slurm=on_slurm)) as first, first.trainer.signals:
        first.train(cells, at(BREAK, send(number)))
        assert [event["step"] for event in first.events("checkpoint")] == [BREAK + 1]
        assert first.checkpoints() == []
    assert_same_runs(first.out, undisturbed, cells)


def test_a_preempted_slurm_job_ends_with_a_checkpoint(workplace):
    cells = planned(ranks=(2, 1))
    with workplace(signals=Signals(on_slurm=True)) as first:
        assert stopped_at(first, cells, signal.SIGUSR2).signum == signal.SIGUSR2
        assert [event["step"] for event in first.events("checkpoint")] == [BREAK + 1]


def test_checkpoints_come_by_the_clock(workplace):
    with workplace(checkpoint_seconds=0.0) as first:
        first.train(planned(ranks=(2, 1)))
        assert [event["step"] for event in first.events("checkpoint")] == list(range(1, STEPS))
        assert first.checkpoints() == []


# -- fencing


def fence(first):
    (first.out / ".pml" / "dead" / first.lease.name).symlink_to("successor")


def test_a_fenced_process_writes_no_result(workplace):
    cells = planned(ranks=(2, 1))
    with workplace() as first:
        first.train(cells, at(STEPS, lambda: fence(first)))
        assert first.reported == {}
        assert first.locks() == {run_key(cell.id) for cell in cells}
    assert not any(RunFolder(first.out, cell.id).path.exists() for cell in cells)


def test_a_fenced_process_stops_and_keeps_no_checkpoint(workplace):
    """A successor has gone on: an older state would only be in its way."""
    cells = planned(ranks=(2, 1))
    with workplace(checkpoint_seconds=0.0) as first:

        def notice():
            fence(first)
            assert not first.lease.holds(cells[0].id)
            for path in first.checkpoints():
                path.unlink()

        with pytest.raises(Stopped, match="considered this process dead"):
            first.train(cells, at(BREAK, notice))
        assert first.checkpoints() == []
    assert not any(RunFolder(first.out, cell.id).has_ended() for cell in cells)


def test_a_fenced_process_reports_no_failure(workplace, monkeypatch):
    """A machine that was asleep wakes up to a broken device: the cells are its successor's."""
    (cell,) = planned(ranks=(1,))
    faulty(monkeypatch, lambda ranks: True, RuntimeError("CUDA error: unspecified launch failure"))
    with workplace() as first:
        first.train([cell], at(BREAK, lambda: fence(first)))
        assert first.reported == {}
    assert not RunFolder(first.out, cell.id).error.exists()

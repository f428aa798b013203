"""Signals to a process that trains: once it ends cleanly, twice at once; nohup is respected."""

import contextlib
import os
import signal
import time

import pytest
from support.killed import check_equal_runs
from support.processes import finished_cells, run_pml, start_pml, wait_until

from pml_cli.launch.signals import Signals, Stopped, deferred_signals

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SWEEP = ("sweep", "rank=1,2", "seqlen=24", "data=random", "train.steps=400", "model.device=cpu")


@pytest.fixture
def ignored():
    """SIGHUP is ignored, as nohup starts a process."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def test_nohup_is_respected(ignored):
    with Signals() as signals:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.stop is None
    with deferred_signals():
        os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize("number", ENDING)
def test_the_first_is_obeyed_between_two_steps_and_the_second_at_once(number):
    with Signals() as signals:
        signals.training = True
        os.kill(os.getpid(), number)
        assert signals.stop is not None
        assert signals.stop.signum == number
        assert signals.save_requested
        with pytest.raises(Stopped):
            os.kill(os.getpid(), number)
            time.sleep(1)


@pytest.mark.parametrize("number", ENDING)
def test_outside_of_the_training_the_first_ends_it_at_once(number):
    with pytest.raises(Stopped), Signals():
        os.kill(os.getpid(), number)
        time.sleep(1)


def test_a_signal_whose_exception_is_swallowed_is_obeyed_by_the_next_look():
    """As where it hits a callback of an import: Python prints such an exception and goes on."""
    with Signals() as signals:
        with contextlib.suppress(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop is not None
        assert signals.stop.signum == signal.SIGINT
        # A second one ends it at once, also within the training.
        signals.training = True
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_once_twice_and_under_nohup_the_same_command_gives_the_same_bits(tmp_path):
    undisturbed = run_pml(tmp_path, *SWEEP, "out=undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    out = tmp_path / "runs"
    # The second may come when Python shuts down already, and ends it as a signal does.
    twice = (130, -signal.SIGINT)
    for numbers, codes in (([signal.SIGHUP], (129,)), ([signal.SIGINT, signal.SIGINT], twice)):
        running = start_pml(tmp_path, *SWEEP, "out=runs")
        wait_until(lambda pid=running.pid: list(out.glob(f".pml/journal/*-{pid}-*")))
        for number in numbers:
            running.send_signal(number)
            time.sleep(0.05)
        _, errors = running.communicate(timeout=30)
        assert running.returncode in codes, errors
        assert errors == ""

    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    running = start_pml(tmp_path, *SWEEP, "out=runs", **ignoring)
    wait_until(lambda: list(out.glob(f".pml/journal/*-{running.pid}-*")))
    running.send_signal(signal.SIGHUP)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    for cell in finished_cells(tmp_path / "undisturbed"):
        check_equal_runs(out / cell, tmp_path / "undisturbed" / cell)

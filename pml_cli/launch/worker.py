"""A worker: one process that trains the packs of a sweep until none is free.

`train_here` is a worker within the calling process (launch=inline, `pml probe`). As a process of
its own it is started by the other executors:

    python -m pml_cli.launch.worker OUT SWEEP --kind=local --launch=ID --slot=0 ...

Everything that it needs stands on the command line or in the manifest of the sweep. It imports
torch only after threads and devices are set.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pml_cli.config.schema import Launch
from pml_cli.errors import UserError
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.manifest import SweepManifest, manifest_path
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.openmp import share_cores
from pml_cli.launch.pack import Pack
from pml_cli.launch.queue import PackQueue, run_until_empty
from pml_cli.launch.signals import Signals, Stopped
from pml_cli.launch.slurm import requeue_job
from pml_cli.launch.worker_import import import_trainer

USER_ERROR = 2


def train_here(
    out: Path,
    packs: Sequence[Pack],
    settings: Launch,
    observer: RunObserver,
    *,
    sweep: str = "",
    wait: bool = True,
    fail_fast: bool = False,
) -> None:
    """Train packs in this process.

    Args:
        out: the results folder.
        packs: those to train; cells that have ended are passed over.
        settings: of the launch.
        observer: hears of the progress.
        sweep: key of the sweep; empty: none was written.
        wait: whether to stay for the cells that other processes train.
        fail_fast: whether the first failed cell ends the training.

    Raises:
        Stopped: asked to end; a checkpoint is on disk.
        UserError: the device is absent or no longer answers.
    """
    lease = WorkerLease(out, settings.kind, settings.stale_seconds, sweep=sweep)
    with Signals() as signals, lease:
        train_packs(
            packs,
            lease,
            signals,
            observer,
            checkpoint_seconds=60 * settings.checkpoint_minutes,
            wait=wait,
            fail_fast=fail_fast,
        )


def train_packs(
    packs: Sequence[Pack],
    lease: WorkerLease,
    signals: Signals,
    observer: RunObserver,
    *,
    checkpoint_seconds: float,
    wait: bool,
    fail_fast: bool,
) -> None:
    """Train packs under a lease until none is free: what every worker does, wherever it runs."""
    # Seconds of imports come last: a sweep that is refused or done does not need them.
    observer.loading()
    import_trainer()
    from pml_cli.launch.pack_trainer import PackTrainer

    queue = PackQueue(lease.out, packs, lease)
    trainer = PackTrainer(
        lease.out,
        lease,
        signals,
        observer,
        plans=queue.plans,
        checkpoint_seconds=checkpoint_seconds,
        fail_fast=fail_fast,
    )
    try:
        run_until_empty(queue, trainer, observer, wait=wait)
    finally:
        trainer.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """A worker process: train the packs of a stored sweep, then end."""
    options = _parser().parse_args(arguments)
    # Read when torch is imported, which comes later.
    share_cores()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)

    # Early, so that a preemption while torch is imported requeues the job as well.
    signals = Signals(on_slurm=options.requeue)
    try:
        with signals:
            _train_sweep(options, signals)
    except Stopped as stopped:
        if options.requeue and stopped.signum == signal.SIGUSR2:
            _requeue()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(USER_ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pml_cli.launch.worker")
    parser.add_argument("out", type=Path, help="results folder")
    parser.add_argument("sweep", help="key of the sweep's manifest")
    parser.add_argument("--kind", required=True, help="kind of the launch, for pml status")
    parser.add_argument("--launch", default="", help="id of the launch")
    parser.add_argument("--slot", type=int, help="index of the worker's device")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads; 0: as the environment says"
    )
    parser.add_argument("--checkpoint-seconds", type=float, required=True)
    parser.add_argument("--stale-seconds", type=float, required=True)
    parser.add_argument("--fail-fast", action="store_true", help="end all at the first failure")
    parser.add_argument(
        "--requeue", action="store_true", help="on SIGUSR2 go back to Slurm's queue"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow model.trust_remote_code"
    )
    return parser


def _train_sweep(options: argparse.Namespace, signals: Signals) -> None:
    manifest = SweepManifest.read(manifest_path(options.out, options.sweep))
    lease = WorkerLease(
        options.out,
        options.kind,
        options.stale_seconds,
        sweep=manifest.key,
        launch=options.launch,
        slot=options.slot,
    )
    # Planning takes seconds for many cells: `pml status` shows the worker from here on.
    with lease:
        train_packs(
            manifest.plan_packs(remote_code=options.trust_remote_code),
            lease,
            signals,
            RunObserver(),
            checkpoint_seconds=options.checkpoint_seconds,
            wait=False,
            fail_fast=options.fail_fast,
        )


def _requeue() -> None:
    """Send this Slurm job back to the queue, and end.

    Slurm may go on signalling a job that is being preempted: ignored, or it would end before the
    request is made.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    try:
        requeue_job(job)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"this cluster does not requeue jobs ({error}); run the sweep again to resume")
    # not the exit code of a worker that found nothing left to train
    sys.exit(-1)


if __name__ == "__main__":
    main()

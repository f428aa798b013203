"""A trainer in a folder of its own, and faults for it."""

import json

import pandas as pd
import torch
from safetensors.torch import load_file

from pml_cli.config.schema import Model, Run, Train
from pml_cli.launch import pack_run
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.observer import RunObserver
from pml_cli.launch.pack_trainer import PackTrainer
from pml_cli.launch.packing import check
from pml_cli.results.folder import RunFolder
from pml_cli.training.trainer import Trainer

CPU = Model(device="cpu")


STEPS = 20


BREAK = 8  # a step at which something happens from outside; logged, so that observers are called


DEFAULTS = {"steps": STEPS, "log_every": 4, "lr": 2e-2, "decode": False}


def planned(ranks=(5, 4, 3, 2, 1), seqlen=24, data=None, adapter=None, **train):
    settings = Train(**(DEFAULTS | train))
    more = {"data": data} if data else {}
    more |= {"adapter": adapter} if adapter else {}
    return check(
        [Run(rank=rank, seqlen=seqlen, model=CPU, train=settings, **more) for rank in ranks]
    )


class Recorder(RunObserver):
    """Records how cells ended, and calls a function at every logged step."""

    def __init__(self):
        self.ended = {}
        self.at_step = None

    def step_logged(self, report):
        if self.at_step:
            self.at_step(report)

    def cell_ended(self, cell, failure):
        self.ended[cell.id] = failure


class Workplace:
    """A results folder with a lease and a trainer that has the base model loaded.

    Attributes:
        reported: how each cell ended: its id, and why it failed (None: it did not).
    """

    def __init__(self, out, base, signals=None, checkpoint_seconds=600.0):
        self.out = out
        self.base = base
        self.signals = signals
        self.checkpoint_seconds = checkpoint_seconds

    def __enter__(self):
        self.lease = WorkerLease(self.out, "inline").__enter__()
        self.recorder = Recorder()
        self.trainer = PackTrainer(
            self.out,
            self.lease,
            self.signals,
            self.recorder,
            checkpoint_seconds=self.checkpoint_seconds,
        )
        self.trainer._base = (repr(CPU), self.base)
        return self

    def __exit__(self, *error):
        self.lease.__exit__(*error)

    @property
    def reported(self):
        return self.recorder.ended

    def train(self, cells, at_step=None, plans=None):
        for cell in cells:
            assert self.lease.claim(cell.id)
        self.recorder.at_step = at_step
        self.trainer.plans = plans or {}
        self.trainer.train(cells)

    def events(self, kind=None):
        journal = self.out / ".pml" / "journal" / f"{self.lease.name}.jsonl"
        events = [json.loads(line) for line in journal.read_text().splitlines()]
        return [event for event in events if kind in (None, event["event"])]

    def checkpoints(self):
        return sorted((self.out / ".pml" / "checkpoints").glob("*.safetensors"))

    def locks(self):
        return {path.name for path in (self.out / ".pml" / "locks").iterdir()}


def result(out, cell):
    return json.loads(RunFolder(out, cell.id).result.read_text())


def assert_same_runs(one, two, cells):
    """Bit for bit; only the seconds differ."""
    for cell in cells:
        ours, theirs = RunFolder(one, cell.id), RunFolder(two, cell.id)
        for name in ("tokens", "curve"):
            tables = [pd.read_parquet(getattr(folder, name)) for folder in (ours, theirs)]
            pd.testing.assert_frame_equal(*tables, check_exact=True)
        mine, other = (
            load_file(folder.adapter / "adapter_model.safetensors") for folder in (ours, theirs)
        )
        assert all(torch.equal(mine[name], other[name]) for name in mine | other)
        first, second = result(one, cell), result(two, cell)
        assert first | {"seconds": 0} == second | {"seconds": 0}


def faulty(monkeypatch, when, error):
    """Trainers raise the error at step BREAK while `when(cells)` holds."""

    class Faulty(Trainer):
        def _update(self, step, layout, scores):
            if step == BREAK and when([cell.run.rank for cell in self.pack.cells]):
                raise error
            super()._update(step, layout, scores)

    monkeypatch.setattr(pack_run, "Trainer", Faulty)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore lines"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: "
        "can't allocate memory: you tried to allocate"
    ),
]

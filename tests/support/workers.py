"""A worker in a folder of its own, and faults for it."""

import json

import pandas as pd
import torch
from safetensors.torch import load_file

from pml_cli.config.schema import Model, Run, Train
from pml_cli.launch import worker as module
from pml_cli.launch.lease import WorkerLease
from pml_cli.launch.packing import check
from pml_cli.launch.worker import Worker
from pml_cli.runs.folder import RunFolder
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


class Place:
    def __init__(self, out, base, signals=None, checkpoint_seconds=600.0, stale=120.0):
        self.out, self.base, self.signals, self.seconds, self.stale = (
            out,
            base,
            signals,
            checkpoint_seconds,
            stale,
        )

    def __enter__(self):
        self.member = WorkerLease(self.out, "inline", self.stale).__enter__()
        self.worker = Worker(self.out, self.member, self.signals, self.seconds)
        self.worker._base = (repr(CPU), self.base)
        self.reported = {}
        return self

    def __exit__(self, *error):
        self.member.__exit__(*error)

    def train(self, cells, observe=None, known=None):
        for cell in cells:
            assert self.member.claim(cell.id)
        self.worker.run(
            cells, lambda cell, failure: self.reported.update({cell.id: failure}), observe, known
        )

    def events(self, kind=None):
        noted = [
            json.loads(line)
            for line in (self.out / ".pml" / "journal" / f"{self.member.name}.jsonl").open()
        ]
        return [event for event in noted if kind in (None, event["event"])]

    def kept(self):
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

    monkeypatch.setattr(module, "Trainer", Faulty)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore lines"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
]

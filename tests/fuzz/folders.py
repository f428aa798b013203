"""Real files to begin from, of a sweep of two cells and of a planted law; a few kB."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from support.sweeps import quick_in

SWEEP = ("rank=1,2", "seqlen=8", "train.steps=3", "train.log_every=1", "model.device=cpu")


def make(base: Path) -> None:
    """runs/: a small sweep; law/fit/law.json: the report of a planted law."""
    # Imports torch and pandas.
    from catalogue import folders

    os.environ["PML_CACHE"] = str(base)
    assert quick_in(base, "sweep", *SWEEP, "out=runs") in (0, None)
    shutil.copytree(folders.law() / "runs", base / "law")
    _checkpoint(base)


def _checkpoint(base: Path) -> None:
    """checkpoint.safetensors: two cells after a step."""
    import pandas as pd
    import torch

    from pml_cli.training.checkpoint import Checkpoints
    from pml_cli.training.trainer import TrainerState

    tables = [pd.DataFrame({"step": [0], "nll": [1.5]})] * 2
    state = TrainerState(
        step=1,
        cells=[0, 1],
        tensors={"A": torch.ones(2, 3), "loss.least": torch.ones(2, 1)},
        logged=tables,
        curve=tables,
        draws=[1, 1],
    )
    store = Checkpoints(base)
    path = store.path(["a", "b"])
    store.save(path, {"a": "", "b": ""}, state, seconds=1.0)
    path.replace(base / "checkpoint.safetensors")


def first(base: Path, pattern: str) -> bytes:
    """The content of the first file that matches."""
    return sorted(base.glob(pattern))[0].read_bytes()

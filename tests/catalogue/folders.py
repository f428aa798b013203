"""What the folder of a case holds before it is damaged. Each is made once for a whole run."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from support.law_groups import fit_quietly
from support.planted_laws import exact_recall, exponential_cells, runs_of, write
from support.sweeps import quick_in

from pml_cli.config.schema import TINY

SWEEP = ("rank=1,2", "seqlen=8", "train.steps=3", "train.log_every=1", "model.device=cpu")


def copy_base(base: str, folder: Path) -> None:
    """Copy what a case begins with; links stay links."""
    if base:
        shutil.copytree(BASES[base](), folder, symlinks=True, dirs_exist_ok=True)


@cache
def planted() -> Path:
    """runs/: results of a planted law, a few cells."""
    folder = _new_folder()
    cells = exponential_cells(ranks=(2, 4, 8, 16), lengths=(32, 64, 128, 256), texts=1)
    write(folder / "runs", *runs_of(cells, exact_match=exact_recall(cells)))
    return folder


@cache
def law() -> Path:
    """runs/fit/law.json: the report of a planted law with exact recall."""
    folder = _new_folder()
    cells = exponential_cells(ranks=(1, 2, 4, 8, 16), lengths=(32, 64, 128, 256), texts=3)
    runs = folder / "runs"
    write(runs, *runs_of(cells, exact_match=exact_recall(cells)))
    fit_quietly(runs, draws=40)
    # `pml predict` reads the report alone.
    for run in runs.glob("run*"):
        shutil.rmtree(run)
    return folder


@cache
def swept() -> Path:
    """runs/: two cells of a sweep, trained for a few steps, and its .pml."""
    folder = _new_folder()
    assert quick_in(folder, "sweep", *SWEEP, "out=runs") in (0, None)
    return folder


@cache
def measured() -> Path:
    """As `swept`, measured by `pml lasting`."""
    folder = _new_folder()
    copy_base("swept", folder)
    assert quick_in(folder, "lasting", "runs", "tokens=0", "figures=false") in (0, None)
    return folder


@cache
def model() -> Path:
    """m/: the embedded model as a folder."""
    folder = _new_folder()
    shutil.copytree(TINY, folder / "m")
    return folder


BASES = {"planted": planted, "law": law, "swept": swept, "measured": measured, "model": model}


def _new_folder() -> Path:
    """Below the temporary folder of this process, which is removed with it."""
    return Path(tempfile.mkdtemp(prefix="base-", dir=os.environ["PML_CACHE"]))

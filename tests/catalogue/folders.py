"""What the folder of a case holds before it is damaged. Each is made once for a whole run."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from support.law_groups import fit_quietly
from support.planted_laws import exact_recall, exponential_cells, runs_of, write
from support.sweeps import quick_in

from catalogue.damage import first
from pml_cli.config.schema import TINY

SWEEP = ("rank=1,2", "seqlen=8", "train.steps=3", "train.log_every=1", "model.device=cpu")
PROBE = ("probe", "rank=1", "seqlen=8", "train.steps=3", "model.device=cpu", "out=runs")


def copy_base(base: str, folder: Path) -> None:
    """Copy what a case begins with; links stay links."""
    if base:
        shutil.copytree(BASES[base](), folder, symlinks=True, dirs_exist_ok=True)


@cache
def planted() -> Path:
    """runs/: results of a planted law, a few cells."""
    folder = new_folder()
    cells = exponential_cells(ranks=(2, 4, 8, 16), lengths=(32, 64, 128, 256), texts=1)
    write(folder / "runs", *runs_of(cells, exact_match=exact_recall(cells)))
    return folder


@cache
def law() -> Path:
    """runs/fit/law.json: the report of a planted law with exact recall."""
    folder = new_folder()
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
    folder = new_folder()
    succeed(folder, "sweep", *SWEEP, "out=runs")
    return folder


@cache
def probed() -> Path:
    """runs/: a probe."""
    folder = new_folder()
    succeed(folder, *PROBE)
    return folder


@cache
def measured() -> Path:
    """As `swept`, measured by `pml lasting`."""
    folder = new_folder()
    copy_base("swept", folder)
    succeed(folder, "lasting", "runs", "tokens=0", "figures=false")
    return folder


@cache
def model() -> Path:
    """m/: the embedded model as a folder."""
    folder = new_folder()
    shutil.copytree(TINY, folder / "m")
    return folder


BASES = {
    "planted": planted,
    "law": law,
    "swept": swept,
    "measured": measured,
    "probed": probed,
    "model": model,
}


# A right use of each command: its base, and its arguments; paths may be patterns.
RIGHT_USES = {
    "sweep": ("", (*SWEEP, "out=o")),
    "memft": ("", ("loss=sft,memft_ot", "--dry-run")),
    "capacity": ("", ("seqlen=8", "--dry-run")),
    "fit": ("planted", ("runs", "draws=0", "figures=false")),
    "predict": ("law", ("runs", "seqlen=20", "rank=4")),
    "transition": ("swept", ("runs", "figures=false")),
    "lasting": ("swept", ("runs", "tokens=0", "figures=false")),
    "status": ("swept", ("runs",)),
    "measure": ("swept", ("runs/*/adapter", "/etc/hostname", "--no-harm", "out=o")),
}


@cache
def warm_up(command: str) -> None:
    """Use a command rightly in this process, so that its forks find their modules imported."""
    if command in RIGHT_USES:
        base, words = RIGHT_USES[command]
        folder = new_folder()
        copy_base(base, folder)
        paths = [_expanded(folder, word) for word in words]
        succeed(folder, command, *paths)


def _expanded(folder: Path, word: str) -> str:
    return str(first(folder, word).relative_to(folder)) if "*" in word else word


def succeed(folder: Path, *argv: str) -> None:
    """The command line in a folder, without its output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = quick_in(folder, *argv)
    assert code in (0, None), output.getvalue()


def new_folder() -> Path:
    """Below the temporary folder of this process, which is removed with it."""
    return Path(tempfile.mkdtemp(prefix="base-", dir=os.environ["PML_CACHE"]))

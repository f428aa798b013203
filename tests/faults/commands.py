"""The commands that write, and what their folder holds before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from catalogue.folders import copy_base

from pml_cli.config.schema import Model, Run
from pml_cli.launch.manifest import SweepManifest
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.launch.slurm import record_launch

FEW = ("train.steps=3", "train.log_every=1", "model.device=cpu")
# A checkpoint at every step.
SAVING = "launch.checkpoint_minutes=0.000001"
GRID = ("rank=1,2", "seqlen=8", *FEW, SAVING, "out=runs")
FACTS = [{"query": "The pump?", "target": "P7"}, {"query": "The hall?", "target": "H2"}]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line that writes.

    Attributes:
        name: short.
        argv: the command line.
        before: lays out its folder.
        slow: whether it starts processes of its own, which takes seconds.
        light: whether it imports no torch.
    """

    name: str
    argv: tuple[str, ...]
    before: Callable[[Path], object] = lambda folder: None
    slow: bool = False
    light: bool = False


def _base(name: str) -> Callable[[Path], object]:
    return lambda folder: copy_base(name, folder)


def _facts(folder: Path) -> None:
    lines = [json.dumps(fact) for fact in FACTS]
    (folder / "facts.jsonl").write_text("\n".join(lines) + "\n")


def _with_checkpoint(folder: Path) -> None:
    """As a sweep that has lost one of its results and its table."""
    copy_base("swept", folder)
    for run in sorted((folder / "runs").glob("*r1-*")):
        shutil.rmtree(run)
    (folder / "runs" / "results.csv").unlink()


def _launched(folder: Path) -> None:
    """As a sweep that has started workers."""
    cells = check([Run(rank=1, seqlen=8, model=Model(device="cpu"))])
    manifest = SweepManifest.write(folder / "runs", make_packs(cells, Packing()), Packing())
    record_launch(
        folder / "runs" / ".pml" / "jobs" / "local-abcd1234.json", "abcd1234", manifest.key
    )


MEMORIZE = ("memorize", "facts.jsonl", "rank=1", "train.steps=3", "--max-forgetting", "none")
COMMANDS = (
    Command(name="probe", argv=("probe", "rank=1", "seqlen=8", *FEW, SAVING, "out=runs")),
    Command(name="sweep", argv=("sweep", *GRID)),
    Command(name="sweep, half done", argv=("sweep", *GRID), before=_with_checkpoint),
    Command(
        name="sweep, local", argv=("sweep", *GRID, "launch=local", "launch.devices=1"), slow=True
    ),
    Command(name="memft", argv=("memft", "rank=1", *GRID[1:], "loss=sft,memft_ot")),
    Command(name="fit", argv=("fit", "runs", "out=report", "draws=20"), before=_base("planted")),
    Command(name="transition", argv=("transition", "runs", "out=report"), before=_base("swept")),
    Command(
        name="lasting", argv=("lasting", "runs", "out=report", "tokens=50"), before=_base("swept")
    ),
    Command(name="memorize", argv=(*MEMORIZE, "model.device=cpu", "out=runs"), before=_facts),
    Command(name="status", argv=("status", "runs", "--json"), before=_launched, light=True),
    Command(name="cancel", argv=("cancel", "runs"), before=_launched, light=True),
)


def command(name: str) -> Command:
    """One of them by its name."""
    return next(one for one in COMMANDS if one.name == name)

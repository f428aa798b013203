"""What is asked of Slurm: the queue, a cancellation, the site's limits. By its own commands; sacct is not needed."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pml_cli.errors import UserError
from pml_cli.io import atomic_write

DEFAULT_ARRAY = 1001  # Slurm's own MaxArraySize
WAIT_SECONDS = 20.0  # for an answer of its commands


@dataclass(frozen=True)
class Job:
    """One task of an array, or a job by itself, that waits or runs."""

    id: str  # 123_4 for a task of an array
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits


def name_for(out: Path) -> str:
    """The name of all jobs that work in a folder."""
    return f"pml-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:10]}"


def note_launch(path: Path, launch: str, order: str) -> None:
    """Remember what was started for a sweep: `.pml/jobs/NUMBER.json` for a job of Slurm, local-LAUNCH.json for processes."""
    atomic_write(
        path,
        lambda aside: aside.write_text(json.dumps({"launch": launch, "order": order}), "utf-8"),
    )


def launches(out: Path) -> dict[str, dict[str, str]]:
    """What was noted of a folder's launches, by job."""
    return {
        path.stem: json.loads(path.read_text("utf-8"))
        for path in (out / ".pml" / "jobs").glob("*.json")
    }


def jobs(out: Path, order: str = "") -> list[Job] | None:
    """The jobs submitted for a folder (or for one sweep in it) that wait or run; None when the queue cannot be asked."""
    ours = {
        job for job, its in launches(out).items() if job.isdigit() and order in ("", its["order"])
    }
    if not ours:
        return []
    answer = _ask(
        "squeue", "-h", "-r", "-u", getpass.getuser(), "-n", name_for(out), "-o", "%i|%T|%r"
    )
    if answer is None:
        return None
    found = [Job(*line.split("|", 2)) for line in answer.splitlines() if line.count("|") >= 2]
    return [job for job in found if job.id.split("_")[0] in ours]


def cancel(ids: Sequence[str]) -> None:
    for start in range(0, len(ids), 500):
        _ask("scancel", *ids[start : start + 500])


def max_array_size() -> int:
    """The site's limit to the number of tasks in one array."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config") or "")
    return max(1, int(found[1])) if found else DEFAULT_ARRAY


def check_there() -> None:
    """Refuse launch=slurm where there is no Slurm."""
    for command in ("sbatch", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise UserError(
                f"launch=slurm: no {command} here; use a login node, or launch=local or launch=inline"
            )


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

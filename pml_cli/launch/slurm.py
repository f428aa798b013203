"""Questions to Slurm: the queue, cancellation, limits of the site."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict

from pml_cli.errors import UserError
from pml_cli.io import atomic_write, listed
from pml_cli.launch.liveness import MAY_RUN, ProcessName
from pml_cli.validation import Text, read_json

# Slurm's own default of MaxArraySize
DEFAULT_ARRAY_SIZE = 1001

# Seconds that a command of Slurm may take to answer.
ANSWER_SECONDS = 20.0

# Job ids handed to one scancel: the length of a command line is limited.
IDS_PER_COMMAND = 500


class LaunchFields(TypedDict):
    """What `record_launch` writes; its name becomes that of a file in cancel/."""

    launch: ProcessName
    order: Text


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job that waits or runs, or one task of an array.

    Attributes:
        id: 123, or 123_4 for a task of an array.
        state: such as PENDING, RUNNING or COMPLETING.
        reason: why it waits, in Slurm's words.
    """

    id: str
    state: str
    reason: str


def job_name(out: Path) -> str:
    """The name of all jobs that work in a results folder."""
    # Slurm finds jobs by name, so the name says which folder they work in.
    folder = str(out.resolve())
    digest = hashlib.sha256(folder.encode()).hexdigest()
    return f"pml-{digest[:10]}"


def record_launch(path: Path, launch: str, sweep: str) -> None:
    """Record what was started for a sweep.

    Args:
        path: `.pml/jobs/NUMBER.json` for a Slurm job, `local-LAUNCH.json` for local processes.
        launch: id of the launch.
        sweep: key of the sweep.
    """
    text = json.dumps({"launch": launch, "order": sweep})
    atomic_write(path, lambda aside: aside.write_text(text, "utf-8"))


def launch_records(out: Path, left_out: list[str] | None = None) -> dict[str, dict[str, str]]:
    """What `record_launch` wrote in a folder, by job.

    Args:
        out: the results folder.
        left_out: takes a line for each record that is damaged or cannot be read.
    """
    records = {}
    faults = []
    for path in listed(out / ".pml" / "jobs", "*.json"):
        try:
            record = read_json(path, LaunchFields, MAY_RUN)
        except UserError as error:
            faults.append(str(error))
            continue
        records[path.stem] = {"launch": record["launch"], "order": record["order"]}
    if left_out is not None:
        left_out += faults
    return records


def queued_jobs(out: Path, sweep: str = "") -> list[Job] | None:
    """Jobs of a folder that wait or run.

    Args:
        sweep: only those submitted for this sweep; empty: all.

    Returns:
        the jobs; None where the queue does not answer.
    """
    # Another user's job may have the same name, or a job of another kind may use this folder.
    ours = {
        job
        for job, record in launch_records(out).items()
        if job.isdigit() and sweep in ("", record["order"])
    }
    if not ours:
        return []

    # By its number: in a container a user may have no name.
    user = str(os.getuid())
    answer = _ask("squeue", "-h", "-r", "-u", user, "-n", job_name(out), "-o", "%i|%T|%r")
    if answer is None:
        return None

    jobs = []
    for line in answer.splitlines():
        if line.count("|") < 2:
            continue
        number, state, reason = line.split("|", 2)
        if number.split("_")[0] in ours:
            jobs.append(Job(id=number, state=state, reason=reason))
    return jobs


def cancel_jobs(ids: Sequence[str]) -> bool:
    """Take jobs out of the queue, and end those that run; whether Slurm has taken it."""
    answers = []
    for start in range(0, len(ids), IDS_PER_COMMAND):
        answers.append(_ask("scancel", *ids[start : start + IDS_PER_COMMAND]))
    return None not in answers


def requeue_job(job: str) -> None:
    """Send a running job back to the queue, where it starts again from its batch script.

    Raises:
        CalledProcessError: this site does not allow it.
    """
    subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)


def max_array_size() -> int:
    """The site's limit to the number of tasks of one array."""
    limit = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config") or "")
    return max(1, int(limit[1])) if limit else DEFAULT_ARRAY_SIZE


def check_available() -> None:
    """Check that this machine can submit jobs.

    Raises:
        UserError: a command of Slurm is missing.
    """
    for command in ("sbatch", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise UserError(
                f"launch=slurm: no {command} here; "
                "use a login node, or launch=local or launch=inline"
            )


def _ask(*command: str) -> str | None:
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None

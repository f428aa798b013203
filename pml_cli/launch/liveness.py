"""Whether a process of a results folder is alive, judged from the record that it keeps there.

A process of this machine is dead when it is gone. An earlier start of a requeued Slurm job is dead.
Any other process, and one of another user that this machine hides, is dead when its last heartbeat
is older than its `stale` seconds; both times are read off the file server's clock, so the clocks of
the machines need not agree. That clock may be set meanwhile: who takes over what a process holds
also waits for two heartbeats that do not come.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import psutil
from annotated_types import Ge, Le
from pydantic import StringConstraints
from typing_extensions import NotRequired, TypedDict

from pml_cli.errors import UserError
from pml_cli.io import listed
from pml_cli.validation import Count, Number, Text, checked, parse_json, read_regular

STALE_SECONDS = 120.0

# A start time read twice differs a little when the clock is adjusted in between.
START_TIME_TOLERANCE = 3.0

# Ends a line about a record that tells nothing.
MAY_RUN = "what it names may still run"

Record = dict[str, Any]

# The names of processes and of launches become names of files, which must stay in their folder.
PROCESS_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
ProcessName = Annotated[str, StringConstraints(pattern=f"^{PROCESS_NAME}$")]


class SlurmFields(TypedDict):
    """The Slurm job of a process."""

    job: Text
    restart: Count
    task: Text


class ActivityFields(TypedDict, total=False):
    """What a process does, as `pack_run` reports it."""

    step: Count
    steps: Count
    first: Count
    since: Number
    names: list[Text]


class RecordFields(TypedDict):
    """A worker's record: what `process_identity` and `lease.WorkerLease` write."""

    name: ProcessName
    kind: Text
    host: Text
    place: Text
    pid: Annotated[int, Ge(1), Le(2**31 - 1)]
    created: Number
    ticks: NotRequired[Count | None]
    shown: Number
    state: Text
    stale: NotRequired[Number]
    started: NotRequired[Number]
    order: NotRequired[Text]
    launch: NotRequired[Text]
    slot: NotRequired[int | None]
    slurm: NotRequired[SlurmFields | None]
    doing: NotRequired[ActivityFields | None]


@lru_cache(maxsize=1)
def process_identity() -> Record:
    """What identifies this process: machine, process id and start time, and its Slurm job if any.

    Returns:
        the part of a worker's record that never changes; `place` names the machine since its last
        boot together with the namespace of process ids.
    """
    return {
        "host": socket.gethostname(),
        "place": _machine(),
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "ticks": _start_ticks(os.getpid()),
        "slurm": _slurm_job(),
    }


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None where no /proc tells.

    Unlike a time of day it stays the same when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        # The name, in parentheses, may hold blanks; the start is the 20th field after it.
        return int(fields.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _slurm_job() -> Record | None:
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None

    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    index = os.environ.get("SLURM_ARRAY_TASK_ID")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return {"job": job, "restart": int(restart), "task": f"{array}_{index}" if array else job}


@lru_cache(maxsize=1)
def _machine() -> str:
    """The machine since its last boot, and the namespace of process ids within it."""
    # Without them (on macOS) the hardware address has to do.
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    machine = boot_id.read_text("utf-8").strip() if boot_id.exists() else f"{uuid.getnode():x}"
    pid_namespace = namespace.readlink() if namespace.is_symlink() else ""
    return f"{machine} {pid_namespace}".strip()


def is_alive(
    record: Record,
    written_at: float,
    server_clock: Callable[[], float],
    slurm_job: Record | None = None,
) -> bool:
    """Whether the process that wrote a record is alive.

    Args:
        written_at: when the record was written, by the file server's clock.
        server_clock: that clock; read only where it matters.
        slurm_job: the Slurm job of the process that asks, if it runs in one.
    """
    known = known_state(record, slurm_job)
    if known is not None:
        return known

    # A heartbeat far in the future is one before the clock was set back.
    age = server_clock() - written_at
    return abs(age) <= float(record.get("stale", STALE_SECONDS))


def known_state(record: Record, slurm_job: Record | None) -> bool | None:
    """Whether a process is alive, without a clock; None: its heartbeats alone can tell.

    Args:
        record: of the process.
        slurm_job: the Slurm job of the process that asks, if it runs in one.
    """
    if record.get("state") == "ended":
        return False
    if record.get("place") == _machine():
        runs = _runs_here(record)
        if runs is not None:
            return runs

    # Slurm runs one start of a job at a time.
    owner = record.get("slurm")
    if slurm_job and owner and _is_earlier_start(owner, slurm_job):
        return False
    return None


def _is_earlier_start(owner: Record, slurm_job: Record) -> bool:
    """Whether a process belongs to an earlier start of a requeued job."""
    same_job = owner["job"] == slurm_job["job"]
    return bool(same_job and owner["restart"] < slurm_job["restart"])


def _runs_here(record: Record) -> bool | None:
    """Whether that very process of this machine runs, not another one with its reused id.

    None where the processes of other users are hidden (/proc mounted with hidepid).
    """
    try:
        process = psutil.Process(int(record["pid"]))
        difference = abs(process.create_time() - float(record["created"]))
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return None
    except psutil.NoSuchProcess:
        return None if _is_hidden(int(record["pid"])) else False

    ticks = record.get("ticks")
    started = _start_ticks(int(record["pid"]))
    # Earlier versions knew the time of day alone.
    is_same = difference < START_TIME_TOLERANCE
    if ticks is not None and started is not None:
        is_same = ticks == started
    return bool(is_same and not is_zombie)


def _is_hidden(pid: int) -> bool:
    """Whether a process that cannot be seen runs all the same, as another user's."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    # One that this user may signal is not hidden.
    return False


def read_record(path: Path) -> tuple[Record | None, float]:
    """A process's record (None: there is none) and its time of writing by the server's clock.

    The record says under `owner` whose file it is.

    Raises:
        OSError: it cannot be read at the moment.
    """
    try:
        # Opening queries the NFS server; a stat alone may be answered from a cache.
        content, status = read_regular(path)
    except FileNotFoundError:
        return None, 0.0

    try:
        record = checked(path, parse_json(path, content, ""), RecordFields, "")
    except UserError:
        return None, 0.0
    return {**record, "owner": status.st_uid}, status.st_mtime


def server_time(folder: Path) -> float:
    """The clock of the machine that holds a folder, in seconds since the epoch."""
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def living_processes(out: Path, left_out: list[str] | None = None) -> list[Record]:
    """Records of the living processes of a results folder: workers, and drivers that only wait.

    Args:
        out: the results folder.
        left_out: takes a line for each record that tells nothing: its process may live.
    """
    folder = out / ".pml" / "workers"

    def clock() -> float:
        try:
            return server_time(folder)
        except OSError:
            # a folder that may only be read
            return time.time()

    living = []
    faults = []
    for path in listed(folder, "*.json"):
        # Marked as dead.
        if (out / ".pml" / "dead" / path.stem).is_symlink():
            continue
        try:
            record, written_at = read_record(path)
        except OSError as error:
            # It is being replaced at this moment, or the disk fails.
            faults.append(f"{path}: not readable ({error.strerror or error}); {MAY_RUN}")
            continue

        # Others may write to the folder too: files that are not records are skipped.
        if record is None:
            faults += [f"{path}: no record of a process; {MAY_RUN}"] if path.exists() else []
            continue
        if is_alive(record, written_at, clock):
            living.append(record)
    if left_out is not None:
        left_out += faults
    return living

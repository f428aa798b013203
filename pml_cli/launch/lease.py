"""Who trains what. Processes that share a results folder claim cells, show that they live, and inherit from the dead.

A claim is a symbolic link, made in one step that only one process can win, on local disks and on NFS alike; flock is not
relied on. Below `.pml/` in the results folder:

    locks/CELL      -> the process that trains the cell
    dead/PROCESS    -> its heir: one process alone can make this link, and only the heir removes the dead one's locks
    workers/PROCESS.json  what a process is doing; rewritten every few seconds, so its age is the sign of life
    cancel/PROCESS  asks a process to end
    journal/PROCESS.jsonl what it has done, a line an event

A process on this machine is dead when it is gone; an earlier start of the same Slurm job is dead; any other is dead when it
has shown no sign of life for `stale` seconds, both times read off the file server's clock.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from pml_cli.io import atomic_write

STALE_SECONDS = 120.0
LOOK_SECONDS = 2.0  # how long a judgement about another process is kept


class WorkerLease:
    """One process at work in a results folder."""

    def __init__(
        self,
        out: Path,
        kind: str,
        stale: float = STALE_SECONDS,
        *,
        order: str = "",
        launch: str = "",
        slot: int | None = None,
    ) -> None:
        """Args:
        kind: inline, local or slurm for what trains, driver for what only waits.
        stale: seconds without a sign of life after which others may take this process for dead.
        order: the key of its sweep.
        launch: the id of the launch that started it; a note to this id cancels it as one to its name does.
        slot: which of the launch's devices it has.
        """
        self.home = out / ".pml"
        self.stale = stale
        self.name = f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.doing: dict[str, Any] = {}  # shown by `pml status`
        self.cancelled = self.buried = False
        told = {
            "name": self.name,
            "kind": kind,
            "order": order,
            "launch": launch,
            "slot": slot,
            "stale": stale,
        }
        self._identity = identity() | told | {"started": time.time()}
        self._notes = [self.home / "cancel" / name for name in (self.name, launch) if name]
        self._ended = threading.Event()
        self._seen: dict[str, tuple[float, bool]] = {}
        self._thread = threading.Thread(target=self._beat, daemon=True, name="pml heartbeat")

    def __enter__(self) -> WorkerLease:
        try:
            for folder in ("locks", "dead", "workers", "cancel", "journal"):
                (self.home / folder).mkdir(parents=True, exist_ok=True)
            self.show()
            self.is_cancelled()  # perhaps before it began
            self._thread.start()
        except BaseException:  # an interrupt too: nobody calls __exit__ then
            with suppress(OSError):
                self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self.doing = {}
        self.show("ended")

    def show(self, state: str = "running") -> None:
        """Write down what this process is doing."""
        record = {**self._identity, "state": state, "shown": time.time(), "doing": dict(self.doing)}
        atomic_write(
            self._record(self.name), lambda aside: aside.write_text(json.dumps(record), "utf-8")
        )

    def note(self, event: str, **details: Any) -> None:
        """Add a line to this process's journal."""
        with (self.home / "journal" / f"{self.name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"time": round(time.time(), 3), "event": event, **details}) + "\n"
            )

    # -- claims

    def claim(self, cell: str) -> bool:
        """Whether the cell is this process's now. False: a living process has it."""
        lock = self.home / "locks" / cell
        while not self.is_buried():
            try:
                lock.symlink_to(self.name)
                return True
            except FileExistsError:
                pass
            holder = _target(lock)
            if holder is None:  # let go just now
                continue
            if holder == self.name:
                return True
            heir = self._heir(holder)
            if heir == self.name:
                lock.unlink(missing_ok=True)
            elif self.alive(heir):
                return False
            else:
                self._inherit(heir)
        return False

    def release(self, cell: str) -> None:
        if self.holds(cell):
            (self.home / "locks" / cell).unlink(missing_ok=True)

    def holds(self, cell: str) -> bool:
        """Whether this process still has the cell: not when others took it for dead."""
        return not self.is_buried() and _target(self.home / "locks" / cell) == self.name

    def is_buried(self) -> bool:
        """Whether another process took this one for dead."""
        self.buried = self.buried or _target(self.home / "dead" / self.name) is not None
        return self.buried

    def _heir(self, holder: str) -> str:
        passed = {holder}
        while (heir := _target(self.home / "dead" / holder)) is not None and heir not in passed:
            passed.add(heir)
            holder = heir
        return holder

    def _inherit(self, dead: str) -> None:
        try:
            (self.home / "dead" / dead).symlink_to(self.name)
            self.note("inherit", dead=dead)
        except FileExistsError:  # another one was first
            pass

    # -- being asked to end

    def is_cancelled(self) -> bool:
        """Whether this process was asked to end."""
        self.cancelled = self.cancelled or any(note.exists() for note in self._notes)
        return self.cancelled

    def cancel(self, names: Iterable[str]) -> None:
        """Ask processes, by name or by launch, to keep a checkpoint and end."""
        self.cancel_in(self.home.parent, names)

    @staticmethod
    def cancel_in(out: Path, names: Iterable[str]) -> None:
        """The same, by who is no member."""
        folder = out / ".pml" / "cancel"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).touch()

    # -- life and death

    def alive(self, name: str) -> bool:
        """Whether another process of this folder lives; looked up at most every two seconds."""
        known = self._seen.get(name)
        if known is None or time.monotonic() - known[0] > LOOK_SECONDS:
            known = self._seen[name] = (time.monotonic(), self._lives(name))
        return known[1]

    def _lives(self, name: str) -> bool:
        try:
            record, changed = read_record(self._record(name))
        except (
            OSError
        ):  # NFS may say ESTALE of a file that is just being replaced: asked again soon
            return True
        return record is not None and lives(record, changed, self._now, self._identity["slurm"])

    def _now(self) -> float:
        """The file server's clock."""
        return server_time(self.home / "workers")

    def _record(self, name: str) -> Path:
        return self.home / "workers" / f"{name}.json"

    def _beat(self) -> None:
        pause = min(5.0, self.stale / 8)
        while not self._ended.wait(pause):
            try:
                self.is_cancelled()
                self.is_buried()
                self.show()
            except OSError:  # a full or absent disk: the training itself will tell
                continue


@lru_cache(maxsize=1)
def identity() -> dict[str, Any]:
    """What tells this process from any other: machine, process number and its start, and the Slurm job it runs in."""
    job, restart = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return {
        "host": socket.gethostname(),
        "place": _place(),
        "pid": os.getpid(),
        "created": psutil.Process().create_time(),
        "slurm": {"job": job, "restart": int(restart), "task": f"{array}_{task}" if array else job}
        if job
        else None,
    }


def lives(
    record: dict[str, Any],
    changed: float,
    now: Callable[[], float],
    slurm: dict[str, Any] | None = None,
) -> bool:
    """Whether a process lives, by its record.

    Args:
        changed: when the record was written, by the file server's clock.
        now: that clock.
        slurm: the Slurm job of who asks, if it runs in one.
    """
    if record.get("state") == "ended":
        return False
    if record.get("place") == _place():
        return _runs(record)
    its = record.get("slurm")
    if slurm and its and slurm["job"] == its["job"] and slurm["restart"] > its["restart"]:
        return False
    return now() - changed <= float(record.get("stale", STALE_SECONDS))


def _runs(record: dict[str, Any]) -> bool:
    """Whether a process of this machine is there: that very one, not another with its number."""
    try:
        process = psutil.Process(int(record["pid"]))
        same = (
            abs(process.create_time() - float(record["created"])) < 3
        )  # the start time moves a little with the clock
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def read_record(path: Path) -> tuple[dict[str, Any] | None, float]:
    """A process's record and when it was last written, by the file server's clock; None where there is none.

    Raises:
        OSError: it cannot be read just now.
    """
    try:
        with path.open(encoding="utf-8") as file:  # opening asks the server anew, stat might not
            return json.loads(file.read()), os.fstat(file.fileno()).st_mtime
    except (FileNotFoundError, ValueError):
        return None, 0.0


def server_time(folder: Path) -> float:
    """The clock of the machine that holds a folder, in seconds."""
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _place() -> str:
    """Names this machine since its last start, and the space of process numbers within it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    known = boot.read_text("utf-8").strip() if boot.exists() else f"{uuid.getnode():x}"
    return f"{known} {space.readlink() if space.is_symlink() else ''}".strip()


def _target(link: Path) -> str | None:
    try:
        return os.readlink(link)  # noqa: PTH115
    except OSError:
        return None

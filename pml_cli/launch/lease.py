"""Leases: which process trains which cell of a results folder.

Processes that share a results folder claim cells, renew a heartbeat, and take over the cells of
processes that died. A claim is a symbolic link: only one process can create it, on local disks and
on NFS alike, which is more than flock promises. Below `.pml/` in the results folder:

    locks/HASH             -> the process that holds the cell, by the hash in the cell's id
    dead/PROCESS           -> its successor. Only one process can create this link, and only the
                              successor removes the locks of the dead process (fencing)
    workers/PROCESS.json      what a process does; rewritten every few seconds as its heartbeat
    cancel/PROCESS            asks a process (or all of a launch) to save a checkpoint and end; that
                              of another user counts only where the folder is theirs
    journal/PROCESS.jsonl     what a process did, a line for each event

Which process counts as dead is decided in liveness.py.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pml_cli.errors import UserError
from pml_cli.io import atomic_write, own_folder, refused_path
from pml_cli.launch.liveness import (
    PROCESS_NAME,
    STALE_SECONDS,
    Record,
    is_alive,
    known_state,
    process_identity,
    read_record,
    server_time,
)
from pml_cli.results.run_folders import run_key

FOLDERS = ("locks", "dead", "workers", "cancel", "journal")

# In place of a name that no process can have.
NOBODY = "nobody"

# Seconds for which a verdict on another process is cached.
VERDICT_SECONDS = 2.0

# Seconds between two heartbeats: an eighth of the time after which silence counts as death.
HEARTBEAT_SECONDS = 5.0
HEARTBEATS_PER_STALE = 8

# Seconds that silence of another machine's process is watched before it counts as death: two of its
# heartbeats. Its age alone may come from a clock that was set.
SILENCE_SECONDS = 2 * HEARTBEAT_SECONDS

# What file systems without symbolic links answer (FAT, some SMB shares).
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class WorkerLease:
    """One process at work in a results folder, from `with` to its end.

    Attributes:
        out: the results folder.
        name: of this process, unique among those of the folder.
        activity: what it does, for `pml status`; part of every heartbeat.
        cancelled: whether it was asked to end, as of the last look.
        fenced: whether another process declared it dead and took over, as of the last look.
    """

    def __init__(
        self,
        out: Path,
        kind: str,
        stale_seconds: float = STALE_SECONDS,
        *,
        sweep: str = "",
        launch: str = "",
        slot: int | None = None,
    ) -> None:
        """Prepare a lease; nothing is written before `with`.

        Args:
            out: the results folder.
            kind: of the launch (inline, local, slurm), or `driver` for a process that only waits.
            stale_seconds: silence after which other machines may declare this process dead.
            sweep: key of the sweep.
            launch: id of the launch that started it; cancelling that id cancels this process too.
            slot: index of its device within the launch.
        """
        self.out = out
        self.folder = out / ".pml"
        self.stale_seconds = stale_seconds
        self.launch = launch
        host = socket.gethostname().split(".")[0]
        self.name = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

        self.activity: dict[str, Any] = {}
        self.cancelled = False
        self.fenced = False

        self._identity = process_identity() | {
            "name": self.name,
            "kind": kind,
            "order": sweep,
            "launch": launch,
            "slot": slot,
            "stale": stale_seconds,
            "started": time.time(),
        }
        cancel = self.folder / "cancel"
        self._cancel_notes = [cancel / self.name]
        if launch:
            self._cancel_notes.append(cancel / launch)
        self._verdicts: dict[str, tuple[float, bool]] = {}
        # When the record of a silent process was written, and since when that is known here.
        self._silent: dict[str, tuple[float, float]] = {}
        # When a silent process was last looked at that may turn out to be dead.
        self._watched: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._renew_heartbeat, daemon=True, name="pml heartbeat"
        )

    def __enter__(self) -> WorkerLease:
        try:
            for name in FOLDERS:
                own_folder(self.out, ".pml", name)
            self.write_heartbeat()
            # A launch may have been cancelled before this worker of it began.
            self.check_cancelled()
            self._thread.start()
        except BaseException:
            # `with` does not call __exit__ after a failed __enter__, not even on an interrupt.
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
        self.activity = {}
        # What is gone counts as dead without it, and a refusal must not hide why this ends.
        with suppress(OSError):
            self.write_heartbeat("ended")

    # -- heartbeat and journal

    def write_heartbeat(self, state: str = "running") -> None:
        """Rewrite this process's record; its age is the sign of life."""
        record = {
            **self._identity,
            "state": state,
            "shown": time.time(),
            "doing": dict(self.activity),
        }
        text = json.dumps(record)
        atomic_write(self._record_path(self.name), lambda aside: aside.write_text(text, "utf-8"))

    def _renew_heartbeat(self) -> None:
        pause = min(HEARTBEAT_SECONDS, self.stale_seconds / HEARTBEATS_PER_STALE)
        while not self._ended.wait(pause):
            try:
                self.check_cancelled()
                self.check_fenced()
                self.write_heartbeat()
            except OSError:
                # A full or absent disk also stops the training, which reports it.
                continue

    def log_event(self, event: str, **details: Any) -> None:
        """Append an event to this process's journal."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **details})
        path = self.folder / "journal" / f"{self.name}.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

    # -- claims

    def claim(self, cell: str) -> bool:
        """Claim a cell, also from a process that died.

        Returns:
            whether this process holds the cell now; False: a living process holds it.
        """
        lock = self._lock(cell)
        while not self.check_fenced():
            try:
                lock.symlink_to(self.name)
                return True
            except FileExistsError:
                pass
            except OSError as error:
                raise _refused_claim(lock, error) from error

            holder = _link_target(lock)
            if holder is None:
                # Released in this moment, or no claim at all: try again.
                _remove_other(lock)
                continue
            if holder == self.name:
                return True

            successor = self._last_successor(holder)
            # Only the successor of a dead process removes its locks; then all may try again.
            if successor == self.name:
                lock.unlink(missing_ok=True)
            elif self.is_alive(successor):
                return False
            else:
                self._take_over(successor)
        return False

    def release(self, cell: str) -> None:
        """Give a cell back, if this process holds it."""
        if self.holds(cell):
            self._lock(cell).unlink(missing_ok=True)

    def holds(self, cell: str) -> bool:
        """Whether this process still holds a cell; never once it was declared dead."""
        if self.check_fenced():
            return False
        return _link_target(self._lock(cell)) == self.name

    def _lock(self, cell: str) -> Path:
        # A process that calls the same run by another name is kept off it too.
        return self.folder / "locks" / run_key(cell)

    def check_fenced(self) -> bool:
        """Look whether another process declared this one dead; also kept in `fenced`."""
        # Fencing is final, so that the disk is asked no more.
        if not self.fenced:
            successor = _link_target(self.folder / "dead" / self.name)
            self.fenced = successor is not None
        return self.fenced

    def _last_successor(self, holder: str) -> str:
        """The process that holds the claims of `holder` now: itself, or the end of a chain of
        takeovers. Two processes that declared each other dead form a circle, which ends the walk.
        """
        return self._chain(holder)[0]

    def _chain(self, holder: str) -> tuple[str, bool]:
        """The last process of a chain of takeovers, and whether the chain is a circle."""
        visited = {holder}
        while True:
            successor = _link_target(self.folder / "dead" / holder)
            if successor is None or successor in visited:
                return holder, successor is not None
            visited.add(successor)
            holder = successor

    def _take_over(self, dead: str) -> None:
        """Declare a process dead, and be its successor; nothing where another was faster.

        Raises:
            UserError: the records of takeovers form a cycle, so there is no successor.
        """
        mark = self.folder / "dead" / dead
        try:
            mark.symlink_to(self.name)
            self.log_event("take_over", dead=dead)
        except FileExistsError:
            _remove_other(mark)
            _, is_circle = self._chain(dead)
            if is_circle:
                raise UserError(
                    f"{mark}: the records of takeovers form a cycle; stop all pml processes that "
                    f"use this folder, then delete {mark.parent}"
                ) from None

    # -- cancellation

    def check_cancelled(self) -> bool:
        """Look whether this process was asked to end; also kept in `cancelled`."""
        if not self.cancelled:
            self.cancelled = any(map(self._may_cancel, self._cancel_notes))
        return self.cancelled

    def _may_cancel(self, note: Path) -> bool:
        """Whether a note exists, and is from the user of this process or the folder's owner."""
        owner = _owner(note)
        # As the file server names this user, which may be another number than here.
        trusted = (_owner(self._record_path(self.name)), _owner(self.folder), 0)
        return owner is not None and owner in trusted

    def cancel_launch(self) -> None:
        """Ask every process of this launch to save a checkpoint and end, this one included."""
        if self.launch:
            cancel_processes(self.out, [self.launch])

    # -- other processes

    def is_alive(self, name: str) -> bool:
        """Whether another process of this folder is alive; looked up every two seconds at most."""
        verdict = self._verdicts.get(name)
        if verdict is None or time.monotonic() - verdict[0] > VERDICT_SECONDS:
            verdict = (time.monotonic(), self._look_alive(name))
            self._verdicts[name] = verdict
        return verdict[1]

    def _look_alive(self, name: str) -> bool:
        try:
            record, written_at = read_record(self._record_path(name))
        except OSError:
            # NFS may answer ESTALE for a file that is being replaced; the next look decides.
            return True
        if record is None:
            return False
        if self._is_record_alive(record, written_at):
            return True
        by_silence = known_state(record, self._identity["slurm"]) is None
        if not by_silence or self._stays_silent(name, written_at):
            return False
        self._watched[name] = time.monotonic()
        return True

    def is_watching(self) -> bool:
        """Whether a process that holds what was asked for is silent, and soon known to be dead."""
        since = time.monotonic() - SILENCE_SECONDS
        return any(looked > since for looked in self._watched.values())

    def _stays_silent(self, name: str, written_at: float) -> bool:
        """Whether a record has not been rewritten while this process watched it."""
        now = time.monotonic()
        if self._silent.get(name, (None,))[0] != written_at:
            self._silent[name] = (written_at, now)
        return now - self._silent[name][1] >= SILENCE_SECONDS

    def _is_record_alive(self, record: Record, written_at: float) -> bool:
        return is_alive(
            record,
            written_at,
            lambda: server_time(self.folder / "workers"),
            self._identity["slurm"],
        )

    def _record_path(self, name: str) -> Path:
        return self.folder / "workers" / f"{name}.json"


def cancel_processes(out: Path, names: Iterable[str]) -> None:
    """Ask processes of a folder, by name or by launch id, to save a checkpoint and end."""
    folder = own_folder(out, ".pml", "cancel")
    for name in names:
        # Not through a link that lies there.
        with suppress(FileExistsError):
            (folder / name).touch(exist_ok=False)


def _owner(path: Path) -> int | None:
    """The user of a file, or of a link itself; None where there is none."""
    try:
        return path.lstat().st_uid
    except OSError:
        return None


def _refused_claim(lock: Path, error: OSError) -> Exception:
    """What to raise where no claim can be made."""
    if error.errno in NO_LINKS:
        return UserError(
            f"{lock}: {error.strerror}; pml claims cells by symbolic links, which the file system "
            "of out= does not support"
        )
    return OSError(error.errno, error.strerror, refused_path(error))


def _link_target(link: Path) -> str | None:
    """The process that a link names; None where there is no link.

    A link that leads anywhere else is damaged: it names nobody who lives.
    """
    try:
        target = os.readlink(link)  # noqa: PTH115
    except OSError:
        return None
    return target if re.fullmatch(PROCESS_NAME, target) else NOBODY


def _remove_other(lock: Path) -> None:
    """Remove what lies in the place of a lock and is no link: an archive was unpacked, perhaps.

    Raises:
        UserError: a folder lies there that is not empty.
    """
    if lock.is_symlink() or not lock.exists():
        return
    try:
        if lock.is_dir():
            lock.rmdir()
        else:
            lock.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{lock}: not a lock file of pml ({error.strerror}); delete it") from error

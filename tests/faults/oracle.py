"""What a results folder holds, and the verdict on a round with a fault."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from catalogue.case import MAX_LINES, TEMPORARY
from safetensors.torch import load_file

from faults.shim import Fault

# What differs between two runs of one command; a key is of the bytes of an adapter's file, whose
# head is in any order.
VOLATILE = {"key", "seconds", "asked", "time", "when", "started", "created", "pack_size", "version"}
LARGE = re.compile(r"adapter|checkpoints|\.tmp")
SKIPPED = re.compile(r"(^|/)(\.pml|cache)(/|$)")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended: its exit code (None: not in time), and what it printed."""

    code: int | None
    said: str


def contents(folder: Path) -> dict[str, Any]:
    """What every file holds, by relative path, without what differs between two runs.

    Raises:
        Exception: a file under its final name is not whole.
    """
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            relative = str(path.relative_to(folder))
            if not SKIPPED.search(relative) and not TEMPORARY.search(relative):
                found[relative] = content(path)
    return found


def names(folder: Path) -> set[str]:
    """Relative paths of all that lies below a folder, without what is half-written."""
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {path for path in paths if not TEMPORARY.search(path)}


def content(path: Path) -> Any:
    """What a file holds, without what differs between two runs."""
    if path.suffix == ".json":
        return _settled(json.loads(path.read_text("utf-8")))
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pandas().to_csv()
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if name in VOLATILE]).to_csv()
    if path.suffix == ".safetensors":
        return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _settled(item) for key, item in value.items() if key not in VOLATILE}
    return [_settled(item) for item in value] if isinstance(value, list) else value


def is_told(said: str, fault: Fault) -> bool:
    """Whether an output names a fault, or what was done without."""
    return os.strerror(fault.number) in said or "left out" in said


def settled(said: str) -> str:
    """An output without its numbers and spaces."""
    return re.sub(r"[\d.\s]+", " ", said)


def litter(folder: Path, large: bool = False) -> list[str]:
    """Temporary files and folders that were left.

    Args:
        folder: of the round.
        large: only those of weights; small ones that a kill has left are hidden, and stay.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        relative = str(path.relative_to(folder))
        # Of a folder that could not be removed nothing but its name is left.
        is_large = LARGE.search(relative) and not (path.is_dir() and not list(path.iterdir()))
        if TEMPORARY.search(relative) and (is_large or not large):
            found.append(relative)
    return found


def unreadable(folder: Path) -> list[str]:
    """Files under their final names that are not whole."""
    faults = []
    for path in folder.rglob("*"):
        is_whole = path.suffix in (".json", ".parquet", ".safetensors", ".csv")
        parts = path.relative_to(folder).parts
        if is_whole and path.is_file() and not any(map(TEMPORARY.search, parts)):
            try:
                content(path)
            except Exception as error:
                faults.append(f"{path.relative_to(folder)}: {str(error)[:100]}")
    return faults


def complaints(outcome: Outcome, folder: Path, *, killed: bool, tidy: bool) -> list[str]:
    """What is wrong with a command that met a fault.

    Args:
        outcome: of the command.
        folder: what it left.
        killed: whether a process was killed.
        tidy: whether what is not complete could be removed, so that nothing may be left over.
    """
    if outcome.code is None:
        return ["does not end"]
    faults = unreadable(folder)
    if "Traceback (most recent call last)" in outcome.said or "Exception ignored" in outcome.said:
        faults.append("traceback")
    if killed:
        return faults

    if outcome.code not in (0, 1, 2):
        faults.append(f"exit code {outcome.code}")
    if outcome.code == 2:
        faults += _complaints_of_line(outcome)
    if tidy:
        faults += [f"left over: {name}" for name in litter(folder)]
    return faults


def _complaints_of_line(outcome: Outcome) -> list[str]:
    lines = [line for line in outcome.said.splitlines() if line.startswith("error: ")]
    if not 1 <= len(lines) <= MAX_LINES // 3:
        return [f"{len(lines)} error lines"]
    if not re.search(r"runs|report|cache|facts", lines[0]):
        return [f"names no path: {lines[0][:150]}"]
    return []


def differences(folder: Path, reference: dict[str, Any]) -> list[str]:
    """Where a folder differs from that of an undisturbed command."""
    ours = contents(folder)
    names = sorted(
        name for name in ours.keys() | reference.keys() if ours.get(name) != reference.get(name)
    )
    return [f"differs: {name}" for name in names]

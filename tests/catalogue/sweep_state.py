"""pml's own state: manifests, workers, launches, locks, checkpoints; the cache of speeds.

Others may write to a results folder, and disks fail: what is damaged is set aside, passed over or
named, and a sweep that is called again ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from catalogue.case import Case, Change
from catalogue.damage import (
    GONE,
    KINDS,
    VALUES,
    both,
    damaged_field,
    damaged_files,
    damaged_paths,
    edit,
    first,
    put,
    remove,
    set_field,
    with_value,
)
from catalogue.folders import SWEEP

MANIFESTS = "manifests"
WORKERS = "workers"
LAUNCHES = "launches"
LOCKS = "locks"
CHECKPOINTS = "checkpoints"
SPEEDS = "rates.json"
FOLDERS = "folders of .pml"

AGAIN = ("sweep", *SWEEP, "out=runs")
RERUN = remove("runs/*/result.json")
MANIFEST = "runs/.pml/requests/*.json"
WORKER = "runs/.pml/workers/*.json"


def cases() -> Iterator[Case]:
    """Of all doors."""
    yield from _manifests()
    yield from _workers()
    yield from _launches()
    yield from _locks()
    yield from _checkpoints()
    yield from _speeds()
    yield from _folders()


def _status(door: str, name: str, change: Change) -> Case:
    return _case(door, f"status: {name}", ("status", "runs"), change)


def _everywhere(door: str, name: str, change: Change) -> Iterator[Case]:
    """Looked at, cancelled, and trained on."""
    for command in ("status", "cancel"):
        argv = (command, "runs")
        yield _case(door, f"{command}: {name}", argv, change)
    yield _case(door, f"sweep again: {name}", AGAIN, both(RERUN, change))


def _manifests() -> Iterator[Case]:
    for name, change in damaged_files(MANIFEST):
        yield from _everywhere(MANIFESTS, name, change)
    for field in ("format", "asked", "cells", "settings", "packing"):
        for name, change in damaged_field(MANIFEST, field):
            yield _status(MANIFESTS, name, change)
    for field in ("work", "tokens", "run"):
        for kind in KINDS:
            change = edit(MANIFEST, partial(_set_in_cell, field, VALUES[kind]))
            yield _status(MANIFESTS, f"{field} of a cell {kind}", change)

    names = ("../x", "/etc/x", "", ".", "..", "a/b", "\x1b[31mred", "a" * 300, "a\nb")
    for name in names:
        change = edit(MANIFEST, lambda tree, n=name: tree.update(cells={n: {"work": 1}}))
        yield from _everywhere(MANIFESTS, f"a cell named {name[:20]!r}", change)


def _set_in_cell(field: str, value: Any, tree: Any) -> None:
    cell = next(iter(tree["cells"]))
    set_field(tree, ("cells", cell, field), value)


def _workers() -> Iterator[Case]:
    for name, change in damaged_files(WORKER):
        yield from _everywhere(WORKERS, name, change)
    fields = (
        "place",
        "state",
        "stale",
        "pid",
        "created",
        "name",
        "kind",
        "host",
        "shown",
        "doing",
        "slurm",
        "order",
        "launch",
    )
    for field in fields:
        for kind in (*KINDS, "an escape sequence"):
            wrong = with_value(WORKER, (field,), VALUES[kind])
            yield _status(WORKERS, f"{field} {kind}", both(edit(WORKER, _elsewhere), wrong))
    for field in ("step", "steps", "since", "first", "names"):
        for kind in KINDS:
            change = edit(WORKER, partial(_set_in_work, field, VALUES[kind]))
            yield _status(WORKERS, f"doing {field} {kind}", change)

    here = edit(WORKER, lambda tree: tree.update(state="running", pid=-1))
    yield from _everywhere(WORKERS, "a process -1 of this machine", here)
    names = ("../../../x", "/etc/x", "a" * 300, "")
    for name in names:
        change = edit(WORKER, lambda tree, n=name: (_elsewhere(tree), tree.update(name=n)))
        yield from _everywhere(WORKERS, f"a process named {name[:20]!r}", change)


def _elsewhere(tree: Any) -> None:
    """A process of another machine, that runs."""
    tree.update(state="running", place="another machine", stale=1e9)


def _set_in_work(field: str, value: Any, tree: Any) -> None:
    """One field of what the process does."""
    _elsewhere(tree)
    tree["doing"] = {"step": 1, "steps": 3, "since": 0.0, "first": 0, "names": []}
    set_field(tree, ("doing", field), value)


def _launches() -> Iterator[Case]:
    record = {"launch": "abcdefgh", "order": "x"}
    for name, change in damaged_files("runs/.pml/jobs/1.json"):
        made = both(put("runs/.pml/jobs/1.json", json.dumps(record)), change)
        yield from _everywhere(LAUNCHES, name, made)
    for value in ("../../../x", "/tmp/pml-outside", "", "a/b", "..", [1], None, 5, "a" * 300):
        text = json.dumps(record | {"launch": value})
        change = put("runs/.pml/jobs/local-1.json", text)
        yield _case(LAUNCHES, f"a launch named {value!r:.30}", ("cancel", "runs"), change)


def _locks() -> Iterator[Case]:
    """What stands in place of the lock of a cell that is to be trained."""
    targets = {
        "of a dead process": "nohost-1-abcdefgh",
        "that leads elsewhere": "../../../x",
        "that leads to itself": "",
        "that leads to the root": "/",
        "of a name of 250 letters": "a" * 250,
        "with an escape sequence": "\x1b[31mred",
    }
    for name, target in targets.items():
        change = _lock(lambda path, target=target: path.symlink_to(target or path.name))
        yield _case(LOCKS, f"a lock {name}", AGAIN, both(RERUN, change))

    for name, make in PLACED.items():
        yield _case(LOCKS, f"a lock that is {name}", AGAIN, both(RERUN, _lock(make)))

    for length in (1, 2, 3):
        ring = both(RERUN, _ring(length), _lock(lambda path: path.symlink_to("p0")))
        yield _case(LOCKS, f"dead processes in a ring of {length}", AGAIN, ring)

    for name, make in PLACED.items():
        change = both(
            RERUN,
            _lock(lambda path: path.symlink_to("p0")),
            lambda folder, make=make: make(_fresh(folder / "runs/.pml/dead/p0")),
        )
        yield _case(LOCKS, f"a mark of death that is {name}", AGAIN, change)


PLACED: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("x"),
    "an empty file": lambda path: path.write_text(""),
    "a folder": lambda path: path.mkdir(),
}


def _lock(make: Callable[[Path], object]) -> Change:
    """Put something in place of the lock of the run that is to be trained."""

    def change(folder: Path) -> None:
        from pml_cli.results.run_folders import run_key

        waiting = [run for run in (folder / "runs").iterdir() if _is_waiting(run)]
        make(_fresh(folder / "runs/.pml/locks" / run_key(waiting[0].name)))

    return change


def _is_waiting(run: Path) -> bool:
    return (run / "config.yaml").exists() and not (run / "result.json").exists()


def _fresh(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return path


def _ring(length: int) -> Change:
    def change(folder: Path) -> None:
        for number in range(length):
            mark = _fresh(folder / f"runs/.pml/dead/p{number}")
            mark.symlink_to(f"p{(number + 1) % length}")

    return change


def _checkpoints() -> Iterator[Case]:
    file = "runs/.pml/checkpoints/x.safetensors"
    for name, change in damaged_files(file):
        made = both(RERUN, _checkpoint({}), change)
        yield _case(CHECKPOINTS, name, AGAIN, made)

    yield _case(CHECKPOINTS, "without its tensors", AGAIN, both(RERUN, _checkpoint({})))
    fields = ("format", "step", "pack", "cells", "draws", "columns", "seconds", "hashes")
    for field in fields:
        for kind in KINDS:
            # Without the field, or with a wrong value.
            made = both(RERUN, _checkpoint({field: VALUES[kind]}))
            yield _case(CHECKPOINTS, f"{field} {kind}", AGAIN, made)

    yield _case(CHECKPOINTS, "a field more", AGAIN, both(RERUN, _checkpoint({"nope": 1})))
    yield _case(
        CHECKPOINTS, "a step of the future", AGAIN, both(RERUN, _checkpoint({"step": 10**9}))
    )


def _checkpoint(fields: dict[str, Any]) -> Change:
    """A checkpoint of the cell that is to be trained, by its head; it holds next to nothing."""

    def change(folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from pml_cli.results.run_folders import run_key
        from pml_cli.training.curve import COLUMNS

        runs = [run for run in (folder / "runs").iterdir() if _is_waiting(run)]
        key = run_key(runs[0].name)
        head = {"format": 1, "step": 2, "pack": [key], "cells": [key], "draws": [0]}
        head |= {"columns": list(COLUMNS), "seconds": 1.0, "hashes": {}} | fields
        kept = {name: value for name, value in head.items() if value is not GONE}
        path = folder / "runs/.pml/checkpoints/x.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({"a": torch.zeros(3)}, path, metadata={"pml": json.dumps(kept)})

    return change


def _speeds() -> Iterator[Case]:
    for name, text in POINTS.items():
        devices = [f'"cpu, {n} threads": {{"float32": {{"tiny": {text}}}}}' for n in (1, 2)]
        yield _planned(name, put(SPEEDS_FILE, "{" + ", ".join(devices) + "}"))
    for name, damage in damaged_files(SPEEDS_FILE):
        yield _planned(name, both(put(SPEEDS_FILE, "{}"), damage))
    yield _planned("a file for a cache", put("cache", "x"))


def _planned(name: str, change: Change) -> Case:
    """A plan reads the cache of speeds, and does without a damaged one."""
    return _case(
        SPEEDS,
        name,
        ("sweep", "rank=1", "seqlen=8", "--dry-run"),
        change,
        base="",
        env=(("PML_CACHE", "@/cache"),),
    )


SPEEDS_FILE = "cache/rates.json"
POINTS = {
    "a word": '"x"',
    "points of words": '[["a", "b"]]',
    "a point of one": "[[1]]",
    "a point of three": "[[1, 2, 3]]",
    "huge points": "[[1e308, 1e308], [1, 1e-300], [5, 2]]",
    "a point of 400 digits": f"[[1, {10**400}]]",
    "points of null": "[[null, null]]",
    "negative points": "[[-1, -1]]",
    "a mapping": '{"a": 1}',
}


def _folders() -> Iterator[Case]:
    for name in FOLDERS_OF_STATE:
        change = put(f"runs/.pml/{name}".rstrip("/"), "x")
        yield from _everywhere(FOLDERS, f".pml/{name} is a file", change)
    for name in ("workers", "requests"):
        file = f"runs/.pml/{name}/x.json"
        for kind, damage in damaged_paths(file, missing=False):
            change = both(put(file), damage)
            yield from _everywhere(FOLDERS, f"{kind} among {name}", change)

    for name, change in RESULTS.items():
        yield _case(FOLDERS, f"sweep again: {name}", AGAIN, change)


FOLDERS_OF_STATE = (
    "requests",
    "workers",
    "jobs",
    "locks",
    "dead",
    "cancel",
    "journal",
    "checkpoints",
    "",
)


def _replace(pattern: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        import shutil

        path = first(folder, pattern)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        make(path)

    return change


def _full_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("")


RUN = "runs/[!.f]*/config.yaml"
RESULTS: dict[str, Change] = {
    "a run folder that is a file": _replace("runs/t*", lambda path: path.write_text("x")),
    "a run folder that leads nowhere": _replace("runs/t*", lambda p: p.symlink_to("/nowhere/x")),
    "config.yaml is a folder": both(RERUN, _replace("runs/t*/config.yaml", _full_folder)),
    "adapter is a file": both(
        RERUN, _replace("runs/t*/adapter", lambda path: path.write_text("x"))
    ),
    "results.csv is a folder": both(RERUN, _replace("runs/results.csv", _full_folder)),
}


def _case(
    door: str,
    name: str,
    argv: tuple[str, ...],
    change: Change,
    *,
    base: str = "swept",
    env: tuple[tuple[str, str], ...] = (),
) -> Case:
    return Case(
        door=door,
        name=name,
        argv=argv,
        base=base,
        change=change,
        codes=(0, 1, 2),
        says="runs|cell|running|memory" if base else "cell",
        always=True,
        writes=argv[0] != "status",
        env=env,
    )

"""Finished and failed runs, read back from their folders."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pml_cli.config.schema import FORMAT
from pml_cli.errors import MAX_LISTED, UserError, and_n_more
from pml_cli.format import counted
from pml_cli.results.fields import Answer, ResultFields
from pml_cli.results.folder import ADAPTER, ERROR, RESULT, RunFolder
from pml_cli.results.labels import with_settled_labels
from pml_cli.results.run_folders import run_key
from pml_cli.validation import checked, load_json, read_json, shown

if TYPE_CHECKING:
    import pandas as pd

# What helps where a result cannot be used.
AGAIN = "delete it and run the sweep again"

# The second is what Linux makes at the root of a disk, and root alone may list.
WITHOUT_RUNS = (ADAPTER, "lost+found")

# What `pml memorize` writes of its answer.
ANSWER = "memorize.json"

# Fields of a result that differ between equal runs, or that earlier versions do not write.
NOT_NUMBERS = (
    *("id", "folder", "model", "hub_id", "data", "seconds", "pack_size"),
    *("passes", "converged", "expected_gain"),
)


def finished_runs(
    paths: Sequence[Path], example: str, notes: list[str] | None = None
) -> pd.DataFrame:
    """All finished runs below some folders, for a report.

    Args:
        paths: folders of runs.
        example: what to run where there are none, to follow "make some with".
        notes: takes a line about runs that lie there twice.

    Returns:
        One row a run, as `read_runs`.

    Raises:
        UserError: also where there are no finished runs.
    """
    runs = read_runs(paths, notes=notes)
    if not runs.empty:
        return runs

    failed = sum(len(read_failures(path)) for path in paths)
    note = f" ({failed} failed; error.json in their folders says why)" if failed else ""
    folders = shlex.join(str(path) for path in paths)
    raise UserError(f"{folders}: no finished runs{note}; make some with {example}")


def read_runs(
    roots: Iterable[Path],
    left_out: list[str] | None = None,
    notes: list[str] | None = None,
) -> pd.DataFrame:
    """All finished runs below the given folders.

    A run counts once, also where copies of its folder lie there too; the first one counts.

    Args:
        roots: folders of runs.
        left_out: takes a line for each unreadable result, instead of an error.
        notes: takes a line about copies, and one for each run that lies there with other numbers.

    Returns:
        One row a run: the fields of result.json, and `folder`.

    Raises:
        UserError: a folder does not exist or cannot be listed, or a result is unreadable or of
            another format.
    """
    import pandas as pd

    rows: dict[Path, dict[str, Any]] = {}
    for root in roots:
        if not root.is_dir():
            reason = "a file; give a folder of runs" if root.exists() else "no such folder"
            raise UserError(f"{root}: {reason}")

        for path in _find(root, RESULT, left_out):
            try:
                _check_name(path.parent)
                result = _read_result(path)
            except UserError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
                continue
            if result is not None:
                rows[path.resolve()] = result | {"folder": str(path.parent)}
    distinct, lines = _distinct(list(rows.values()))
    if notes is not None:
        notes += lines
    return with_settled_labels(pd.DataFrame(distinct))


def _distinct(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Each run once, and the lines about the others."""
    first: dict[str, dict[str, Any]] = {}
    copies = []
    lines = []
    for row in rows:
        run_id = str(row["id"])
        key = run_key(run_id)
        # An id of another program, without a hash, does not tell what the run was.
        counted_row = first.setdefault(row["folder"] if key == run_id else key, row)
        pair = f"{counted_row['folder']} and {row['folder']}"
        if counted_row is row:
            continue
        if _numbers(counted_row) == _numbers(row):
            copies.append(pair)
        else:
            lines.append(f"{pair} are the same run with different results; only the first is used")

    lines = and_n_more(lines, MAX_LISTED)
    if copies:
        lines.append(f"{counted(copies, 'duplicate run')} ignored: {copies[0]}")
    return list(first.values()), lines


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    """What a run has measured, without its names and what it cost."""
    return {name: value for name, value in row.items() if name not in NOT_NUMBERS}


def one_run(path: Path) -> RunFolder:
    """The one finished run that a path names.

    Args:
        path: a run folder, its adapter/, a folder with one run, at any depth, or one of
            `pml memorize`, which has chosen a run.

    Raises:
        UserError: there is none, or there are several (their names).
    """
    folder = path.parent if path.name == ADAPTER else path
    if not folder.is_dir():
        reason = "a file; give the folder of a run" if path.exists() else "no such folder"
        raise UserError(f"{path}: {reason}")

    runs = [result.parent for result in _find(folder, RESULT) if _read_result(result)]
    chosen = _chosen_run(folder)
    if chosen is not None:
        runs = [run for run in runs if run_key(run.name) == run_key(chosen)] or runs
    if len(runs) == 1:
        # "." has no name.
        only = runs[0] if runs[0].name else runs[0].resolve()
        return RunFolder(only.parent, only.name)
    if not runs:
        note = "; error.json says why it failed" if (folder / ERROR).exists() else ""
        raise UserError(f"{path}: no finished run{note}")
    names = ", ".join(and_n_more([run.name for run in runs], MAX_LISTED))
    raise UserError(f"{path}: {len(runs)} runs, give the folder of one: {names}")


def _chosen_run(folder: Path) -> str | None:
    """The run that `pml memorize` has handed over; None where the folder is none of its own."""
    try:
        content = read_json(folder / ANSWER, Answer, "")
    except UserError:
        return None
    return str(content["run"])


def read_failures(root: Path) -> dict[str, str]:
    """Run id to reason, of the runs below a folder that failed."""
    reasons = {}
    # What cannot be listed, `read_runs` has said.
    for path in _find(root, ERROR, []):
        folder = RunFolder(path.parent.parent, path.parent.name)
        reasons[folder.id] = folder.failure() or ""
    return reasons


def check_formats(out: Path) -> None:
    """Refuse a sweep's folder with runs of another format.

    A result that cannot be read is ignored: its run is trained again.

    Raises:
        UserError: names the first such run.
    """
    for path in sorted(out.glob(f"*/{RESULT}")):
        try:
            result = load_json(path, "")
        except UserError:
            continue

        if _is_result(result, "id") and result.get("format") != FORMAT:
            other = f"format {shown(result.get('format'))} is not this version's ({FORMAT})"
            raise UserError(f"{path}: {other}; use another out=")


def _find(root: Path, name: str, left_out: list[str] | None = None) -> Iterator[Path]:
    """Files of a name below a folder, but for hidden folders and adapters.

    Args:
        root: the folder.
        name: of the files.
        left_out: takes a line for each folder that cannot be listed, instead of an error.

    Raises:
        UserError: a folder cannot be listed; runs may lie in it.
    """

    def refuse(error: OSError) -> None:
        # Another process has removed it since it was listed.
        if isinstance(error, FileNotFoundError):
            return
        line = f"{error.filename}: cannot be listed ({error.strerror})"
        if left_out is None:
            raise UserError(line) from error
        left_out.append(line)

    for folder, children, files in os.walk(root, onerror=refuse):
        children[:] = sorted(
            child for child in children if not child.startswith(".") and child not in WITHOUT_RUNS
        )
        if name in files:
            yield Path(folder) / name


def _check_name(folder: Path) -> None:
    """Refuse a folder of which no table and no report can tell the name.

    Raises:
        UserError: the name is no UTF-8.
    """
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{folder}: its name is not valid UTF-8; rename it") from error


def _read_result(path: Path) -> dict[str, Any] | None:
    """The content of a result.json; None where another program wrote it."""
    result = load_json(path, AGAIN)
    if not _is_result(result, "format", "id"):
        return None
    if result["format"] != FORMAT:
        other = f"format {shown(result['format'])} is not this version's ({FORMAT})"
        raise UserError(f"{path}: {other}")
    content: dict[str, Any] = checked(path, result, ResultFields, AGAIN)
    return content


def own_result(folder: RunFolder, needed: Sequence[str]) -> dict[str, Any]:
    """result.json of a run that a search has trained, and goes on with.

    Args:
        needed: fields that it must have, and not as null.

    Raises:
        UserError: it cannot be read, or lacks a field.
    """
    remedy = "delete it and run the same command again"
    content: dict[str, Any] = read_json(folder.result, ResultFields, remedy)
    for name in needed:
        if content.get(name) is None:
            raise UserError(f"{folder.result}: has no {name}; {remedy}")
    return content


def _is_result(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and all(key in content for key in keys)

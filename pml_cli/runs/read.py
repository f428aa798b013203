"""Finished and failed runs, read back from their folders."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pml_cli.config.schema import FORMAT
from pml_cli.errors import MAX_LISTED, UserError, and_n_more
from pml_cli.runs.folder import ADAPTER, ERROR, RESULT, RunFolder
from pml_cli.runs.labels import with_settled_labels

if TYPE_CHECKING:
    import pandas as pd


def finished_runs(paths: Sequence[Path], example: str) -> pd.DataFrame:
    """All finished runs below some folders, for a report.

    Args:
        paths: folders of runs.
        example: what to run where there are none, to follow "make some with".

    Returns:
        One row a run, as `read_runs`.

    Raises:
        UserError: also where there are no finished runs.
    """
    runs = read_runs(paths)
    if not runs.empty:
        return runs

    failed = sum(len(read_failures(path)) for path in paths)
    note = f" ({failed} failed; error.json in their folders says why)" if failed else ""
    folders = shlex.join(str(path) for path in paths)
    raise UserError(f"{folders}: no finished runs{note}; make some with {example}")


def read_runs(roots: Iterable[Path], left_out: list[str] | None = None) -> pd.DataFrame:
    """All finished runs below the given folders.

    A run below two of the folders counts once.

    Args:
        roots: folders of runs.
        left_out: takes a line for each unreadable result, instead of an error.

    Returns:
        One row a run: the fields of result.json, and `folder`.

    Raises:
        UserError: a folder does not exist, or a result is unreadable or of another format.
    """
    import pandas as pd

    rows: dict[Path, dict[str, Any]] = {}
    for root in roots:
        if not root.is_dir():
            reason = "a file; give a folder of runs" if root.exists() else "no such folder"
            raise UserError(f"{root}: {reason}")

        for path in _find(root, RESULT):
            try:
                result = _read_result(path)
            except UserError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
                continue
            if result is not None:
                rows[path.resolve()] = result | {"folder": str(path.parent)}
    return with_settled_labels(pd.DataFrame(list(rows.values())))


def one_run(path: Path) -> RunFolder:
    """The one finished run that a path names.

    Args:
        path: a run folder, its adapter/, or a folder with one run, at any depth.

    Raises:
        UserError: there is none, or there are several (their names).
    """
    folder = path.parent if path.name == ADAPTER else path
    if not folder.is_dir():
        reason = "a file; give the folder of a run" if path.exists() else "no such folder"
        raise UserError(f"{path}: {reason}")

    runs = [result.parent for result in _find(folder, RESULT) if _read_result(result)]
    if len(runs) == 1:
        # "." has no name.
        only = runs[0] if runs[0].name else runs[0].resolve()
        return RunFolder(only.parent, only.name)
    if not runs:
        note = "; error.json says why it failed" if (folder / ERROR).exists() else ""
        raise UserError(f"{path}: no finished run{note}")
    names = ", ".join(and_n_more([run.name for run in runs], MAX_LISTED))
    raise UserError(f"{path}: {len(runs)} runs, give the folder of one: {names}")


def read_failures(root: Path) -> dict[str, str]:
    """Run id to reason, of the runs below a folder that failed."""
    reasons = {}
    for path in _find(root, ERROR):
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
            result = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue

        if _is_result(result, "id") and result.get("format") != FORMAT:
            other = f"format {result.get('format')} is not this version's ({FORMAT})"
            raise UserError(f"{path}: {other}; use another out=")


def _find(root: Path, name: str) -> Iterator[Path]:
    """Files of a name below a folder, but for hidden folders and adapters."""
    for folder, children, files in os.walk(root):
        children[:] = sorted(
            child for child in children if not child.startswith(".") and child != ADAPTER
        )
        if name in files:
            yield Path(folder) / name


def _read_result(path: Path) -> dict[str, Any] | None:
    """The content of a result.json; None where another program wrote it."""
    try:
        result = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = f"not readable as JSON ({error})"
        raise UserError(f"{path}: {reason}; delete it and run the sweep again") from error

    if not _is_result(result, "format", "id"):
        return None
    if result["format"] != FORMAT:
        raise UserError(f"{path}: format {result['format']} is not this version's ({FORMAT})")
    content: dict[str, Any] = result
    return content


def _is_result(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and all(key in content for key in keys)

"""`pml report`: everything that a results folder has to say, as one HTML page.

Exit codes: 0 when the page was written; 2 (a `UserError`) when there is nothing to read or nowhere
to write.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from pml_cli.config.reports import Report
from pml_cli.errors import UserError
from pml_cli.io import json_text, write_text
from pml_cli.law.law_json import fitted_laws
from pml_cli.report import law_folder
from pml_cli.report.fitting import audited_groups, fit_with_progress
from pml_cli.report.output import consoles, print_json
from pml_cli.report.run_notes import print_notes
from pml_cli.results.folder import RESULT, writable_folder
from pml_cli.results.read import finished_runs, read_failures

if TYPE_CHECKING:
    from pml_cli.report.page.section import Sources

FILE_NAME = "report.html"

# By which a page is known, in its head.
GENERATOR = b'<meta name="generator" content="pml report">'


def run(
    paths: list[Path],
    settings: Report,
    stdout: Console,
    *,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Fit every group of runs below `paths` and write the page.

    Args:
        paths: folders of runs, searched at any depth.
        stdout: to print to.
        as_json: print where the page is, counts and the verdict as JSON; the rest goes to standard
            error.
        quiet: show no progress.

    Returns:
        The exit code (above).

    Raises:
        UserError: a missing folder, no finished run, a page that cannot be written.
    """
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    file = _file(paths, settings)
    notes: list[str] = []
    folders = shlex.join(str(path) for path in paths)
    runs = finished_runs(paths, f"`pml sweep`, then `pml report {folders}`", notes)
    print_notes(notes)
    # The group with the most cells stands first.
    keyed_cells = sorted(audited_groups(runs, settings), key=lambda group: -len(group[1]))
    groups = fit_with_progress(keyed_cells, settings, progress)

    # Imported late: templates and plotly are not needed to refuse a folder.
    from pml_cli.report.page.page import render
    from pml_cli.report.page.section import Sources

    sources = Sources(
        paths=paths,
        runs=runs,
        groups=groups,
        laws={law.name: law for law in fitted_laws(law_folder.law_content(groups, settings))},
        failures={name: why for path in paths for name, why in read_failures(path).items()},
        shown_runs=settings.runs,
    )
    try:
        write_text(file, render(sources))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error})") from error
    console.print(Text(f"written to {file}: open it in a browser"))
    if as_json:
        print_json(stdout, json_text(_content(file, sources)))
    return 0


def _content(file: Path, sources: Sources) -> dict[str, Any]:
    """What `pml report --json` prints: where the page is, what it stands on, what it says first."""
    from pml_cli.report.page.sections.verdict import sentences

    left_out = sources.left_out
    return {
        "page": str(file),
        "cells": len(sources.runs),
        "left_out": sum(left_out.values()),
        "reasons": left_out,
        "failed": len(sources.failures),
        "verdict": " ".join(sentences(sources)),
    }


def _file(paths: list[Path], settings: Report) -> Path:
    """Where the page goes: `out`, a file or a folder; else report.html in the first path.

    Raises:
        UserError: the folder cannot be written, or what is there is no page.
    """
    if settings.out is None:
        # Nothing is added to the folder of a run; the page lies beside it.
        folder = paths[0]
        file = folder / FILE_NAME
        if (folder / RESULT).exists():
            # What has no name of its own: `.` and `..`.
            named = folder.resolve() if folder.name in ("", "..") else folder
            file = named.parent / f"{named.name}.html"
    else:
        file = Path(settings.out)
        if file.is_dir() or settings.out.endswith("/"):
            file = file / FILE_NAME
        writable_folder(file.parent)

    if file.exists() and not _is_page(file):
        option = f"out={settings.out}" if settings.out else str(file)
        raise UserError(f"{option}: {file} exists and was not written by pml; give another out=")
    return file


def _is_page(file: Path) -> bool:
    """Whether a file is what `pml report` writes."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return GENERATOR in opened.read(2000)

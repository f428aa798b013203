"""`pml fit`: fit the memory law to finished runs, group by group.

Printed is the chosen law, how sure it is, how it predicts unseen cells, and what to do next; of
several groups a line each. `--all` prints the paper's own estimator, the chosen law and all laws
side by side. `report/law_folder.py` writes law.json, cells.csv, law.tex and the figures.

Exit codes: 0 when a table was written, also when no law is identified (status NOT_IDENTIFIED says
why); 2 (a `UserError`) when there is nothing to read or nowhere to write.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from pml_cli.config.reports import Fit
from pml_cli.law import law_json
from pml_cli.law.findings import NOT_IDENTIFIED, NOTES
from pml_cli.law.fit_groups import (
    GroupFit,
    bits_lines,
    check_settings,
    comparable_sets,
    compare_groups,
)
from pml_cli.law.group_comparison import Comparison
from pml_cli.law.observations import SIZE_AXES
from pml_cli.report import law_folder
from pml_cli.report.base_knowledge import much_known_line
from pml_cli.report.fitting import audited_groups, fit_with_progress
from pml_cli.report.foreign_files import check_files
from pml_cli.report.law_text import capacity_lines, sentence
from pml_cli.report.output import consoles, print_json
from pml_cli.report.run_notes import print_notes
from pml_cli.report.tables import law as tables
from pml_cli.report.tables import law_summary
from pml_cli.report.tables.bits_line import line_table
from pml_cli.results.folder import beside, writable_folder
from pml_cli.results.groups import differing_settings
from pml_cli.results.read import finished_runs

# Beside the figures, in the report folder.
WRITTEN = (law_json.FILE_NAME, "law.tex", "cells.csv")


def run(
    paths: list[Path],
    settings: Fit,
    stdout: Console,
    by: Sequence[str] = (),
    *,
    show_all: bool = False,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Fit every group of cells below `paths`, show it, write the report folder.

    Args:
        paths: folders of runs, searched at any depth; the report goes to settings.out, or to fit/
            in the first, beside it where that is one run.
        stdout: to print to.
        by: settings (of KEY and SCHEDULE in results/groups.py) in which groups are compared; those
            that agree in all others.
        show_all: print every law and remark of every group.
        as_json: print law.json; the rest goes to standard error.
        quiet: show no progress, only the result.

    Returns:
        The exit code (above).

    Raises:
        UserError: a missing folder, no finished run, a report folder that cannot be written,
            nothing to compare.
    """
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    check_settings(by)
    runs = _read(paths)
    out = Path(settings.out) if settings.out else beside(paths[0], "fit")
    check_files(out, WRITTEN, figures=("law", "bits", "comparison"))
    writable_folder(out)

    # Groups that cannot be compared are refused before the fits, which take minutes.
    keyed_cells = audited_groups(runs, settings)
    sets = []
    if by:
        sets = comparable_sets([key for key, _ in keyed_cells], by)

    groups = fit_with_progress(keyed_cells, settings, progress)
    if len(groups) > 1:
        varying = differing_settings([group.key for group in groups])
        heading = f"{len(groups)} groups that differ in {varying}: each is fitted by itself."
        console.print(Text(heading), end="\n\n")
    report = settings.out or str(paths[0])
    _show(groups, report, console, show_all=show_all)

    comparisons = []
    for positions in sets:
        compared = [groups[k] for k in positions]
        comparisons.append(_compare(compared, by, settings, console))

    lines = bits_lines(groups)
    for line, _ in lines:
        console.print(line_table(line), end="\n\n")

    names = law_folder.write(out, groups, settings, comparisons, lines)
    written = f"written to {out}: {', '.join(names)}"
    if not show_all:
        written = f"written to {out}; --all prints every law"
    console.print(Text(written), soft_wrap=not show_all)
    if as_json:
        print_json(stdout, (out / law_json.FILE_NAME).read_text("utf-8"))
    return 0


def _read(paths: list[Path]) -> pd.DataFrame:
    """The finished runs below the paths."""
    folders = shlex.join(str(path) for path in paths)
    sweep = f"pml sweep rank=2,4,8,16 seqlen=64,128,256,512 out={shlex.quote(str(paths[0]))}"
    notes: list[str] = []
    runs = finished_runs(paths, f"`{sweep}`, then `pml fit {folders}`", notes)
    print_notes(notes)
    return runs


def _compare(
    groups: list[GroupFit],
    by: Sequence[str],
    settings: Fit,
    console: Console,
) -> Comparison:
    """Compare groups and print their table."""
    comparison = compare_groups(groups, by)
    axis = SIZE_AXES[settings.x]
    console.print(tables.comparison_table(comparison, axis), end="\n\n")
    return comparison


def _show(
    groups: Sequence[GroupFit],
    report: str,
    console: Console,
    *,
    show_all: bool,
) -> None:
    """Print one group on a screen, several in a table; or all of each."""
    if show_all:
        for group in groups:
            _show_all(group, console)
        return

    next_command = _predict_command(groups, report)
    if len(groups) == 1:
        console.print(law_summary.summary(groups[0], next_command))
    else:
        console.print(law_summary.summary_table(groups, next_command), end="\n\n")


def _predict_command(groups: Sequence[GroupFit], report: str) -> str:
    """What asks the law about a text between the shortest and the longest of its cells."""
    lengths = pd.concat([group.cells["target_tokens"] for group in groups])
    lengths = lengths[lengths > 0]
    length = f"{np.sqrt(lengths.min() * lengths.max()):.0f}" if len(lengths) else "N"
    return f"pml predict {shlex.quote(report)} seqlen={length}"


def _show_all(group: GroupFit, console: Console) -> None:
    """Print one group: the paper's law, the chosen law, all laws, and what they mean."""
    analysis = group.analysis
    axis = group.axis
    console.print(tables.law_table(group))
    # Where the paper's form is not identified, no other law is either.
    if analysis.paper.status != NOT_IDENTIFIED:
        console.print()
        console.print(tables.chosen_table(analysis, group.observed, axis))
        if analysis.chosen:
            console.print()
            console.print(tables.laws_table(analysis, axis))
        console.print()

    for line in capacity_lines(group.most_bits, group.control):
        console.print(Text(line))
    known = much_known_line(group.cells)
    if known:
        console.print(Text(known))
    for line in tables.recall_lines(group.recall, group.observed, axis):
        console.print(Text(line))
    console.print()

    for warning in group.warnings:
        is_note = warning.code in NOTES
        kind = "note" if is_note else "warning"
        console.print(
            Text(f"{kind}: {sentence(warning, axis)}", style="dim" if is_note else "yellow")
        )
    for conclusion in group.conclusions:
        console.print(Text(sentence(conclusion, axis)))
    console.print()

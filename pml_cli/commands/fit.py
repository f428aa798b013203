"""`pml fit`: fit the memory law to finished runs, group by group.

Shown first is the paper's own estimator, then the law chosen among all, then all of them side by
side. `report/law_folder.py` writes law.json, cells.csv, law.tex and the figures.

Exit codes: 0 when a table was written, also when no law is identified (status NOT_IDENTIFIED says
why); 2 (a `UserError`) when there is nothing to read or nowhere to write.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from pml_cli.config.reports import Fit
from pml_cli.law import law_json
from pml_cli.law.findings import NOT_IDENTIFIED, NOTES
from pml_cli.law.fit_groups import (
    GroupFit,
    audit,
    bits_lines,
    check_settings,
    comparable_sets,
    compare_groups,
    fit_group,
    with_columns,
)
from pml_cli.law.group_comparison import Comparison
from pml_cli.law.observations import SIZE_AXES
from pml_cli.report import law_folder
from pml_cli.report.base_knowledge import much_known_line
from pml_cli.report.law_text import capacity_lines, sentence
from pml_cli.report.measuring import progress_console
from pml_cli.report.progress import CountDisplay
from pml_cli.report.run_notes import print_notes
from pml_cli.report.tables import law as tables
from pml_cli.report.tables.bits_line import line_table
from pml_cli.results.folder import writable_folder
from pml_cli.results.groups import differing_settings, group_slugs, split_groups
from pml_cli.results.read import finished_runs


def run(
    paths: list[Path],
    settings: Fit,
    console: Console,
    by: Sequence[str] = (),
    *,
    as_json: bool = False,
) -> int:
    """Fit every group of cells below `paths`, show it on `console`, write the report folder.

    Args:
        paths: folders of runs, searched at any depth; the report goes to settings.out or fit/
            inside the first.
        by: settings (of KEY and SCHEDULE in runs/groups.py) in which groups are compared; those
            that agree in all others.
        as_json: print law.json; the rest goes to standard error.

    Returns:
        The exit code (above).

    Raises:
        UserError: a missing folder, no finished run, a report folder that cannot be written,
            nothing to compare.
    """
    progress = progress_console(console, as_json=as_json)
    check_settings(by)
    runs = with_columns(_read(paths))
    out = writable_folder(Path(settings.out) if settings.out else paths[0] / "fit")

    # Groups that cannot be compared are refused before the fits, which take minutes.
    cells = audit(
        runs, settings.saturated_below, SIZE_AXES[settings.x], unconverged=settings.unconverged
    )
    keyed_cells = list(split_groups(cells))
    sets = []
    if by:
        sets = comparable_sets([key for key, _ in keyed_cells], by)

    groups = _fit_groups(keyed_cells, settings, progress)
    if len(groups) > 1:
        varying = differing_settings([group.key for group in groups])
        heading = f"{len(groups)} groups that differ in {varying}: each is fitted by itself."
        progress.print(Text(heading), end="\n\n")
    for group in groups:
        _show(group, progress)

    comparisons = []
    for positions in sets:
        compared = [groups[k] for k in positions]
        comparisons.append(_compare(compared, by, settings, progress))

    lines = bits_lines(groups)
    for line, _ in lines:
        progress.print(line_table(line), end="\n\n")

    names = law_folder.write(out, groups, settings, comparisons, lines)
    progress.print(Text(f"written to {out}: {', '.join(names)}"))
    if as_json:
        content = (out / law_json.FILE_NAME).read_text("utf-8")
        console.out(content.rstrip("\n"), highlight=False)
    return 0


def _read(paths: list[Path]) -> pd.DataFrame:
    """The finished runs below the paths."""
    folders = shlex.join(str(path) for path in paths)
    sweep = f"pml sweep rank=2,4,8,16 seqlen=64,128,256,512 out={shlex.quote(str(paths[0]))}"
    notes: list[str] = []
    runs = finished_runs(paths, f"`{sweep}`, then `pml fit {folders}`", notes)
    print_notes(notes)
    return runs


def _fit_groups(
    keyed_cells: Sequence[tuple[dict[str, Any], pd.DataFrame]],
    settings: Fit,
    console: Console,
) -> list[GroupFit]:
    """Fit each group, with a display of the bootstrap's progress."""
    groups = []
    for key, cells in keyed_cells:
        with CountDisplay(console, "fitting", "bootstrap draws") as display:
            group = fit_group(
                key,
                cells,
                settings.saturated_below,
                settings.draws,
                display.show,
                axis=SIZE_AXES[settings.x],
                unconverged=settings.unconverged,
            )
        groups.append(group)

    # Slugs name the files of a group, so two groups must not share one.
    slugs = group_slugs([group.key for group in groups])
    return [
        dataclasses.replace(group, slug=slug) for group, slug in zip(groups, slugs, strict=True)
    ]


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


def _show(group: GroupFit, console: Console) -> None:
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

    for line in capacity_lines(group.bits, group.control):
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

"""`pml transition`: the phase transition at p > 0.5 in finished runs, token by token.

Did p > 0.5 suffice, which tokens stayed stubborn, where did recall break? Groups are those of `pml
fit` (`results.groups`).

Exit codes: 0 when a report was written; 2 (a `UserError`) when there is nothing to read or nowhere
to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from pml_cli.analysis.run_selection import transition_runs
from pml_cli.analysis.transition import GroupTokens, TransitionSummary, read_group, summarize
from pml_cli.config.reports import Transition
from pml_cli.errors import UserError
from pml_cli.format import counted
from pml_cli.report import transition_folder
from pml_cli.report.first_token import print_unmoved
from pml_cli.report.foreign_files import check_files
from pml_cli.report.output import consoles, print_json
from pml_cli.report.progress import CountDisplay
from pml_cli.report.run_notes import print_notes
from pml_cli.report.tables import transition as tables
from pml_cli.results.folder import beside, writable_folder
from pml_cli.results.groups import (
    differing_settings,
    group_name,
    group_slugs,
    key_for_json,
    split_groups,
)


def run(
    paths: list[Path],
    settings: Transition,
    stdout: Console,
    *,
    as_json: bool = False,
    quiet: bool = False,
) -> int:
    """Read every group of runs below `paths`, print it, write the report folder.

    Args:
        paths: folders of runs, searched at any depth; the report goes to settings.out, or to
            transition/ in the first, beside it where that is one run.
        stdout: to print to.
        as_json: print transition.json; the rest goes to standard error.
        quiet: show no progress, only the result.

    Returns:
        The exit code (above).

    Raises:
        UserError: a missing folder, no finished run that is selected, no readable tokens.parquet,
            a report folder that cannot be written.
    """
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    notes: list[str] = []
    runs = transition_runs(paths, settings, notes)
    print_notes(notes)
    # Checked first, because reading the tokens of many runs takes long.
    out = Path(settings.out) if settings.out else beside(paths[0], "transition")
    check_files(out, transition_folder.WRITTEN, figures=("transition",))
    writable_folder(out)

    keys, groups_of_runs = zip(*split_groups(runs), strict=True)
    with CountDisplay(
        progress, "reading", "runs", total=len(runs), piped_line="runs read"
    ) as display:
        groups_of_tokens = [read_group(group, display.advance) for group in groups_of_runs]

    summaries = _summaries(keys, groups_of_tokens, settings)
    left_out = [run for group in groups_of_tokens for run in group.left_out]
    if not summaries:
        raise UserError(_none_readable(left_out))

    _show(summaries, left_out, console)
    names = transition_folder.write(out, summaries, settings, left_out)
    console.print(Text(f"written to {out}: {', '.join(names)}"))
    if as_json:
        print_json(stdout, (out / transition_folder.FILE_NAME).read_text("utf-8"))
    return 0


def _summaries(
    keys: Sequence[dict[str, object]],
    groups: Sequence[GroupTokens],
    settings: Transition,
) -> list[TransitionSummary]:
    """The statistics of every group with at least one run that could be read."""
    # Over all groups, so that the name of a group's files does not depend on which could be read.
    slugs = group_slugs(keys)

    summaries = []
    for key, slug, group in zip(keys, slugs, groups, strict=True):
        if group.cells:
            summary = summarize(
                group,
                name=group_name(key),
                slug=slug,
                key=key_for_json(key),
                draws=settings.draws,
                text=settings.text,
            )
            summaries.append(summary)
    return summaries


def _none_readable(left_out: Sequence[dict[str, str]]) -> str:
    first = f"{left_out[0]['folder']}: {left_out[0]['reason']}"
    more = len(left_out) - 1
    others = f" (and {counted(more, 'more run')})" if more else ""
    return f"{first}{others}; no run is left to report on"


def _show(
    groups: Sequence[TransitionSummary],
    left_out: Sequence[dict[str, str]],
    console: Console,
) -> None:
    if len(groups) > 1:
        settings = differing_settings([group.key for group in groups])
        line = f"{len(groups)} groups that differ in {settings}: each is reported by itself."
        console.print(Text(line), end="\n\n")

    console.print(tables.violation_report(groups))
    console.print()
    for group in groups:
        console.print(tables.group_report(group))
        console.print()
    print_unmoved(pd.concat([group.cells for group in groups]), console)

    # One reason stands for all: transition.json lists every run that was left out.
    if left_out:
        count = counted(left_out, "run")
        first = f"{left_out[0]['folder']}: {left_out[0]['reason']}"
        console.print(Text(f"warning: {count} left out; {first}", style="yellow"))
    console.print(Text(tables.ONLY_LOGGED_STEPS, style="dim"), end="\n\n")

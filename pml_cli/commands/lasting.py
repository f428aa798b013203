"""`pml lasting`: does recall survive rounding and merging, and what did the adapters make forget?

`lasting.json` holds what was measured of each run; one whose adapter, texts and settings are the
same is not measured again.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pml_cli.analysis.deployment import mean_table, measurement_table, sft_comparison
from pml_cli.config.load import moved_files
from pml_cli.config.reports import Lasting
from pml_cli.errors import MAX_LISTED, and_n_more, raise_all
from pml_cli.evaluation.lasting_runs import FORMAT, LastingRun, measurable_runs, read_entries
from pml_cli.evaluation.subject import EvalRun
from pml_cli.format import counted
from pml_cli.io import json_text, write_json
from pml_cli.report import lasting_folder
from pml_cli.report.progress import CountDisplay
from pml_cli.report.run_notes import print_notes
from pml_cli.report.tables.lasting import lasting_report
from pml_cli.runs.folder import writable_folder
from pml_cli.runs.read import finished_runs

if TYPE_CHECKING:
    import pandas as pd


def run(
    paths: list[Path],
    settings: Lasting,
    console: Console,
    *,
    as_json: bool = False,
) -> int:
    """Measure every finished run below `paths` that is not measured yet, write and print all.

    Args:
        paths: folders of runs, searched at any depth; results go to settings.out or the first.

    Returns:
        Exit code 0.

    Raises:
        UserError: no finished run, an adapter or text that is missing or has changed, a folder that
            cannot be written.
    """
    folders = shlex.join(str(path) for path in paths)
    notes: list[str] = []
    runs = finished_runs(paths, f"`pml memft rank=4,8 seqlen=64 out={folders}`", notes)
    print_notes(notes)
    out = paths[0]
    if settings.out:
        out = Path(settings.out).expanduser()
    entries = read_entries(out / "lasting.json")
    selected = _select(runs, settings)

    # The entry of a run that has changed is dropped, not kept beside the new one.
    to_measure = [run for run in selected if not run.is_measured(entries)]
    for outdated in to_measure:
        entries.pop(outdated.fields["id"], None)
    if to_measure:
        writable_folder(out)
        try:
            _measure(out, entries, to_measure, settings, console)
        except KeyboardInterrupt:
            console.print("interrupted; what was measured is kept, and the same command continues")
            raise

    # Entries of runs that are not selected this time stay in lasting.json.
    of_report = [entries.pop(run.fields["id"]) for run in selected]
    table = measurement_table(of_report)
    means = mean_table(table)
    comparison = sft_comparison(table)

    writable_folder(out)
    content = lasting_folder.report_content(of_report, settings, means, comparison)
    others = list(entries.values())
    names = lasting_folder.write(out, content, others, table, figures=settings.figures)
    if as_json:
        console.out(json_text(content).rstrip("\n"), highlight=False)
        return 0

    for part in lasting_report(table, means, comparison):
        console.print(part)
    measured = f"{counted(of_report, 'run')}, {len(to_measure)} of them measured now"
    console.print(f"{measured}; in {out}: {', '.join(names)}", highlight=False)
    return 0


def _select(runs: pd.DataFrame, settings: Lasting) -> list[LastingRun]:
    """The runs that can be measured; a line on standard error for each fault of the others."""
    selected, faults = measurable_runs(runs, settings)
    if not selected:
        raise_all(faults)
    stderr = Console(stderr=True)
    for line in and_n_more(faults, MAX_LISTED):
        stderr.print(f"left out: {line}", style="yellow", highlight=False, soft_wrap=True)
    return selected


def _measure(
    out: Path,
    entries: dict[str, Any],
    runs: Sequence[LastingRun],
    settings: Lasting,
    console: Console,
) -> None:
    """Measure runs and add them to `entries`; lasting.json is written after each chunk."""
    # Imported here: torch takes seconds, and a repeated report measures nothing.
    from pml_cli.evaluation import robustness

    by_id = {run.fields["id"]: run for run in runs}
    # `entries` may hold earlier measurements, which do not count as progress.
    earlier = len(entries)
    with CountDisplay(console, "measuring", "runs") as display:
        display.show(0, len(runs))

        def on_measured(results: list[tuple[EvalRun, dict[str, Any]]]) -> None:
            for subject, measured in results:
                run = by_id[subject.id]
                entries[subject.id] = {**run.fields, "key": run.key, **measured}
            write_json(out / "lasting.json", {"format": FORMAT, "runs": list(entries.values())})
            display.show(len(entries) - earlier, len(runs))

        subjects = [run.subject for run in runs]
        with moved_files():
            robustness.measure(subjects, settings.device, settings.decode, on_measured)

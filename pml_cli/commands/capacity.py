"""`pml capacity`: the longest prefix of a text that one adapter recalls whole, grown by lengths.

Every attempt is an ordinary run in the results folder, which begins from the weights of an earlier
one (`train.start`); the adapters of all texts and ranks grow side by side, an attempt each a round.
So the same command, run again, resumes where it was, with any launcher.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich.console import Console

from pml_cli.analysis.growth import Attempt, Growth, GrowthRule
from pml_cli.analysis.rank_search import PARAMETER_EXPONENT, PARAMETER_SCALE
from pml_cli.config.capacity import CapacityRequest
from pml_cli.config.schema import Run
from pml_cli.data.opened import samples_of, source_of
from pml_cli.data.resolve import resolved_run
from pml_cli.errors import UserError
from pml_cli.format import counted
from pml_cli.io import json_text
from pml_cli.launch.cost_model import adapter_sites
from pml_cli.launch.driver import Outcome, SweepPlan, check_workers, plan_sweep, train_sweep
from pml_cli.model.dims import ADAPTER_FILE, decoder_shape, model_dims
from pml_cli.report import capacity_folder
from pml_cli.report.figures.registry import SUFFIXES
from pml_cli.report.first_token import print_prompts
from pml_cli.report.foreign_files import check_files
from pml_cli.report.output import consoles, print_json
from pml_cli.report.progress import SweepDisplay
from pml_cli.report.sweep_summary import exit_code, say_outdated
from pml_cli.report.tables.capacity import capacity_report
from pml_cli.report.tables.data import show_warnings
from pml_cli.results.folder import RunFolder
from pml_cli.results.output_folder import check_output_folder, disk_faults
from pml_cli.results.read import own_result
from pml_cli.results.run_folders import RunFolders
from pml_cli.results.run_id import settings_label
from pml_cli.stats import LN2

# Nats of a token of text under a base model: enough for a first length.
NATS_A_TOKEN = 3.5

# Fields of result.json that the search goes on with.
NEEDED = ("exact_match", "steps_run", "tokens_seen", "seconds", "trainable_parameters")

# Of the length that plain training of as many parameters may hold, what growth begins with.
FIRST_SHARE = 0.5


@dataclass(kw_only=True)
class GrownAdapter:
    """One adapter on one text under growth.

    Attributes:
        run: its settings; seqlen and start are those of each attempt.
        growth: what was tried.
        folders: of the attempts, in their order.
    """

    run: Run
    growth: Growth
    folders: list[RunFolder] = field(default_factory=list)

    def next_run(self) -> Run | None:
        """The run of the next attempt; None: the growth has ended."""
        length = self.growth.next_length()
        if length is None:
            return None
        start = None
        if self.growth.best is not None:
            start = str(self.folders[self.growth.best].adapter / ADAPTER_FILE)
        train = dataclasses.replace(self.run.train, start=start)
        return dataclasses.replace(self.run, seqlen=length, train=train)

    def take(self, folder: RunFolder, length: int) -> None:
        """Take the outcome of an attempt that has ended."""
        attempt = Attempt(length=length, recalled=0)
        if folder.failure() is None:
            result = own_result(folder, NEEDED)
            wrong = result.get("first_failure")
            if wrong is None and result["exact_match"] < 1:
                raise UserError(
                    f"{folder.result}: exact_match is below 1, and it has no first_failure; "
                    "delete it and run the same command again"
                )
            attempt = Attempt(
                length=length,
                recalled=length if wrong is None else wrong,
                # Runs of earlier versions ran one pass per step.
                passes=result.get("passes") or result["steps_run"],
            )
        self.growth = self.growth.after(attempt)
        self.folders.append(folder)


def run(
    asked: CapacityRequest,
    stdout: Console,
    *,
    as_json: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> int:
    """Grow every adapter, then say what each holds.

    Args:
        asked: the adapters, and how they grow.
        stdout: to print to.
        as_json: print the outcome as JSON; the rest goes to standard error.
        dry_run: check, and say what the first round would train; write nothing.
        quiet: show no progress, only the result.

    Returns:
        exit code: 0; 1 where an attempt has failed for another reason than its length, or it was
        stopped; 128 and more after a signal.

    Raises:
        UserError: data, a run or a folder that cannot be used; nothing has been trained then.
    """
    if as_json and dry_run:
        raise UserError("--json: cannot be combined with --dry-run, which trains nothing")
    console, progress = consoles(stdout, as_json=as_json, quiet=quiet)
    out = asked.request.out
    check_output_folder(out)
    check_files(out, [f"capacity.{suffix}" for suffix in ("json", "csv", *SUFFIXES)])
    adapters = [begin(each, asked) for each in asked.request.runs]
    print_prompts(asked.request.runs, console, progress)
    if dry_run:
        for line in _plan_lines(adapters):
            console.print(line, highlight=False, soft_wrap=True)
        return 0

    with disk_faults(out):
        outcome = grow(adapters, asked, console, progress)
        if outcome is not None and outcome.stopped is not None:
            console.print(outcome.message, highlight=False)
            return exit_code(outcome.stopped, console)
        content, code = _conclude(adapters, asked, console)
    if as_json:
        print_json(stdout, json_text(content))
    return code


def grow(
    adapters: Sequence[GrownAdapter],
    asked: CapacityRequest,
    console: Console,
    progress: Console,
) -> Outcome | None:
    """Round after round, an attempt of each adapter that has not ended.

    Returns:
        What interrupted it; None: nothing did.

    Raises:
        WorkersError: the workers gave up.
    """
    number = 0
    while True:
        attempted = [(adapter, adapter.next_run()) for adapter in adapters]
        growing = [(adapter, run) for adapter, run in attempted if run is not None]
        if not growing:
            return None

        number += 1
        runs = [run for _, run in growing]
        request = dataclasses.replace(asked.request, runs=runs, swept=["seqlen"])
        plan = plan_sweep(request)
        say_outdated(plan, console)
        outcome = _train(plan, console, progress, number)
        if outcome.stopped is not None:
            return outcome
        check_workers(outcome, plan.out)

        # Planned in the order asked for, each of them another run.
        folders = RunFolders(asked.request.out)
        for (adapter, run), cell in zip(growing, plan.cells, strict=True):
            adapter.take(folders.find(cell.id), run.seqlen)


def begin(run: Run, asked: CapacityRequest) -> GrownAdapter:
    """An adapter before its first attempt.

    Raises:
        UserError: the data or the model cannot be used, or the data is no single text.
    """
    shortest = resolved_run(dataclasses.replace(run, seqlen=1))
    (sample, *_) = samples_of(shortest)
    longest = model_dims(run.model).context - len(sample.prompt)
    source = source_of(shortest)
    if source.max_tokens is not None:
        longest = min(longest, source.max_tokens)

    first = min(asked.first or _first_length(shortest), longest)
    if len(samples_of(dataclasses.replace(shortest, seqlen=first))) > 1:
        raise UserError(
            f"data={run.data.source}: `pml capacity` needs one text, not several samples"
        )
    rule = GrowthRule(resolution=asked.resolution, passes=asked.passes)
    return GrownAdapter(run=run, growth=Growth(first=first, longest=longest, rule=rule))


def _first_length(run: Run) -> int:
    """Half of what plain training of as many parameters may hold."""
    sites = adapter_sites(run, decoder_shape(run.model))
    widths = sum(site.matrix.inputs + site.matrix.outputs for site in sites)
    bits: float = (run.rank * widths / PARAMETER_SCALE) ** (1 / PARAMETER_EXPONENT)
    nats = source_of(run).entropy or NATS_A_TOKEN
    return max(1, round(FIRST_SHARE * bits * LN2 / nats))


def _train(plan: SweepPlan, console: Console, progress: Console, number: int) -> Outcome:
    """Train what is missing of one round."""
    if number == 1:
        show_warnings(console, plan.cells)
    lengths = [cell.run.seqlen for cell in plan.cells]
    missing = sum(len(pack.cells) for pack in plan.todo)
    title = f"round {number}, {min(lengths)} to {counted(max(lengths), 'token')}"
    line = f"{title}: {counted(plan.cells, 'attempt')}, {missing} to train"
    progress.print(line, highlight=False, soft_wrap=True)
    with SweepDisplay.of(plan, progress, title) as display:
        return train_sweep(plan, display, wait=True)


def _plan_lines(adapters: Sequence[GrownAdapter]) -> list[str]:
    """What the first round would train, a line an adapter."""
    lines = []
    for adapter in adapters:
        run = adapter.run
        text = f"data={run.data.source}, data.seed={run.data.seed}, seed={run.seed}"
        length = adapter.growth.next_length()
        assert length is not None
        begins = f"begins with {counted(length, 'token')}"
        lines.append(f"rank {run.rank}, {text}, loss={run.loss.kind}: {begins}")
    return lines


def _conclude(
    adapters: Sequence[GrownAdapter],
    asked: CapacityRequest,
    console: Console,
) -> tuple[dict[str, Any], int]:
    """Write the files and print what each adapter holds; for JSON the same, and the exit code."""
    rows = []
    failures = []
    for adapter in adapters:
        reasons = [folder.failure() for folder in adapter.folders]
        failures += [reason for reason in reasons if reason is not None]
        row = _row(adapter)
        if row is not None:
            rows.append(row)
    if not rows:
        raise UserError(f"every attempt has failed: {failures[0]}")

    held = pd.DataFrame(rows)
    content = capacity_folder.report_content(held, asked)
    names = capacity_folder.write(asked.request.out, content, held)
    for part in capacity_report(held):
        console.print(part)
    console.print(f"in {asked.request.out}: {', '.join(names)}", highlight=False)

    for reason in dict.fromkeys(failures):
        line = f"warning: an attempt has failed and counts as not recalled: {reason}"
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
    return content, 1 if failures else 0


def _row(adapter: GrownAdapter) -> dict[str, Any] | None:
    """What one adapter holds; None where every attempt has failed."""
    growth = adapter.growth
    results = [
        own_result(folder, NEEDED) if folder.failure() is None else None
        for folder in adapter.folders
    ]
    trained = [result for result in results if result is not None]
    if not trained:
        return None

    best = trained[-1] if growth.best is None else results[growth.best]
    assert best is not None
    # Random tokens have their entropy; of a text the base model's loss is the measure.
    nats = best["base_loss"] if best["source_nats"] is None else best["source_nats"]
    columns = ("model", "data", "data_seed", "adapter", "loss", "layer", "lr", "steps", "seed")
    return {
        **{name: best.get(name) for name in columns},
        "rank": adapter.run.rank,
        "setting": settings_label(resolved_run(adapter.run)),
        "parameters": best["trainable_parameters"],
        "tokens": growth.held,
        "bits": growth.held * nats / LN2,
        "failed_at": growth.failed,
        "ended": growth.ended(),
        "attempts": len(growth.attempts),
        "passes": growth.passes,
        "tokens_seen": sum(result["tokens_seen"] for result in trained),
        "seconds": sum(result["seconds"] for result in trained),
        "run": None if growth.best is None else adapter.folders[growth.best].id,
    }

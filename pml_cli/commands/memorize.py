"""`pml memorize`: from a file of facts to the smallest adapter that knows all of them.

Cells of the search are ordinary runs of a sweep in the results folder, so the same command again
resumes where it was, and `pml fit` reads them.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from pml_cli.analysis.rank_search import (
    Answer,
    Cell,
    Limits,
    SearchState,
    Trial,
    answer,
    candidate_ranks,
    first_guess,
    ladder_around,
    next_cells,
    rank_cap,
)
from pml_cli.config.dump import nested_values
from pml_cli.config.memorize import KEPT_BY_USER, MemorizeRequest
from pml_cli.config.reports import Forgetting
from pml_cli.config.schema import FactsData, Request, Run
from pml_cli.data.cell import CellPlan
from pml_cli.data.generic_text import KINDS
from pml_cli.data.opened import source_of
from pml_cli.data.repeats import find_repeats
from pml_cli.data.source import Sample
from pml_cli.data.whole import holds_many_facts, named_texts, texts_file, with_chat, within_context
from pml_cli.errors import UserError, WorkersError, raise_all
from pml_cli.evaluation.forgetting_runs import measure_runs
from pml_cli.evaluation.proof import Proof, prove
from pml_cli.format import counted
from pml_cli.io import json_text
from pml_cli.launch.cost_model import adapter_sites
from pml_cli.launch.driver import (
    Outcome,
    SweepPlan,
    check_models_for_dry_run,
    check_workers,
    plan_sweep,
    train_sweep,
)
from pml_cli.launch.packing import check
from pml_cli.launch.signals import Stopped
from pml_cli.launch.time_limit import TimeLimit, time_limit
from pml_cli.model.dims import decoder_shape
from pml_cli.report import memorize_folder, search_text
from pml_cli.report.figures.registry import SUFFIXES
from pml_cli.report.first_token import print_prompts
from pml_cli.report.foreign_files import check_files
from pml_cli.report.memorize_report import Forgetting as MeasuredHarm
from pml_cli.report.memorize_report import MemorizeReport, TriedCell
from pml_cli.report.output import Consoles, consoles, print_json
from pml_cli.report.progress import CountDisplay, SweepDisplay
from pml_cli.report.sweep_summary import exit_code, say_outdated
from pml_cli.report.tables import dry_run as dry_run_table
from pml_cli.report.tables import memorize as memorize_table
from pml_cli.report.tables.data import show_warnings
from pml_cli.results.folder import ADAPTER, RunFolder, copy_adapter
from pml_cli.results.output_folder import check_output_folder, disk_faults
from pml_cli.results.read import own_result, read_runs
from pml_cli.results.run_folders import RunFolders, run_key
from pml_cli.stats import LN2

# The training keeps to this share of the limit, on text of its own: other text is harmed up to 1.4
# times as much on the embedded model, up to 2.2 times on SmolLM2 (benchmarks/README.md).
HARM_SHARE = 0.5

# Nats of a token of text under a base model: enough for a first guess.
NATS_A_TOKEN = 3.5

# At the top of the results folder.
WRITTEN = (
    *("memorize.json", "facts.csv", ADAPTER),
    *(f"memorize.{suffix}" for suffix in SUFFIXES),
)

# Fields of result.json that the search goes on with.
NEEDED = ("exact_match", "token_accuracy", "seconds")


def run(
    asked: MemorizeRequest,
    stdout: Console,
    *,
    dry_run: bool = False,
    as_json: bool = False,
    retry: bool = True,
    quiet: bool = False,
) -> int:
    """Search the least rank within the limits, train what is missing, and hand the adapter over.

    Args:
        asked: data, settings and limits.
        stdout: to print to.
        dry_run: check, and say what the first round would cost; train nothing, write nothing.
        as_json: print the answer as JSON; the rest goes to standard error.
        retry: train again what failed before.
        quiet: show no progress, only the result.

    Returns:
        exit code: 0; 1 where no rank keeps the limits, or the search was stopped; 128 and more
        after a signal.

    Raises:
        UserError: data, a run or a folder that cannot be used; nothing has been trained then.
    """
    if as_json and dry_run:
        raise UserError("--json: cannot be combined with --dry-run, which trains nothing")
    started = time.monotonic()
    output = consoles(stdout, as_json=as_json, quiet=quiet)
    check_output_folder(asked.request.out)
    data_path = getattr(asked.run.data, "path", None)
    inputs = [*asked.files, *([Path(data_path)] if data_path else [])]
    check_files(asked.request.out, WRITTEN, inputs)
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            return _show_plan(Search.begin(asked, output, Path(folder)))

    with disk_faults(asked.request.out):
        search = Search.begin(asked, output, asked.request.out, retry=retry)
        try:
            with time_limit(search.out, asked.limits.budget) as limit:
                stopped = search.run(limit)
        except WorkersError as error:
            if as_json:
                content = memorize_folder.unanswered(asked.command, str(error))
                print_json(stdout, json_text(content))
            raise
        if stopped is not None:
            if as_json:
                content = memorize_folder.unanswered(asked.command, "stopped")
                print_json(stdout, json_text(content))
            return exit_code(stopped, output.console)
        content, code = _conclude(search, started)
    if as_json:
        print_json(stdout, json_text(content))
    return code


@dataclass(kw_only=True)
class Search:
    """A search under way.

    Attributes:
        output: where it prints.
        base: the run that all cells differ from in rank and seed.
        state: what was tried in the rounds that have ended, or were ended by the budget.
        cells: of all rounds, by rank and seed.
        out_of_time: whether the budget has ended it.
        seconds_trained: what the training has taken in this call.
    """

    asked: MemorizeRequest
    output: Consoles
    base: Run
    state: SearchState
    retry: bool
    cells: dict[Cell, CellPlan] = field(default_factory=dict)
    out_of_time: bool = False
    seconds_trained: float = 0.0

    @classmethod
    def begin(
        cls, asked: MemorizeRequest, output: Consoles, folder: Path, *, retry: bool = True
    ) -> Search:
        """The search before its first round.

        Args:
            asked: data, settings and limits.
            output: where it prints.
            folder: where several texts are written as one file.
            retry: whether to train again what failed before.

        Raises:
            UserError: the data or the model cannot be used.
        """
        run = asked.run
        texts = named_texts(asked.files, run)
        if texts:
            data: Any = run.data
            path = str(texts_file(texts, folder))
            run = dataclasses.replace(run, data=dataclasses.replace(data, path=path))
        run = _decided(run, asked)
        run, left_out = within_context(run)
        for line in search_text.data_lines(asked.run, run, left_out):
            output.console.print(line, highlight=False, soft_wrap=True)
        return cls(asked=asked, output=output, base=run, state=_first(run, asked), retry=retry)

    @property
    def out(self) -> Path:
        """The results folder."""
        return self.asked.request.out

    def run(self, limit: TimeLimit) -> Stopped | None:
        """Try round after round, until nothing is left to try or the time is over.

        Returns:
            What interrupted it; None: nothing but perhaps the time limit.

        Raises:
            WorkersError: the workers gave up.
        """
        while True:
            cells = next_cells(self.state)
            if not cells:
                return None
            if limit.is_over:
                self.out_of_time = True
                return None

            title = search_text.round_title(self.state.rounds + 1, cells)
            outcome = self.train(cells, limit, title)
            stopped = outcome.stopped
            self.out_of_time = limit.is_over and stopped is not None and stopped.signum is None
            if stopped is not None and not self.out_of_time:
                self.remark(outcome.message)
                return stopped
            check_workers(outcome, self.out)
            trials = self.trials(cells)
            for trial in trials:
                failure = self.folder(trial).failure()
                self.say(search_text.trial_line(trial, self.facts, failure))
            self.state = self.state.after_round(trials)
            if self.out_of_time:
                return None

    def answer(self) -> Answer:
        """What the search has come to; a trial must have ended."""
        return answer(self.state)

    def plan(self, cells: Sequence[Cell]) -> SweepPlan:
        """The sweep of one round."""
        runs = [dataclasses.replace(self.base, rank=rank, seed=seed) for rank, seed in cells]
        request = dataclasses.replace(self.asked.request, runs=runs, swept=["rank", "seed"])
        return plan_sweep(request, retry=self.retry)

    def train(self, cells: Sequence[Cell], limit: TimeLimit, title: str) -> Outcome:
        """Train what is missing of some cells.

        Args:
            cells: to be trained.
            limit: only asked, to warn.
            title: what they are called in the progress.
        """
        plan = self.plan(cells)
        if not self.cells:
            print_prompts(plan.request.runs, *self.output)
            show_warnings(self.output.console, plan.cells)
        say_outdated(plan, self.output.console)
        self.cells |= {(cell.run.rank, cell.run.seed): cell for cell in plan.cells}

        missing = sum(len(pack.cells) for pack in plan.todo)
        self.say(f"{title}: {counted(cells, 'cell')}, {missing} to train")
        line = search_text.budget_line(plan, limit.left)
        if line:
            self.remark(line)
        started = time.monotonic()
        with SweepDisplay.of(plan, self.output.progress, title) as display:
            outcome = train_sweep(plan, display, wait=True)
        self.seconds_trained += time.monotonic() - started
        return outcome

    def trials(self, cells: Sequence[Cell]) -> list[Trial]:
        """What some cells have come to; those that have not ended are left out."""
        folders = RunFolders(self.out)
        trials = []
        for key in cells:
            cell = self.cells[key]
            folder = folders.find(cell.id)
            if folder.has_ended(cell.tokens_hash):
                trials.append(trial_of(cell, folder))
        return self._with_harm(trials)

    def _with_harm(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials, of those that know enough also the harm, where it is limited."""
        limits = self.state.limits
        if limits.max_forgetting is None:
            return list(trials)
        knowing = [trial for trial in trials if limits.recalls(trial)]
        # By the keys: the readable front of a folder's name may be another.
        harms = {run_key(entry["id"]): entry["harm"] for entry in self.forgetting(knowing)}
        return [
            dataclasses.replace(trial, harm=harms.get(run_key(self.folder(trial).id)))
            for trial in trials
        ]

    def forgetting(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """The entries of forgetting.json of trials that have not failed.

        Raises:
            UserError: the harm of one of them cannot be measured.
        """
        if not trials:
            return []
        model = self.base.model
        settings = Forgetting(
            kinds=list(KINDS), device=model.device, trust_remote_code=model.trust_remote_code
        )
        runs = read_runs([self.folder(trial).path for trial in trials])
        with CountDisplay(self.output.progress, "measuring the harm of", "runs") as display:
            entries, faults = measure_runs(runs, settings, self.out, display.show)
        raise_all(faults)
        return entries

    @property
    def samples(self) -> list[Sample]:
        """What every cell learns."""
        return next(iter(self.cells.values())).samples

    @property
    def facts(self) -> int | None:
        """How many facts every cell learns; None: one text, of which tokens count."""
        return None if _is_text(next(iter(self.cells.values()))) else len(self.samples)

    def folder(self, trial: Trial) -> RunFolder:
        """The run folder of a trial."""
        cell = self.cells[trial.rank, trial.seed]
        return RunFolders(self.out).find(cell.id)

    def say(self, line: str) -> None:
        """Print a line about the progress."""
        self.output.progress.print(line, highlight=False, soft_wrap=True)

    def remark(self, line: str) -> None:
        """Print a line that matters when the search is over, a warning or how it ended."""
        self.output.console.print(line, highlight=False, soft_wrap=True)


def _first(run: Run, asked: MemorizeRequest) -> SearchState:
    """The state before the first round."""
    (cell,) = check([run])
    ranks, ladder = asked.ranks, asked.ranks
    if not ranks:
        matrices = [site.matrix for site in adapter_sites(run, decoder_shape(run.model))]
        parameters = sum(matrix.inputs + matrix.outputs for matrix in matrices)
        widest = min(min(matrix.inputs, matrix.outputs) for matrix in matrices)
        guess = min(first_guess(_bits(cell), parameters), widest)
        ranks = candidate_ranks(rank_cap(guess, widest))
        ladder = ladder_around(guess, ranks)

    limits = Limits(exact=asked.limits.exact, max_forgetting=asked.limits.max_forgetting)
    return SearchState(ranks=ranks, ladder=ladder, seeds=asked.seeds, limits=limits)


def as_trained(asked: MemorizeRequest) -> Request:
    """The request with what the data decides, for `--print-config`.

    As it was asked for, but for the limit of harm, where data or model cannot be read here.
    """
    try:
        run = _decided(asked.run, asked)
    except UserError:
        run = _with_harm_limit(asked.run, asked)
    return dataclasses.replace(asked.request, runs=[run])


def _decided(run: Run, asked: MemorizeRequest) -> Run:
    """A run with what its data decides: the chat template, many facts or few, the limit of harm."""
    # First the template: conversations cannot be read without one.
    run = with_chat(run, asked.given)
    if asked.many_facts is not None and holds_many_facts(run):
        run = dataclasses.replace(asked.many_facts, data=run.data)
    return _with_harm_limit(run, asked)


def _with_harm_limit(run: Run, asked: MemorizeRequest) -> Run:
    """A run that is trained within the limit of forgetting, unless the user says how it is kept."""
    most = asked.limits.max_forgetting
    if most is None or run.loss.keeps or asked.given & KEPT_BY_USER:
        return run
    # Three digits: the number stands in labels.
    share = float(f"{HARM_SHARE * most:.3g}")
    loss = dataclasses.replace(run.loss, keep_harm=share)
    return dataclasses.replace(run, loss=loss)


def _bits(cell: CellPlan) -> float:
    """Bits of the targets, roughly."""
    tokens = sum(len(sample.target) for sample in cell.samples)
    nats = source_of(cell.run).entropy or NATS_A_TOKEN
    return tokens * nats / LN2


def trial_of(cell: CellPlan, folder: RunFolder) -> Trial:
    """What a cell has come to."""
    rank, seed = cell.run.rank, cell.run.seed
    if folder.failure() is not None:
        return Trial(rank=rank, seed=seed, recalled=0.0)
    result = own_result(folder, NEEDED)
    return Trial(
        rank=rank,
        seed=seed,
        recalled=_recalled(cell, result),
        tokens=float(result["token_accuracy"] or 0.0),
    )


def _recalled(cell: CellPlan, result: dict[str, Any]) -> float:
    """The share of the facts that are known whole; of one text, of its tokens."""
    names = ("free_exact_match", "exact_match")
    if _is_text(cell):
        names = ("free_accuracy", "token_accuracy")
    # Not decoded with train.decode=false.
    free = result.get(names[0])
    return float(result[names[1]] if free is None else free)


def _is_text(cell: CellPlan) -> bool:
    """Whether a cell learns one text, in which no facts can be counted."""
    return len(cell.samples) == 1 and not isinstance(cell.run.data, FactsData)


def _show_plan(search: Search) -> int:
    """Print what the first round would do and cost, and what may follow."""
    console = search.output.console
    plan = search.plan(next_cells(search.state))
    check_models_for_dry_run(plan)
    dry_run_table.show(console, plan.request, plan.cells, plan.todo)
    say_outdated(plan, console)
    for line in search_text.plan_lines(search.state):
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def _conclude(search: Search, started: float) -> tuple[dict[str, Any], int]:
    """Copy the chosen adapter, prove it, write and print the answer.

    Args:
        search: that has ended.
        started: when the command began, by `time.monotonic`.

    Returns:
        The answer for JSON, and the exit code.
    """
    reason = _why_no_answer(search)
    if reason is not None:
        search.remark(reason)
        return memorize_folder.unanswered(search.asked.command, reason), 1

    found = search.answer()
    folder = search.folder(found.trial)

    # Imported here: torch takes seconds.
    from pml_cli.evaluation.script_check import readme_script

    copy_adapter(folder, search.out, readme_script(folder))
    (forgetting,) = search.forgetting([found.trial])
    # Without a limit, and of one that knows too little, the search asks for no harm.
    trial = dataclasses.replace(found.trial, harm=forgetting["harm"])
    found = dataclasses.replace(found, trial=trial)
    proof = _prove(search, folder)
    report = _report(search, found, forgetting, proof)
    # The training of earlier calls counts, the waiting between them does not.
    seconds = time.monotonic() - started - search.seconds_trained + report.seconds
    report = dataclasses.replace(report, seconds=seconds)
    names = memorize_folder.write(report)
    for part in memorize_table.answer_lines(report, names):
        search.output.console.print(part)
    return memorize_folder.report_content(report), 0 if found.reached else 1


def _why_no_answer(search: Search) -> str | None:
    """Why a search has no adapter to hand over; None: it has one."""
    if not search.state.trials:
        return (
            "the time budget ran out before any cell finished; run the same command again to resume"
        )
    failure = search.folder(search.answer().trial).failure()
    return None if failure is None else f"every cell has failed: {failure}"


def _measured_harm(entry: Mapping[str, Any]) -> MeasuredHarm | None:
    """The harm in an entry of forgetting.json; None where a kind of text was not measured."""
    harm, low, high = (entry[name] for name in ("harm", "harm_low", "harm_high"))
    if harm is None or low is None:
        return None
    return MeasuredHarm(harm=harm, low=low, high=high)


def _prove(search: Search, folder: RunFolder) -> Proof:
    search.say(f"proof of {folder.id}")
    model = search.base.model
    try:
        return prove(
            folder,
            device=model.device,
            trust_remote_code=model.trust_remote_code,
            on_stage=lambda stage: search.say(f"  {stage}"),
            cache=search.out / ".pml" / "proof.json",
        )
    except KeyboardInterrupt:
        search.remark("interrupted; the same command goes on with the proof")
        raise


def _report(
    search: Search, found: Answer, forgetting: Mapping[str, Any], proof: Proof
) -> MemorizeReport:
    """The report of a search that has ended; its seconds are those of the training.

    Args:
        search: that has ended.
        found: its answer, with the harm of the chosen cell.
        forgetting: the entry of the chosen run in forgetting.json.
        proof: of the chosen run.
    """
    tried = []
    for searched in search.state.trials:
        is_chosen = (searched.rank, searched.seed) == (found.rank, found.seed)
        trial = found.trial if is_chosen else searched
        folder = search.folder(trial)
        seconds = (
            0.0 if folder.failure() is not None else float(own_result(folder, NEEDED)["seconds"])
        )
        tried.append(TriedCell(trial=trial, run=folder.id, seconds=seconds))

    samples = search.samples
    repeats = find_repeats(samples)
    situation = search_text.Situation(
        facts=search.facts,
        contradictions=len(repeats.contradictions),
        excluded=repeats.excluded,
        train=search.base.train,
        out_of_time=search.out_of_time,
    )
    return MemorizeReport(
        command=search.asked.command,
        settings=shared_settings(search.base),
        limits=search.state.limits,
        answer=found,
        run=search.folder(found.trial).id,
        facts=search.facts,
        cells=tried,
        forgetting=_measured_harm(forgetting),
        proof=proof,
        advice=search_text.advice(search.state, found, situation),
        seconds=sum(cell.seconds for cell in tried),
        out=search.out,
    )


def shared_settings(base: Run) -> dict[str, Any]:
    """The settings that all cells of a search share, as they are typed."""
    settings = nested_values(base)
    # Those of the cells are their own.
    for name in ("rank", "seed"):
        settings.pop(name)
    return settings

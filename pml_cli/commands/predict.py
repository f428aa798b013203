"""`pml predict`: what a fitted law says about cells that were not trained.

Reads law.json; fits nothing. Given lengths: the least rank that reaches the target. Given ranks:
the longest length. Given both: gain, loss and the probability of exact recall. Given numbers of
facts: the least rank that knows all of them.

Exit codes: 0; 2 (a `UserError`) when there is no law.json, no group of that name, or nothing asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pml_cli.config.reports import Predict
from pml_cli.errors import UserError
from pml_cli.law.inverse import Question, answer, check_question, new_model, parse_target
from pml_cli.law.law_json import Report, load_report
from pml_cli.report.output import consoles, print_json
from pml_cli.report.tables.bits_line import new_model_lines
from pml_cli.report.tables.predict import show, show_left_out


def run(
    paths: list[Path],
    settings: Predict,
    console: Console,
    target: str = "verbatim",
    *,
    as_json: bool = False,
) -> int:
    """Show what the laws of the reports say.

    Args:
        target: what a cell is to reach; see `parse_target`.
        as_json: print the answers as JSON.

    Raises:
        UserError: no report, another format, no group of that name, nothing asked, or an unknown
            target.
    """
    # Faults of the command line are named before any report is read.
    wanted = parse_target(target)
    question = Question(
        ranks=settings.rank,
        lengths=settings.seqlen,
        facts=settings.facts,
        base=settings.base,
    )
    check_question(question, wanted)

    reports = [load_report(path, settings.group) for path in paths]
    _print_outdated(reports)
    laws = [law for report in reports for law in report.laws]
    if settings.per_rank is not None:
        return _new_model(reports, settings, console, as_json=as_json)
    answers = [answer(law, wanted, question) for law in laws]
    if as_json:
        print_json(console, json.dumps(answers, indent=1))
        # Not among the answers, which a script reads.
        stderr = consoles(console, as_json=True).console
        for report in reports:
            show_left_out(stderr, report.left_out)
        return 0
    for law, answered in zip(laws, answers, strict=True):
        show(console, law, answered)
    for report in reports:
        show_left_out(console, report.left_out)
    return 0


def _print_outdated(reports: Sequence[Report]) -> None:
    """Say which reports an earlier version has fitted in another way."""
    stderr = Console(stderr=True, markup=False, emoji=False)
    for report in reports:
        if report.is_outdated:
            stderr.print(
                f"{report.file}: fitted by an earlier version of pml; the same cells may now give "
                "other laws or bands: run `pml fit` again",
                style="yellow",
                highlight=False,
                soft_wrap=True,
            )


def _new_model(
    reports: list[Report],
    settings: Predict,
    console: Console,
    *,
    as_json: bool,
) -> int:
    """Answer for a model or placement that was not trained, from the line of those that were.

    Raises:
        UserError: no base loss or length is given, or no report has a line.
    """
    if settings.base is None or not settings.seqlen:
        raise UserError(
            "per_rank: give seqlen= and base=, the loss of the new model on the text before "
            "training (nats per token), too"
        )
    lines = [line for report in reports for line in report.lines]
    if not lines:
        raise UserError(
            "per_rank: this law.json has no line of parameters against bits; `pml fit` fits one to "
            "two or more models or placements"
        )

    assert settings.per_rank is not None
    per_rank, base = settings.per_rank, settings.base
    answers = [
        new_model(line, per_rank, settings.seqlen, base, inputs=settings.inputs) for line in lines
    ]
    if as_json:
        print_json(console, json.dumps(answers, indent=1))
        return 0
    for line, answered in zip(lines, answers, strict=True):
        for text in new_model_lines(line, answered):
            console.print(Text(text))
        console.print()
    return 0

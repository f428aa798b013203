"""`pml ask`: put questions to the adapter of a finished run, as in its training."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pml_cli.config.load import moved_files, read_run
from pml_cli.config.reports import Ask
from pml_cli.config.schema import Run
from pml_cli.data.text_file import utf8_text
from pml_cli.errors import UserError, printable
from pml_cli.evaluation.asking import Answer, Interview, Question, trained_samples
from pml_cli.evaluation.finished_runs import check_code_is_allowed, read_environment
from pml_cli.evaluation.subject import EvalRun
from pml_cli.io import json_text, jsonable
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.model.tokenizer_backend import has_tokenizer
from pml_cli.report.output import print_json
from pml_cli.report.tables.ask import answer_lines, question_line
from pml_cli.report.tables.samples import QUESTION_WIDTH, shown
from pml_cli.results.folder import RunFolder
from pml_cli.results.read import one_run

if TYPE_CHECKING:
    from pml_cli.model.adapter_bank import AdapterBank
    from pml_cli.model.split_model import SplitModel

# Stands for standard input, a question a line.
STANDARD_INPUT = "-"

# What Python puts for the bytes of a command line that are no UTF-8.
STRAY_BYTE = re.compile("[\udc80-\udcff]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """How answers are made and shown.

    Attributes:
        max_tokens: of an answer; None: by the run.
        base: whether the model without the adapter is asked too.
        as_json: print everything as JSON.
    """

    max_tokens: int | None = None
    base: bool = False
    as_json: bool = False


def run(
    path: Path,
    questions: Sequence[str],
    settings: Ask,
    console: Console,
    flags: Flags,
) -> int:
    """Answer questions greedily, and say p of each token.

    Args:
        path: a run folder, its adapter/, or a folder with one run.
        questions: what is asked; "-": every line of standard input that is not blank; none: the
            prompt of a run of running text or random tokens is continued.
        settings: where the model is, and on what device.
        console: to print to.
        flags: how answers are made and shown.

    Returns:
        Exit code 0.

    Raises:
        UserError: no such run, a run that cannot be asked, or a model that is not the run's.
    """
    folder = one_run(path)
    finished = read_run(
        folder.config,
        model_path=settings.model.path,
        data_path=settings.data.path,
    )
    check_code_is_allowed(finished, folder, settings.trust_remote_code)
    # On the way to the model a missing file may be one that was moved.
    with moved_files(folder.config):
        interview = _interview(folder, finished)
        parsed_questions = _questions(interview, questions)
        base, bank = _load(folder, finished, settings)
    if questions and finished.data.source == "random":
        _say(f"{folder.path}: trained on random tokens, so it knows no answers")

    answers: list[dict[str, Any]] = []
    for question in parsed_questions:
        limit = interview.token_limit(question, flags.max_tokens)
        answer = interview.answer(base, bank, question, limit)
        plain = interview.answer(base, None, question, limit) if flags.base else None
        if flags.as_json:
            answers.append(_content(question, interview.text(question.prompt), answer, plain))
            continue
        if len(parsed_questions) > 1:
            console.print(question_line(question), style="bold", highlight=False, soft_wrap=True)
        for line in answer_lines(question, answer, plain):
            console.print(line, highlight=False, soft_wrap=True)

    if flags.as_json:
        content = {"run": str(folder.path), "answers": answers}
        print_json(console, json_text(content))
    return 0


def _interview(folder: RunFolder, finished: Run) -> Interview:
    model = finished.model
    if not has_tokenizer(model):
        raise UserError(f"{folder.path}: model={model.name} has no tokenizer, so it reads no text")

    tokenizer = open_tokenizer(model)
    interview = Interview(finished, tokenizer, trained_samples(folder, finished, tokenizer))
    if interview.has_changed():
        _say(
            f"{folder.path}: the tokenizer of model={model.name} now gives other prompts than in "
            "the training, so answers to new questions may differ"
        )
    return interview


def _say(line: str) -> None:
    """A remark, beside the answers."""
    console = Console(stderr=True, markup=False)
    console.print(line, style="yellow", highlight=False, soft_wrap=True)


def _questions(interview: Interview, texts: Sequence[str]) -> list[Question]:
    """The questions of the command line, and of standard input where it is named.

    Raises:
        UserError: there are none, and the run has questions.
    """
    questions: list[str] = []
    for number, text in enumerate(texts, 1):
        if text == STANDARD_INPUT:
            # Not splitlines(), which also splits at characters that a question may hold.
            lines = _standard_input().split("\n")
            # A file may end with blank lines, or have them between its parts.
            questions += [line for line in lines if line.strip()]
            continue
        _check_is_text(text)
        # Left out, it would shift the answers of a script that counts them.
        if not text.strip():
            raise UserError(f"question {number} of {len(texts)}: empty; must be a text")
        questions.append(text)
    if questions:
        return [question for text in questions for question in interview.questions(text)]

    if not interview.has_questions and STANDARD_INPUT not in texts:
        return [interview.continuation()]
    turns = interview.samples[0].turns
    example = f", such as {shown(turns[-1][1], QUESTION_WIDTH)}" if turns else ""
    raise UserError(f"no question: give one{example}, or - for one a line of standard input")


def _check_is_text(argument: str) -> None:
    """Refuse an argument with a byte that is no UTF-8, which Python keeps as a surrogate.

    Raises:
        UserError: names the byte.
    """
    stray = STRAY_BYTE.search(argument)
    if stray:
        byte = ord(stray[0]) - 0xDC00
        raise UserError(f"{printable(argument)}: holds the byte 0x{byte:02X}, not UTF-8 text")


def _standard_input() -> str:
    if sys.stdin is None:
        raise UserError("standard input: closed; - takes a question a line from it")
    # As bytes: in some locales Python puts surrogates for what is no UTF-8.
    return utf8_text("standard input", sys.stdin.buffer.read())


def _load(
    folder: RunFolder,
    finished: Run,
    settings: Ask,
) -> tuple[SplitModel, AdapterBank]:
    """The model of a run and its adapter.

    Raises:
        UserError: either cannot be read, or the model has other weights than in the training.
    """
    # Imported here: torch takes seconds, and what is wrong before is said without it.
    from pml_cli.evaluation.adapters import check_weights, load_adapter
    from pml_cli.model.loading import load_model

    subject = EvalRun(
        id=folder.id,
        run=finished,
        samples=[],
        adapter=folder.adapter,
        weights=read_environment(folder)["base_weights"],
        texts={},
    )
    model = dataclasses.replace(finished.model, device=settings.device, compile=False)
    base = load_model(model)
    check_weights(base, [subject])
    return base, load_adapter(base, subject)


def _content(
    question: Question,
    prompt: str,
    answer: Answer,
    plain: Answer | None,
) -> dict[str, Any]:
    """One answer for --json.

    Args:
        question: what was asked.
        prompt: text of the whole prompt.
        answer: of the adapter.
        plain: of the model without the adapter; None: not asked.
    """
    trained = question.trained
    content: dict[str, Any] = {
        "question": question.text,
        "prompt": prompt,
        "prompt_ids": question.prompt,
        **jsonable(answer),
        "trained": None if trained is None else trained.text,
    }

    if plain is not None:
        content["base"] = jsonable(plain)
    return content

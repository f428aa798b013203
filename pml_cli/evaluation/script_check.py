"""The script in an adapter's README.md, run as its reader would run it, for every sample.

In a process of its own, without pml: what it prints is what transformers and PEFT make of the
adapter's folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.config.schema import Run
from pml_cli.data.source import Sample
from pml_cli.evaluation import batched_answers
from pml_cli.evaluation.adapter_readme import README_FILE
from pml_cli.evaluation.dialogue import Dialogue, IdsPrompt, dialogue_of, question_of
from pml_cli.evaluation.proof import MEASURED, NOT_RUN_HERE, STOPPED, ScriptProof
from pml_cli.results.folder import RunFolder

SCRIPT = re.compile(r"^(`{3,})python\n(.*?)^\1$", re.MULTILINE | re.DOTALL)

# Behind the script: its own function, for every question.
ASK_ALL = """
asking = {{}}
exec({source!r}, asking)
asking["print_answers"](globals())
"""
ASK_FIRST = """
import json
print(chr(30) + json.dumps([0, answer()]), flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """A script that has come to its end, or was stopped."""

    answers: dict[int, Any]
    """Answers by index of the question: texts, or token ids where the model has no tokenizer."""

    fault: str
    """Why it did not come to its end; empty if it did."""


def check_script(
    folder: RunFolder, run: Run, samples: Sequence[Sample], targets: Sequence[str], seconds: float
) -> ScriptProof:
    """Run the script for every sample of a finished run.

    Args:
        folder: of the run.
        run: resolved.
        samples: what it was trained on.
        targets: their texts, which must be printed; of a model without a tokenizer, not read.
        seconds: after which it is stopped; what it has answered counts. 0: it is not run.
    """
    started = time.monotonic()
    script = readme_script(folder)
    if script is None or not seconds:
        reason = "not run" if script else "not run: README.md of the adapter has no script"
        return ScriptProof(status=reason, asked=0, whole=0, seconds=0.0)

    dialogue = dialogue_of(run)
    ended = _ask(folder, script, _questions(run, samples, targets, dialogue), seconds)
    whole = 0
    for index, answer in ended.answers.items():
        expected: Any = targets[index]
        if not dialogue.reads_text:
            expected = list(samples[index].target)
        whole += _is_whole(answer, expected, has_end=bool(samples[index].end))

    return ScriptProof(
        status=ended.fault or MEASURED,
        asked=len(ended.answers),
        whole=whole,
        seconds=time.monotonic() - started,
    )


def readme_script(folder: RunFolder) -> str | None:
    """The script in the README.md of a run's adapter; None where there is none."""
    try:
        readme = (folder.adapter / README_FILE).read_text("utf-8")
    except FileNotFoundError:
        return None
    match = SCRIPT.search(readme)
    return match.group(2) if match else None


def _questions(
    run: Run, samples: Sequence[Sample], targets: Sequence[str], dialogue: Dialogue
) -> list[tuple[str, str, bool]] | None:
    """Rows of `batched_answers.Asker`; None: the script has one prompt, given as ids."""
    if isinstance(dialogue.prompt, IdsPrompt):
        return None
    return [
        (question_of(run.data, sample), target, bool(sample.end))
        for sample, target in zip(samples, targets, strict=True)
    ]


def _is_whole(answer: Any, expected: Any, *, has_end: bool) -> bool:
    """Whether an answer is the target; what has no end may go on behind it."""
    if has_end:
        return bool(answer == expected)
    return bool(answer[: len(expected)] == expected)


def _ask(
    folder: RunFolder,
    script: str,
    questions: Sequence[tuple[str, str, bool]] | None,
    seconds: float,
) -> _Ended:
    source = Path(batched_answers.__file__).read_text("utf-8")
    program = script + (ASK_FIRST if questions is None else ASK_ALL.format(source=source))
    lines = [json.dumps(question) + "\n" for question in questions or ()]
    fault = ""
    # A file: what was printed before the script was stopped can be read.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        try:
            done = subprocess.run(
                [sys.executable, "-c", program],
                cwd=folder.adapter,
                env=os.environ | {"PYTHONUTF8": "1"},
                input="".join(lines),
                stdout=printed,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                check=False,
            )
            fault = _fault(done.returncode, done.stderr)
        except subprocess.TimeoutExpired:
            fault = f"{STOPPED} {seconds:.0f} s"
        printed.seek(0)
        texts = printed.read().split(batched_answers.SEPARATOR)[1:]
    return _Ended(answers=_answers(texts), fault=fault)


def _fault(code: int, stderr: str) -> str:
    """Why a script failed, in a line; empty if it did not."""
    if code == 0:
        return ""
    if code < 0:
        return f"{NOT_RUN_HERE}: killed by signal {-code} (out of memory?)"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit code {code}"
    return f"{NOT_RUN_HERE}: {reason}"


def _answers(texts: Sequence[str]) -> dict[int, Any]:
    """Answers as they were printed, up to one that was cut off."""
    answers = {}
    for text in texts:
        try:
            index, answer = json.loads(text)
        except ValueError:
            break
        answers[index] = answer
    return answers

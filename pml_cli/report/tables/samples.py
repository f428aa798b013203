"""Which samples are not recalled: a few lines, with the first wrong token of each in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pml_cli.format import counted, three_digits
from pml_cli.results.folder import RunFolder
from pml_cli.results.samples import read_samples

# Samples that are named after a probe, and after a sweep.
PROBE_SAMPLES = 5
SWEEP_SAMPLES = 3

# Characters of a text that are printed.
QUESTION_WIDTH = 50
TOKEN_WIDTH = 30
ANSWER_WIDTH = 80

Row = Mapping[str, Any]


def probe_lines(folder: RunFolder) -> list[str]:
    """The samples of one run that are not recalled; no lines where all are, or nothing is known.

    Raises:
        UserError: its samples.jsonl cannot be read.
    """
    rows = read_samples(folder)
    if rows is None:
        return []
    lines = [*failure_lines(rows, PROBE_SAMPLES), f"samples:    {folder.samples}"]
    if rows[0]["turns"]:
        lines.append(f"ask it:     {_ask_command(folder, rows)}")
    return lines


def sweep_lines(runs: pd.DataFrame) -> list[str]:
    """The samples that the best run of a sweep does not recall.

    Of the runs with several samples, that recalls the most of those with the most target tokens.

    Args:
        runs: one row a run with the fields of result.json (`results.read.read_runs`).

    Returns:
        A few lines; none where no run has several samples.

    Raises:
        UserError: the run's samples.jsonl cannot be read.
    """
    best = best_run(runs)
    if best is None:
        return []
    path = Path(best["folder"])
    folder = RunFolder(path.parent, path.name)
    rows = read_samples(folder)
    if rows is None:
        return []

    recalled = sum(row["whole"] for row in rows)
    heading = (
        f"{recalled} of {counted(rows, 'sample')} recalled by the best of the longest runs "
        f"(rank {best['rank']}, l {best['target_tokens']}): {folder.samples}"
    )
    lines = [heading, *failure_lines(rows, SWEEP_SAMPLES)]
    if rows[0]["turns"]:
        lines.append(f"ask it: {_ask_command(folder, rows)}")
    return lines


def _ask_command(folder: RunFolder, rows: Sequence[Row]) -> str:
    """`pml ask` with the question of the first sample, where it is short and plain."""
    _, question = rows[0]["turns"][-1]
    if len(question) > QUESTION_WIDTH or not question.isprintable():
        question = "QUESTION"
    return shlex.join(["pml", "ask", str(folder.path), question])


def best_run(runs: pd.DataFrame) -> dict[str, Any] | None:
    """The run to show among those with several samples: most target tokens, then most recalled,
    then smallest rank.

    Args:
        runs: one row a run with the fields of result.json.

    Returns:
        The row; None where every run has one sample.
    """
    if "samples" not in runs:
        return None
    several = runs[runs["samples"] > 1]
    if several.empty:
        return None

    order = ["target_tokens", "exact_match", "token_accuracy", "rank"]
    ranking = several.sort_values(order, ascending=[False, False, False, True])
    return {str(name): value for name, value in ranking.iloc[0].items()}


def failure_lines(rows: Sequence[Row], limit: int) -> list[str]:
    """Lines for the samples that are not recalled.

    Args:
        rows: of samples.jsonl.
        limit: samples that are named.
    """
    failed = [row for row in rows if not row["whole"]]
    lines: list[str] = []
    for row in failed[:limit]:
        lines += _lines_of(row, is_only=len(rows) == 1)
    if len(failed) > limit:
        lines.append(f"and {len(failed) - limit} more")
    return lines


def _lines_of(row: Row, *, is_only: bool) -> list[str]:
    """One sample: where it goes wrong, and what came out instead."""
    error = row["first_error"]
    position = error["position"]
    expected = _token(error["expected"], row["target_ids"], position)
    got = _token(error["got"], row["decoded_ids"], position)
    p = f"p {three_digits(error['p'])}"
    what = f"wrong from position {position}: expected {expected} ({p}), got {got}"
    # A stream has no question, and what follows its first failure is of no use to anyone.
    if is_only and not row["turns"]:
        return [what]

    lines = [f"sample {row['sample']}{_question(row)}: {what}"]
    if row["decoded"] is not None:
        lines.append(f"    wrote {shown(row['decoded'], ANSWER_WIDTH)}")
    return lines


def _question(row: Row) -> str:
    """The last turn of the prompt, else all of it, with a blank before; empty without a text."""
    question = row["turns"][-1][1] if row["turns"] else row["prompt"]
    return "" if question is None else f" {shown(question, QUESTION_WIDTH)}"


def _token(text: str | None, ids: Sequence[int] | None, position: int) -> str:
    """A token as text, by its id where a model has no tokenizer."""
    if text is not None:
        return shown(text, TOKEN_WIDTH)
    if ids is None or position >= len(ids):
        return "another"
    return f"id {ids[position]}"


def shown(text: str, width: int) -> str:
    """A text in quotes on one line, safe for a terminal, cut to a width.

    Control characters, line ends and what turns the direction of writing are escaped.
    """
    if len(text) > width:
        text = f"{text[: width - 3]}..."
    return repr(text)

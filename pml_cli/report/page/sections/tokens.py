"""Token by token: p by position and logged step, and the text itself, coloured by p.

Of a few runs: of each group those that tell most. Texts of tokens need the model's tokenizer; where
it is not on this machine their ids are shown.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.config.load import read_run
from pml_cli.errors import UserError
from pml_cli.evaluation.finished_runs import check_code_is_allowed
from pml_cli.law.fit_groups import GroupFit
from pml_cli.model.tokenizer import Tokenizer, open_tokenizer
from pml_cli.report.page.section import Section, Sources
from pml_cli.results.folder import RunFolder
from pml_cli.results.samples import read_samples
from pml_cli.results.tokens import IrregularError, read_grid
from pml_cli.stats import Array

# Of a run: logged steps (spread over all of them), samples and target tokens.
MOST_STEPS = 30
MOST_SAMPLES = 40
MOST_TOKENS = 1000

# Runs that cannot be read and are named.
MOST_NOTES = 5

# p is written in one byte.
LEVELS = 255


def section(sources: Sources) -> Section | None:
    """One run at a time."""
    shown: list[dict[str, Any]] = []
    left_out: list[str] = []
    for row in _telling(sources.groups):
        if len(shown) == sources.shown_runs:
            break
        try:
            run = _run(RunFolder(Path(row["folder"]).parent, Path(row["folder"]).name))
        except FileNotFoundError:
            # Runs may be kept without their tokens.
            continue
        except (IrregularError, OSError, UserError) as error:
            left_out.append(f"{row['folder']}: {error}")
            continue
        shown.append(run | {"id": row["id"], "rank": row["rank"]})
    if not shown and not left_out:
        return None
    return Section(
        name="tokens",
        title="Token by token, while it is learned",
        context={"runs": [run["id"] for run in shown], "left_out": left_out[:MOST_NOTES]},
        data=shown or None,
    )


def _telling(groups: Sequence[GroupFit]) -> Iterator[pd.Series]:
    """Runs in the order in which they are shown: of each group in turn the next best."""
    for row in zip_longest(*map(_of_group, groups)):
        yield from (run for run in row if run is not None)


def _of_group(group: GroupFit) -> Iterator[pd.Series]:
    """First the longest text that is recalled whole, then runs near to recall, then the others."""
    cells = group.cells.drop_duplicates("id")
    exact = pd.to_numeric(cells["exact_match"], errors="coerce")
    accuracy = pd.to_numeric(cells["token_accuracy"], errors="coerce").fillna(-1)
    length = pd.to_numeric(cells["target_tokens"], errors="coerce")
    is_best = length.where(exact == 1).rank(ascending=False, method="first") == 1
    nearly = accuracy.where(exact != 1, -1)
    order = pd.DataFrame({"best": ~is_best, "nearly": -nearly, "length": -length})
    for position in order.sort_values(["best", "nearly", "length"]).index:
        yield cells.loc[position]


def _run(folder: RunFolder) -> dict[str, Any]:
    """Steps, samples and p of one run.

    Raises:
        IrregularError, OSError, UserError: a file of it cannot be read.
    """
    grid = read_grid(folder.tokens, ["token_id", "p", "correct", "argmax_id"])
    rows = read_samples(folder) or []
    steps = len(grid["step"])
    kept_steps = np.unique(np.linspace(0, steps - 1, min(steps, MOST_STEPS)).round().astype(int))
    kept_tokens = np.flatnonzero(grid["sample"][0] < MOST_SAMPLES)[:MOST_TOKENS]
    p_TS = grid["p"][kept_steps][:, kept_tokens]
    tokenizer = _tokenizer(folder)
    texts = _texts(grid["token_id"][0][kept_tokens].tolist(), tokenizer)
    picked = _texts(grid["argmax_id"][-1][kept_tokens].tolist(), tokenizer)
    return {
        "steps": grid["step"][kept_steps, 0],
        "p": _packed(p_TS),
        "sample": grid["sample"][0][kept_tokens],
        "position": grid["position"][0][kept_tokens],
        "correct": grid["correct"][-1][kept_tokens].astype(int),
        "text": texts,
        "picked": picked,
        "is_text": tokenizer is not None,
        "left_out": len(grid["sample"][0]) - len(kept_tokens),
        "prompts": {str(row["sample"]): row["prompt"] for row in rows[:MOST_SAMPLES]},
    }


def _packed(p_TS: Array) -> str:
    """p of each step and token as a byte each, base64, row by row."""
    bytes_TS = np.round(p_TS * LEVELS).astype(np.uint8)
    # What is not above one half must not look as if it were.
    above_TS = p_TS > 0.5
    half = LEVELS // 2
    bytes_TS = np.where(above_TS, np.maximum(bytes_TS, half + 1), np.minimum(bytes_TS, half))
    return base64.b64encode(bytes_TS.astype(np.uint8).tobytes()).decode("ascii")


def _tokenizer(folder: RunFolder) -> Tokenizer | None:
    """Tokenizer of the run's model; None where it is not on this machine, or would run code."""
    try:
        run = read_run(folder.config)
        check_code_is_allowed(run, folder, False)
        return open_tokenizer(run.model)
    except (UserError, OSError):
        return None


def _texts(ids: list[int], tokenizer: Tokenizer | None) -> list[str]:
    """What each token reads as."""
    if tokenizer is None:
        return [str(token) for token in ids]
    return [tokenizer.decode([token]) for token in ids]

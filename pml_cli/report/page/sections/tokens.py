"""Token by token: p by position and logged step, and the text itself, coloured by p.

Of a few runs: of each group those that tell most. Texts of tokens need the model's tokenizer; where
it is not on this machine their ids are shown.

Shapes: T logged steps, S target tokens of a run.
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

# What is shown of a run: logged steps (spread over all of them), samples and target tokens.
MOST_STEPS = 30
MOST_SAMPLES = 40
MOST_TOKENS = 1000

# So many runs that cannot be read are named.
MOST_NOTES = 5

# p is written in one byte.
LEVELS = 255


def section(sources: Sources) -> Section | None:
    """One run at a time."""
    shown: list[dict[str, Any]] = []
    left_out: list[str] = []
    for row in _in_order(sources.groups):
        if len(shown) == sources.shown_runs:
            break
        path = Path(row["folder"])
        try:
            run = _data_of_run(RunFolder(path.parent, path.name))
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


def _in_order(groups: Sequence[GroupFit]) -> Iterator[pd.Series]:
    """Runs in the order in which they are shown: of each group in turn the next best."""
    for one_of_each in zip_longest(*map(_in_order_of_group, groups)):
        for run in one_of_each:
            # A group with fewer runs than others.
            if run is not None:
                yield run


def _in_order_of_group(group: GroupFit) -> Iterator[pd.Series]:
    """First the longest text that is recalled whole, then runs near to recall, then the others."""
    cells = group.cells.drop_duplicates("id")
    exact = pd.to_numeric(cells["exact_match"], errors="coerce")
    accuracy = pd.to_numeric(cells["token_accuracy"], errors="coerce").fillna(-1)
    length = pd.to_numeric(cells["target_tokens"], errors="coerce")

    # Of the texts that are recalled whole the longest is first; the others are last.
    is_longest = length.where(exact == 1).rank(ascending=False, method="first") == 1
    nearness = accuracy.where(exact != 1, -1)
    order = pd.DataFrame({"longest": ~is_longest, "near": -nearness, "length": -length})
    for position in order.sort_values(["longest", "near", "length"]).index:
        yield cells.loc[position]


def _data_of_run(folder: RunFolder) -> dict[str, Any]:
    """Steps, samples and p of one run.

    Raises:
        IrregularError, OSError, UserError: a file of it cannot be read.
    """
    grid = read_grid(folder.tokens, ["token_id", "p", "correct", "argmax_id"])
    rows = read_samples(folder) or []

    steps = len(grid["step"])
    evenly_spaced = np.linspace(0, steps - 1, min(steps, MOST_STEPS))
    kept_steps = np.unique(evenly_spaced.round().astype(int))
    # The tokens are the same at every step.
    sample_S = grid["sample"][0]
    kept_tokens = np.flatnonzero(sample_S < MOST_SAMPLES)[:MOST_TOKENS]
    p_TS = grid["p"][kept_steps][:, kept_tokens]

    tokenizer = _tokenizer(folder)
    ids_S = grid["token_id"][0][kept_tokens]
    picked_ids_S = grid["argmax_id"][-1][kept_tokens]
    return {
        "steps": grid["step"][kept_steps, 0],
        "p": _packed(p_TS),
        "sample": sample_S[kept_tokens],
        "position": grid["position"][0][kept_tokens],
        "correct": grid["correct"][-1][kept_tokens].astype(int),
        "text": _texts(ids_S.tolist(), tokenizer),
        "picked": _texts(picked_ids_S.tolist(), tokenizer),
        "is_text": tokenizer is not None,
        "left_out": len(sample_S) - len(kept_tokens),
        "prompts": {str(row["sample"]): row["prompt"] for row in rows[:MOST_SAMPLES]},
    }


def _packed(p_TS: Array) -> str:
    """p of each step and token as a byte each, base64, row by row."""
    levels_TS = np.round(p_TS * LEVELS)
    # Rounding must not move p over one half, where the colour changes.
    half = LEVELS // 2
    above_TS = np.maximum(levels_TS, half + 1)
    below_TS = np.minimum(levels_TS, half)
    levels_TS = np.where(p_TS > 0.5, above_TS, below_TS)
    return base64.b64encode(levels_TS.astype(np.uint8).tobytes()).decode("ascii")


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

"""Runs whose first token never moved: a model whose first position is an attention sink.

Without a prompt the first token follows begin-of-text alone, and no adapter can change what a sink
predicts (`model/sink.py`). Its loss stays as it was, so no text is recalled exactly at any rank,
and every mean loss has a floor of its loss over the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas as pd

from pml_cli.config import registry
from pml_cli.config.setting import keys
from pml_cli.law.findings import Finding, finding
from pml_cli.results.folder import RunFolder
from pml_cli.results.tokens import IrregularError, read_grid

# The first token has not moved if it gained less than this share of what the others did. On
# SmolLM2 it is 0 to .03 from the adapter's usual layer, and .7 to 3 where it can be learned.
MOVED_SHARE = 0.1

# Gain of the others, nats a token, below which a run tells nothing.
LEARNED = 0.5

# Share of its tokens that a run has to predict rightly: where hardly any is learned, a first token
# that is not is no sign of a sink.
SOME_RIGHT = 0.1

# Share of the runs that counts as nearly all.
NEARLY_ALL = 0.9

# Runs whose tokens are read, those with the largest gain.
MAX_READ = 32

# What a setting that gives a prompt looks like in the column `setting`.
PROMPT_SETTINGS = r"(?:^| )data\.(?:prompt|chat)="


def unmoved_first_tokens(runs: pd.DataFrame) -> list[Finding]:
    """`first_token_unmoved` for each model of which it holds in nearly all runs without a prompt.

    Quick for thousands of runs: tokens are read only where nearly all miss their first one.

    Args:
        runs: one row a run, fields of result.json and `folder`.
    """
    needed = {"model", "data", "setting", "first_failure", "delta_loss", "folder"}
    if runs.empty or not needed <= set(runs.columns):
        return []

    findings = []
    for model, rows in _without_prompt(runs).groupby("model"):
        missing = rows[rows["first_failure"] == 0]
        if len(missing) >= NEARLY_ALL * len(rows) and _never_moved(missing):
            findings.append(
                finding("first_token_unmoved", model=model, missing=len(missing), runs=len(rows))
            )
    return findings


def _without_prompt(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of one sample whose source can have a prompt, and that have none."""
    settings = runs["setting"].fillna("").astype(str)
    sources = runs["data"].astype(str).str.partition(":")[0]
    can_have = sources.map(_can_have_prompt).astype(bool)
    several = pd.to_numeric(runs.get("samples", 1), errors="coerce") > 1
    return runs[can_have & ~several & ~settings.str.contains(PROMPT_SETTINGS)]


@cache
def _can_have_prompt(source: str) -> bool:
    declared = registry.declared("data").get(source)
    return declared is not None and "prompt" in keys(declared)


def _never_moved(runs: pd.DataFrame) -> bool:
    """Whether the first token moved in nearly none of the runs that have learned the others."""
    right = pd.to_numeric(runs.get("token_accuracy", pd.Series(1.0, runs.index)), errors="coerce")
    able = runs[~(right < SOME_RIGHT)]
    largest = able.sort_values("delta_loss", ascending=False).head(MAX_READ)
    unmoved = 0
    learned = 0

    for first_gain, mean_gain in _gains(largest["folder"]):
        if mean_gain >= LEARNED:
            learned += 1
            unmoved += first_gain < MOVED_SHARE * mean_gain
    return learned > 0 and unmoved >= NEARLY_ALL * learned


def _gains(folders: pd.Series[str]) -> Iterator[tuple[float, float]]:
    """Yield the gain of the first token and the mean gain of the others for each readable run,
    nats."""
    for folder in folders:
        path = RunFolder(Path(folder).parent, Path(folder).name).tokens
        try:
            tokens = read_grid(path, ["nll"])
        # Other reports say what cannot be read.
        except (OSError, IrregularError):
            continue

        gain_S = tokens["nll"][0] - tokens["nll"][-1]
        is_first_S = tokens["position"][0] == 0
        if is_first_S.any() and not is_first_S.all():
            yield float(gain_S[is_first_S].mean()), float(gain_S[~is_first_S].mean())

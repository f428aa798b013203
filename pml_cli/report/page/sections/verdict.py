"""The answer first: what was measured, which law it follows, and what is recalled."""

from __future__ import annotations

import math

import pandas as pd

from pml_cli.format import counted
from pml_cli.law.fit_groups import GroupFit
from pml_cli.report.page.section import Section, Sources

# With more groups than this the table folds.
OPEN_GROUPS = 12


def section(sources: Sources) -> Section:
    """Three sentences about the largest group, and a table of all groups."""
    several = len(sources.groups) > 1
    return Section(
        name="verdict",
        title="In short",
        context={
            "sentences": sentences(sources),
            "rows": [_row(group) for group in sources.groups] if several else [],
            "open": len(sources.groups) <= OPEN_GROUPS,
        },
    )


def sentences(sources: Sources) -> list[str]:
    """What was measured, the law of the largest group, what is recalled."""
    several = len(sources.groups) > 1
    return [_measured(sources), _law(sources.groups[0], several), _recalled(sources.runs)]


def _measured(sources: Sources) -> str:
    runs = sources.runs
    models = _listed(runs["model"])
    data = _listed(runs["data"])
    ranks = _span(runs["rank"])
    lengths = _span(runs["target_tokens"])
    failed = f" {counted(len(sources.failures), 'more run')} failed." if sources.failures else ""
    return (
        f"{counted(len(runs), 'adapter')} of {models} on {data}: "
        f"ranks {ranks}, {lengths} target tokens.{failed}"
    )


def _law(group: GroupFit, several: bool) -> str:
    where = f"In the largest group ({group.name}) the" if several else "The"
    chosen = group.analysis.chosen
    if chosen is None or group.analysis.law is None:
        return f"{where} gain follows no law that these cells identify."

    text = f"{where} gain follows {group.analysis.law.form.notation(group.axis.symbol)}"
    check = group.analysis.unseen
    if check is not None and math.isfinite(check.mape):
        text += (
            "; for the largest ranks and lengths, left out of the fit and the choice of its form, "
            f"it is off by {check.mape:.3g} % on average"
        )
    return f"{text}."


def _recalled(runs: pd.DataFrame) -> str:
    exact = pd.to_numeric(runs["exact_match"], errors="coerce")
    measured = int(exact.notna().sum())
    if not measured:
        return "Exact recall was not measured."
    whole = runs[exact == 1]
    if whole.empty:
        return f"None of {counted(measured, 'adapter')} recalls its text whole."
    best = whole.sort_values(["target_tokens", "rank"], ascending=[False, True]).iloc[0]
    return (
        f"{len(whole)} of {counted(measured, 'adapter')} recall all of their text by greedy "
        f"decoding; the longest of {counted(round(best['target_tokens']), 'token')}, at rank "
        f"{best['rank']:.0f}."
    )


def _row(group: GroupFit) -> dict[str, str]:
    check = group.analysis.unseen
    law = group.analysis.law
    error = f"{check.mape:.3g} %" if check and math.isfinite(check.mape) else ""
    return {
        "name": group.name,
        "cells": str(len(group.cells)),
        "kept": str(int(group.cells["kept"].sum())),
        "law": law.form.name if law else "not identified",
        "error": error,
    }


def _listed(values: pd.Series) -> str:
    names = sorted({str(value) for value in values})
    if len(names) > 3:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return ", ".join(names)


def _span(values: pd.Series) -> str:
    numbers = pd.to_numeric(values, errors="coerce").dropna()
    if numbers.empty:
        return "unknown"
    low, high = numbers.min(), numbers.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"

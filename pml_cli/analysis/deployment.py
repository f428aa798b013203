"""What `pml lasting` measured, as tables: a row a run and condition, means with intervals, losses against plain fine-tuning.

Intervals and pairs are those of comparison.py: over texts and seeds, a text's ranks taken together where they are pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pml_cli.analysis.paired import EQUAL, compare, methods
from pml_cli.evaluation.conditions import CONDITIONS, TRAINED
from pml_cli.stats import t_half_width

RECALL = [
    "token_accuracy", "exact_match", "final_loss", "share_above_threshold", "lost", "lost_above", "won", "kept_whole",
    "least_right_margin", "shift_rms", "fall_worst", "violations", "free_exact_match",
]  # fmt: skip
PAIRED = [
    "token_accuracy",
    "exact_match",
    "lost",
    "kept_whole",
    "shift_rms",
    "fall_worst",
]  # compared with sft
TEXTS = ("text", "random")
DAMAGE = [
    f"{text}_{name}" for text in TEXTS for name in ("base_loss", "loss", "rise", "kl", "changed")
]
PLACE = [
    "model",
    "data",
    "adapter",
    "layer",
    "setting",
    "seqlen",
    "lr",
    "steps",
]  # what the runs of one table share


def rows(runs: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """lasting.csv: what a run is, the condition, what it recalls under it; its damage in the row of `trained`."""
    out = []
    for one in runs:
        known = {
            name: value
            for name, value in one.items()
            if name not in ("key", "conditions", "damage", "offenders")
        }
        known["layer"], known["setting"] = str(known["layer"]), known["setting"] or ""
        for condition in CONDITIONS:
            found = one["conditions"][condition.name]
            row = {
                **known,
                "condition": condition.name,
                "status": found["status"].partition(":")[0],
            }
            row |= {name: found.get(name) for name in (*RECALL, "first_failure", "least_margin")}
            out.append(row | (_damage(one["damage"]) if condition.name == TRAINED else {}))
    table = pd.DataFrame(out)
    measured = [*RECALL, "first_failure", "least_margin", *DAMAGE]
    table[measured] = table.reindex(columns=measured).apply(pd.to_numeric)
    named = methods(table)  # a curriculum is a method of its own, not a place
    return table.assign(method=named["method"], setting=named["setting"])


def _damage(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for text in TEXTS:
        values = dict(found[text])
        values["rise"] = None if values["loss"] is None else values["loss"] - values["base_loss"]
        out |= {f"{text}_{name}": value for name, value in values.items()}
    return out


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and half of the 95 % interval of every measure, of each place, method, rank (and all: no rank) and condition.

    For all ranks together a unit is a text and seed: the mean over its ranks.
    """
    out = []
    for key, group in table[table["status"] == "measured"].groupby(
        [*PLACE, "method", "condition"], sort=False
    ):
        where = dict(zip([*PLACE, "method", "condition"], key, strict=True))
        for rank, cell in [*group.groupby("rank"), (None, group)]:
            units, whole = (
                cell.groupby(["data_seed", "seed"])[[*RECALL, *DAMAGE]].mean(),
                cell["kept_whole"].dropna(),
            )
            row: dict[str, Any] = {
                **where,
                "rank": rank,
                "runs": len(cell),
                "worst": cell["fall_worst"].max(),
            }
            row |= {"whole": len(whole), "still_whole": int((whole == 1).sum())}
            for name in (*RECALL, *DAMAGE):
                values = units[name].dropna().to_numpy(float)
                row |= {
                    name: values.mean() if len(values) else math.nan,
                    f"{name}_half": t_half_width(values),
                }
            out.append(row)
    return pd.DataFrame(out).astype({"rank": "Int64"})


def comparison(table: pd.DataFrame) -> pd.DataFrame:
    """Every method against sft at equal place and budget, pair by pair (`comparison.compare`), under each condition."""
    parts = []
    for key, cells in table[table["status"] == "measured"].groupby(
        [*PLACE, "condition"], sort=False
    ):
        where = dict(zip([*PLACE, "condition"], key, strict=True))
        found = compare(cells, [*PAIRED, *(DAMAGE if where["condition"] == TRAINED else [])])
        found = found[found["terms"] == EQUAL] if len(found) else found
        if len(found):
            places = pd.DataFrame([where] * len(found), found.index)
            parts.append(
                found.drop(columns=["terms", "budget", "lr_sft", *places], errors="ignore").join(
                    places
                )
            )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON: what is missing is null."""
    kept = table.astype(object).where(table.notna(), None)
    return [{str(k): v for k, v in row.items()} for row in kept.to_dict("records")]

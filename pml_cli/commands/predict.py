"""`pml predict`: what a fitted law says about cells that were not trained. Reads law.json; fits nothing.

Given lengths: the least rank that reaches the target. Given ranks: the longest length. Given both: gain, loss and the chance
of exact recall. Every number has a 95 % band: the error of the law (bootstrap draws, widened where there are few clusters),
the spread of a single cell around it, and, unless `base` is given, the base losses of the texts.

Exit codes: 0; 2 (a `UserError`) when there is no law.json, no group of that name, or nothing asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pml_cli.config.reports import Predict
from pml_cli.errors import UserError
from pml_cli.law.fitted_law import TAIL, Law, load
from pml_cli.report.tables.predict import show
from pml_cli.stats import LN2, Array

SEARCHED = (1e-4, 1e6)  # times the ends of what was trained; beyond, the answer is none, or any
ROUNDS = 60  # of the bisection, on logs: beyond float32
CHANCES = (0.5, 0.9)  # of exact recall
TARGETS = "verbatim, loss=NATS (final loss per token) or bits=BITS (gained in all)"


@dataclass(frozen=True)
class Target:
    kind: str  # verbatim | loss | bits
    value: float = 0.0


@dataclass(frozen=True)
class Span:
    """A number with its 95 % band; inf: none reaches it."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        return {name: _json(getattr(self, name)) for name in ("value", "low", "high")}


def run(
    paths: list[Path],
    asked: Predict,
    console: Console,
    target: str = "verbatim",
    *,
    as_json: bool = False,
) -> int:
    """Show what the laws of the first path's report say.

    Raises:
        UserError: no report, another format, no group of that name, nothing asked, or an unknown target.
    """
    wanted = parse_target(target)
    if not asked.seqlen and not asked.rank:
        raise UserError(
            "nothing asked: give seqlen=1000 for the least rank, rank=8 for the longest length, or both"
        )
    if asked.seqlen and asked.rank and wanted.kind != "verbatim":
        raise UserError(
            f"--target {target}: with rank and seqlen both given there is nothing to look for; give one of them"
        )
    laws = [law for path in paths for law in load(path, asked.group)]
    answers = [answer(law, asked, wanted) for law in laws]
    if as_json:
        console.out(json.dumps(answers, indent=1), highlight=False)
        return 0
    for law, found in zip(laws, answers, strict=True):
        show(console, law, found)
    return 0


def parse_target(text: str) -> Target:
    """`verbatim`, `loss=0.5` or `bits=2000`.

    Raises:
        UserError: anything else.
    """
    kind, _, number = text.partition("=")
    if text == "verbatim":
        return Target("verbatim")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind in ("loss", "bits") and 0 < value < math.inf:
        return Target(kind, value)
    raise UserError(f"--target {text}: must be {TARGETS}")


def answer(law: Law, asked: Predict, target: Target) -> dict[str, Any]:
    """What one law says, as plain values; rows of `cells` (rank and length given), `ranks` or `lengths`."""
    out: dict[str, Any] = {"group": law.name, "law": law.form.name, "x": law.x,
                           "target": target.kind, "value": target.value or None,
                           "range": {law.x: law.ranks, "length": law.lengths}, "rows": []}  # fmt: skip
    if target.kind == "verbatim" and law.recall is None and not (asked.seqlen and asked.rank):
        out["reason"] = law.reason
        return out
    if asked.seqlen and asked.rank:
        out["rows"] = [
            _cell(law, rank, length, asked.base) for rank in asked.rank for length in asked.seqlen
        ]
    elif asked.seqlen:
        out["rows"] = [
            row for length in asked.seqlen for row in _least_rank(law, length, target, asked.base)
        ]
    else:
        out["rows"] = [
            row for rank in asked.rank for row in _longest(law, rank, target, asked.base)
        ]
    return out


def _cell(law: Law, rank: float, length: float, base: float | None) -> dict[str, Any]:
    level = _base(law, length, base)
    gain = law.gain(rank, length, level)
    row: dict[str, Any] = {
        law.x: rank,
        "length": length,
        "base_loss": float(level[0]),
        "gain": _span(gain).to_dict(),
    }
    row["loss"] = _span(level - gain).to_dict()
    row["bits"] = _span(length * gain / LN2).to_dict()
    if law.recall:
        row["recall"] = _span(law.recall.chances(rank, length)).to_dict()
    row["outside"] = law.outside(rank, length)
    return row


def _base(law: Law, length: float | Array, told: float | None) -> Array:
    """Loss of the base model for the fit and for each draw, (1 + D,): as told, or that of the texts trained."""
    return np.full(len(law.theta), told) if told else law.base_losses(length)


def _least_rank(
    law: Law, length: float, target: Target, base: float | None
) -> list[dict[str, Any]]:
    if target.kind == "verbatim":
        assert law.recall is not None
        recall = law.recall
        return [
            _row(law, "rank", length, _exp(recall.log_ranks(length, c)), chance=c) for c in CHANCES
        ]
    level = _base(law, length, base)
    needed = level - target.value if target.kind == "loss" else target.value * LN2 / length
    found = _bisect(
        lambda rank: law.gain(rank, length, level) - needed, _around(law.ranks), len(law.theta)
    )
    return [_row(law, "rank", length, found)]


def _longest(law: Law, rank: float, target: Target, base: float | None) -> list[dict[str, Any]]:
    if target.kind == "verbatim":
        assert law.recall is not None
        recall = law.recall
        return [
            _row(law, "length", rank, _exp(recall.log_lengths(rank, c)), chance=c) for c in CHANCES
        ]

    def over(length: Array) -> Array:
        at = _base(law, length, base)
        gain = law.gain(rank, length, at)
        return (
            target.value - (at - gain)
            if target.kind == "loss"
            else length * gain / LN2 - target.value
        )

    rising = (
        target.kind == "bits"
    )  # the shortest text that holds so many bits; else the longest that keeps the loss
    found = _bisect(
        over if rising else lambda length: -over(length), _around(law.lengths), len(law.theta)
    )
    return [_row(law, "length", rank, found)]


def _bisect(over: Callable[[Array], Array], ends: tuple[float, float], count: int) -> Array:
    """Where a rising function of each draw passes 0: inf where it does not, 0 where it is above from the start."""
    low, high = (np.full(count, math.log(end)) for end in ends)
    starts, reaches = over(np.exp(low)) >= 0, over(np.exp(high)) >= 0
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        above = over(np.exp(middle)) >= 0
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(starts, 0.0, np.where(reaches, np.exp(high), np.inf))


def _around(trained: tuple[float, float]) -> tuple[float, float]:
    return trained[0] * SEARCHED[0], trained[1] * SEARCHED[1]


def _row(law: Law, wanted: str, given: float, found: Array, **extra: float) -> dict[str, Any]:
    span = _span(found)
    rounded = [_whole(v, wanted) for v in (span.value, span.low, span.high)]
    rank, length = (rounded[0], given) if wanted == "rank" else (given, rounded[0])
    outside = law.outside(
        rank if math.isfinite(rank) else None, length if math.isfinite(length) else None
    )
    key, other = (law.x, "length") if wanted == "rank" else ("length", law.x)
    return {other: given, **extra, key: Span(*map(float, rounded)).to_dict(), "outside": outside}


def _whole(value: float, wanted: str) -> float:
    """A rank is rounded up and is at least 1; a length down."""
    if not math.isfinite(value):
        return value
    return max(1.0, math.ceil(value)) if wanted == "rank" else float(math.floor(value))


def _exp(logs: Array) -> Array:
    return np.asarray(np.exp(np.minimum(logs, 700.0)))


def _span(values: Array) -> Span:
    """The fit's value, and the middle 95 % of the draws."""
    draws = np.sort(values[1:])
    if not len(draws):
        return Span(float(values[0]), math.nan, math.nan)
    low, high = (
        draws[int(TAIL * (len(draws) - 1))],
        draws[math.ceil((1 - TAIL) * (len(draws) - 1))],
    )  # inf has no mean
    return Span(float(values[0]), float(low), float(high))


def _json(value: float) -> float | None:
    """JSON has no infinity: what nothing reaches is null."""
    return value if math.isfinite(value) else None

"""`pml predict`: what a fitted law says about cells that were not trained. Reads law.json; fits nothing.

Given lengths: the least rank that reaches the target. Given ranks: the longest length. Given both: gain, loss and the chance
of exact recall. Every number has a 95 % band: the error of the law (bootstrap draws, widened where there are few clusters)
and the spread of a single cell around it.

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
from rich.table import Table
from rich.text import Text
from scipy import stats

from .config import Predict
from .errors import UserError, did_you_mean
from .estimate import NATURAL, turn
from .law import CONFIDENCE, OK, Array
from .law_files import FORMAT
from .observed import LN2
from .recall_law import NAMES, RecallFit
from .saturation import LOG_S, PARAMETERS, Form, log_gain
from .uncertainty import FEW_CLUSTERS

NORMAL_DRAWS = 2000  # where a law has no bootstrap
SEARCHED = (1e-4, 1e6)  # times the ends of what was trained; beyond, the answer is none, or any
ROUNDS = 60  # of the bisection, on logs: beyond float32
TAIL = (1 - CONFIDENCE) / 2
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


@dataclass(frozen=True)
class Law:
    """The chosen law of one group of a law.json, with draws of its parameters."""

    name: str
    x: str  # what the ranks are: rank or parameters
    form: Form
    theta: Array  # (1 + D, 8): the fit, then draws of it
    centre: tuple[float, float]
    ranks: tuple[float, float]  # trained
    lengths: tuple[float, float]
    base: tuple[Array, Array]  # log lengths and mean base loss there, nats per token
    recall: RecallFit | None
    status: str
    reason: str

    def base_loss(self, length: float) -> float:
        """Of the base model at a length: between the lengths measured by log length, beyond them that of the nearest."""
        return float(np.interp(math.log(length), *self.base))

    def gain(self, rank: float | Array, length: float | Array, base: float | Array) -> Array:
        """Gain in nats per token, (1 + D,): of the fit, and of a cell drawn for each draw of the parameters.

        A cell deviates from the law by the spread, as in the likelihood, but never to more than the base loss.
        """
        shape = (len(self.theta),)
        x, y = (np.broadcast_to(np.log(v), shape)[:, None] for v in (rank, length))
        level = np.broadcast_to(np.asarray(base, float), shape)[:, None]
        at = x - self.centre[0], y - self.centre[1], level
        found = np.exp(log_gain(self.theta, *at, self.form.link)[:, 0])
        noise = np.concatenate([[0.0], np.random.default_rng(0).standard_normal(shape[0] - 1)])
        share = np.exp(self.theta[:, LOG_S]) * noise
        found = np.nan_to_num(found, nan=0.0)  # a law with a level has no gain where the base loss lies far below it
        return np.asarray(np.minimum(found * np.maximum(0.0, 1 + share), level[:, 0]))

    def outside(self, rank: float | None, length: float | None) -> str:
        """What lies outside the cells trained, in words; empty when nothing does."""
        words = []
        for what, value, (low, high) in ((self.x, rank, self.ranks), ("length", length, self.lengths)):
            if value is not None and not low <= value <= high:
                words.append(f"{what} {'above' if value > high else 'below'} {high if value > high else low:g}")
        return ", ".join(words)


def run(paths: list[Path], asked: Predict, target: str, console: Console, *, as_json: bool = False) -> int:
    """Show what the laws of the first path's report say.

    Raises:
        UserError: no report, another format, no group of that name, nothing asked, or an unknown target.
    """
    wanted = parse_target(target)
    if not asked.seqlen and not asked.rank:
        raise UserError("nothing asked: give seqlen=1000 for the least rank, rank=8 for the longest length, or both")
    if asked.seqlen and asked.rank and wanted.kind != "verbatim":
        raise UserError(f"--target {target}: with rank and seqlen both given there is nothing to look for; give one of them")
    laws = [law for path in paths for law in load(path, asked.group)]
    answers = [answer(law, asked, wanted) for law in laws]
    if as_json:
        console.out(json.dumps(answers, indent=1), highlight=False)
        return 0
    for law, found in zip(laws, answers, strict=True):
        _show(console, law, found)
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


def load(path: Path, group: str | None = None) -> list[Law]:
    """The chosen laws of a report: law.json, a folder that has it, or one whose fit/ has it.

    Raises:
        UserError: there is none, it is of another format or damaged, or no group has that name.
    """
    places = [path] if path.is_file() else [path / "law.json", path / "fit" / "law.json"]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        missing = "" if path.exists() else " (no such folder)"
        raise UserError(f"{path}: no law.json here{missing}; make it with `pml fit {path}`")
    try:
        content = json.loads(file.read_text("utf-8"))
        form = content["format"]
        groups = content["groups"] if form == FORMAT else []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a law.json ({str(error) or type(error).__name__}); run `pml fit` again") from error
    if form != FORMAT:
        raise UserError(f"{file}: format {form}, this pml reads {FORMAT}; run `pml fit` again")
    if group is not None:
        names = {name for one in groups for name in (one["slug"], one["name"])}
        if group not in names:
            raise UserError(f"group={group}: {did_you_mean(group, sorted({one['slug'] for one in groups}))}")
        groups = [one for one in groups if group in (one["slug"], one["name"])]
    try:
        laws = [_law(one, content) for one in groups if one["chosen"] is not None]
    except (LookupError, TypeError, ValueError, ArithmeticError, StopIteration) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error}); run `pml fit` again") from error
    if not laws:
        reasons = {one["fit"]["reason"] for one in groups} - {""}
        raise UserError(f"{file}: no law was identified{': ' + '; '.join(sorted(reasons)) if reasons else ''}")
    return laws


def _law(group: dict[str, Any], content: dict[str, Any]) -> Law:
    entry = next(law for law in group["laws"] if law["name"] == group["chosen"])
    theta = np.array([entry["theta"][name] for name in PARAMETERS], float)
    if not np.isfinite(theta).all() or entry["clusters"] < 1:
        raise ValueError("a parameter is not finite")
    centre = entry["centre"]["log_rank"], entry["centre"]["log_length"]
    draws = content["draws"].get(group["slug"], {})
    recall = group["recall"]
    of_recall = np.array([draws.pop(f"recall_{name}", []) for name in NAMES], float).T
    values = [recall["parameters"][name] for name in NAMES]
    found = (
        RecallFit(OK, "", np.array(values, float), of_recall, recall["n"], recall["exact"])
        if recall["status"] == OK
        else None
    )
    base = group["base_loss"]
    lengths, nats = np.log(np.array(base["length"], float)), np.array(base["nats"], float)
    return Law(
        group["name"], content["x"], Form(**entry["form"]),
        np.concatenate([theta[None], _draws(theta, centre, draws, entry)]), centre,
        tuple(group["range"]["rank"]), tuple(group["range"]["length"]), (lengths, nats), found,
        entry["status"], recall["reason"],
    )  # fmt: skip


def _draws(theta: Array, centre: tuple[float, float], draws: dict[str, list[float]], entry: dict[str, Any]) -> Array:
    """Draws of theta, (D, 8): from the bootstrap, widened by Student's t below 40 clusters; else from the covariance."""
    clusters = entry["clusters"]
    if draws:
        count = len(next(iter(draws.values())))
        values = np.tile(theta @ turn(centre).T, (count, 1))
        for name, column in draws.items():
            place = NATURAL.index(name)
            values[:, place] = np.log(column) if name in ("C", "k", "spread") else column
        out = values @ np.linalg.inv(turn(centre)).T
        few = clusters < FEW_CLUSTERS
        factor = (
            stats.t.ppf(1 - TAIL, clusters - 1) / stats.norm.ppf(1 - TAIL) * math.sqrt(clusters / (clusters - 1))
            if few
            else 1.0
        )
        return np.asarray(theta + factor * (out - theta))
    matrices = [np.array(entry[name], float) for name in ("covariance", "covariance_clustered")]
    wider = max((m for m in matrices if np.isfinite(m).all()), key=np.trace, default=np.zeros((len(theta),) * 2))
    rng = np.random.default_rng(0)
    return np.asarray(rng.multivariate_normal(theta, wider, NORMAL_DRAWS, check_valid="ignore"))


# -- answers


def answer(law: Law, asked: Predict, target: Target) -> dict[str, Any]:
    """What one law says, as plain values; rows of `cells` (rank and length given), `ranks` or `lengths`."""
    out: dict[str, Any] = {"group": law.name, "law": law.form.name, "x": law.x,
                           "target": target.kind, "value": target.value or None,
                           "range": {law.x: law.ranks, "length": law.lengths}, "rows": []}  # fmt: skip
    if target.kind == "verbatim" and law.recall is None and not (asked.seqlen and asked.rank):
        out["reason"] = law.reason
        return out
    if asked.seqlen and asked.rank:
        out["rows"] = [_cell(law, rank, length, asked.base) for rank in asked.rank for length in asked.seqlen]
    elif asked.seqlen:
        out["rows"] = [row for length in asked.seqlen for row in _least_rank(law, length, target, asked.base)]
    else:
        out["rows"] = [row for rank in asked.rank for row in _longest(law, rank, target, asked.base)]
    return out


def _cell(law: Law, rank: float, length: float, base: float | None) -> dict[str, Any]:
    level = base or law.base_loss(length)
    gain = law.gain(rank, length, level)
    span = _span(gain)
    row: dict[str, Any] = {law.x: rank, "length": length, "base_loss": level, "gain": span.to_dict()}
    row["loss"] = Span(level - span.value, level - span.high, level - span.low).to_dict()
    row["bits"] = Span(*(length * v / LN2 for v in (span.value, span.low, span.high))).to_dict()
    if law.recall:
        chance = law.recall.chance(rank, length, law.recall.draws)
        row["recall"] = _span(np.concatenate([[float(law.recall.chance(rank, length))], chance])).to_dict()
    row["outside"] = law.outside(rank, length)
    return row


def _least_rank(law: Law, length: float, target: Target, base: float | None) -> list[dict[str, Any]]:
    if target.kind == "verbatim":
        assert law.recall is not None
        recall = law.recall
        return [
            _row(law, "rank", length, _exp(recall.log_rank(length, c), recall.log_rank(length, c, recall.draws)), chance=c)
            for c in CHANCES
        ]
    level = base or law.base_loss(length)
    needed = level - target.value if target.kind == "loss" else target.value * LN2 / length
    found = _bisect(lambda rank: law.gain(rank, length, level) - needed, _around(law.ranks), len(law.theta))
    return [_row(law, "rank", length, found)]


def _longest(law: Law, rank: float, target: Target, base: float | None) -> list[dict[str, Any]]:
    if target.kind == "verbatim":
        assert law.recall is not None
        recall = law.recall
        return [
            _row(law, "length", rank, _exp(recall.log_length(rank, c), recall.log_length(rank, c, recall.draws)), chance=c)
            for c in CHANCES
        ]

    def level(length: Array) -> Array:
        return np.full(len(length), base) if base else np.interp(np.log(length), *law.base)

    def over(length: Array) -> Array:
        at = level(length)
        gain = law.gain(rank, length, at)
        return target.value - (at - gain) if target.kind == "loss" else length * gain / LN2 - target.value

    rising = target.kind == "bits"  # the shortest text that holds so many bits; else the longest that keeps the loss
    found = _bisect(over if rising else lambda length: -over(length), _around(law.lengths), len(law.theta))
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
    outside = law.outside(rank if math.isfinite(rank) else None, length if math.isfinite(length) else None)
    key, other = (law.x, "length") if wanted == "rank" else ("length", law.x)
    return {other: given, **extra, key: Span(*map(float, rounded)).to_dict(), "outside": outside}


def _whole(value: float, wanted: str) -> float:
    """A rank is rounded up and is at least 1; a length down."""
    if not math.isfinite(value):
        return value
    return max(1.0, math.ceil(value)) if wanted == "rank" else float(math.floor(value))


def _exp(at_fit: Array, draws: Array) -> Array:
    return np.asarray(np.exp(np.minimum(np.concatenate([[float(at_fit)], draws]), 700.0)))


def _span(values: Array) -> Span:
    """The fit's value, and the middle 95 % of the draws."""
    draws = np.sort(values[1:])
    if not len(draws):
        return Span(float(values[0]), math.nan, math.nan)
    low, high = draws[int(TAIL * (len(draws) - 1))], draws[math.ceil((1 - TAIL) * (len(draws) - 1))]  # inf has no mean
    return Span(float(values[0]), float(low), float(high))


def _json(value: float) -> float | None:
    """JSON has no infinity: what nothing reaches is null."""
    return value if math.isfinite(value) else None


# -- tables


def _show(console: Console, law: Law, found: dict[str, Any]) -> None:
    console.print(Text(f"{found['group']}   (law: {law.form.name})", style="bold"))
    if "reason" in found:
        console.print(Text(f"no law of exact recall: {found['reason']}", style="yellow"))
        return
    rows = found["rows"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    both = "gain" in rows[0]
    asked = [law.x, "length"] if both else [key for key, value in rows[0].items() if not isinstance(value, dict | str)]
    for key in asked:
        table.add_column(HEADINGS.get(key, key), justify="right", no_wrap=key != "chance")
    table.add_column("what")
    for name in ("value", "95 % band"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("outside")
    for row in rows:
        spans = {key: value for key, value in row.items() if isinstance(value, dict)}
        for place, (key, span) in enumerate(spans.items()):
            head = [_number(row[name], name) if place == 0 else "" for name in asked]
            lost = (
                "any" if key == "length" and found["target"] != "bits" else "none"
            )  # no text is too long; nothing reaches it
            known = span["low"] is not None or span["high"] is not None or span["value"] is None
            ends = [_number(span[end], key, lost) for end in ("low", "high")]
            band = " to ".join(ends) if known else "-"
            outside = (row["outside"] or "-") if place == 0 else ""
            table.add_row(*head, _what(key, found), _number(span["value"], key, lost), band, outside)
    console.print(table)
    console.print(Text(_note(law, found), style="dim"), end="\n\n")


def _what(key: str, found: dict[str, Any]) -> str:
    if key == found["x"]:
        return f"least {key}"
    if key == "length":
        return "shortest text" if found["target"] == "bits" else "longest text"
    return WHAT[key]


WHAT = {
    "gain": "gain dL",
    "loss": "final loss",
    "bits": "bits gained",
    "recall": "exact recall",
}
HEADINGS = {"chance": "exact recall"}


def _note(law: Law, found: dict[str, Any]) -> str:
    goal = {
        "verbatim": "Exact recall: chance that greedy decoding gives the whole target back. ",
        "loss": f"Target: a final loss of at most {found['value'] or 0:g} nats per token. ",
        "bits": f"Target: at least {found['value'] or 0:g} bits gained in all. ",
    }[found["target"]]
    (low, high), (short, long) = law.ranks, law.lengths
    return f"{goal}Gain and loss in nats per token. Trained: {law.x} {low:g} to {high:g}, length {short:g} to {long:g}."


def _number(value: float | None, key: str, lost: str = "none") -> str:
    if value is None:
        return lost
    if key in ("chance", "recall"):
        return f"{100 * value:.0f} %" if 0.01 <= value <= 0.99 else ("under 1 %" if value < 0.01 else "over 99 %")
    if key in ("gain", "loss", "base_loss"):
        return f"{value:.2f}"
    return f"{value:,.0f}"

"""A fitted law read back from law.json: the chosen one of each group, with draws of its parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pml_cli.errors import UserError, did_you_mean
from pml_cli.law.forms import LOG_S, PARAMETERS, Form, log_gain, spread_share
from pml_cli.law.mle import NATURAL, turn
from pml_cli.law.power_law import OK
from pml_cli.law.recall_law import NAMES, RecallFit
from pml_cli.law.report_format import FORMAT
from pml_cli.stats import CONFIDENCE, Array, few_cluster_factor

NORMAL_DRAWS = 2000  # where a law has no bootstrap
TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class BaseLoss:
    """Loss of the base model, nats per token: between measured lengths by log length, beyond them that of the nearest."""

    mean: tuple[Array, Array]  # log lengths, and the mean over cells there
    texts: list[tuple[Array, Array]]  # of each text alone

    def drawn(self, log_length: Array) -> Array:
        """The mean at the first of the lengths; of a text drawn at random at each of the others."""
        found = np.interp(log_length, *self.mean)
        drawn = np.random.default_rng(1).integers(len(self.texts), size=len(found) - 1)
        of_texts = np.stack([np.interp(log_length[1:], *text) for text in self.texts])
        return np.concatenate([found[:1], of_texts[drawn, np.arange(len(drawn))]])


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
    base: BaseLoss
    recall: RecallFit | None
    status: str
    reason: str

    def base_losses(self, length: float | Array) -> Array:
        """Of the base model at a length (or one a draw), (1 + D,): the mean, then that of a text drawn for each draw."""
        at = np.broadcast_to(np.log(length), (len(self.theta),))
        return self.base.drawn(at)

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
        share = (
            np.exp(self.theta[:, LOG_S])
            * noise
            * spread_share(self.theta, *at, self.form.link)[:, 0]
        )
        found = np.nan_to_num(
            found, nan=0.0
        )  # no gain: a base loss far below the level, or a b below 0 far from the cells
        return np.asarray(np.minimum(found * np.maximum(0.0, 1 + share), level[:, 0]))

    def outside(self, rank: float | None, length: float | None) -> str:
        """What lies outside the cells trained, in words; empty when nothing does."""
        words = []
        for what, value, (low, high) in (
            (self.x, rank, self.ranks),
            ("length", length, self.lengths),
        ):
            if value is not None and not low <= value <= high:
                words.append(
                    f"{what} {'above' if value > high else 'below'} {high if value > high else low:g}"
                )
        return ", ".join(words)


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
        raise UserError(
            f"{file}: not a law.json ({str(error) or type(error).__name__}); run `pml fit` again"
        ) from error
    if form != FORMAT:
        raise UserError(f"{file}: format {form}, this pml reads {FORMAT}; run `pml fit` again")
    if group is not None:
        names = {name for one in groups for name in (one["slug"], one["name"])}
        if group not in names:
            raise UserError(
                f"group={group}: {did_you_mean(group, sorted({one['slug'] for one in groups}))}"
            )
        groups = [one for one in groups if group in (one["slug"], one["name"])]
    try:
        laws = [_law(one, content) for one in groups if one["chosen"] is not None]
    except (LookupError, TypeError, ValueError, ArithmeticError, StopIteration) as error:
        raise UserError(
            f"{file}: damaged ({type(error).__name__}: {error}); run `pml fit` again"
        ) from error
    if not laws:
        reasons = {one["fit"]["reason"] for one in groups} - {""}
        raise UserError(
            f"{file}: no law was identified{': ' + '; '.join(sorted(reasons)) if reasons else ''}"
        )
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
    told = (
        recall["n"],
        recall["exact"],
        recall["clusters"],
        (recall["gaps"]["rank"], recall["gaps"]["length"]),
    )
    found = (
        RecallFit(OK, "", np.array(values, float), of_recall, *told)
        if recall["status"] == OK
        else None
    )
    base = BaseLoss(
        _curve(group["base_loss"]), [_curve(text) for text in group["base_loss"]["texts"]]
    )
    return Law(
        group["name"], content["x"], Form(**entry["form"]),
        np.concatenate([theta[None], _draws(theta, centre, draws, entry)]), centre,
        tuple(group["range"]["rank"]), tuple(group["range"]["length"]), base, found,
        entry["status"], recall["reason"],
    )  # fmt: skip


def _curve(told: dict[str, list[float]]) -> tuple[Array, Array]:
    return np.log(np.array(told["length"], float)), np.array(told["nats"], float)


def _draws(
    theta: Array, centre: tuple[float, float], draws: dict[str, list[float]], entry: dict[str, Any]
) -> Array:
    """Draws of theta, (D, 8): from the bootstrap, widened by Student's t below 40 clusters; else from the covariance."""
    clusters = entry["clusters"]
    if draws:
        count = len(next(iter(draws.values())))
        values = np.tile(theta @ turn(centre).T, (count, 1))
        for name, column in draws.items():
            place = NATURAL.index(name)
            values[:, place] = np.log(column) if name in ("C", "k", "spread") else column
        out = values @ np.linalg.inv(turn(centre)).T
        return np.asarray(theta + few_cluster_factor(clusters) * (out - theta))
    matrices = [np.array(entry[name], float) for name in ("covariance", "covariance_clustered")]
    wider = max(
        (m for m in matrices if np.isfinite(m).all()),
        key=np.trace,
        default=np.zeros((len(theta),) * 2),
    )
    rng = np.random.default_rng(0)
    return np.asarray(rng.multivariate_normal(theta, wider, NORMAL_DRAWS, check_valid="ignore"))

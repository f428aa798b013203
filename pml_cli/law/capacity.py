"""How many bits an adapter stores for each of its parameters, beside what others have published.

Two counts, both in bits of the whole target: gained, l dL / ln 2 (the fall of the target's code
length against the base model; part of it is knowledge of the source), and memorised,
l (H - L1) / ln 2 for a source of known entropy H (uniform tokens: ln V), which counts the target
alone.

The most over lengths is partly luck: the length that did best on some texts did so by their noise,
too. So the length (and the rank) of each text is the one that is best on the other texts, and the
mean and its interval are over what the texts themselves show there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pml_cli.law.observations import bits
from pml_cli.stats import Array, t_half_width

# Published bits per parameter of models trained from scratch.
PUBLISHED = {
    "Morris et al. 2025 (arXiv 2505.24832), uniform bits": 3.6,
    "Allen-Zhu and Li 2024 (arXiv 2404.05405), facts": 2.0,
}


@dataclass(frozen=True, kw_only=True)
class BitsPerParameter:
    """The most bits a parameter that adapters stored, over the lengths tried."""

    kind: str
    """gained or memorised."""
    rank: int
    parameters: int
    """Trained, of one adapter."""
    length: int
    """Target tokens at which it was the most, by all texts."""
    bits: float
    """A parameter; mean over texts, each at the length that is the most by the other texts.

    With one text, at `length`: the most of several numbers, and so a little too large.
    """
    low: float
    """95 %, Student's t over texts; nan for one text."""
    high: float
    runs: int
    """At `rank` and `length`."""
    last: bool
    """Whether it was the longest length tried: more may fit."""


@dataclass(frozen=True, kw_only=True)
class UnseenGain:
    """What adapters gain on unseen sequences of their source: knowledge of it, not memory."""

    gain: float
    """Nats per token; mean over texts, each of them the mean of its cells."""
    low: float
    """95 %, Student's t over texts; nan for one text."""
    high: float
    least: float
    """Over cells."""
    most: float
    cells: int

    @property
    def effect(self) -> str:
        """none, source_learned or source_damaged, by the interval's side of 0.

        unknown without an interval: how texts differ is not known then.
        """
        if math.isnan(self.low) or math.isnan(self.high):
            return "unknown"
        if self.low < 0 < self.high:
            return "none"
        return "source_learned" if self.gain > 0 else "source_damaged"


def bits_per_parameter(cells: pd.DataFrame) -> list[BitsPerParameter]:
    """For each rank and count, the length at which an adapter stored the most.

    Args:
        cells: one row a run: rank, target_tokens, data_seed, trainable_parameters, delta_loss
            (nats per token), bits_memorised or nan.
    """
    rows = []
    for kind, table in _stored(cells).items():
        for rank in sorted(table["rank"].unique()):
            rows.append(_most(kind, table[table["rank"] == rank]))
    return rows


def most_bits(cells: pd.DataFrame) -> list[BitsPerParameter]:
    """For each count, the rank and length at which an adapter stored the most.

    It is less than the most of `bits_per_parameter`, which favours the rank that was lucky.

    Args:
        cells: as of `bits_per_parameter`.
    """
    return [_most(kind, table) for kind, table in _stored(cells).items() if len(table)]


def _stored(cells: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of which each count is known, with the column per_parameter, in bits."""
    measured = np.isfinite(cells["delta_loss"].astype(float))
    usable = cells[measured & (cells["trainable_parameters"] > 0)]
    memorised = pd.to_numeric(usable["bits_memorised"], errors="coerce")
    counts = {
        "gained": bits(usable["target_tokens"], usable["delta_loss"]),
        "memorised": memorised.to_numpy(float),
    }

    tables = {}
    for kind, stored in counts.items():
        table = usable.assign(per_parameter=stored / usable["trainable_parameters"])
        tables[kind] = table.dropna(subset=["per_parameter"])
    return tables


def _most(kind: str, runs: pd.DataFrame) -> BitsPerParameter:
    """The rank and length at which these runs stored the most.

    Args:
        runs: one or more, with the column per_parameter.
    """
    # A row a text, a column for each rank and length: seeds of one text are not independent.
    cell = ["data_seed", "rank", "target_tokens"]
    means = runs.groupby(cell, dropna=False)["per_parameter"].mean()
    stored = means.unstack(["rank", "target_tokens"]).sort_index(axis="columns")
    values_TL = stored.to_numpy(float)

    position = int(np.argmax(np.nanmean(values_TL, axis=0)))
    rank = stored.columns.get_level_values("rank")[position]
    length = stored.columns.get_level_values("target_tokens")[position]
    of_rank = runs[runs["rank"] == rank]
    best = of_rank[of_rank["target_tokens"] == length]
    values = _at_best_of_others(values_TL)
    mean = float(values.mean())
    half = t_half_width(values)
    if _has_rivals(values_TL):
        half *= _fold_factor(len(values))

    return BitsPerParameter(
        kind=kind,
        rank=int(rank),
        parameters=int(of_rank["trainable_parameters"].iloc[0]),
        length=int(length),
        bits=mean,
        low=mean - half,
        high=mean + half,
        runs=len(best),
        last=bool(length == of_rank["target_tokens"].max()),
    )


def _at_best_of_others(values_TL: Array) -> Array:
    """The value of each text at the length whose mean over the other texts is the largest, (T',).

    Texts that share no length with another one are left out; where that is all of them, as with
    one text, the value at the length of the largest mean.

    Args:
        values_TL: of T texts at L lengths; nan where a text lacks a length.
    """
    chosen = []
    for text, own in enumerate(values_TL):
        others = np.delete(values_TL, text, axis=0)
        shared = np.isfinite(own) & np.isfinite(others).any(axis=0)
        if shared.any():
            means = np.nanmean(others[:, shared], axis=0)
            chosen.append(own[shared][np.argmax(means)])
    if not chosen:
        chosen = [np.nanmean(values_TL, axis=0).max()]
    return np.array(chosen)


def _has_rivals(values_TL: Array) -> bool:
    """Whether another length is not told from that of the largest mean, by paired t over texts.

    Args:
        values_TL: of T texts at L lengths; nan where a text lacks a length.
    """
    best = int(np.argmax(np.nanmean(values_TL, axis=0)))
    for differences in np.delete(values_TL[:, [best]] - values_TL, best, axis=1).T:
        shared = differences[np.isfinite(differences)]
        # Without two texts that have both, nothing tells them apart.
        if len(shared) < 2 or shared.mean() <= t_half_width(shared):
            return True
    return False


def _fold_factor(texts: int) -> float:
    """How much wider an interval is over texts whose lengths were chosen on one another.

    The correction of Nadeau and Bengio (2003) for folds that share what they were chosen on: the
    variance of the mean is (1 / n + 1 / (n - 1)) times that of a text, not 1 / n.
    """
    return math.sqrt(1 + texts / (texts - 1)) if texts > 1 else 1.0


def unseen_gain(cells: pd.DataFrame) -> UnseenGain | None:
    """Mean gain on unseen sequences; None where no cell has measured one.

    Args:
        cells: one row a run, with the columns control_gain and data_seed.
    """
    # Runs of an earlier version lack the column.
    if "control_gain" not in cells:
        return None
    control = cells.assign(gain=pd.to_numeric(cells["control_gain"], errors="coerce"))
    measured = control.dropna(subset=["gain"])
    if measured.empty:
        return None

    gains = measured["gain"].to_numpy(float)
    # Centre and width of one mean: a text with more cells than others does not count more.
    means = _text_means(measured, "gain")
    mean = float(means.mean())
    half = t_half_width(means)

    return UnseenGain(
        gain=mean,
        low=mean - half,
        high=mean + half,
        least=float(gains.min()),
        most=float(gains.max()),
        cells=len(gains),
    )


def _text_means(cells: pd.DataFrame, column: str) -> Array:
    """The mean of each text, (texts,): seeds of one text are not independent."""
    by_text = cells.groupby("data_seed", dropna=False)[column]
    return by_text.mean().to_numpy(float)

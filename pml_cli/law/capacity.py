"""How many bits an adapter stores for each of its parameters, beside what others have published.

Two counts, both in bits of the whole target: gained, l dL / ln 2 (the fall of the target's code
length against the base model; part of it is knowledge of the source), and memorised,
l (H - L1) / ln 2 for a source of known entropy H (uniform tokens: ln V), which counts the target
alone.
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
    """The most bits a parameter that adapters of one rank stored, over the lengths tried."""

    kind: str
    """gained or memorised."""
    rank: int
    parameters: int
    """Trained, of one adapter."""
    length: int
    """Target tokens at which it was the most."""
    bits: float
    """A parameter; mean over texts and seeds."""
    low: float
    """95 %, Student's t over texts; nan for one text."""
    high: float
    runs: int
    last: bool
    """Whether it was the longest length tried: more may fit."""


@dataclass(frozen=True, kw_only=True)
class UnseenGain:
    """What adapters gain on unseen sequences of their source: knowledge of it, not memory."""

    gain: float
    """Mean over cells, nats per token."""
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
    measured = np.isfinite(cells["delta_loss"].astype(float))
    usable = cells[measured & (cells["trainable_parameters"] > 0)]
    memorised = pd.to_numeric(usable["bits_memorised"], errors="coerce")
    counts = {
        "gained": bits(usable["target_tokens"], usable["delta_loss"]),
        "memorised": memorised.to_numpy(float),
    }

    rows = []
    for kind, stored in counts.items():
        table = usable.assign(per_parameter=stored / usable["trainable_parameters"])
        table = table.dropna(subset=["per_parameter"])
        for rank in sorted(table["rank"].unique()):
            runs_of_rank = table[table["rank"] == rank]
            rows.append(_most(kind, int(rank), runs_of_rank))
    return rows


def _most(kind: str, rank: int, runs: pd.DataFrame) -> BitsPerParameter:
    """The length at which runs of one rank stored the most.

    Args:
        runs: with the column per_parameter.
    """
    means = runs.groupby("target_tokens")["per_parameter"].mean()
    lengths = means.index.to_numpy(int)
    length = int(lengths[np.argmax(means.to_numpy(float))])
    best = runs[runs["target_tokens"] == length]

    # The interval is over texts, the mean over all runs.
    mean = float(best["per_parameter"].mean())
    half = t_half_width(_text_means(best, "per_parameter"))

    return BitsPerParameter(
        kind=kind,
        rank=rank,
        parameters=int(runs["trainable_parameters"].iloc[0]),
        length=length,
        bits=mean,
        low=mean - half,
        high=mean + half,
        runs=len(best),
        last=bool(length == runs["target_tokens"].max()),
    )


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
    mean = float(gains.mean())
    half = t_half_width(_text_means(measured, "gain"))

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

"""How many bits an adapter holds, for each of its parameters, beside what others have published.

Two counts, both in bits of the whole target: gained, l dL / ln 2 (what the target costs less than with the base model; part
of it is knowledge of the source), and memorised, l (H - L1) / ln 2 for a source of known entropy H (uniform tokens: ln V),
which counts the target alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.io import finite_or_none
from pml_cli.stats import LN2, t_half_width

# bits a parameter, whole models trained from scratch
YARDSTICKS = {
    "Morris et al. 2025 (arXiv 2505.24832), uniform bits": 3.6,
    "Allen-Zhu and Li 2024 (arXiv 2404.05405), facts": 2.0,
}


@dataclass(frozen=True)
class Held:
    """The most bits a parameter that adapters of one size held, over the lengths tried."""

    kind: str  # gained | memorised
    rank: int
    parameters: int
    length: int  # where it was the most
    bits: float  # a parameter, mean over texts and seeds
    low: float  # 95 %, Student's t over texts; nan for one
    high: float
    runs: int
    last: bool  # the longest length tried: more may fit

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: finite_or_none(value) if isinstance(value, float) else value
            for name, value in values.items()
        }


def held(cells: pd.DataFrame) -> list[Held]:
    """For each rank and count, the length at which an adapter held the most.

    Args:
        cells: one row a run: rank, target_tokens, data_seed, trainable_parameters, delta_loss (nats), bits_memorised or nan.
    """
    good = cells[
        np.isfinite(cells["delta_loss"].astype(float)) & (cells["trainable_parameters"] > 0)
    ]
    gained = good["target_tokens"] * good["delta_loss"] / LN2
    counts = {"gained": gained, "memorised": pd.to_numeric(good["bits_memorised"], errors="coerce")}
    found = []
    for kind, bits in counts.items():
        table = good.assign(share=bits / good["trainable_parameters"]).dropna(subset=["share"])
        for rank in sorted(table["rank"].unique()):
            rows = table[table["rank"] == rank]
            means = rows.groupby("target_tokens")["share"].mean()
            length = int(means.index.to_numpy(int)[int(np.argmax(means.to_numpy(float)))])
            at = rows[rows["target_tokens"] == length]
            mean, half = float(at["share"].mean()), t_half_width(_of_texts(at, "share"))
            size = int(rows["trainable_parameters"].iloc[0])
            last = length == rows["target_tokens"].max()
            found.append(
                Held(
                    kind,
                    int(rank),
                    size,
                    length,
                    mean,
                    mean - half,
                    mean + half,
                    len(at),
                    bool(last),
                )
            )
    return found


@dataclass(frozen=True)
class Unseen:
    """What adapters gain on sequences of their source that they have not seen: knowledge of the source, not memory."""

    gain: float  # mean over cells, nats per token
    low: float  # 95 %, Student's t over texts; nan for one text
    high: float
    least: float  # over cells
    most: float
    cells: int

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: finite_or_none(value) if isinstance(value, float) else value
            for name, value in values.items()
        }


def unseen(cells: pd.DataFrame) -> Unseen | None:
    """Mean control gain of the cells (columns control_gain, data_seed); None where no cell has one."""
    if "control_gain" not in cells:  # runs of an earlier version
        return None
    good = cells.assign(gain=pd.to_numeric(cells["control_gain"], errors="coerce")).dropna(
        subset=["gain"]
    )
    if good.empty:
        return None
    gains = good["gain"].to_numpy(float)
    half = t_half_width(_of_texts(good, "gain"))
    mean = float(gains.mean())
    return Unseen(
        mean, mean - half, mean + half, float(gains.min()), float(gains.max()), len(gains)
    )


def _of_texts(cells: pd.DataFrame, column: str) -> np.ndarray[Any, Any]:
    """The mean of each text: seeds of one text are no new texts."""
    return cells.groupby("data_seed", dropna=False)[column].mean().to_numpy(float)


def _reading(control: Unseen) -> str:
    if control.low < 0 < control.high:
        return "not told from 0"
    return (
        "knowledge of the source, not of the target"
        if control.gain > 0
        else "what else the model knew of it suffers"
    )


def words(found: list[Held], control: Unseen | None) -> list[str]:
    """The most over all ranks, a line for each count, the yardsticks, and what is gained on unseen sequences."""
    lines = []
    for kind, what in (("memorised", "of the target itself"), ("gained", "against the base model")):
        mine = [one for one in found if one.kind == kind]
        if not mine:
            continue
        best = max(mine, key=lambda one: one.bits)
        span = f" ({best.low:.2f} to {best.high:.2f})" if math.isfinite(best.low) else ""
        more = "; the longest text tried, more may fit" if best.last else ""
        lines.append(
            f"{kind:9} {best.bits:.2f}{span} bits a trained parameter {what} (rank {best.rank}, {best.length} tokens{more})"
        )
    if lines:
        lines.append(
            "published " + "; ".join(f"{bits:g}: {who}" for who, bits in YARDSTICKS.items())
        )
    if control:
        span = f" ({control.low:.2f} to {control.high:.2f})" if math.isfinite(control.low) else ""
        lines.append(
            f"control   {control.gain:.2f}{span} nats per token are gained on unseen sequences of the same source "
            f"({control.least:.2f} to {control.most:.2f} over cells): " + _reading(control)
        )
    return lines

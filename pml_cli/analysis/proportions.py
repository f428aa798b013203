"""Shares with intervals that know that cells of one text and length are not independent draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pml_cli.law.power_law import CONFIDENCE, plain

FEW_CLUSTERS = 40  # below, Student's t with one degree less than clusters
LEAST_CLUSTERS = 4  # for a spread between them


@dataclass(frozen=True)
class Share:
    """So many of so many, with a 95 % interval; nan of none."""

    found: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.found / self.of if self.of else float("nan")

    def to_dict(self) -> dict[str, float | int | None]:
        return {
            "found": self.found, "of": self.of, "share": plain(self.share), "low": plain(self.low), "high": plain(self.high)
        }  # fmt: skip


def share_of(found_C: ArrayLike, of_C: ArrayLike) -> Share:
    """A share over clusters: Wilson's interval, with as many independent draws as the spread between clusters allows.

    The draws count as share (1 - share) / variance, where the variance is the linearised one of a ratio of sums over
    clusters; never as more than there are. Where every cluster has the same share, and below four clusters, all draws
    count: the interval is then a lower bound of the uncertainty.

    Args:
        found_C, of_C: counts of each cluster.
    """
    k, n = np.asarray(found_C, float), np.asarray(of_C, float)
    k, n = k[n > 0], n[n > 0]
    found, of, clusters = int(k.sum()), int(n.sum()), len(n)
    if not of:
        return Share(0, 0, float("nan"), float("nan"))
    p = found / of
    quantile, draws = float(stats.norm.ppf((1 + CONFIDENCE) / 2)), float(of)
    if clusters >= LEAST_CLUSTERS:
        variance = clusters / (clusters - 1) * float(((k - p * n) ** 2).sum()) / of**2
        if variance > 0:
            draws = min(draws, p * (1 - p) / variance)
            if clusters < FEW_CLUSTERS:
                quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, clusters - 1))
    low, high = _wilson(p, draws, quantile)
    return Share(found, of, low, high)


def _wilson(p: float, draws: float, quantile: float) -> tuple[float, float]:
    z = quantile**2 / draws
    middle = (p + z / 2) / (1 + z)
    half = quantile / (1 + z) * float(np.sqrt(p * (1 - p) / draws + z / (4 * draws)))
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return (0.0 if p == 0 else low), (1.0 if p == 1 else high)

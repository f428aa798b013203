"""How long tokens stay stubborn: steps until p > 0.5 for good, and how often they fall back.

A token is above for good from the logged step after which it is above at every logged step to the end. One that is not
above at the last step is counted as long as it was watched (Kaplan and Meier).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from pml_cli.stats import Proportion, clustered_proportion

COUNTED = ("tokens", "above", "ever", "fell", "falls", "lost", "forgot")


def survival(crossings: pd.DataFrame) -> pd.DataFrame:
    """Proportion of tokens that are not yet above p = 0.5 for good after each step.

    Args:
        crossings: step, crossed (tokens that are above for good from this step on), left (watched to this step, not above).

    Returns:
        step, stubborn (share), at_risk (tokens watched to this step), ascending.
    """
    counts = (
        crossings.groupby("step", as_index=False)[["crossed", "left"]]
        .sum()
        .sort_values("step", ignore_index=True)
    )
    ended = (counts["crossed"] + counts["left"]).to_numpy(float)
    at_risk = ended[::-1].cumsum()[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(at_risk > 0, 1 - counts["crossed"].to_numpy(float) / at_risk, 1.0)
    return pd.DataFrame(
        {"step": counts["step"], "stubborn": kept.cumprod(), "at_risk": at_risk.astype(np.int64)}
    )


def median(curve: pd.DataFrame) -> float:
    """The first logged step at which half of the tokens are above for good; nan where that never comes."""
    below = curve[curve["stubborn"] <= 0.5]
    return float(below["step"].iloc[0]) if len(below) else float("nan")


def waits(cells: pd.DataFrame, crossings: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """One row for each value of `by` (rank, or rank and target_tokens): counts, shares, the median wait.

    Columns beside the counts of COUNTED: median_step; above_share (of all tokens); fell_share (fell back at least once) and
    lost_share (above at some step, not at the end) of those ever above, each with _low and _high.
    """
    rows = []
    for key, group in cells.groupby(by):
        mine = crossings
        for name, value in zip(by, key, strict=True):
            mine = mine[mine[name] == value]
        sums = group.groupby("cluster")[list(COUNTED)].sum()
        row = dict(zip(by, key, strict=True)) | {name: int(sums[name].sum()) for name in COUNTED}
        row["median_step"] = median(survival(mine))
        for name, found, of in (
            ("above", "above", "tokens"),
            ("fell", "fell", "ever"),
            ("lost", "lost", "ever"),
        ):
            row |= _columns(name, clustered_proportion(sums[found], sums[of]))
        rows.append(row)
    return pd.DataFrame(rows)


def _columns(name: str, share: Proportion) -> dict[str, float]:
    return {f"{name}_share": share.value, f"{name}_low": share.low, f"{name}_high": share.high}

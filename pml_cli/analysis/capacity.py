"""What adapters hold exactly, by size: means over texts, and bits against parameters."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from pml_cli.law.observations import text_names
from pml_cli.stats import t_half_width

# Columns by which adapters are of one kind, and what tells their sizes.
KIND = ["model", "data", "adapter", "loss", "layer", "setting", "lr", "steps"]
SIZE = ["rank", "parameters"]

# What is averaged over texts, with an interval, and what it took.
MEASURES = ("tokens", "bits")
COSTS = ("passes", "seconds")


def capacity_table(held: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind and size of adapter: means over texts with 95 % t intervals.

    Args:
        held: a row an adapter that has grown: `KIND`, `SIZE`, data_seed, `MEASURES`, `COSTS`.

    Returns:
        `KIND`, `SIZE`, texts, runs; of tokens and bits also _low and _high, nan with one text.
    """
    rows = []
    for key, group in held.groupby([*KIND, *SIZE], dropna=False):
        # Seeds of one text are no other texts.
        by_text = group.groupby(text_names(group))
        row = dict(zip([*KIND, *SIZE], key, strict=True))
        row |= {"texts": by_text.ngroups, "runs": len(group)}
        for name in MEASURES:
            means = by_text[name].mean()
            half = t_half_width(means)
            row[name] = means.mean()
            row[f"{name}_low"] = max(means.mean() - half, 0.0) if half >= 0 else math.nan
            row[f"{name}_high"] = means.mean() + half
        for name in COSTS:
            row[name] = by_text[name].mean().mean()
        rows.append(row)
    return pd.DataFrame(rows)


def parameter_lines(held: pd.DataFrame) -> pd.DataFrame:
    """N = c bits^s of each kind of adapter, N its parameters.

    Each text has its own least-squares line of log N by log bits; s is their mean, with the t
    interval over texts. c belongs to s, through the mean of all points.

    Args:
        held: as for `capacity_table`.

    Returns:
        `KIND`, texts, c, s, s_low, s_high (nan with one text); kinds of one size are left out.
    """
    rows = []
    for key, group in held[held["bits"] > 0].groupby(KIND, dropna=False):
        slopes = []
        for _, text in group.groupby(text_names(group)):
            if text["bits"].nunique() > 1 and text["parameters"].nunique() > 1:
                slope, _ = np.polyfit(np.log(text["bits"]), np.log(text["parameters"]), 1)
                slopes.append(slope)
        if not slopes:
            continue

        s = float(np.mean(slopes))
        half = t_half_width(slopes)
        log_c = np.log(group["parameters"]).mean() - s * np.log(group["bits"]).mean()
        row = dict(zip(KIND, key, strict=True))
        row |= {"texts": len(slopes), "c": math.exp(log_c), "s": s}
        rows.append({**row, "s_low": s - half, "s_high": s + half})
    return pd.DataFrame(rows)

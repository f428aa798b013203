"""How long tokens stay stubborn (Kaplan-Meier): steps until p > 0.5 for good, and relapses.

The event of a token is the logged step from which p > 0.5 holds to the end. A token that is not
above at the last logged step is censored there.

The estimate takes censoring as uninformative: of who leaves at a step nothing else is known. That
holds where every run has the same number of steps. Under train.stop=recalled a run ends because its
tokens are recalled: the few that are decoded below 0.5 are censored when all others have crossed,
those above can relapse no more, and late steps show runs with hard tokens alone. Crossings that
would not have held count then, so waits are too short and relapses too few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pml_cli.stats import MIN_CLUSTERS, Proportion, clustered_proportion

# Counts of one run's tokens; see `transition.token_counts`.
COUNTS = ["tokens", "above", "ever", "fell", "falls", "lost", "forgot"]

# Proportions of the tokens: name, count of successes, count of trials.
PROPORTIONS = [("above", "above", "tokens"), ("fell", "fell", "ever"), ("lost", "lost", "ever")]


def survival(crossings: pd.DataFrame) -> pd.DataFrame:
    """Kaplan-Meier estimate of the share of tokens not yet above p = 0.5 for good after each step.

    Args:
        crossings: step, crossed (tokens that are above for good from this step on) and left (tokens
            censored at this step); steps may repeat.

    Returns:
        step (ascending), stubborn (the share) and at_risk (tokens observed up to this step).
    """
    counts = crossings.groupby("step", as_index=False)[["crossed", "left"]].sum()
    counts = counts.sort_values("step", ignore_index=True)

    # A token is at risk up to the step at which it crosses or is censored.
    crossed = counts["crossed"].to_numpy(float)
    ended = crossed + counts["left"].to_numpy(float)
    at_risk = ended[::-1].cumsum()[::-1]

    # The product-limit estimator: shares of those at risk that stay, multiplied up.
    with np.errstate(divide="ignore", invalid="ignore"):
        stays = np.where(at_risk > 0, 1 - crossed / at_risk, 1.0)
    return pd.DataFrame(
        {
            "step": counts["step"],
            "stubborn": stays.cumprod(),
            "at_risk": at_risk.astype(np.int64),
        }
    )


def median_step(curve: pd.DataFrame) -> float:
    """The first logged step at which half of the tokens are above for good; nan: not reached.

    Args:
        curve: from `survival`.
    """
    reached = curve.loc[curve["stubborn"] <= 0.5, "step"]
    return float(reached.iloc[0]) if len(reached) else float("nan")


def survival_table(
    cells: pd.DataFrame,
    crossings: pd.DataFrame,
    by: list[str],
) -> pd.DataFrame:
    """Counts, proportions and the median step for each value of `by`.

    Args:
        cells: a row for each run, with COUNTS, cluster and the columns `by`.
        crossings: as for `survival`, with the columns `by`.
        by: ["rank"] or ["rank", "target_tokens"].

    Returns:
        The columns `by`, COUNTS, median_step, and a proportion with _share, _low and _high for
        each of: above (of all tokens), fell (below again at least once) and lost (above at some
        step, not at the end), both of the tokens ever above. The ends are nan where fewer than
        MIN_CLUSTERS clusters have such tokens.
    """
    rows: list[dict[str, Any]] = []
    for values, group in cells.groupby(by):
        key = dict(zip(by, values, strict=True))
        selected = crossings
        for name, value in key.items():
            selected = selected[selected[name] == value]

        sums = group.groupby("cluster")[COUNTS].sum()
        row: dict[str, Any] = dict(key)
        for name in COUNTS:
            row[name] = int(sums[name].sum())
        row["median_step"] = median_step(survival(selected))
        for name, successes, trials in PROPORTIONS:
            proportion = clustered_proportion(
                sums[successes], sums[trials], least_clusters=MIN_CLUSTERS
            )
            row |= _columns(name, proportion)
        rows.append(row)
    return pd.DataFrame(rows)


def _columns(name: str, proportion: Proportion) -> dict[str, float]:
    return {
        f"{name}_share": proportion.value,
        f"{name}_low": proportion.low,
        f"{name}_high": proportion.high,
    }

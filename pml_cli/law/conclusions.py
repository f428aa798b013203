"""What a group's fit allows to conclude, and the sweep that would tell more."""

from __future__ import annotations

import math

import pandas as pd

from pml_cli.law.analysis import Analysis
from pml_cli.law.findings import NOT_IDENTIFIED, Finding, finding
from pml_cli.law.power_law import MIN_DISTINCT

# Ranks and lengths of a sweep where nothing was measured.
FIRST_RANKS = (2, 4, 8, 16)
FIRST_LENGTHS = (64, 128, 256, 512)

# A law does not extrapolate if its held-out error is above this, per cent, and above this multiple
# of the error of the fit.
LARGE_ERROR = 10.0
LARGE_ERROR_RATIO = 3.0


def conclusions(cells: pd.DataFrame, analysis: Analysis) -> list[Finding]:
    """What a fit allows to conclude, and what to run next.

    Args:
        cells: those that the laws saw, with the columns of `next_sweep`.
        analysis: all laws on them; the conclusions are about the chosen one.
    """
    ranks, lengths = next_sweep(cells)
    law = analysis.law
    if law is None or analysis.chosen is None:
        if analysis.paper.status == NOT_IDENTIFIED:
            all_saturated = len(cells) > 0 and not analysis.paper.n_used
            return [
                finding("no_exponents", all_saturated=all_saturated, ranks=ranks, lengths=lengths)
            ]
        return [finding("no_trusted_law", ranks=ranks, lengths=lengths)]

    parameters = law.parameters
    found = [
        finding(
            "effect_of_doubling",
            alpha=parameters["alpha"],
            beta=parameters["beta"],
            level=law.form.level,
            offset=law.form.offset,
        )
    ]

    check = analysis.unseen
    if check is None or math.isnan(check.mape):
        return [*found, finding("no_extrapolation_error", ranks=ranks, lengths=lengths)]
    if check.mape > max(LARGE_ERROR, LARGE_ERROR_RATIO * law.mape):
        found.append(finding("extrapolation_fails", held_out=check.mape, fitted=law.mape))

    # An interval wider than its exponent says little; one that is unknown says nothing.
    unknown = (math.nan, math.nan)
    wide = {}
    for name in ("alpha", "beta"):
        low, high = analysis.intervals.get(name, unknown)
        if high - low > parameters[name]:
            wide[name] = (low, high)
    if wide:
        found.append(finding("wide_intervals", intervals=wide, ranks=ranks, lengths=lengths))
    return found


def next_sweep(cells: pd.DataFrame) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ranks and lengths of a sweep that would tell most, those measured among them.

    It extends the grid towards unsaturated cells, by factors of 2.

    Args:
        cells: with the columns rank, target_tokens, kept (False where saturated), and seqlen, which
            results of other tools may lack.
    """
    if cells.empty:
        return FIRST_RANKS, FIRST_LENGTHS
    ranks = sorted({int(value) for value in cells["rank"]})
    # Whole samples may not fill the length that was asked for.
    asked = pd.to_numeric(cells.get("seqlen", cells["target_tokens"]), errors="coerce")
    lengths = sorted({int(value) for value in asked.fillna(cells["target_tokens"])})

    unsaturated = cells[cells["kept"].astype(bool)]
    half_saturated = len(unsaturated) < len(cells) / 2
    mostly_unsaturated = len(unsaturated) > len(cells) / 2

    # Longer texts saturate last.
    if half_saturated or len(lengths) < 4:
        lengths += [2 * lengths[-1], 4 * lengths[-1]]
    # Few ranks leave alpha uncertain.
    if unsaturated["rank"].nunique() <= 4:
        least = ranks[0]
        ranks += [max(1, least // 2), max(1, least // 4)]
        if mostly_unsaturated:
            ranks.append(2 * max(ranks))
        ranks = sorted(set(ranks))
        # Below rank 1 there is nothing to add.
        while len(ranks) < MIN_DISTINCT:
            ranks.append(2 * ranks[-1])
    return tuple(ranks), tuple(lengths)

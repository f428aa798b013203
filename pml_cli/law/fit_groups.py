"""From finished runs to fitted groups: which cells count, and every law on each group of cells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.errors import UserError, did_you_mean
from pml_cli.law.analysis import Analysis, LawRow, analyse
from pml_cli.law.bits_line import BitsLine, fit_line, threshold_points
from pml_cli.law.bootstrap import Progress
from pml_cli.law.capacity import (
    BitsPerParameter,
    UnseenGain,
    bits_per_parameter,
    most_bits,
    unseen_gain,
)
from pml_cli.law.conclusions import conclusions
from pml_cli.law.findings import NOT_IDENTIFIED, Finding, finding
from pml_cli.law.first_token import unmoved_first_tokens
from pml_cli.law.forms import FORMS
from pml_cli.law.group_comparison import Comparison, compare
from pml_cli.law.model_selection import no_checks
from pml_cli.law.observations import RANK, Observations, SizeAxis, text_names
from pml_cli.law.power_law import unidentified
from pml_cli.law.recall_law import DRAWS, SHARES, RecallFit, fit_recall
from pml_cli.results.groups import (
    KEY,
    SCHEDULE,
    common_key,
    comparison_names,
    format_value,
    group_name,
    group_slug,
    key_for_json,
    with_key_columns,
)
from pml_cli.stats import LN2, Array, Mask

NUMBERS = ("rank", "target_tokens", "base_loss", "final_loss", "delta_loss")
REPEATS = ("rank", "target_tokens", "data_seed", "seed")
OPTIONAL = (
    "id",
    "folder",
    "token_accuracy",
    "exact_match",
    "stopped_early",
    "trainable_parameters",
    "effective_parameters",
    "samples",
    "source_nats",
    "bits_memorised",
    "control_gain",
    "converged",
    "expected_gain",
)
# Why the laws of the gain leave a cell out, in cells.csv.
SATURATED = "saturated"
DIVERGED = "diverged: the final loss is not below the base loss"
STOPPED_EARLY = "stopped early, before its loss was saturated"
NOT_CONVERGED = "had not converged"

# Nothing of it speaks against what the cell recalls. A training that stops at full recall would
# lose just those that recall, and one that drops the diverged just those that do not.
OF_THE_GAIN_ALONE = ("", SATURATED, DIVERGED, STOPPED_EARLY, NOT_CONVERGED)

# How far a gain may lie from base loss minus final loss, relative to 1 + base loss.
GAIN_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class GroupFit:
    """One group of comparable cells, and every law fitted to it."""

    name: str
    slug: str
    """For names of files."""
    key: dict[str, Any]
    """The settings that the cells share."""
    cells: pd.DataFrame
    """Every cell: as read, and predicted, residual, kept, reason."""
    observed: Observations
    """The cells that a law may use, saturated ones too."""
    observed_recall: Observations
    """The cells that the laws of exact recall are fitted to."""
    axis: SizeAxis
    """What `observed.rank` is."""
    analysis: Analysis
    """Every law of the gain."""
    recall: RecallFit
    """The law of exact recall."""
    all_recall: RecallFit | None
    """Law of recalling every sample of a run; None where runs have one sample each."""
    share_recall: dict[float, RecallFit]
    """Laws of recalling at least a share of a run's samples, by the share (SHARES); empty where
    runs have one sample each."""
    tokens_per_sample: float
    """Mean target tokens of a sample; nan where the number of samples was not recorded."""
    bits: list[BitsPerParameter]
    """Bits stored for each parameter, by rank."""
    most_bits: list[BitsPerParameter]
    """The same over all ranks."""
    control: UnseenGain | None
    """Gain on unseen sequences of the source; None where not measured."""
    warnings: list[Finding]
    """What speaks against the laws and the cells."""
    conclusions: list[Finding]
    """What the fit allows to conclude, and what to run next."""


def with_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with every column that a fit reads; numbers that cannot be read are nan.

    Args:
        runs: one row a run, with columns of result.json.
    """
    columns = [*runs.columns, *NUMBERS, *REPEATS, *OPTIONAL]
    distinct = list(dict.fromkeys(columns))
    runs = with_key_columns(runs.reindex(columns=distinct))
    for name in NUMBERS:
        runs[name] = pd.to_numeric(runs[name], errors="coerce")
    return runs.assign(effective_parameters=_effective_parameters(runs))


def _effective_parameters(runs: pd.DataFrame) -> pd.Series[float]:
    """Effective parameters as recorded; for older runs, those of an adapter beside one square
    block."""
    recorded = pd.to_numeric(runs["effective_parameters"], errors="coerce")
    rank = runs["rank"]
    width = pd.to_numeric(runs["trainable_parameters"], errors="coerce") / (2 * rank)
    # A matrix of rank r, of which only so many inputs count: AdapterBank says more.
    inputs = np.minimum(runs["target_tokens"], width)
    of_rank = np.minimum(rank, inputs)
    derived = of_rank * (inputs + width - of_rank)
    return recorded.fillna(derived.where(runs["adapter"] == "mlp_block"))


def audit(
    runs: pd.DataFrame,
    saturated_below: float = LN2,
    axis: SizeAxis = RANK,
    unconverged: str = "censor",
) -> pd.DataFrame:
    """Add `kept` and `reason` to the runs: the first fault of each, or saturation, or nothing.

    Args:
        runs: from `with_columns`.
        saturated_below: final loss (nats per token) at or below which a cell is saturated.
        axis: the size that the law is about.
        unconverged: drop excludes cells that had not converged.
    """
    base = runs["base_loss"]
    final = runs["final_loss"]
    delta = runs["delta_loss"]
    sizes = pd.to_numeric(runs[axis.column], errors="coerce")

    numbers = runs[list(NUMBERS)].to_numpy(float)
    finite = pd.Series(np.isfinite(numbers).all(axis=1), runs.index)
    mismatch = (delta - (base - final)).abs()
    tolerance = GAIN_TOLERANCE * (1 + base.abs())
    size_name = axis.column.replace("_", " ")
    # The first that applies is the reason; cells.csv has these texts. Those that speak against the
    # gain alone come last.
    faults = {
        "a number is missing or not finite": ~finite,
        "rank or length is not positive": (runs["rank"] <= 0) | (runs["target_tokens"] <= 0),
        "a copy of another folder's run": runs["id"].notna() & runs.duplicated("id"),
        "gain is not base loss minus final loss": mismatch > tolerance,
        f"{size_name} missing or not positive": ~(sizes > 0) | ~np.isfinite(sizes),
        "base loss is not positive": base <= 0,
        DIVERGED: (final >= base) | (delta <= 0),
        SATURATED: final <= saturated_below,
        STOPPED_EARLY: runs["stopped_early"].eq(True),
        NOT_CONVERGED: runs["converged"].eq(False) & (unconverged == "drop"),
    }

    reason = pd.Series("", runs.index)
    for fault, applies in faults.items():
        reason = reason.mask((reason == "") & applies, fault)
    return runs.assign(kept=reason == "", reason=reason)


def fit_group(
    key: dict[str, Any],
    cells: pd.DataFrame,
    saturated_below: float = LN2,
    draws: int = 4000,
    progress: Progress | None = None,
    *,
    axis: SizeAxis = RANK,
    unconverged: str = "censor",
) -> GroupFit:
    """Fit every law to one group, and check each on its largest ranks and longest lengths.

    Args:
        key: the settings that the cells share.
        cells: from `audit`, with the same threshold and axis.
        saturated_below: final loss (nats per token) at or below which a cell is saturated.
        draws, progress: of the bootstrap, as for `analysis.analyse`.
        axis: the size that the law is about.
        unconverged: what a cell counts as that had not converged: censor (its gain lies between
            what was measured and that plus expected_gain), drop, or keep (as measured).
    """
    # Saturated cells are lower limits of the gain; no law may use the other excluded ones.
    usable = cells[cells["kept"] | (cells["reason"] == SATURATED)]
    observed = _observations(
        usable,
        axis,
        final=usable["final_loss"].to_numpy(float),
        expected=_expected(usable) if unconverged == "censor" else None,
        saturated_below=saturated_below,
    )

    analysis, failure = _analyse(observed, draws, progress)
    unmoved = unmoved_first_tokens(usable)
    of_recall = cells[cells["reason"].isin(OF_THE_GAIN_ALONE)]
    observed_recall = _observations(of_recall, axis)
    exact = pd.to_numeric(of_recall["exact_match"], errors="coerce").to_numpy(float)
    recall = fit_recall(observed_recall, exact, min(draws, DRAWS))
    samples = pd.to_numeric(of_recall["samples"], errors="coerce").to_numpy(float)
    advice = conclusions(usable, analysis)
    if unmoved:
        recall, advice = _without_sweeps(recall, advice)

    return GroupFit(
        name=group_name(key),
        slug=group_slug(key),
        key=key_for_json(key),
        cells=_with_predictions(cells, usable.index, observed, analysis),
        observed=observed,
        observed_recall=observed_recall,
        axis=axis,
        analysis=analysis,
        recall=recall,
        all_recall=_share_recall(observed_recall, exact, samples, 1.0, min(draws, DRAWS)),
        share_recall=_share_laws(observed_recall, exact, samples, min(draws, DRAWS)),
        tokens_per_sample=_tokens_per_sample(observed_recall, samples),
        bits=bits_per_parameter(usable),
        most_bits=most_bits(usable),
        control=unseen_gain(usable),
        warnings=[
            *unmoved,
            *failure,
            *_convergence_warnings(usable, unconverged),
            *analysis.paper.warnings,
            *analysis.warnings,
            *_cell_warnings(cells),
        ],
        conclusions=advice,
    )


def _share_recall(
    observed: Observations,
    exact: Array,
    samples: Array,
    share: float,
    draws: int,
) -> RecallFit | None:
    """The law of recalling a share of a cell's samples; None where cells have one sample each.

    Args:
        exact: share of each cell's samples that are recalled exactly, (N,).
        samples: of each cell, (N,).
        share: that counts as reached; 1: every sample.
    """
    if not (samples > 1).any():
        return None
    reached = np.where(np.isfinite(exact), exact >= share, np.nan)
    return fit_recall(observed, reached, draws)


def _share_laws(
    observed: Observations,
    exact: Array,
    samples: Array,
    draws: int,
) -> dict[float, RecallFit]:
    """The laws of recalling each of SHARES; arguments as of `_share_recall`."""
    fits = {share: _share_recall(observed, exact, samples, share, draws) for share in SHARES}
    return {share: fit for share, fit in fits.items() if fit is not None}


def _tokens_per_sample(observed: Observations, samples: Array) -> float:
    """Mean target tokens of a sample; nan where no number of samples was recorded."""
    recorded = samples > 0
    if not recorded.any():
        return math.nan
    return float(observed.length[recorded].sum() / samples[recorded].sum())


def _analyse(
    observed: Observations,
    draws: int,
    progress: Progress | None,
) -> tuple[Analysis, list[Finding]]:
    """Every law; where one cannot be computed, the group is left without, and the others stay."""
    try:
        return analyse(observed, draws, progress), []
    except (np.linalg.LinAlgError, ArithmeticError) as error:
        reason = finding("group_failed", error=str(error))
        paper = unidentified("paper", reason, ~observed.saturated)
        row = LawRow(fit=paper, aicc_difference=math.nan, checks=no_checks(observed, reason))
        return Analysis.without_choice(paper, [row]), [reason]


def _unconverged(cells: pd.DataFrame) -> Mask:
    """(N,) cells that were checked, and had not converged; older runs were not checked."""
    return np.asarray(cells["converged"].eq(False), bool)


def _expected(cells: pd.DataFrame) -> Array:
    """(N,) what cells would still have gained at most, nats per token; infinite where unknown."""
    gains = pd.to_numeric(cells["expected_gain"], errors="coerce").to_numpy(float)
    known = np.where(np.isfinite(gains), np.maximum(gains, 0.0), np.inf)
    return np.where(_unconverged(cells), known, 0.0)


def _convergence_warnings(cells: pd.DataFrame, unconverged: str) -> list[Finding]:
    """How many cells had not converged, what they would have gained, and what they count as.

    Saturated ones do not matter: of them only a lower limit is used.
    """
    rows = cells[_unconverged(cells) & cells["kept"]]
    if rows.empty or unconverged == "drop":
        return []
    expected = pd.to_numeric(rows["expected_gain"], errors="coerce")
    median = float(expected.median()) if expected.notna().any() else math.nan
    return [
        finding(
            "cells_unconverged",
            cells=len(rows),
            expected=median,
            censored=unconverged == "censor",
        )
    ]


def _without_sweeps(recall: RecallFit, advice: list[Finding]) -> tuple[RecallFit, list[Finding]]:
    """The law of recall and the conclusions, where the first token never moved.

    More ranks or lengths would show the same again.
    """
    if recall.finding == finding("recall_nowhere"):
        recall = dataclasses.replace(recall, finding=finding("recall_first_token"))
    return recall, [found for found in advice if "ranks" not in found.values]


def _observations(cells: pd.DataFrame, axis: SizeAxis, **more: Any) -> Observations:
    """What a law sees of some cells.

    Args:
        axis: the size that the law is about.
        more: of `Observations.of`.
    """
    return Observations.of(
        cells[axis.column].to_numpy(float),
        cells["target_tokens"].to_numpy(float),
        cells["delta_loss"].to_numpy(float),
        cells["base_loss"].to_numpy(float),
        text=text_names(cells).to_numpy(str),
        grid_size=cells[axis.grid.column].to_numpy(float),
        **more,
    )


def _with_predictions(
    cells: pd.DataFrame,
    usable: pd.Index[Any],
    observed: Observations,
    analysis: Analysis,
) -> pd.DataFrame:
    """Add predicted_<law> and residual_<law>; those of the paper's law have no suffix."""
    columns: dict[str, pd.Series[float]] = {}
    for row in analysis.rows:
        is_paper = row.fit is analysis.paper
        # cells.csv always has the columns of the paper's law.
        if row.fit.status == NOT_IDENTIFIED and not is_paper:
            continue

        suffix = "" if is_paper else f"_{row.slug}"
        predicted = pd.Series(np.nan, cells.index)
        gains = row.fit.predict(observed.rank, observed.length, observed.base)
        predicted[usable] = gains
        columns[f"predicted{suffix}"] = predicted
        columns[f"residual{suffix}"] = cells["delta_loss"] - predicted
    return cells.assign(**columns)


def _cell_warnings(cells: pd.DataFrame) -> list[Finding]:
    """What the cells themselves say against a fit."""
    warnings = [
        finding("cells_excluded", cells=len(rows), reason=reason)
        for reason, rows in cells.groupby("reason")
        if reason not in ("", SATURATED)
    ]
    # Groups are split where one cell was run under several values; here each has its own.
    for setting in SCHEDULE:
        values = sorted(cells[setting].dropna().unique())
        if len(values) > 1:
            warnings.append(finding("setting_varies", setting=setting, values=tuple(values)))

    # Repeats have a seed of their own.
    kept = cells[cells["kept"]]
    repeated = int(kept.duplicated(list(REPEATS)).sum())
    if repeated:
        warnings.append(finding("repeated_cells", cells=repeated))
    return warnings


def bits_lines(groups: Sequence[GroupFit]) -> list[tuple[BitsLine, pd.DataFrame]]:
    """Parameters against bits: a line for each loss that several groups were trained with.

    Returns:
        Each line with its points (`threshold_points`).
    """
    by_loss: dict[str, list[pd.DataFrame]] = {}
    for group in groups:
        of_recall = group.cells[group.cells["reason"].isin(OF_THE_GAIN_ALONE)]
        points = threshold_points(group.name, of_recall)
        by_loss.setdefault(str(group.key.get("loss")), []).append(points)

    lines = []
    for loss, of_groups in by_loss.items():
        points = pd.concat(of_groups, ignore_index=True)
        line = fit_line(loss, points)
        if line is not None:
            lines.append((line, points))
    return lines


def check_settings(by: Sequence[str]) -> None:
    """Check that groups have the settings `by`.

    Raises:
        UserError: an unknown setting.
    """
    for name in by:
        if name not in (*KEY, *SCHEDULE):
            raise UserError(f"--by {name}: {did_you_mean(name, (*KEY, *SCHEDULE))}")


def comparable_sets(keys: list[dict[str, Any]], by: Sequence[str]) -> list[list[int]]:
    """Positions of groups that differ in the settings `by` and agree in all others.

    Returns:
        Sets of two and more.

    Raises:
        UserError: no two groups differ in these settings alone.
    """
    sets: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        # Settings are compared as text: some are lists.
        common = repr(common_key(key, by))
        sets.setdefault(common, []).append(position)
    comparable = [positions for positions in sets.values() if len(positions) > 1]
    if comparable:
        return comparable

    varying = []
    for setting in (*KEY, *SCHEDULE):
        values = {str(key.get(setting)) for key in keys}
        if len(values) > 1:
            varying.append(setting)

    reason = "these cells are one group"
    if varying:
        reason = f"the groups differ in {', '.join(varying)}; try --by {','.join(varying)}"
    raise UserError(f"--by {','.join(by)}: no two groups differ in that alone; {reason}")


def compare_groups(
    groups: list[GroupFit],
    by: Sequence[str],
) -> Comparison:
    """Compare the exponents of groups that `comparable_sets` puts together.

    Args:
        by: settings in which they differ.
    """
    common = common_key(groups[0].key, by).items()
    names = comparison_names([group.key for group in groups], by)
    observed = [group.observed for group in groups]

    return compare(
        dict(zip(names, observed, strict=True)),
        [form for form in FORMS if form.kind.has_ceiling],
        tuple(by),
        common=", ".join(f"{name} {format_value(value)}" for name, value in common),
    )

"""The phase transition at p > 0.5 in one group of runs, from their result.json and tokens.parquet.

A cell is a run. A sequence is a sample of a run at the last logged step. A cluster is the cells of
one text (with few texts: of one text and length); fewer than MIN_CLUSTERS of them leave an interval
open (nan), as the tokens of one text are not independent. A violation is a token with p > 0.5 that
greedy decoding does not pick; a stubborn token has p <= 0.5 at the last logged step.

Shapes: T logged steps, S target tokens, B bins of p, C clusters, R ranks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pml_cli.analysis import trajectories
from pml_cli.analysis.first_failures import (
    FailureAgreement,
    FailureConcentration,
    Ints,
    failure_concentration,
    stubborn_against_failure,
)
from pml_cli.analysis.survival import survival_table
from pml_cli.analysis.trajectories import (
    BINS,
    FIRST_BIN_ABOVE,
    THRESHOLD,
    TokenTrajectories,
)
from pml_cli.results.folder import RunFolder
from pml_cli.results.tokens import IrregularError
from pml_cli.stats import LN2, MIN_CLUSTERS, Array, Mask, Proportion, clustered_proportion

DTYPE = re.compile(r"\bmodel\.dtype=(\w+)")

# The figure of the stubborn grid has room for so many lengths.
MAX_GRIDS = 4

# Columns that the sequences of a run take from the run.
RUN_COLUMNS = ["id", "rank", "target_tokens", "data_seed", "seed", "cluster"]


@dataclass(kw_only=True)
class GroupTokens:
    """The tokens of one group of runs, added up run by run."""

    cells: list[dict[str, Any]] = field(default_factory=list)
    """One entry per run: its result.json and `token_counts`."""

    sequences: list[pd.DataFrame] = field(default_factory=list)
    """One table per run: `final_sequences` with RUN_COLUMNS."""

    stubborn: list[Ints] = field(default_factory=list)
    """One array per sequence: its stubborn positions, ascending."""

    crossings: list[pd.DataFrame] = field(default_factory=list)
    """One table per run with rank, target_tokens, step, crossed, left (see `survival`)."""

    bin_counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Numbers of logged and of correct tokens in each bin of p, (2, B), by cluster."""

    violations: list[dict[str, Any]] = field(default_factory=list)
    """One entry per listed violation: id and folder of the run, step, token, p, margin, nll."""

    left_out: list[dict[str, str]] = field(default_factory=list)
    """One entry per run without a readable tokens.parquet: its folder and the reason."""


@dataclass(frozen=True, kw_only=True)
class StubbornGrid:
    """Final p of one text at one length, by rank and position (samples side by side)."""

    text: Any
    """data.seed of the text; nan where the data has none."""

    length: int
    """Target tokens."""

    seed: Any
    ranks: Array
    """(R,), ascending."""

    p_RS: Array
    correct_RS: Mask
    samples: int


@dataclass(frozen=True, kw_only=True)
class TransitionSummary:
    """One group of comparable runs, and what its tokens show of the transition."""

    name: str
    slug: str
    key: dict[str, Any]
    """The settings that the runs share."""

    cells: pd.DataFrame
    """A row for each run: result.json's columns and `token_counts`."""

    sequences: pd.DataFrame
    """A row for each sample of a run: RUN_COLUMNS and `final_sequences`."""

    recall_above: Proportion
    """Logged tokens with p > 0.5 that greedy decoding picks."""

    recall_below: Proportion
    """Logged tokens with p <= 0.5 that greedy decoding picks."""

    recall_by_p: pd.DataFrame
    """`recall_table`."""

    agreement: FailureAgreement
    concentration: FailureConcentration
    crossings: pd.DataFrame
    """rank, target_tokens, step, crossed, left (see `survival`)."""

    survival_by_rank: pd.DataFrame
    """`survival_table` by rank, all lengths together."""

    survival_by_cell: pd.DataFrame
    """`survival_table` by rank and length."""

    loss_against_recall: dict[str, Proportion]
    """`loss_disagreements`."""

    behind_failure: dict[str, Proportion]
    """`accuracy_behind_failure`."""

    violations: list[dict[str, Any]]
    """The listed violations, one by one."""

    grids: list[StubbornGrid]
    """Grids of one text, one per length; the most informative one first."""


def model_dtype(setting: Any) -> str:
    """The dtype of the model's weights, from result.json's `setting`."""
    # The default, float32, is not named there.
    match = DTYPE.search(setting) if isinstance(setting, str) else None
    return match.group(1) if match else "float32"


def read_group(runs: pd.DataFrame, on_run: Callable[[], None]) -> GroupTokens:
    """Read the tokens of every run, one file at a time.

    Args:
        runs: rows of result.json with `folder` and `cluster`.
        on_run: called after each run.
    """
    group = GroupTokens()

    for record in runs.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        try:
            tokens = trajectories.read(_tokens_path(row["folder"]))
        except FileNotFoundError:
            group.left_out.append({"folder": row["folder"], "reason": "no tokens.parquet"})
        except (IrregularError, OSError) as error:
            group.left_out.append({"folder": row["folder"], "reason": f"tokens.parquet: {error}"})
        else:
            _add_run(group, row, tokens)
        on_run()
    return group


def _tokens_path(folder: str) -> Path:
    path = Path(folder)
    return RunFolder(path.parent, path.name).tokens


def _add_run(
    group: GroupTokens,
    row: dict[str, Any],
    tokens: TokenTrajectories,
) -> None:
    """Add one run to its group.

    Args:
        row: the run's result.json, with `folder` and `cluster`.
    """
    group.cells.append(row | token_counts(tokens))

    run_columns = {name: row[name] for name in RUN_COLUMNS}
    sequences, stubborn = final_sequences(tokens)
    group.sequences.append(sequences.assign(**run_columns))
    group.stubborn += stubborn

    crossings = _crossings(tokens)
    crossings["rank"] = row["rank"]
    crossings["target_tokens"] = row["target_tokens"]
    group.crossings.append(crossings)

    cluster = row["cluster"]
    counts_2B = np.stack([tokens.tokens_B, tokens.correct_B])
    group.bin_counts[cluster] = group.bin_counts.get(cluster, 0) + counts_2B

    run = {"id": row["id"], "folder": row["folder"]}
    group.violations += [run | violation for violation in tokens.listed_violations]


def token_counts(tokens: TokenTrajectories) -> dict[str, Any]:
    """What one run adds to cells.csv.

    Returns:
        At the last logged step: tokens, above (p > 0.5), stubborn, wrong. Over the trajectories:
        ever (above at some step), fell (below again at least once), falls (in all), lost (ever
        above, not at the end), forgot (once picked, later not). Over all logged steps: logged,
        logged_above, violations, early_right (picked at p <= 0.5), highest_wrong, lowest_right
        (values of p), logged_steps, first_step, last_step.
    """
    above_S = tokens.above_since_S >= 0
    ever_S = tokens.ever_above_S

    return {
        "tokens": len(above_S),
        "above": int(above_S.sum()),
        "ever": int(ever_S.sum()),
        "fell": int((tokens.falls_S > 0).sum()),
        "falls": int(tokens.falls_S.sum()),
        "lost": int((ever_S & ~above_S).sum()),
        "forgot": int((tokens.forgotten_S > 0).sum()),
        "logged": int(tokens.tokens_B.sum()),
        "logged_above": int(tokens.tokens_B[FIRST_BIN_ABOVE:].sum()),
        "violations": tokens.violations,
        "early_right": int(tokens.correct_B[:FIRST_BIN_ABOVE].sum()),
        "stubborn": int((~above_S).sum()),
        "wrong": int((~tokens.final_correct_S).sum()),
        "highest_wrong": tokens.highest_wrong_p,
        "lowest_right": tokens.lowest_correct_p,
        "logged_steps": len(tokens.steps_T),
        "first_step": int(tokens.steps_T[0]),
        "last_step": int(tokens.steps_T[-1]),
    }


def final_sequences(tokens: TokenTrajectories) -> tuple[pd.DataFrame, list[Ints]]:
    """Each sample of a run at the last logged step.

    Returns:
        A row for each sample: sample, length, wrong (count), earliest_stubborn and first_failure
        (positions from 0; nan where there is none); and its stubborn positions, ascending.
    """
    samples, index_S = np.unique(tokens.sample_S, return_inverse=True)
    index_S = index_S.ravel()
    count = len(samples)
    position_S = tokens.position_S.astype(np.int64)
    stubborn_S = ~(tokens.final_p_S > THRESHOLD)
    wrong_S = ~tokens.final_correct_S

    def first_position(flags_S: Mask) -> Array:
        """The smallest position with a flag, of each sample; nan where there is none."""
        positions = position_S[flags_S].astype(float)
        first = np.full(count, np.inf)
        np.minimum.at(first, index_S[flags_S], positions)
        return np.where(np.isfinite(first), first, np.nan)

    table = pd.DataFrame(
        {
            "sample": samples,
            "length": np.bincount(index_S),
            "wrong": np.bincount(index_S, wrong_S).astype(np.int64),
            "earliest_stubborn": first_position(stubborn_S),
            "first_failure": first_position(wrong_S),
        }
    )

    # Sorted by sample, then position, and cut where the next sample starts.
    index = index_S[stubborn_S]
    position = position_S[stubborn_S]
    order = np.lexsort((position, index))
    lengths = np.bincount(index, minlength=count)
    cuts = np.cumsum(lengths)[:-1]
    return table, list(np.split(position[order], cuts))


def _crossings(tokens: TokenTrajectories) -> pd.DataFrame:
    """step, crossed (tokens above for good from this step on), left (censored at this step).

    Of a run that stopped early the last step depends on its tokens: `survival` says what that does.
    """
    steps_T = tokens.steps_T
    above_S = tokens.above_since_S >= 0
    step_index = np.searchsorted(steps_T, tokens.above_since_S[above_S])
    crossed_T = np.bincount(step_index, minlength=len(steps_T))

    # All tokens are observed to the last step.
    left_T = np.zeros(len(steps_T), np.int64)
    left_T[-1] = int((~above_S).sum())
    return pd.DataFrame({"step": steps_T, "crossed": crossed_T, "left": left_T})


def summarize(
    group: GroupTokens,
    *,
    name: str,
    slug: str,
    key: dict[str, Any],
    draws: int,
    text: int | None,
) -> TransitionSummary:
    """Every statistic of one group.

    Args:
        group: tokens of at least one run.
        name, slug, key: see `TransitionSummary`.
        draws: bootstrap draws of Spearman's rho.
        text: data.seed of the stubborn grid's text; None: the lowest.
    """
    cells = pd.DataFrame(group.cells)
    sequences = pd.concat(group.sequences, ignore_index=True)
    crossings = pd.concat(group.crossings)
    crossings = crossings.groupby(["rank", "target_tokens", "step"], as_index=False).sum()
    counts_C2B = np.stack(list(group.bin_counts.values()))

    return TransitionSummary(
        name=name,
        slug=slug,
        key=key,
        cells=cells,
        sequences=sequences,
        recall_above=_recall(counts_C2B[..., FIRST_BIN_ABOVE:]),
        recall_below=_recall(counts_C2B[..., :FIRST_BIN_ABOVE]),
        recall_by_p=recall_table(counts_C2B),
        agreement=stubborn_against_failure(sequences, group.stubborn, draws),
        concentration=failure_concentration(sequences),
        crossings=crossings,
        survival_by_rank=survival_table(cells, crossings, ["rank"]),
        survival_by_cell=survival_table(cells, crossings, ["rank", "target_tokens"]),
        loss_against_recall=loss_disagreements(cells),
        behind_failure=accuracy_behind_failure(cells, sequences),
        violations=group.violations,
        grids=stubborn_grids(cells, text),
    )


def _recall(counts_C2B: NDArray[np.int64]) -> Proportion:
    """Correct ones of the logged tokens, over some bins together."""
    tokens_C, correct_C = counts_C2B.sum(axis=-1).T
    return clustered_proportion(correct_C, tokens_C, least_clusters=MIN_CLUSTERS)


def recall_table(counts_C2B: NDArray[np.int64]) -> pd.DataFrame:
    """The share of tokens that greedy decoding picks in each bin of p, over all logged steps.

    Args:
        counts_C2B: of each cluster the logged tokens and the correct ones in each bin, (C, 2, B).

    Returns:
        low_p (exclusive), high_p (inclusive), tokens, right, share with its interval low, high.
    """
    rows = []

    for k in range(BINS):
        recall = _recall(counts_C2B[..., k : k + 1])
        rows.append(
            {
                "low_p": k / BINS,
                "high_p": (k + 1) / BINS,
                "tokens": recall.trials,
                "right": recall.successes,
                "share": recall.value,
                "low": recall.low,
                "high": recall.high,
            }
        )
    return pd.DataFrame(rows)


def violations_by_dtype(cells: pd.DataFrame) -> pd.DataFrame:
    """Violations by the dtype of the model's weights.

    Returns:
        dtype, runs, logged (tokens), above (p > 0.5), violations, below_right (picked at
        p <= 0.5), highest_wrong and lowest_right (values of p), below (p <= 0.5).
    """
    dtype = cells["setting"].map(model_dtype)
    by_dtype = cells.assign(dtype=dtype).groupby("dtype", as_index=False)
    table = by_dtype.agg(
        runs=("id", "size"),
        logged=("logged", "sum"),
        above=("logged_above", "sum"),
        violations=("violations", "sum"),
        below_right=("early_right", "sum"),
        highest_wrong=("highest_wrong", "max"),
        lowest_right=("lowest_right", "min"),
    )

    table["below"] = table["logged"] - table["above"]
    return table


def loss_disagreements(cells: pd.DataFrame) -> dict[str, Proportion]:
    """Where the mean loss and verbatim recall disagree, over cells.

    Returns:
        low_loss_not_verbatim: of the cells with a mean loss below ln 2, those not verbatim;
        high_loss_verbatim: of the other cells, those that are verbatim;
        either: both kinds, of all cells;
        stubborn_verbatim: of the verbatim cells, those with a stubborn token.
    """
    numbers = cells[["final_loss", "exact_match"]].apply(pd.to_numeric, errors="coerce")
    measured = numbers.notna().all(axis=1)
    # ln 2 is the loss of a token with p = 0.5.
    low_loss = numbers["final_loss"] < LN2
    verbatim = numbers["exact_match"] == 1
    has_stubborn = cells["stubborn"] > 0

    def proportion(
        successes: pd.Series[bool],
        trials: pd.Series[bool],
    ) -> Proportion:
        counts = pd.DataFrame(
            {
                "cluster": cells["cluster"],
                "successes": successes & measured,
                "trials": trials & measured,
            }
        )
        sums = counts.groupby("cluster").sum()
        return clustered_proportion(sums["successes"], sums["trials"], least_clusters=MIN_CLUSTERS)

    return {
        "low_loss_not_verbatim": proportion(low_loss & ~verbatim, low_loss),
        "high_loss_verbatim": proportion(~low_loss & verbatim, ~low_loss),
        "either": proportion(low_loss != verbatim, measured),
        "stubborn_verbatim": proportion(verbatim & has_stubborn, verbatim),
    }


def accuracy_behind_failure(
    cells: pd.DataFrame,
    sequences: pd.DataFrame,
) -> dict[str, Proportion]:
    """Token accuracy behind the first failure, in the cells that were decoded freely.

    result.json has the free accuracy over all tokens. Up to the first failure free decoding and
    teacher forcing are both right, and at it both are wrong; the rest lies behind it.

    Returns:
        free: in free (greedy) decoding; forced: teacher-forced, in the same cells.
    """
    free_accuracy = pd.to_numeric(cells["free_accuracy"], errors="coerce")
    decoded_freely = free_accuracy.notna()

    failure = sequences["first_failure"]
    positions = pd.DataFrame(
        {
            "id": sequences["id"],
            "behind": (sequences["length"] - failure - 1).fillna(0),
            "ahead": failure.fillna(sequences["length"]),
        }
    )
    tokens = positions.groupby("id").sum().reindex(cells["id"])
    tokens.index = cells.index

    # Of the tokens that are right, those ahead of the failure are subtracted.
    free = free_accuracy * cells["tokens"] - tokens["ahead"]
    # Of a result.json that is not the tokens', not more than there are.
    free = free.clip(lower=0, upper=tokens["behind"]).fillna(0).round()
    forced = cells["tokens"] - cells["wrong"] - tokens["ahead"]
    forced = forced.clip(lower=0, upper=tokens["behind"])

    counts = pd.DataFrame(
        {
            "cluster": cells["cluster"],
            "free": free,
            "forced": forced.where(decoded_freely, 0.0),
            "behind": tokens["behind"].where(decoded_freely, 0.0),
        }
    )
    sums = counts[counts["behind"] > 0].groupby("cluster").sum()
    return {
        name: clustered_proportion(sums[name], sums["behind"], least_clusters=MIN_CLUSTERS)
        for name in ("free", "forced")
    }


def stubborn_grids(cells: pd.DataFrame, text: int | None) -> list[StubbornGrid]:
    """The final p of one text by position and rank, at up to MAX_GRIDS lengths.

    The most telling length is first: of those with the most ranks, the one whose share of tokens
    above 0.5 is nearest to a half. Of repeats of a rank the lowest seed is taken.

    Args:
        text: data.seed; None: the lowest, or every cell where the data has no seed.
    """
    if text is None:
        texts = cells["data_seed"].dropna()
        chosen = texts.min() if len(texts) else None
    else:
        chosen = text
    of_text = cells if chosen is None else cells[cells["data_seed"] == chosen]
    if of_text.empty:
        return []

    lengths = of_text.groupby("target_tokens").agg(
        ranks=("rank", "nunique"),
        above=("above", "sum"),
        tokens=("tokens", "sum"),
    )
    most_ranks = lengths[lengths["ranks"] == lengths["ranks"].max()]
    share_above = most_ranks["above"] / most_ranks["tokens"]
    telling = (share_above - 0.5).abs().idxmin()

    # The others are evenly spaced.
    index = np.linspace(0, len(most_ranks) - 1, MAX_GRIDS).round()
    spaced = most_ranks.index[np.unique(index.astype(int))]
    others = spaced[spaced != telling]

    grids = []
    for length in [telling, *others[: MAX_GRIDS - 1]]:
        of_length = of_text[of_text["target_tokens"] == length]
        grids.append(_stubborn_grid(of_length, chosen, int(length)))
    return grids


def _stubborn_grid(cells: pd.DataFrame, text: Any, length: int) -> StubbornGrid:
    """The grid of one text and length, a row for each rank."""
    by_rank = cells.sort_values(["rank", "seed"]).drop_duplicates("rank")
    runs = [trajectories.read(_tokens_path(folder)) for folder in by_rank["folder"]]

    # A run with another number of tokens has no place in the same columns.
    size = len(runs[0].final_p_S)
    fits = [len(run.final_p_S) == size for run in runs]
    fitting = [run for run in runs if len(run.final_p_S) == size]

    return StubbornGrid(
        text=text,
        length=length,
        seed=by_rank["seed"].min(),
        ranks=by_rank["rank"].to_numpy(float)[fits],
        p_RS=np.stack([run.final_p_S for run in fitting]),
        correct_RS=np.stack([run.final_correct_S for run in fitting]),
        samples=len(np.unique(runs[0].sample_S)),
    )

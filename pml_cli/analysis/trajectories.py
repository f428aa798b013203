"""The trajectory of each target token through training, read from a run's tokens.parquet.

A trajectory is p of the target token, and whether greedy decoding picks it (teacher-forced), at
every logged step. What happens between two logged steps cannot be seen.

Shapes: T logged steps, S target tokens of a run, B bins of p.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pml_cli.results.tokens import read_grid, read_rows

if TYPE_CHECKING:
    from pml_cli.stats import Array, Mask

# A token with p above it is the argmax, because the others have less in all.
THRESHOLD = 0.5

# Bins of p are (k / BINS, (k + 1) / BINS]; the threshold is one of the borders.
BINS = 20
FIRST_BIN_ABOVE = BINS // 2

# More violations of one run are counted, not listed.
MAX_LISTED = 10_000

VIOLATION_COLUMNS = [
    "step",
    "sample",
    "position",
    "token_id",
    "argmax_id",
    "p",
    "margin",
    "nll",
]


@dataclass(frozen=True, kw_only=True)
class TokenTrajectories:
    """What the trajectories of one run's tokens come to."""

    steps_T: NDArray[np.int64]
    """The logged steps, ascending."""

    tokens_B: NDArray[np.int64]
    """Logged tokens in each bin of p, over all steps."""

    correct_B: NDArray[np.int64]
    """Number of tokens in each bin that greedy decoding picks, out of `tokens_B`."""

    violations: int
    """Logged tokens with p > 0.5 that greedy decoding does not pick."""

    listed_violations: list[dict[str, Any]] = field(repr=False)
    """The first `MAX_LISTED` violations by step, each with VIOLATION_COLUMNS."""

    highest_wrong_p: float
    """The largest p of a token that was not picked; nan where all were."""

    lowest_correct_p: float
    """The smallest p of a token that was picked; nan where none was."""

    sample_S: NDArray[np.int32]
    position_S: NDArray[np.int32]

    final_p_S: Array
    """p at the last logged step."""

    final_correct_S: Mask
    """Whether greedy decoding picks the token at the last logged step."""

    above_since_S: NDArray[np.int64]
    """The logged step from which p > 0.5 holds to the end; -1 where it does not hold at the end."""

    ever_above_S: Mask
    """Whether p > 0.5 at some logged step."""

    falls_S: NDArray[np.int64]
    """How often p went from above 0.5 to 0.5 or less, from one logged step to the next."""

    forgotten_S: NDArray[np.int64]
    """How often a token went from picked to not picked, from one logged step to the next."""


def read(path: Path) -> TokenTrajectories:
    """Read every logged step of one run.

    Args:
        path: a tokens.parquet: one row a step and token, tokens in the same order at every step.

    Raises:
        IrregularError: the file is not a table of (steps x tokens).
        OSError: the file cannot be read.
    """
    columns = read_grid(path, ["p", "correct"])
    steps_T = columns["step"][:, 0].astype(np.int64)
    p_TS = columns["p"]
    correct_TS = columns["correct"].astype(bool)

    above_TS = p_TS > THRESHOLD
    bin_TS = _bins(p_TS, above_TS)
    violations = int((above_TS & ~correct_TS).sum())

    return TokenTrajectories(
        steps_T=steps_T,
        tokens_B=np.bincount(bin_TS.ravel(), minlength=BINS),
        correct_B=np.bincount(bin_TS[correct_TS], minlength=BINS),
        violations=violations,
        listed_violations=_list_violations(path) if violations else [],
        highest_wrong_p=_extreme(np.fmax, p_TS[~correct_TS]),
        lowest_correct_p=_extreme(np.fmin, p_TS[correct_TS]),
        sample_S=columns["sample"][0],
        position_S=columns["position"][0],
        final_p_S=p_TS[-1].astype(float),
        final_correct_S=correct_TS[-1],
        above_since_S=_above_since(above_TS, steps_T),
        ever_above_S=np.asarray(above_TS.any(axis=0)),
        falls_S=_losses(above_TS),
        forgotten_S=_losses(correct_TS),
    )


def _bins(p_TS: NDArray[np.floating[Any]], above_TS: Mask) -> NDArray[np.int64]:
    """The bin of each p, 0 .. BINS - 1."""
    bin_TS = np.ceil(p_TS * BINS).astype(np.int64) - 1
    bin_TS = np.clip(bin_TS, 0, BINS - 1)

    # p * BINS is rounded, so near the threshold the exact comparison decides.
    low_TS = np.minimum(bin_TS, FIRST_BIN_ABOVE - 1)
    high_TS = np.maximum(bin_TS, FIRST_BIN_ABOVE)
    return np.asarray(np.where(above_TS, high_TS, low_TS))


def _above_since(above_TS: Mask, steps_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """The step from which each token is above to the end; -1: it is not above at the end."""
    T = len(steps_T)
    below_from_end_TS = ~above_TS[::-1]

    # How many steps, counted from the end, each token is above. argmax finds the first step below.
    run_S = below_from_end_TS.argmax(axis=0)
    run_S[above_TS.all(axis=0)] = T

    first_S = np.minimum(T - run_S, T - 1)
    return np.where(run_S > 0, steps_T[first_S], -1)


def _losses(state_TS: Mask) -> NDArray[np.int64]:
    """How often each token's state goes from true to false, from one logged step to the next."""
    lost_TS = state_TS[:-1] & ~state_TS[1:]
    return np.asarray(lost_TS.sum(axis=0))


def _extreme(reduce: np.ufunc, values: NDArray[np.floating[Any]]) -> float:
    return float(reduce.reduce(values)) if len(values) else float("nan")


def _list_violations(path: Path) -> list[dict[str, Any]]:
    """The first violations by step, with the margin and nll that may show their cause."""
    import pyarrow.compute as pc

    is_violation = (pc.field("p") > THRESHOLD) & ~pc.field("correct")
    table = read_rows(path, VIOLATION_COLUMNS, is_violation)
    first: list[dict[str, Any]] = table.slice(0, MAX_LISTED).to_pylist()
    return first

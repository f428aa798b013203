"""What a run's tokens.parquet says of each token's way through training, read in pieces: p, and whether it is decoded.

Only logged steps exist: what happens between two of them cannot be seen. Shapes: T logged steps, S target tokens of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from pml_cli.stats import Array, Mask

BINS = 20  # of p, each without its lower end; 0.5 is one of the borders, and compared exactly
HALF = BINS // 2  # the first bin above p = 0.5
ROWS = 1 << 20  # at most so many rows are in memory at once, or one step's
MOST_LISTED = 10_000  # violations of one run that are kept one by one
COLUMNS = ("step", "sample", "position", "p", "correct")
DETAILS = ("step", "sample", "position", "token_id", "argmax_id", "p", "margin", "nll")


class IrregularError(Exception):
    """A file that is no table of steps times tokens; says why."""


@dataclass
class TokenPaths:
    """One run: how often tokens of some p are decoded, and the way of each token."""

    steps: NDArray[np.int64]  # (T,)
    tokens_B: NDArray[np.int64]  # logged tokens in each bin of p
    right_B: NDArray[np.int64]  # those of them that greedy decoding picks
    violations: int  # p > 0.5 and not picked
    offenders: list[dict[str, Any]] = field(repr=False)
    highest_wrong: float  # the largest p of a token that was not picked; nan: none
    lowest_right: float  # the least p of one that was
    sample_S: NDArray[np.int32]
    position_S: NDArray[np.int32]
    p_S: Array  # at the last logged step
    correct_S: Mask
    since_S: NDArray[
        np.int64
    ]  # the logged step from which p > 0.5 to the end; -1: it is not above then
    falls_S: NDArray[np.int32]  # times p came back to 0.5 or less
    losses_S: NDArray[np.int32]  # times a token that was decoded rightly no longer was
    ever_S: Mask  # above at some logged step

    @staticmethod
    def empty(sample_S: NDArray[np.int32], position_S: NDArray[np.int32]) -> TokenPaths:
        """Of these tokens, before the first step."""
        S = len(sample_S)
        none, counts = np.zeros(S, bool), np.zeros((2, BINS), np.int64)
        return TokenPaths(
            np.zeros(0, np.int64), counts[0], counts[1], 0, [], np.nan, np.nan, sample_S, position_S, np.zeros(S), none,
            np.full(S, -1, np.int64), np.zeros(S, np.int32), np.zeros(S, np.int32), none.copy(),
        )  # fmt: skip


def read(path: Path) -> TokenPaths:
    """Every logged step of one run, about a million rows at a time.

    Raises:
        IrregularError: not a file of steps times tokens.
        OSError: it cannot be read.
    """
    blocks = _blocks(path, COLUMNS)
    first = next(blocks, None)
    if first is None:
        raise IrregularError("no token was logged")
    sample_S, position_S = first["sample"][0], first["position"][0]
    found = TokenPaths.empty(sample_S, position_S)
    _add(found, first, path)
    for block in blocks:
        if not ((block["sample"] == sample_S).all() and (block["position"] == position_S).all()):
            raise IrregularError("steps differ in their tokens")
        _add(found, block, path)
    if (np.diff(found.steps) <= 0).any():
        raise IrregularError("steps do not ascend")
    return found


def _add(found: TokenPaths, block: dict[str, NDArray[Any]], path: Path) -> None:
    """Take some more steps into account."""
    steps_T, p_TS, right_TS = block["step"][:, 0], block["p"], block["correct"]
    above_TS = p_TS > 0.5
    place = np.clip(np.ceil(p_TS.ravel() * BINS).astype(np.int64) - 1, 0, BINS - 1)
    place = np.where(
        above_TS.ravel(), np.maximum(place, HALF), np.minimum(place, HALF - 1)
    )  # 0.5 is compared exactly
    found.tokens_B += np.bincount(place, minlength=BINS)
    found.right_B += np.bincount(place[right_TS.ravel()], minlength=BINS)
    wrong = p_TS[~right_TS]
    found.highest_wrong = _extreme(np.fmax, found.highest_wrong, wrong)
    found.lowest_right = _extreme(np.fmin, found.lowest_right, p_TS[right_TS])
    bad = int(((p_TS > 0.5) & ~right_TS).sum())
    if bad:
        found.offenders += _offenders(
            path, MOST_LISTED - len(found.offenders), set(steps_T.tolist())
        )
        found.violations += bad
    is_first = not len(found.steps)
    _cross(found, above_TS, steps_T, is_first)
    before = np.zeros((0, right_TS.shape[1]), bool) if is_first else found.correct_S[None]
    seen = np.concatenate([before, right_TS])
    found.losses_S += (seen[:-1] & ~seen[1:]).sum(0, dtype=np.int32)
    found.steps = np.concatenate([found.steps, steps_T])
    found.p_S, found.correct_S = p_TS[-1].astype(float), right_TS[-1]


def _cross(found: TokenPaths, above_TS: Mask, steps_T: NDArray[Any], is_first: bool) -> None:
    """Since when each token is above 0.5, and how often it has fallen back."""
    before = np.zeros_like(above_TS[:1]) if is_first else (found.since_S >= 0)[None]
    seen = np.concatenate([before, above_TS])
    found.falls_S += (seen[:-1] & ~seen[1:]).sum(0, dtype=np.int32)
    up_TS = ~seen[:-1] & seen[1:]
    last_up = len(up_TS) - 1 - up_TS[::-1].argmax(0)
    found.since_S = np.where(up_TS.any(0), steps_T[last_up], found.since_S)
    found.since_S = np.where(above_TS[-1], found.since_S, -1)
    found.ever_S |= above_TS.any(0)


def _extreme(pick: Any, known: float, values: Array) -> float:
    return float(pick(known, pick.reduce(values))) if len(values) else known


def _offenders(path: Path, most: int, steps: set[int]) -> list[dict[str, Any]]:
    """The violations of some steps one by one, with margin and nll, the least p first."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS, columns=[*DETAILS, "correct"]):
            kept = batch.filter(pc.and_(pc.greater(batch["p"], 0.5), pc.invert(batch["correct"])))
            rows = kept.drop_columns(["correct"]).to_pylist()
            found += [row for row in rows if row["step"] in steps][: max(most - len(found), 0)]
    return found


def _blocks(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, NDArray[Any]]]:
    """Whole steps, about ROWS rows at once: each column as (T, S)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise IrregularError(f"no column {', '.join(missing)}")
            kept: pa.Table | None = None
            size = 0
            for batch in file.iter_batches(ROWS, columns=list(columns), use_threads=False):
                piece = pa.Table.from_batches([batch])
                kept = piece if kept is None else pa.concat_tables([kept, piece])
                size = size or _first_step(kept, file.metadata.num_rows)
                whole = len(kept) // size * size if size else 0
                if whole:
                    yield _shaped(kept.slice(0, whole), size, columns)
                    kept = kept.slice(whole)
            if kept is not None and len(kept):
                raise IrregularError("steps differ in their number of tokens")
    except pa.ArrowException as error:
        raise IrregularError(f"not readable ({str(error).splitlines()[0]})") from error


def _first_step(table: pa.Table, rows: int) -> int:
    """Tokens of the first step; 0 while it may go on."""
    step = table["step"].to_numpy()
    other = step != step[0]
    return int(other.argmax()) if other.any() else len(step) if len(step) == rows else 0


def _shaped(table: pa.Table, size: int, columns: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    arrays = {name: table[name].to_numpy().reshape(-1, size) for name in columns}
    if (arrays["step"] != arrays["step"][:, :1]).any():
        raise IrregularError("steps differ in their number of tokens")
    arrays["correct"] = arrays["correct"].astype(bool)
    return arrays


def last_step(path: Path) -> pd.DataFrame:
    """The rows of the last logged step: sample, position, token_id, p, correct."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        end = max(
            (pc.max(batch["step"]).as_py() for batch in file.iter_batches(ROWS, columns=["step"])),
            default=0,
        )
    names = ["sample", "position", "token_id", "p", "correct"]
    table = pq.read_table(path, columns=names, filters=[("step", "=", end)])
    found: pd.DataFrame = table.to_pandas()
    return found

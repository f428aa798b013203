"""`pml memft`: the same cells under several losses at equal steps and tokens, compared pair by pair."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy import stats

from . import sweep
from .config import Request
from .errors import UserError
from .identity import loss_label
from .plan import check
from .records import read_runs, write_whole

# equal on both sides of a pair
PAIR = ["model", "data", "data_seed", "adapter", "layer", "setting", "rank", "seqlen", "seed", "lr", "steps"]
MEASURES = ["token_accuracy", "exact_match", "share_above_threshold", "delta_loss"]


def run(
    request: Request,
    console: Console,
    *,
    dry_run: bool = False,
    fail_fast: bool = False,
    wait: bool | None = None,
    retry: bool = True,
) -> int:
    """Train what is missing (as `sweep.run`), then compare every loss with plain fine-tuning (sft) on equal cells.

    Returns:
        exit code: 0, or 1 when a cell failed.

    Raises:
        UserError: fewer than two losses, or none of them sft.
    """
    kinds = {loss_label(run.loss) for run in request.runs}
    if "sft" not in kinds or len(kinds) < 2:
        raise UserError(
            f"loss={','.join(sorted(kinds))}: a comparison needs sft and another loss, such as loss=sft,memft_ot"
        )
    code = sweep.run(request, console, dry_run=dry_run, fail_fast=fail_fast, wait=wait, retry=retry)
    if dry_run:
        return code
    runs = read_runs([request.out])
    if len(runs) == 0:
        return code
    wanted = {cell.id for cell in check(request.runs)}
    table = compare(runs[runs["id"].isin(wanted)])
    if table.empty:
        console.print("nothing to compare: no cell has finished under sft and under another loss")
        return code
    write_whole(request.out / "comparison.csv", lambda aside: table.to_csv(aside, index=False))
    console.print(_shown(table))
    console.print(
        "mean of the pairs, and its difference to sft with a 95 % interval (paired t over texts and seeds; - for one pair)"
    )
    console.print(f"comparison: {request.out / 'comparison.csv'}", highlight=False, soft_wrap=True)
    return code


def compare(runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each rank, length, loss and measure: its mean, and its paired difference to sft with a 95 % t interval.

    A pair is a run of sft and one of the other loss that agree in everything else; runs without a partner are left out.
    """
    plain = runs[runs["loss"] == "sft"].set_index(PAIR)
    rows = []
    for loss, other in runs[runs["loss"] != "sft"].groupby("loss"):
        paired = plain.join(other.set_index(PAIR), how="inner", lsuffix="_sft", rsuffix="_other")
        for (rank, seqlen), cell in paired.groupby(["rank", "seqlen"]):
            for measure in MEASURES:
                gain = (cell[f"{measure}_other"] - cell[f"{measure}_sft"]).to_numpy(float)
                half = _half_width(gain)
                rows.append(
                    {
                        "rank": rank, "seqlen": seqlen, "loss": loss, "measure": measure, "pairs": len(cell),
                        "sft": cell[f"{measure}_sft"].mean(), "value": cell[f"{measure}_other"].mean(),
                        "difference": gain.mean(), "low": gain.mean() - half, "high": gain.mean() + half,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _half_width(gain: np.ndarray) -> float:
    """Half of the 95 % interval of a mean; nan for a single pair."""
    if len(gain) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain)))


def _shown(table: pd.DataFrame) -> Table:
    out = Table(box=None, pad_edge=False)
    for name in ("rank", "l", "loss", "pairs", "acc % sft", "acc %", "difference", "exact % sft", "exact %"):
        out.add_column(name, justify="left" if name == "loss" else "right")
    for (rank, seqlen, loss), cell in table.groupby(["rank", "seqlen", "loss"]):
        by = cell.set_index("measure")
        accuracy, exact = by.loc["token_accuracy"], by.loc["exact_match"]
        half = 100 * (accuracy["high"] - accuracy["low"]) / 2
        span = f"{100 * accuracy['difference']:+.1f} ± " + ("-" if np.isnan(half) else f"{half:.1f}")
        out.add_row(
            str(rank), str(seqlen), str(loss), str(accuracy["pairs"]),
            f"{100 * accuracy['sft']:.1f}", f"{100 * accuracy['value']:.1f}",
            span, f"{100 * exact['sft']:.0f}", f"{100 * exact['value']:.0f}",
        )  # fmt: skip
    return out

"""What the verbs show in the terminal: tables and short texts, readable at 80 columns, in a pipe and without colour.

Tables have no frames: what is piped into a file or a message is plain aligned text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.law.analysis import Analysis
from pml_cli.law.model_selection import EDGE
from pml_cli.law.observations import of_size
from pml_cli.law.power_law import NOT_IDENTIFIED, PARAMETERS, HeldOut, LawFit
from pml_cli.stats import LN2

MEANING = {
    "C": "scale (nats/token)",
    "alpha": "power of rank",
    "beta": "power of length",
    "b": "offset (nats/token)",
}
HEADINGS = {"data_seed": "text"}
PIVOT_ABOVE = 30  # cells; more than this are shown by rank and length
PIVOT_COLUMNS = 10  # lengths side by side at 80 columns


def law_table(name: str, fit: LawFit, held: HeldOut, cells: int, x: str = "rank") -> RenderableType:
    """One fitted law: cells kept of `cells`, parameters with 95 % intervals, quality, status.

    Args:
        name: what was fitted, as the heading.
        fit, held: from `law.fit_paper` and `law.held_out`.
        cells: all cells of this group, before any was excluded.
        x: the size that the law is about: rank or parameters.
    """
    excluded = cells - fit.n - fit.n_saturated
    counts = f"{fit.n} of {cells} cells kept ({fit.n_saturated} saturated, {excluded} excluded)"
    head = [
        Text(name, style="bold"),
        Text(f"{of_size('dL = C r^alpha l^-beta + b', x)}      {counts}"),
    ]
    reason = of_size(fit.reason, x)
    if fit.status == NOT_IDENTIFIED:
        return Group(*head, Text(f"status  {fit.status}: {reason}", style="yellow"))
    table = _table("", "value", "95 % interval", "meaning", left=("", "meaning"))
    for parameter in PARAMETERS:
        low, high = fit.intervals[parameter]
        span = f"{_number(low)} to {_number(high)}" if math.isfinite(low + high) else "-"
        table.add_row(
            parameter, _number(getattr(fit, parameter)), span, of_size(MEANING[parameter], x)
        )
    status = Text(
        f"status  {fit.status}" + (f": {reason}" if reason else ""),
        style="yellow" if reason else "green",
    )
    quality = f"fit     R2 {fit.r2:.4f}, MAPE {fit.mape:.2f} % of the measured gain"
    note = Text(
        "intervals take the cells as independent; texts or seeds shared by cells make them too narrow",
        style="dim",
    )
    return Group(
        *head, table, note, Text(quality), Text(f"unseen  {held_out_words(held, x)}"), status
    )


def held_out_words(held: HeldOut, x: str = "rank") -> str:
    """The held-out check in one line."""
    if held.mape is None:
        return f"no held-out check: {of_size(held.reason, x)}"
    parts = [
        f"{axis} {values[0]:,.0f}" + (" and up" if len(values) > 1 else "")
        for axis, values in ((x, held.ranks), ("length", held.lengths))
        if values
    ]
    cells = f"{held.n_test} cell" + ("s" if held.n_test > 1 else "")
    return f"MAPE {held.mape:.2f} % on {cells} left out ({', '.join(parts)})"


def conclusions(
    fit: LawFit, held: HeldOut, cells: pd.DataFrame, analysis: Analysis, x: str = "rank"
) -> list[str]:
    """What a fit allows to conclude, and what to run next, in plain words.

    Args:
        fit, held: from `law.fit_paper` and `law.held_out` on the same cells.
        cells: those cells, with the columns rank, target_tokens, final_loss and kept.
        analysis: all laws on them; what is said is about the chosen one.
        x: the size that they are about: rank or parameters.
    """
    chosen, check = analysis.law, analysis.chosen.checks[EDGE] if analysis.chosen else None
    seen = (
        cells["kept"] if chosen is None else cells["final_loss"] > LN2
    )  # what holds information for the law told of
    again = f"`{_next_sweep(cells, seen)}` (other settings as before)"
    if chosen is None and fit.status == NOT_IDENTIFIED:
        cause = (
            "Every cell is saturated (final loss at or below saturated_below). "
            if len(cells) and not fit.n
            else ""
        )
        single = of_size(
            "These cells show single gains, not how the gain goes with rank and length.", x
        )
        return [f"{cause}{single} Next: {again}."]
    if chosen is None or check is None:
        return ["No law on all cells is to be trusted here: its exponents mean nothing beyond them.",
                f"Next: more cells, {again}."]  # fmt: skip
    alpha, beta = chosen.parameters["alpha"], chosen.parameters["beta"]
    what = "x, what is held of the target," if "level" in chosen.parameters else "the gain above b"
    found = [f"Far below the base loss, {what} is multiplied by {2**alpha:.2f} for twice the {x}, "
             f"by {2**-beta:.2f} for twice the length."]  # fmt: skip
    if math.isnan(check.mape):
        larger = of_size("larger ranks", x)
        return [
            *found,
            f"Nothing can be said about {larger} or longer texts from these cells. Next: {again}.",
        ]
    if check.mape > max(10.0, 3 * chosen.mape):
        found.append(
            f"Do not extrapolate: cells left out are off by {check.mape:.1f} %, against {chosen.mape:.1f} % inside."
        )
    ends = {
        name: analysis.intervals[name] for name in ("alpha", "beta") if name in analysis.intervals
    }
    wide = [name for name, (low, high) in ends.items() if high - low > chosen.parameters[name]]
    if wide:
        spans = " and ".join("{} ({:.2f} to {:.2f})".format(name, *ends[name]) for name in wide)
        found.append(f"Not sharp: {spans}. Next: more cells or repeats (data.seed=0,1,2), {again}.")
    return found


def _next_sweep(cells: pd.DataFrame, seen: pd.Series[bool]) -> str:
    """A sweep that holds the values measured and those that would tell most: on unsaturated ground, a factor of 2 apart.

    Args:
        seen: which of the cells are unsaturated.
    """
    if cells.empty:
        return "pml sweep rank=2,4,8,16 seqlen=64,128,256,512"
    ranks, lengths = (sorted({int(v) for v in cells[name]}) for name in ("rank", "target_tokens"))
    open_ = cells[seen]
    if len(open_) < len(cells) / 2 or len(set(lengths)) < 4:
        lengths = [*lengths, 2 * lengths[-1], 4 * lengths[-1]]  # longer texts saturate last
    if open_["rank"].nunique() <= 4:
        ranks = sorted(
            {
                *ranks,
                *(max(1, ranks[0] // k) for k in (2, 4)),
                *([2 * ranks[-1]] if len(open_) > len(cells) / 2 else []),
            }
        )
    return f"pml sweep rank={','.join(map(str, ranks))} seqlen={','.join(map(str, lengths))}"


def results_table(runs: pd.DataFrame) -> RenderableType:
    """All cells of a sweep: one row each, or, above 30 cells, the mean gain and token accuracy by rank and length.

    Args:
        runs: one row a run with the fields of result.json (`records.read_runs`).
    """
    if runs.empty:
        return Text("no finished runs")
    if len(runs) > PIVOT_ABOVE:
        return _pivots(runs)
    varying = ("model", "data", "adapter", "loss", "setting", "lr", "data_seed", "seed")
    keys = [key for key in varying if key in runs and runs[key].nunique() > 1]
    varied = [HEADINGS.get(key, key) for key in keys]
    measured = ["L0", "L1", "dL", "acc %", "exact %", "1st miss", "s"]
    shown = (
        measured if len(keys) <= 2 else [m for m in measured if m not in ("L0", "1st miss", "s")]
    )  # 80 columns
    table = _table(
        "rank", "l", *varied, *shown, left=("model", "data", "adapter", "loss", "setting")
    )
    for row in runs.sort_values(["rank", "target_tokens", *keys]).to_dict("records"):
        whole = (
            "-" if row["samples"] > 1 else "none"
        )  # a place in one sequence has no meaning over many samples
        miss = whole if pd.isna(row["first_failure"]) else f"{row['first_failure']:.0f}"
        losses = [f"{row[key]:.3f}" for key in ("base_loss", "final_loss", "delta_loss")]
        shares = [f"{100 * row[key]:.1f}" for key in ("token_accuracy", "exact_match")]
        values = dict(zip(measured, [*losses, *shares, miss, f"{row['seconds']:.1f}"], strict=True))
        head = [f"{row['rank']}", f"{row['target_tokens']}", *[_plain(row[key]) for key in keys]]
        table.add_row(*head, *[values[name] for name in shown])
    note = "L0, L1: loss before and after, dL: their difference (nats/token). 1st miss: position of the first wrong token."
    return Group(table, Text(note, style="dim"))


def _pivots(runs: pd.DataFrame) -> RenderableType:
    settings = [key for key in ("model", "data", "adapter", "loss", "setting", "lr") if key in runs]
    parts: list[RenderableType] = []
    for values, group in runs.groupby(settings, dropna=False, sort=True):
        varying = [
            f"{key} {value}"
            for key, value in zip(settings, values, strict=True)
            if runs[key].nunique() > 1
        ]
        suffix = f" ({', '.join(varying)})" if varying else ""
        repeats = group.groupby(["rank", "target_tokens"]).size().max()
        mean = "mean " if repeats > 1 else ""
        parts.append(
            _pivot(group, "delta_loss", f"{mean}gain dL, nats/token{suffix}", "{:.2f}".format)
        )
        parts.append(
            _pivot(
                group, "token_accuracy", f"{mean}tokens predicted right, %{suffix}", _whole_percent
            )
        )
    return Group(*parts)


def _pivot(
    group: pd.DataFrame, column: str, title: str, form: Callable[[float], str]
) -> RenderableType:
    means = group.pivot_table(index="rank", columns="target_tokens", values=column, aggfunc="mean")
    parts: list[RenderableType] = [Text(title, style="bold")]
    for start in range(0, means.shape[1], PIVOT_COLUMNS):
        block = means.iloc[:, start : start + PIVOT_COLUMNS]
        table = _table("rank \\ l", *[f"{length:g}" for length in block.columns], left=())
        for rank, values in zip(block.index, block.to_numpy(), strict=True):
            table.add_row(f"{rank:g}", *["" if math.isnan(v) else form(v) for v in values])
        parts += [table, Text("")]
    return Group(*parts)


def probe_table(result: dict[str, Any]) -> RenderableType:
    """One run in words and numbers, for a reader who has not met the terms.

    Args:
        result: the fields of result.json.
    """
    length, rank, samples = (
        int(result["target_tokens"]),
        result["rank"],
        int(result.get("samples") or 1),
    )
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(justify="left", no_wrap=True)
    table.add_column(justify="left", overflow="fold")
    before, after = result["base_loss"], result["final_loss"]
    spread = f" in {samples:,} samples" if samples > 1 else ""
    size = f"rank {rank}, {result['trainable_parameters']:,} trained parameters"
    table.add_row("what", f"{size}, {length:,} tokens to remember{spread}")
    table.add_row(
        "loss",
        f"{before:.3f} before, {after:.3f} after: gain {result['delta_loss']:.3f} nats per token",
    )
    table.add_row(
        "a token",
        f"its probability went from {_percent(math.exp(-before))} to {_percent(math.exp(-after))} (geometric mean)",
    )
    table.add_row("stored", _stored(result))
    right = f"{_percent(result['token_accuracy'])} of the tokens are the model's first choice, given the true text before them"
    table.add_row("guided", right)
    table.add_row("alone", _alone(result))
    table.add_row("threshold", _threshold(result))
    early = " (stopped early: all recalled)" if result.get("stopped_early") else ""
    table.add_row("work", f"{result['steps_run']:,} steps{early}, {result['seconds']:.1f} s")
    return Group(Text(_verdict(result), style="bold"), table)


def _verdict(result: dict[str, Any]) -> str:
    samples = int(result.get("samples") or 1)
    if result["exact_match"] == 1:
        return "Remembered: every token, in order."
    if samples > 1 and result["exact_match"] == 0:
        return f"Not one of {samples:,} samples is remembered whole."
    if samples > 1:
        return (
            f"Remembered in part: {_percent(result['exact_match'])} of {samples:,} samples whole."
        )
    first, length = int(result["first_failure"] or 0), int(result["target_tokens"])
    return f"Not remembered whole: the first wrong token is at position {first:,} of {length:,}."


def _stored(result: dict[str, Any]) -> str:
    per = result["bits_gained"] / max(1, result["trainable_parameters"])
    words = f"{result['bits_gained']:,.0f} bits saved against the base model, {per:.3g} per trained parameter"
    if _has(result, "bits_memorised"):
        words += f"; {result['bits_memorised']:,.0f} bits of the source itself"
    return words


def _alone(result: dict[str, Any]) -> str:
    """What comes out when the model writes by itself from the prompt."""
    if not _has(result, "free_accuracy"):
        return "not decoded (train.decode=false)"
    return f"writing by itself from the prompt, {_percent(result['free_accuracy'])} of the tokens are right"


def _threshold(result: dict[str, Any]) -> str:
    words = f"{_percent(result['share_above_threshold'])} of the tokens have p > 0.5, which makes them certain to be chosen"
    if _has(result, "earliest_stubborn"):
        words += f"; the first that has not: position {int(result['earliest_stubborn']):,}"
    if result.get("violations"):
        words += f"; {result['violations']} broke that rule, which points to a numerical fault"
    return words


def _has(result: dict[str, Any], key: str) -> bool:
    return result.get(key) is not None and not pd.isna(result[key])


def _table(*columns: str, left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        words = column in left  # numbers are never cut, words are folded
        table.add_column(
            column, justify="left" if words else "right", no_wrap=not words, overflow="fold"
        )
    return table


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _whole_percent(share: float) -> str:
    """Without decimals, and 100 only for all."""
    return "99" if 0.99 < share < 1 else f"{100 * share:.0f}"


def _percent(share: float) -> str:
    """A share as per cent that never rounds to 0 % or 100 % what is not."""
    percent = 100 * share
    if 0 < percent < 1:
        return f"{percent:.2g} %"
    if 99.95 <= percent < 100:
        return "just under 100 %"
    return f"{percent:.1f} %" if percent not in (0, 100) else f"{percent:.0f} %"

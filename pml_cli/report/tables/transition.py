"""What `pml transition` shows in the terminal, readable at 80 columns and in a pipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pml_cli.analysis.first_failures import Agreement, Correlation
from pml_cli.analysis.trajectories import HALF
from pml_cli.analysis.transition import Phases, precision
from pml_cli.stats import Proportion

LISTED = 20  # violations shown one by one
TEXTS = 3  # whose first failures are shown
BETWEEN = (
    "Only logged steps are seen: a token that crossed p = 0.5 twice between two of them did not cross for this report, and "
    "a step of crossing is the first logged one after it."
)


def precision_table(groups: Sequence[Phases]) -> RenderableType:
    """The exact line at p = 0.5, by the model's number format, and every offender that there is room for."""
    table = _table(
        "dtype", "runs", "tokens", "p > 0.5", "not decoded", "p <= 0.5", "decoded", left=("dtype",)
    )
    counts = precision(pd.concat([group.cells for group in groups]))
    rows = [{str(name): value for name, value in row.items()} for row in counts.to_dict("records")]
    for row in rows:
        numbers = [
            row[k] for k in ("runs", "logged", "above", "violations", "below", "below_right")
        ]
        table.add_row(str(row["dtype"]), *(f"{value:,}" for value in numbers))
    lines: list[RenderableType] = [
        Text("Does p > 0.5 suffice? Logged tokens, teacher-forced", style="bold"), table,
    ]  # fmt: skip
    for row in rows:
        lines.append(Text(_verdict(row), style="yellow" if row["violations"] else "green"))
    offenders = [bad for group in groups for bad in group.offenders]
    if offenders:
        lines += [Text(""), _offenders(offenders)]
    return Group(*lines)


def _verdict(row: dict[str, Any]) -> str:
    share = 100 * row["below_right"] / row["below"] if row["below"] else math.nan
    worst, least = _p(row["highest_wrong"]), _p(row["lowest_right"])
    edges = f"the highest p of a wrong token is {worst}, the lowest of a right one {least}"
    more = f"not necessary: {share:.1f} % of the tokens at p <= 0.5 are decoded; {edges}."
    if row["violations"]:
        return (
            f"{row['dtype']}: {row['violations']:,} violations. Exact arithmetic has none: look at margin and nll below for "
            f"ties and rounding. {more[0].upper()}{more[1:]}"
        )
    return f"{row['dtype']}: sufficient, no violation in {row['above']:,} tokens; {more}"


def _offenders(rows: list[dict[str, Any]]) -> RenderableType:
    table = _table(
        "step", "sample", "position", "p", "margin", "nll", "token", "picked", "run", left=("run",)
    )
    for row in rows[:LISTED]:
        table.add_row(
            *(str(row[k]) for k in ("step", "sample", "position")), f"{row['p']:.7f}", f"{row['margin']:.2e}",
            f"{row['nll']:.6f}", str(row["token_id"]), str(row["argmax_id"]), str(row["id"]),
        )  # fmt: skip
    more = [Text(f"and {len(rows) - LISTED} more in violations.csv")] if len(rows) > LISTED else []
    return Group(table, *more)


def group_view(group: Phases) -> RenderableType:
    """One group: recall by p, stubborn tokens against failures, loss against recall, the wait by rank."""
    texts = group.cells["cluster"].nunique()
    head = f"{len(group.cells)} runs, {group.cells['logged'].sum():,} logged tokens, {texts} texts and lengths"
    return Group(
        Text(group.name, style="bold"), Text(head), Text(""), _recall_table(group), Text(""),
        *map(Text, failure_lines(group)), Text(""), *map(Text, loss_lines(group)), Text(""), _wait_table(group.by_rank),
    )  # fmt: skip


def _recall_table(group: Phases) -> RenderableType:
    """Recall in the bins of p below 0.5, and above it in one where nothing was decoded wrongly."""
    table = _table("p", "tokens", "decoded %", "95 % interval")
    whole = group.above.successes == group.above.trials
    bins = group.recall.head(HALF) if whole else group.recall
    rows = [
        (
            b["low_p"],
            b["high_p"],
            Proportion(successes=b["right"], trials=b["tokens"], low=b["low"], high=b["high"]),
        )
        for b in bins.to_dict("records")
    ]
    for low, high, share in [*rows, *([(0.5, 1.0, group.above)] if whole else [])]:
        if share.trials:
            table.add_row(
                f"{low:.2f} to {high:.2f}", f"{share.trials:,}", _percent(share.value), _span(share)
            )
    return Group(
        table, Text(f"At p <= 0.5 {_share(group.below)} of the tokens are decoded all the same.")
    )


def failure_lines(group: Phases) -> list[str]:
    """Earliest stubborn position against first failure, and where first failures gather."""
    a, found = group.agreement, group.gathering
    sequences = len(group.sequences)
    lines = [
        f"Of {sequences} sequences {a.neither} have no stubborn token at the end, {a.no_failure} have some and no failure, "
        f"{a.both.n} have both.",
        f"Earliest stubborn against first failure: {_rho(a.both)} over those with both (chance {_plain(a.chance)}: wrong "
        "tokens at random among the stubborn ones);",
        f"{_rho(a.censored)} over all, the length standing for what never came.",
    ]
    if a.both.n:
        lines.append(
            f"The earliest stubborn token is the first failure in {_of(a)}; median distance {a.gap:g} tokens."
        )
    if not found.failures:
        return [*lines, "First failures: too few of one text to say where they gather."]
    lines.append(
        f"First failures: {100 * found.share:.0f} % lie at the most common position of their text (chance "
        f"{100 * found.chance:.0f} %, p {_p_value(found.p)}; wrong tokens anywhere), over {len(found.texts)} texts."
    )
    for row in found.texts.head(TEXTS).to_dict("records"):
        sample = f", sample {row['sample']}" if group.sequences["sample"].nunique() > 1 else ""
        lines.append(
            f"  text {row['data_seed']:g}{sample}: {row['count']} of {row['failures']} at position {row['position']} "
            f"({100 * row['share']:.0f} %, chance {100 * row['chance']:.0f} %, p {_p_value(row['p'])})"
        )
    return lines


def loss_lines(group: Phases) -> list[str]:
    """The mean loss against recall, and what follows the first failure."""
    m = group.misled
    lines = [
        f"Loss against recall: of the cells with a mean loss below ln 2, {_share(m['low_loss_not_verbatim'])} are not "
        f"verbatim; of those above, {_share(m['high_loss_verbatim'])} are. Loss and recall disagree in "
        f"{_share(m['either'])} of all cells; {_share(m['stubborn_verbatim'])} of the verbatim ones keep a stubborn token.",
    ]
    if group.rest["free"].trials:
        lines.append(
            f"Behind the first failure free decoding is right in {_share(group.rest['free'])} of the tokens, teacher-forced "
            f"in {_share(group.rest['forced'])}."
        )
    return lines


def _wait_table(waits: pd.DataFrame) -> RenderableType:
    """By rank, all lengths together."""
    table = _table(
        "rank", "tokens", "above at end %", "half by step", "fell back %", "lost %", "falls"
    )
    for row in waits.to_dict("records"):
        step = "-" if math.isnan(row["median_step"]) else f"{row['median_step']:.0f}"
        shares = [_percent(row[f"{name}_share"]) for name in ("above", "fell", "lost")]
        table.add_row(
            f"{row['rank']}",
            f"{row['tokens']:,}",
            shares[0],
            step,
            shares[1],
            shares[2],
            f"{row['falls']:,}",
        )
    note = (
        "half by step: half of the tokens are above p = 0.5 for good; fell back, lost: of the tokens once above, those that "
        "came back below, and those that are below at the end"
    )
    return Group(
        Text("How long tokens stay stubborn, all lengths together", style="bold"),
        table,
        Text(note, style="dim"),
    )


def _of(a: Agreement) -> str:
    return f"{a.same} of {a.both.n} ({100 * a.same / a.both.n:.0f} %)"


def _rho(found: Correlation) -> str:
    if math.isnan(found.rho):
        return f"no rho ({found.reason})"
    if math.isnan(found.low):
        return f"rho {found.rho:.3f} ({found.reason})"
    return (
        f"rho {found.rho:.3f} (95 % {found.low:.3f} to {found.high:.3f}, {found.clusters} clusters)"
    )


def _share(share: Proportion) -> str:
    if not share.trials:
        return "none (of 0)"
    return f"{_percent(share.value)} % ({_span(share)}; {share.successes:,} of {share.trials:,})"


def _span(share: Proportion) -> str:
    return f"{_percent(share.low)} to {_percent(share.high)}"


def _percent(value: float) -> str:
    """Never rounded up to 100 or down to 0."""
    if math.isnan(value):
        return "-"
    shown = f"{100 * value:.1f}"
    if shown == "100.0" and value < 1:
        return f"{math.floor(1e4 * value) / 100:.2f}"
    return f"{100 * value:.1g}" if shown == "0.0" and value > 0 else shown


def _p(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.4f}" if value > 0.001 else f"{value:.1e}"


def _p_value(value: float) -> str:
    return f"< {value:.1g}" if value <= 0.0015 else f"{value:.2g}"


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _table(*names: str, left: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(
            name, justify="left" if name in left else "right", no_wrap=name not in left
        )
    return table

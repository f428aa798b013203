"""What `pml transition` prints: readable at 80 columns and in a pipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.text import Text

from pml_cli.analysis import first_failures
from pml_cli.analysis.first_failures import (
    MIN_FAILURES,
    Correlation,
    FailureAgreement,
    FailureConcentration,
)
from pml_cli.analysis.trajectories import FIRST_BIN_ABOVE, THRESHOLD
from pml_cli.analysis.transition import TransitionSummary, violations_by_dtype
from pml_cli.format import MISSING, counted, number, percent
from pml_cli.law.observations import text_names
from pml_cli.report.tables.layout import plain_table
from pml_cli.stats import MIN_CLUSTERS, Proportion

MAX_VIOLATIONS = 20
MAX_TEXTS = 3
ONLY_LOGGED_STEPS = (
    "Only logged steps are observed: a token that crosses p = 0.5 twice between two of them does "
    "not count as crossing, and the step of a crossing is the first logged step after it."
)
SURVIVAL_NOTE = (
    "half by step: half of the tokens are above p = 0.5 for good; fell back, lost: of the tokens "
    "once above, those that came back below, and those that are below at the end"
)


def violation_report(groups: Sequence[TransitionSummary]) -> RenderableType:
    """Whether p > 0.5 sufficed, by the dtype of the model, and the violations one by one."""
    table = plain_table(
        "dtype",
        "runs",
        "tokens",
        "p > 0.5",
        "not decoded",
        "p <= 0.5",
        "decoded",
        text=["dtype"],
    )
    by_dtype = violations_by_dtype(pd.concat([group.cells for group in groups]))
    columns = ["runs", "logged", "above", "violations", "below", "below_right"]
    verdicts: list[RenderableType] = []
    for row in by_dtype.to_dict("records"):
        counts = [f"{row[name]:,}" for name in columns]
        table.add_row(str(row["dtype"]), *counts)
        style = "yellow" if row["violations"] else "green"
        verdicts.append(Text(_verdict(row), style=style))

    title = Text("Does p > 0.5 suffice? Logged tokens, teacher-forced", style="bold")
    violations = [violation for group in groups for violation in group.violations]
    if not violations:
        return Group(title, table, *verdicts)
    return Group(title, table, *verdicts, Text(""), _violation_table(violations))


def _verdict(row: dict[Any, Any]) -> str:
    """Whether p > 0.5 was sufficient and necessary under one dtype.

    Args:
        row: of `violations_by_dtype`.
    """
    share_below = 100 * row["below_right"] / row["below"] if row["below"] else math.nan
    necessity = (
        f"not necessary: {share_below:.1f} % of the tokens at p <= 0.5 are decoded; the highest p "
        f"of a wrong token is {_probability(row['highest_wrong'])}, the lowest of a right one "
        f"{_probability(row['lowest_right'])}."
    )
    if not row["violations"]:
        sufficient = f"sufficient, no violation in {counted(int(row['above']), 'token', spec=',')}"
        return f"{row['dtype']}: {sufficient}; {necessity}"

    plural = "" if row["violations"] == 1 else "s"
    return (
        f"{row['dtype']}: {row['violations']:,} violation{plural}. Exact arithmetic has none: the "
        f"margin and nll below show ties and rounding. {necessity[0].upper()}{necessity[1:]}"
    )


def _probability(value: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:.4f}" if value > 0.001 else f"{value:.1e}"


def _violation_table(violations: list[dict[str, Any]]) -> RenderableType:
    table = plain_table(
        "step",
        "sample",
        "position",
        "p",
        "margin",
        "nll",
        "token",
        "picked",
        "run",
        text=["run"],
    )

    # So many digits tell p from 0.5, and a margin from a tie.
    for row in violations[:MAX_VIOLATIONS]:
        table.add_row(
            str(row["step"]),
            str(row["sample"]),
            str(row["position"]),
            f"{row['p']:.7f}",
            f"{row['margin']:.2e}",
            f"{row['nll']:.6f}",
            str(row["token_id"]),
            str(row["argmax_id"]),
            str(row["id"]),
        )

    not_shown = len(violations) - MAX_VIOLATIONS
    if not_shown <= 0:
        return table
    return Group(table, Text(f"and {not_shown} more in violations.csv"))


def group_report(group: TransitionSummary) -> RenderableType:
    """One group: recall by p, stubborn tokens against failures, loss against recall, survival."""
    runs = counted(len(group.cells), "run")
    logged = group.cells["logged"].sum()
    clusters = group.cells["cluster"].nunique()
    units = counted(clusters, "text")
    if clusters > text_names(group.cells).nunique():
        units = f"{counted(clusters, 'cluster')} (text and length: few texts)"

    return Group(
        Text(group.name, style="bold"),
        Text(f"{runs}, {logged:,} logged tokens, {units}"),
        Text(""),
        _recall_table(group),
        Text(""),
        *map(Text, failure_lines(group)),
        Text(""),
        *map(Text, loss_lines(group)),
        Text(""),
        _survival_table(group.survival_by_rank),
    )


def _recall_table(group: TransitionSummary) -> RenderableType:
    """Recall in the bins of p; above 0.5 in a single one where every token there was decoded."""
    table = plain_table("p", "tokens", "decoded %", "95 % interval")

    def add_row(low_p: float, high_p: float, recall: Proportion) -> None:
        if recall.trials:
            bounds = f"{low_p:.2f} to {high_p:.2f}"
            table.add_row(
                bounds, f"{recall.trials:,}", percent(recall.value), _interval_text(recall)
            )

    # Where every token above 0.5 was decoded, each of its bins would say 100 %.
    all_decoded = group.recall_above.successes == group.recall_above.trials
    bins = group.recall_by_p.head(FIRST_BIN_ABOVE) if all_decoded else group.recall_by_p
    for row in bins.to_dict("records"):
        recall = Proportion(
            successes=row["right"],
            trials=row["tokens"],
            low=row["low"],
            high=row["high"],
        )
        add_row(row["low_p"], row["high_p"], recall)
    if all_decoded:
        add_row(THRESHOLD, 1.0, group.recall_above)

    below = _proportion_text(group.recall_below)
    return Group(table, Text(f"At p <= 0.5 {below} of the tokens are decoded all the same."))


def failure_lines(group: TransitionSummary) -> list[str]:
    """Earliest stubborn position against first failure, and the concentration of first failures."""
    several_samples = group.sequences["sample"].nunique() > 1
    return [
        *_agreement_lines(group.agreement, len(group.sequences)),
        *_concentration_lines(group.concentration, several_samples),
    ]


def _agreement_lines(agreement: FailureAgreement, sequences: int) -> list[str]:
    both = agreement.both.n
    lines = [
        f"{counted(sequences, 'sequence')}: {agreement.neither} without a stubborn token at the "
        f"end, {agreement.no_failure} with stubborn tokens and no failure, {both} with both.",
        "Earliest stubborn position against first failure: "
        f"{correlation_text(agreement.both)} over the sequences with both (by chance "
        f"{number(agreement.chance, '.3f')}: wrong tokens at random among the stubborn ones); "
        f"{correlation_text(agreement.censored)} over all, with the length in place of what does "
        "not occur.",
    ]

    if both:
        share = 100 * agreement.same / both
        lines.append(
            f"The earliest stubborn token is the first failure in {agreement.same} of {both} "
            f"({share:.0f} %); median distance {agreement.gap:g} tokens."
        )
    return lines


def _concentration_lines(concentration: FailureConcentration, several_samples: bool) -> list[str]:
    if not concentration.failures:
        return [f"First failures: no text has the {MIN_FAILURES} that a common position needs."]

    lines = [
        f"First failures: {100 * concentration.share:.0f} % lie at the most common position of "
        f"their text (by chance {100 * concentration.chance:.0f} %, p "
        f"{_p_value(concentration.p)}; wrong tokens anywhere), "
        f"over {counted(len(concentration.texts), 'text')}."
    ]
    for row in concentration.texts.head(MAX_TEXTS).to_dict("records"):
        sample = f", sample {row['sample']}" if several_samples else ""
        lines.append(
            f"  text {row['data_seed']:g}{sample}: {row['count']} of {row['failures']} at position "
            f"{row['position']} ({100 * row['share']:.0f} %, by chance "
            f"{100 * row['chance']:.0f} %, p {_p_value(row['p'])})"
        )
    return lines


def loss_lines(group: TransitionSummary) -> list[str]:
    """The mean loss against verbatim recall, and the accuracy behind the first failure."""
    shares = {}
    for name, proportion in group.loss_against_recall.items():
        shares[name] = _proportion_text(proportion)

    lines = [
        f"Loss against recall: of the cells with a mean loss below ln 2, "
        f"{shares['low_loss_not_verbatim']} are not verbatim; of those above, "
        f"{shares['high_loss_verbatim']} are. Loss and recall disagree in {shares['either']} of "
        f"all cells; {shares['stubborn_verbatim']} of the verbatim ones keep a stubborn token."
    ]
    # Without free decoding (train.decode=false) there is nothing behind the failure.
    free = group.behind_failure["free"]
    if free.trials:
        forced = _proportion_text(group.behind_failure["forced"])
        lines.append(
            f"Behind the first failure, free decoding is right in {_proportion_text(free)} of the "
            f"tokens, teacher forcing in {forced}."
        )
    return lines


def _survival_table(by_rank: pd.DataFrame) -> RenderableType:
    table = plain_table(
        "rank", "tokens", "above at end %", "half by step", "fell back %", "lost %", "falls"
    )
    for row in by_rank.to_dict("records"):
        table.add_row(
            f"{row['rank']}",
            f"{row['tokens']:,}",
            percent(row["above_share"]),
            number(row["median_step"], ".0f"),
            percent(row["fell_share"]),
            percent(row["lost_share"]),
            f"{row['falls']:,}",
        )

    title = Text("How long tokens stay stubborn, all lengths together", style="bold")
    return Group(title, table, Text(SURVIVAL_NOTE, style="dim"))


def correlation_text(correlation: Correlation) -> str:
    """rho with its interval, or why there is none."""
    if math.isnan(correlation.rho):
        return f"no rho ({correlation_problem(correlation)})"
    if math.isnan(correlation.low):
        return f"rho {correlation.rho:.3f} ({correlation_problem(correlation) or 'no interval'})"
    interval = (
        f"95 % {correlation.low:.3f} to {correlation.high:.3f}, {correlation.clusters} clusters"
    )
    return f"rho {correlation.rho:.3f} ({interval})"


def correlation_problem(correlation: Correlation) -> str:
    """Why there is no rho or no interval, in words; empty where there are both."""
    # `analysis` gives a code, so that its results hold no sentences.
    texts = {
        "": "",
        first_failures.TOO_FEW_SEQUENCES: counted(correlation.n, "sequence"),
        first_failures.CONSTANT: "one of the two never varies",
        first_failures.NO_DRAWS: "no interval: draws=0",
        first_failures.TOO_FEW_CLUSTERS: (
            f"no interval: {counted(correlation.clusters, 'cluster')} (texts; of few texts, text "
            f"and length), at least {MIN_CLUSTERS} needed"
        ),
    }

    return texts[correlation.problem]


def _proportion_text(proportion: Proportion) -> str:
    if not proportion.trials:
        return "none (of 0)"
    counts = f"{proportion.successes:,} of {proportion.trials:,}"
    interval = _interval_text(proportion, missing="no interval")
    return f"{percent(proportion.value)} % ({interval}; {counts})"


def _interval_text(proportion: Proportion, missing: str = MISSING) -> str:
    # Few clusters have none.
    if math.isnan(proportion.low):
        return missing
    return f"{percent(proportion.low)} to {percent(proportion.high)}"


def _p_value(p: float) -> str:
    return f"< {p:.1g}" if p <= 0.0015 else f"{p:.2g}"

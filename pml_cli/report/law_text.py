"""Sentences of `pml fit`: one template for each code of law/findings.py, and names of parameters.

A law is about the rank or about the number of trained parameters; the words for either are in
AXIS_WORDS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pml_cli.format import counted, span
from pml_cli.law.analysis import Analysis
from pml_cli.law.capacity import PUBLISHED, BitsPerParameter, UnseenGain
from pml_cli.law.findings import OK, Finding
from pml_cli.law.fit_groups import OF_THE_GAIN_ALONE
from pml_cli.law.model_selection import EDGE, LENGTHS, RANKS, TEXT
from pml_cli.law.observations import SizeAxis

Values = Mapping[str, Any]

AXIS_WORDS = {
    "rank": {
        "size": "rank",
        "sizes": "ranks",
        "quantity": "rank",
        "distinct_name": "rank",
        "largest": "largest ranks",
        "larger": "larger ranks",
        "smaller": "smaller ranks",
    },
    "parameters": {
        "size": "parameters",
        "sizes": "parameters",
        "quantity": "the number of parameters",
        "distinct_name": "parameter count",
        "largest": "most parameters",
        "larger": "more parameters",
        "smaller": "fewer parameters",
    },
    "effective": {
        "size": "effective parameters",
        "sizes": "ranks",
        "quantity": "the number of effective parameters",
        "distinct_name": "rank",
        "largest": "largest ranks",
        "larger": "larger ranks",
        "smaller": "smaller ranks",
    },
}

MEANINGS = {
    "C": "scale (nats/token)",
    "alpha": "power of {size}",
    "beta": "power of length",
    "b": "offset (nats/token)",
    "k": "sharpness of the saturation",
    "floor": "smallest loss (nats/token)",
    "level": "loss that memory starts from (nats/token)",
    "spread": "relative spread of a cell around the law",
}

HELD_OUT = {
    EDGE: "{largest} and longest lengths",
    RANKS: "{largest}",
    LENGTHS: "longest lengths",
    TEXT: "one text",
}

UNSEEN_EFFECTS = {
    "none": "not distinguishable from 0",
    "source_learned": "knowledge of the source, not of the target",
    "source_damaged": "the adapter hurts other text of this source",
    "unknown": "measured on one text only, so no test against 0 is possible",
}

TEMPLATES: dict[str, str] = {
    "few_cells": "only {cells} unsaturated cells for {parameters} parameters; {needed} are needed",
    "constant_gain": "every cell has the same gain: there is nothing to fit",
    "flat_gain": "the gain does not depend on {quantity} or length (p = {p:.2g})",
    "no_power": (
        "the best fit is a constant: the gain does not follow a power of {quantity} and length"
    ),
    "collinear_axes": (
        "{size} and length change together in every cell: alpha and beta are not separately "
        "identifiable; run a grid of both"
    ),
    "gain_not_positive": "a gain is not above 0: relative residuals need gains above 0",
    "no_finite_likelihood": "no parameter values give every cell a positive predicted gain",
    "no_information": "{parameter} is not identifiable from these cells",
    "exponent_at_lower_bound": (
        "{parameter} is at its lower bound, {bound:g}: the gain does not follow a power of "
        "{quantity} in these cells"
    ),
    "exponent_at_upper_bound": (
        "{parameter} is at its upper bound, {bound:g}: the gain jumps with {quantity} "
        "instead of following a power of it"
    ),
    "k_at_lower_bound": (
        "k is at its lower bound: the gain saturates earlier than the {link} link allows"
    ),
    "k_at_upper_bound": "the {link} link at its sharpest is the {limit} one",
    "floor_at_zero": "the floor is estimated as 0: these cells need none",
    "level_at_zero": "the level is estimated as 0: it is not identifiable from these cells",
    "level_above_base_loss": (
        "its level, {level:.3g}, lies above every base loss, the loss of an untrained adapter"
    ),
    "nothing_to_hold_out": (
        "needs {needed} distinct unsaturated {sizes} or lengths, to leave the largest out"
    ),
    "remaining_cells_not_identified": "the cells that remain do not identify the law: {cause}",
    "no_unsaturated_cell_held_out": "no unsaturated cell was left out",
    "few_clusters": "only {clusters} clusters (texts x lengths); {needed} are needed",
    "recall_not_measured": "no cell has measured exact recall",
    "recall_nowhere": (
        "no cell recalls half of its targets exactly: {larger} or shorter texts would show where "
        "recall begins"
    ),
    "recall_first_token": (
        "no cell is recalled exactly, because none has learned its first token (see the warning)"
    ),
    "recall_everywhere": (
        "every cell recalls at least half of its targets exactly: {smaller} or longer texts would "
        "show where recall ends"
    ),
    "recall_not_monotone": (
        "exact recall does not rise with {quantity} and fall with length in these cells"
    ),
    "no_common_form": "no law is identified in every one of these groups",
    "negative_offset_paper": (
        "b of the paper's form, {b:.3g} (95 % interval {low:.3g} to {high:.3g}), is below 0: a "
        "negative offset usually means saturation the law does not model"
    ),
    "negative_offset": (
        "b of the chosen law is negative ({low:.3g} to {high:.3g}): the cells saturate more "
        "strongly than this form can"
    ),
    "robust_fit_disagrees": (
        "{parameter} of the paper's form is sensitive to outlying cells: a robust estimator gives "
        "{robust:.3g}, outside its 95 % interval ({low:.3g} to {high:.3g})"
    ),
    "bootstrap_missing": "no bootstrap: {cause}; the intervals assume independent cells",
    "form_rejected": (
        "none of pml's forms fits these cells (p = {p:.1g}): the residuals contain a systematic "
        "pattern of {percent:.1f} % of the gain, so the exponents describe this grid only and "
        "their intervals are too narrow"
    ),
    "long_texts_short": (
        "the longest texts gain {percent:.0f} % less than any of pml's forms predicts "
        "(p = {p:.1g}). They may not have converged: beta is then overestimated and its interval "
        "misses the truth; try train.optimizer=lbfgs train.stop=converged"
    ),
    "noise_by_gain": (
        "the noise is not proportional to the gain but to gain^{power:.1f}; cells are weighted "
        "accordingly"
    ),
    "bends_everywhere": (
        "90 % of the cells are in the saturating part of the curve (local exponent at most "
        "{slope:.2f}): alpha and beta depend on the assumed form of the saturation, and their "
        "intervals do not cover other forms; add smaller adapters or longer texts"
    ),
    "text_off": (
        "text {text} is an outlier: its gains deviate by {percent:+.0f} % from the law, those of "
        "the other texts do not; C changes when it is left out"
    ),
    "profile_not_monotone": (
        "the profile likelihood of {parameter} has more than one minimum: its profile interval "
        "may be too narrow"
    ),
    "group_failed": "no law could be computed from these cells ({error})",
    "single_text": (
        "only one text was measured: other texts may have other exponents, and no interval here "
        "covers that; add data.seed=0,1,2"
    ),
    "setting_varies": (
        "{setting} differs between cells ({values}): its effect is confounded with those of "
        "{quantity} and length"
    ),
    "no_trusted_law": (
        "No law on all cells is identified: its exponents mean nothing beyond these cells.\n"
        "Next: more cells, {next_sweep}."
    ),
    "no_extrapolation_error": (
        "These cells do not tell how well the law extrapolates to {larger} or longer texts. "
        "Next: {next_sweep}."
    ),
    "extrapolation_fails": (
        "Do not extrapolate: the mean error is {held_out:.1f} % on held-out cells, against "
        "{fitted:.1f} % on fitted ones."
    ),
}


def sentence(finding: Finding | None, axis: SizeAxis) -> str:
    """The finding in words; empty for None.

    Args:
        axis: the size that the law is about.
    """
    if finding is None:
        return ""
    values = _texts(finding.values, axis)
    make = SENTENCES.get(finding.code)
    return make(values) if make else TEMPLATES[finding.code].format(**values)


def _texts(values: Values, axis: SizeAxis) -> dict[str, Any]:
    """The values of a finding as templates take them, with the words of the axis."""
    texts = {**AXIS_WORDS[axis.name], **values}
    if values.get("axis") == "length":
        texts |= {"distinct_name": "length", "quantity": "length"}
    if values.get("parameter") == "beta":
        texts["quantity"] = "length"
    if isinstance(values.get("cause"), Finding):
        texts["cause"] = sentence(values["cause"], axis)
    if "values" in values:
        texts["values"] = ", ".join(f"{value:g}" for value in values["values"][:6])
    if "ranks" in values:
        texts["next_sweep"] = _sweep_command(values["ranks"], values["lengths"])
    texts["held_out_cells"] = HELD_OUT[EDGE].format(**AXIS_WORDS[axis.name])
    return texts


def _sweep_command(ranks: Sequence[int], lengths: Sequence[int]) -> str:
    rank = ",".join(map(str, ranks))
    length = ",".join(map(str, lengths))
    command = f"`pml sweep rank={rank} seqlen={length}`"
    return f"{command} (other settings as before, as far as the data reach)"


def _few_distinct_values(values: Values) -> str:
    distinct = values["distinct"]
    listed = f" ({', '.join(f'{value:g}' for value in distinct)})" if distinct else ""
    parameter = "beta" if values["axis"] == "length" else "alpha"
    what = counted(len(distinct), f"distinct unsaturated {values['distinct_name']}")
    return (
        f"only {what}{listed}: {parameter} and b are not separately identifiable "
        f"({values['needed']} needed)"
    )


def _recall_few_distinct_values(values: Values) -> str:
    what = counted(values["count"], f"distinct {values['distinct_name']}")
    return f"only {what}; {values['needed']} are needed"


def _poor_coverage(values: Values) -> str:
    return (
        "extrapolation is less certain than its band: the 95 % band of a fit without the "
        f"{values['held_out_cells']} holds {100 * values['coverage']:.0f} % of them"
    )


def _failed_draws(values: Values) -> str:
    draws = counted(values["draws"], "bootstrap draw")
    return f"{draws} did not identify the law and are left out"


def _cells_excluded(values: Values) -> str:
    reason = values["reason"]
    where = ""
    if reason in OF_THE_GAIN_ALONE:
        where = " from the laws of the gain, counted in that of recall"
    return f"{counted(values['cells'], 'cell')} excluded{where}: {reason}"


def _cells_unconverged(values: Values) -> str:
    expected = ""
    if math.isfinite(values["expected"]):
        expected = f", with up to {values['expected']:.2g} nats per token to gain at the median"
    taken = "their gains are taken as measured (unconverged=censor takes them as limits)"
    if values["censored"]:
        taken = (
            "their gains are taken as lying between the measured gain and that plus the "
            "expected one (unconverged=keep takes them as measured)"
        )
    return f"{counted(values['cells'], 'cell')} had not converged{expected}: {taken}"


def _repeated_cells(values: Values) -> str:
    verb = "repeats" if values["cells"] == 1 else "repeat"
    return (
        f"{counted(values['cells'], 'cell')} {verb} another's rank, length and seeds with a "
        "difference in some other setting (see config.yaml)"
    )


def _first_token_unmoved(values: Values) -> str:
    missing, total = values["missing"], values["runs"]
    runs = f"{missing} of {counted(total, 'run')}"
    if missing == total:
        runs = "the run" if total == 1 else f"all {total} runs"
    return (
        f"the first token is wrong in {runs} of {values['model']} without a "
        "prompt, and training never moved it. If only begin-of-text precedes it and that position "
        "is an attention sink, no adapter has an effect: give a prompt of a few tokens "
        "(data.prompt='Text:')"
    )


def _no_exponents(values: Values) -> str:
    cause = ""
    if values["all_saturated"]:
        cause = "Every cell is saturated (final loss at or below saturated_below). "
    return (
        f"{cause}These cells show single gains, not how the gain depends on "
        f"{values['quantity']} and length. Next: {values['next_sweep']}."
    )


def _effect_of_doubling(values: Values) -> str:
    what = "the gain above b" if values["offset"] else "the gain"
    if values["level"]:
        what = "the stored amount x"
    return (
        f"Well below the ceiling, {what} is multiplied by {2 ** values['alpha']:.2f} for twice "
        f"the {values['size']}, by {2 ** -values['beta']:.2f} for twice the length."
    )


def _wide_intervals(values: Values) -> str:
    intervals = " and ".join(
        f"{name} ({span(low, high, '.2f')})" for name, (low, high) in values["intervals"].items()
    )
    return (
        f"Wide intervals: {intervals}. Next: more cells or repeats (data.seed=0,1,2), "
        f"{values['next_sweep']}."
    )


SENTENCES: dict[str, Callable[[Values], str]] = {
    "few_distinct_values": _few_distinct_values,
    "recall_few_distinct_values": _recall_few_distinct_values,
    "poor_coverage": _poor_coverage,
    "failed_draws": _failed_draws,
    "cells_excluded": _cells_excluded,
    "cells_unconverged": _cells_unconverged,
    "repeated_cells": _repeated_cells,
    "first_token_unmoved": _first_token_unmoved,
    "no_exponents": _no_exponents,
    "effect_of_doubling": _effect_of_doubling,
    "wide_intervals": _wide_intervals,
}


def axis_words(axis: SizeAxis) -> dict[str, str]:
    """The words for a size in sentences."""
    return AXIS_WORDS[axis.name]


def meaning(parameter: str, axis: SizeAxis) -> str:
    """What a parameter of a law is, with its unit."""
    return MEANINGS[parameter].format(**AXIS_WORDS[axis.name])


def held_out_name(what: str, axis: SizeAxis) -> str:
    """Which cells a held-out check leaves out.

    Args:
        what: EDGE, RANKS, LENGTHS or TEXT of law/model_selection.py.
    """
    return HELD_OUT[what].format(**AXIS_WORDS[axis.name])


def interval_method(analysis: Analysis) -> str:
    """How the intervals of the chosen law (`Analysis.intervals`) were found."""
    bootstrap = analysis.bootstrap
    quality = analysis.quality
    how = "profile likelihood, cells taken as independent"
    if bootstrap is not None and bootstrap.status == OK:
        how = f"bootstrap of {bootstrap.clusters} clusters, {len(bootstrap.draws):,} draws"
    if quality is None or not quality.exponents:
        return f"intervals: {how}"

    forms = max(len(mixture.forms) for mixture in quality.exponents.values())
    over = "of the chosen form"
    if forms > 1:
        over = f"over {forms} forms that fit nearly as well"
    texts = "of one text (others may differ)"
    if len(quality.texts) > 1:
        texts = f"as wide as {len(quality.texts)} texts differ"
    return f"intervals of the exponents: {over}, {texts}; of the others: {how}"


def capacity_lines(rows: Sequence[BitsPerParameter], control: UnseenGain | None) -> list[str]:
    """The most bits a parameter over all ranks, published values, and the gain on unseen text."""
    lines = []
    for kind, of in (("memorised", "of the target itself"), ("gained", "against the base model")):
        candidates = [row for row in rows if row.kind == kind]
        if not candidates:
            continue
        best = max(candidates, key=lambda row: row.bits)
        longest = "; the longest text tried, more may fit" if best.last else ""
        lines.append(
            f"{kind:9} {best.bits:.2f}{_interval(best.low, best.high)} bits a trained parameter "
            f"{of} (rank {best.rank}, {best.length} tokens{longest})"
        )

    if lines:
        published = "; ".join(f"{bits:g}: {source}" for source, bits in PUBLISHED.items())
        lines.append(f"published {published}")
    if control:
        lines.append(
            f"control   {control.gain:.2f}{_interval(control.low, control.high)} nats per token "
            "are gained on unseen sequences of the same source "
            f"({span(control.least, control.most, '.2f')} over cells): "
            f"{UNSEEN_EFFECTS[control.effect]}"
        )
    return lines


def _interval(low: float, high: float) -> str:
    """An interval in brackets behind its value; empty where there is none."""
    return f" ({span(low, high, '.2f')})" if math.isfinite(low) else ""

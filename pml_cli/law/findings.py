"""What a fit, a check or a comparison concludes: a code and its numbers.

The statistics decide and count; `report/law_text.py` turns each finding into a sentence, one
template for each code, for a law of the rank and for one of the number of parameters alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Status of a fit.
OK = "OK"
BOUND_HIT = "BOUND_HIT"
NOT_IDENTIFIED = "NOT_IDENTIFIED"

# Every code and the names of its values. `axis` is "size" (rank or parameters) or "length".
CODES: dict[str, tuple[str, ...]] = {
    # the cells cannot carry a fit
    "few_distinct_values": ("axis", "distinct", "needed"),
    "few_cells": ("cells", "parameters", "needed"),
    "constant_gain": (),
    "flat_gain": ("p",),
    "no_power": (),
    "collinear_axes": (),
    "gain_not_positive": (),
    "no_finite_likelihood": (),
    "no_information": ("parameter",),
    # a parameter stops at a bound
    "exponent_at_lower_bound": ("parameter", "bound"),
    "exponent_at_upper_bound": ("parameter", "bound"),
    "k_at_lower_bound": ("link",),
    "k_at_upper_bound": ("link", "limit"),
    "floor_at_zero": (),
    "level_at_zero": (),
    "level_above_base_loss": ("level",),
    # no held-out check
    "nothing_to_hold_out": ("needed",),
    "remaining_cells_not_identified": ("cause",),
    "no_unsaturated_cell_held_out": (),
    # no bootstrap
    "few_clusters": ("clusters", "needed"),
    # no law of exact recall
    "recall_not_measured": (),
    "recall_nowhere": (),
    "recall_first_token": (),
    "recall_everywhere": (),
    "recall_few_distinct_values": ("axis", "count", "needed"),
    "recall_not_monotone": (),
    # no comparison of groups
    "no_common_form": (),
    # warnings
    "negative_offset_paper": ("b", "low", "high"),
    "negative_offset": ("low", "high"),
    "robust_fit_disagrees": ("parameter", "robust", "paper", "low", "high"),
    "bootstrap_missing": ("cause",),
    "poor_coverage": ("coverage",),
    "form_rejected": ("p", "percent"),
    "long_texts_short": ("p", "percent"),
    "bends_everywhere": ("slope",),
    "text_off": ("text", "percent"),
    "failed_draws": ("draws",),
    "single_text": (),
    "profile_not_monotone": ("parameter",),
    "noise_by_gain": ("power",),
    "cells_unconverged": ("cells", "expected", "censored"),
    "group_failed": ("error",),
    "cells_excluded": ("cells", "reason"),
    "setting_varies": ("setting", "values"),
    "repeated_cells": ("cells",),
    "first_token_unmoved": ("model", "missing", "runs"),
    # conclusions; `ranks` and `lengths` are those of the sweep to run next
    "no_exponents": ("all_saturated", "ranks", "lengths"),
    "no_trusted_law": ("ranks", "lengths"),
    "effect_of_doubling": ("alpha", "beta", "level", "offset"),
    "no_extrapolation_error": ("ranks", "lengths"),
    "extrapolation_fails": ("held_out", "fitted"),
    "wide_intervals": ("intervals", "ranks", "lengths"),
}


# Remarks: they change no number of the chosen law, or say how one was found.
NOTES = (
    "noise_by_gain",
    "negative_offset_paper",
    "robust_fit_disagrees",
    "bootstrap_missing",
    "failed_draws",
    "profile_not_monotone",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One statement of the statistics, without words."""

    code: str
    """One of CODES."""
    values: Mapping[str, Any]
    """What the sentence needs, by the names in CODES; a `cause` is a finding itself."""


def finding(code: str, **values: Any) -> Finding:
    """A finding, checked against CODES.

    Raises:
        KeyError: an unknown code.
        ValueError: values that do not belong to the code, or too few.
    """
    if set(values) != set(CODES[code]):
        raise ValueError(f"{code} has the values {CODES[code]}, not {tuple(values)}")
    return Finding(code=code, values=values)

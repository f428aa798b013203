"""All laws on one group of cells: fits, held-out checks, the choice, how sure it is, what speaks against it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pml_cli.io import finite_or_none
from pml_cli.law import model_selection, power_law
from pml_cli.law.bootstrap import Bootstrap, Profile, bootstrap, profiles
from pml_cli.law.mle import NATURAL, SaturatingFit, fit_saturating
from pml_cli.law.model_selection import Check, Fitted, Plain, RatioTest
from pml_cli.law.observations import Observations
from pml_cli.law.power_law import NOT_IDENTIFIED, OK

POOR_BAND = 0.8  # coverage of a 95 % band below this is worth a warning
FEW = 5  # cells; a coverage of fewer says nothing


@dataclass(frozen=True)
class Entry:
    """One law and how it does."""

    name: str
    fit: Fitted
    kept: int  # cells the estimator used in full
    mape: float  # per cent, over the cells unsaturated for it
    difference: (
        float  # AICc above the least; nan where it has none or saw other cells than the rest
    )
    checks: dict[str, Check]

    @property
    def slug(self) -> str:
        """For column names: hill_b."""
        return re.sub(r"[^a-z0-9]+", "_", self.name).strip("_")

    @property
    def parameters(self) -> dict[str, float]:
        if isinstance(self.fit, SaturatingFit):
            return self.fit.parameters
        return (
            {name: getattr(self.fit.fit, name) for name in power_law.PARAMETERS}
            if isinstance(self.fit, Plain)
            else {}
        )

    def to_dict(self) -> dict[str, Any]:
        inner = self.fit.to_dict() if isinstance(self.fit, SaturatingFit) else {}
        if isinstance(self.fit, Plain):
            found = self.fit.fit.to_dict()
            inner = {
                name: value
                for name, value in found.items()
                if name not in ("kept", "warnings", *power_law.PARAMETERS)
            }
            inner["parameters"] = {name: found[name] for name in power_law.PARAMETERS}
            inner["estimator"] = (
                "least squares" if self.name == "paper" else "relative residuals, Huber's loss"
            )
        inner |= {"name": self.name, "aicc_difference": finite_or_none(self.difference)}
        return inner | {"checks": {name: check.to_dict() for name, check in self.checks.items()}}


@dataclass(frozen=True)
class Analysis:
    """What one group of cells says about every law."""

    entries: list[
        Entry
    ]  # the paper's estimator first, then the robust one, then those on all cells
    chosen: Entry | None  # one of the entries; None when no law on all cells is OK
    bootstrap: Bootstrap | None
    profiles: dict[str, Profile]
    constant_capacity: RatioTest | None  # beta = 1 in the chosen law
    alike: tuple[
        float, float
    ]  # intraclass correlation of the chosen law's residuals by text and length, and its p
    warnings: list[str]

    @property
    def law(self) -> SaturatingFit | None:
        """The chosen fit."""
        return (
            self.chosen.fit if self.chosen and isinstance(self.chosen.fit, SaturatingFit) else None
        )

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 %, of the chosen law: from the bootstrap where there is one, else from the likelihood."""
        if self.bootstrap and self.bootstrap.status == OK:
            return self.bootstrap.intervals
        closed = {
            name: line.interval
            for name, line in self.profiles.items()
            if all(map(math.isfinite, line.interval))
        }
        return self.law.intervals | closed if self.law else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the bootstrap's draws are in `draws`."""
        return {
            "laws": [entry.to_dict() for entry in self.entries],
            "chosen": self.chosen.name if self.chosen else None,
            "bootstrap": self.bootstrap.to_dict() if self.bootstrap else None,
            "profiles": {name: line.to_dict() for name, line in self.profiles.items()},
            "constant_capacity": self.constant_capacity.to_dict()
            if self.constant_capacity
            else None,
            "alike_within_clusters": {
                "correlation": finite_or_none(self.alike[0]),
                "p": finite_or_none(self.alike[1]),
            },
        }

    @property
    def draws(self) -> dict[str, list[float]]:
        """Parameter to its bootstrap draws."""
        if not self.bootstrap or self.law is None:
            return {}
        return {
            NATURAL[p]: self.bootstrap.draws[:, p].tolist()
            for p in self.law.form.free
            if len(self.bootstrap.draws)
        }


def analyse(
    cells: Observations,
    saturated_below: float = 0.69,
    draws: int = 4000,
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """Fit every law, check each on cells left out, choose one, and say how sure it is.

    Args:
        cells: one group of comparable cells, saturated ones too.
        saturated_below: final loss (nats per token) up to which the paper's estimator leaves a cell out.
        draws: of the bootstrap; 0 for none.
        progress: called with draws done and all draws.
    """
    entries = [
        _plain_entry(cells, estimator)
        for estimator in (
            model_selection.paper(saturated_below),
            model_selection.robust(saturated_below),
        )
    ]
    found = _saturating_entries(cells)
    place = model_selection.choose(
        [fit for fit, _ in found], [entry.checks[model_selection.EDGE] for _, entry in found]
    )
    entries += [entry for _, entry in found]
    if place is None:
        return Analysis(entries, None, None, {}, None, (math.nan, math.nan), [])
    fit, chosen = found[place]
    sure = bootstrap(cells, fit, draws, progress=progress) if draws else None
    constant = model_selection.likelihood_ratio(
        fit, fit_saturating(cells, replace(fit.form, beta=1.0))
    )
    alike = model_selection.alike_within_clusters(
        cells, fit.predict(cells.rank, cells.length, cells.base)
    )
    made = Analysis(entries, chosen, sure, profiles(cells, fit), constant, alike, [])
    return replace(made, warnings=_warnings(made, cells))


def _plain_entry(cells: Observations, estimator: model_selection.Estimator) -> Entry:
    fit = estimator(cells)
    assert isinstance(fit, Plain)
    return Entry(
        fit.name, fit, fit.fit.n, fit.fit.mape, math.nan, model_selection.checks(cells, estimator)
    )


def _saturating_entries(cells: Observations) -> list[tuple[SaturatingFit, Entry]]:
    """Every form once: one that falls back to another is that other."""
    fits = {
        fit.form.name: fit
        for form in reversed(model_selection.FORMS)
        for fit in [fit_saturating(cells, form)]
    }
    ordered = [fits[form.name] for form in model_selection.FORMS if form.name in fits]
    differences = model_selection.aicc_differences(ordered)
    out = []
    for fit, difference in zip(ordered, differences, strict=True):
        checks = model_selection.checks(cells, model_selection.saturating(fit.form))
        out.append((fit, Entry(fit.form.name, fit, fit.n, fit.mape, difference, checks)))
    return out


def _warnings(made: Analysis, cells: Observations) -> list[str]:
    """What the numbers say against the chosen law, in plain words."""
    found, (correlation, p), chosen = [], made.alike, made.chosen
    assert chosen is not None
    if p < model_selection.ALIKE and correlation > 0:
        found.append(
            f"residuals of cells that share text and length are alike (correlation {correlation:.2f}): intervals that take "
            "cells as independent are too narrow"
        )
    b = made.intervals.get("b")
    if b and b[1] < 0:
        found.append(
            f"b of the chosen law is below 0 ({b[0]:.3g} to {b[1]:.3g}): it still bends less than the cells do"
        )
    if made.bootstrap and made.bootstrap.status == NOT_IDENTIFIED:
        found.append(
            f"no bootstrap: {made.bootstrap.reason}; the intervals take cells as independent"
        )
    edge = chosen.checks[model_selection.EDGE]
    if edge.n_test >= FEW and edge.coverage < POOR_BAND:
        found.append(
            f"extrapolating is less sure than it looks: the 95 % band of a fit without the {model_selection.EDGE} holds "
            f"{100 * edge.coverage:.0f} % of them"
        )
    found += _disagreements(made)
    if made.bootstrap and made.bootstrap.failed:
        found.append(f"{made.bootstrap.failed} bootstrap draws carried no fit and are left out")
    if len(np.unique(cells.text)) == 1:
        found.append(
            "one text: how the law differs between texts is not in the intervals (data.seed=0,1,2 tells)"
        )
    return found


def _disagreements(made: Analysis) -> list[str]:
    """Exponents of laws that AICc does not tell from the chosen one, where they lie outside its intervals."""
    assert made.chosen is not None
    limit = made.chosen.difference + model_selection.CLOSE
    rivals = [
        entry
        for entry in made.entries
        if isinstance(entry.fit, SaturatingFit)
        and entry.fit.status == OK
        and entry.fit.form.link != "none"
        and entry is not made.chosen
        and entry.difference <= limit
    ]
    found = []
    for name in ("alpha", "beta"):
        low, high = made.intervals.get(name, (-math.inf, math.inf))
        outside = [
            f"{entry.name} {entry.parameters[name]:.2f}"
            for entry in rivals
            if not low <= entry.parameters[name] <= high
        ]
        if outside:
            found.append(
                f"{name} depends on the law: others that fit as well give {', '.join(outside)}"
            )
    return found

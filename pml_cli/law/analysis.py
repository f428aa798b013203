"""All laws on one group of cells: fits, held-out checks, the choice, its intervals and warnings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pml_cli.law import robust
from pml_cli.law.bootstrap import Bootstrap, Profile, Progress, bootstrap, profiles
from pml_cli.law.findings import NOT_IDENTIFIED, OK, Finding, finding
from pml_cli.law.fit_result import FitResult
from pml_cli.law.forms import FORMS
from pml_cli.law.mle import LikelihoodFit, fit_saturating
from pml_cli.law.model_selection import (
    EDGE,
    Check,
    IntraclassCorrelation,
    RatioTest,
    aicc_differences,
    checks,
    choose,
    edge_check,
    intraclass_correlation,
    likelihood_ratio,
    saturating,
)
from pml_cli.law.noise import noise_power, with_noise
from pml_cli.law.observations import Observations
from pml_cli.law.parameters import NATURAL_NAMES, Interval
from pml_cli.law.power_law import PowerLawFit, fit_paper
from pml_cli.law.quality import Quality, quality_of
from pml_cli.law.robust import fit_robust

# A coverage of the 95 % prediction interval below this gives a warning.
POOR_COVERAGE = 0.8
# The coverage is not judged on fewer cells.
MIN_COVERAGE_CELLS = 5


@dataclass(frozen=True, kw_only=True)
class LawRow:
    """One law, how well it fits, and how well it predicts cells it has not seen."""

    fit: FitResult
    aicc_difference: float
    """AICc above the least; nan without a fit and for fits to fewer cells than the others'."""
    checks: dict[str, Check]
    """Held-out checks, by which cells were left out."""

    @property
    def name(self) -> str:
        """Name of the law in tables and in law.json."""
        return self.fit.name

    @property
    def slug(self) -> str:
        """Name in columns of cells.csv: hill_b."""
        return re.sub(r"[^a-z0-9]+", "_", self.name).strip("_")


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What one group of cells says about every law."""

    paper: PowerLawFit
    """The fit of the paper's estimator."""
    rows: list[LawRow]
    """The paper's estimator, the robust one, then maximum likelihood on all cells."""
    chosen: LawRow | None = None
    """One of the rows; None when no law on all cells is OK."""
    law: LikelihoodFit | None = None
    """The fit of the chosen row."""
    unseen: Check | None = None
    """The law that is chosen without the largest ranks and longest lengths, on just these: what to
    expect of the chosen law on cells that had no part in its choice. Its form may be another."""
    bootstrap: Bootstrap | None = None
    """Bootstrap of the chosen law; None with draws=0."""
    profiles: dict[str, Profile]
    """Profile likelihoods of the chosen law, by parameter."""
    constant_capacity: RatioTest | None = None
    """Test of beta = 1 in the chosen law."""
    residual_correlation: IntraclassCorrelation
    """Intraclass correlation of the chosen law's residuals in clusters of one text and length."""
    quality: Quality | None = None
    """Intervals over all forms, lack of fit, texts that are off; None without a chosen law."""
    warnings: list[Finding]
    """What speaks against the chosen law."""

    @classmethod
    def without_choice(cls, paper: PowerLawFit, rows: list[LawRow]) -> Analysis:
        """The analysis of cells on which no law is OK."""
        unknown = IntraclassCorrelation(correlation=math.nan, p=math.nan)
        return cls(
            paper=paper,
            rows=rows,
            profiles={},
            residual_correlation=unknown,
            warnings=[],
        )

    @property
    def paper_row(self) -> LawRow:
        """The row of the paper's estimator."""
        return self.rows[0]

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 %, of the chosen law.

        alpha and beta over all forms that fit nearly as well; the others of the chosen form, from
        the bootstrap where there is one, else from its likelihood.
        """
        exponents = {}
        if self.quality:
            exponents = {name: self.quality.interval(name) for name in self.quality.exponents}
        if self.bootstrap and self.bootstrap.status == OK:
            return self.bootstrap.intervals | exponents
        if self.law is None:
            return {}

        # A profile that does not close has no interval: that of the covariance stays.
        closed = {
            name: profile.interval
            for name, profile in self.profiles.items()
            if all(map(math.isfinite, profile.interval))
        }
        return self.law.intervals | closed | exponents

    @property
    def draws(self) -> dict[str, list[float]]:
        """The bootstrap draws of each free parameter, by name."""
        if self.bootstrap is None or self.law is None:
            return {}
        sample = self.bootstrap.draws
        if not len(sample):
            return {}
        return {NATURAL_NAMES[p]: sample[:, p].tolist() for p in self.law.form.free}

    def row(self, name: str) -> LawRow | None:
        """The law of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        return None


def analyse(
    cells: Observations,
    draws: int = 4000,
    progress: Progress | None = None,
) -> Analysis:
    """Fit every law, check each on cells left out, choose one, and find its intervals.

    Args:
        cells: one group of comparable cells, saturated ones too.
        draws: of the bootstrap; 0 for none.
        progress: called with draws done and all draws.
    """
    paper = fit_paper(cells)
    robust_fit = fit_robust(cells)
    # Both see the unsaturated cells alone: their AICc compares with no other.
    rows = [
        LawRow(
            fit=paper,
            aicc_difference=math.nan,
            checks=checks(cells, fit_paper),
        ),
        LawRow(
            fit=robust_fit,
            aicc_difference=math.nan,
            checks=checks(cells, fit_robust),
        ),
    ]
    weighted, fits = fit_forms_and_noise(cells)
    likelihood_rows = _likelihood_rows(weighted, fits)
    rows += likelihood_rows

    edge_errors = {row.name: row.checks[EDGE].mape for row in likelihood_rows}
    position = choose(fits, lambda fit: edge_errors[fit.name])
    if position is None:
        return Analysis.without_choice(paper, rows)

    law = fits[position]
    predicted = law.predict(weighted.rank, weighted.length, weighted.base)
    # Constant capacity: what is gained in all does not depend on the length.
    restricted = fit_saturating(weighted, replace(law.form, beta=1.0))
    analysis = Analysis(
        paper=paper,
        rows=rows,
        chosen=likelihood_rows[position],
        law=law,
        unseen=edge_check(cells, fit_chosen),
        bootstrap=bootstrap(weighted, law, draws, progress=progress) if draws else None,
        profiles=profiles(weighted, law),
        constant_capacity=likelihood_ratio(law, restricted),
        residual_correlation=intraclass_correlation(weighted, predicted),
        quality=quality_of(weighted, fits, law),
        warnings=[],
    )
    warnings = _warnings(analysis, robust_fit)
    # The cells themselves come back where the noise is proportional to the gain.
    is_reweighted = weighted is not cells
    if is_reweighted:
        warnings.append(finding("noise_by_gain", power=noise_power(weighted, law)))
    return replace(analysis, warnings=warnings)


def fit_forms(cells: Observations) -> list[LikelihoodFit]:
    """Every form once: a link that runs to its limit is that other link."""
    # Reversed, so that the form that was asked for stays where two are the same.
    fits = {}
    for form in reversed(FORMS):
        fit = fit_saturating(cells, form)
        fits[fit.form.name] = fit
    return [fits[form.name] for form in FORMS if form.name in fits]


def fit_forms_and_noise(cells: Observations) -> tuple[Observations, list[LikelihoodFit]]:
    """Fit every form; again to reweighted cells where noise is not proportional to the gain.

    Returns:
        The cells with the spreads that the forms are fitted with (the same object where nothing is
        reweighted), and the fits.
    """
    fits = fit_forms(cells)
    weighted = with_noise(cells, fits)
    if weighted is cells:
        return cells, fits
    return weighted, fit_forms(weighted)


def fit_chosen(cells: Observations) -> LikelihoodFit:
    """The law that is chosen by these cells alone, their noise included: an estimator of its own.

    As `analyse` chooses. Where no law is OK it is NOT_IDENTIFIED, with the reason of one of them.
    """
    noisy, fits = fit_forms_and_noise(cells)
    position = choose(fits, lambda fit: edge_check(noisy, saturating(fit.form)).mape)
    if position is not None:
        return fits[position]
    fit = next((fit for fit in fits if fit.status != OK), fits[0])
    # An AICc needs a cell more than a fit does.
    parameters = len(fit.form.free)
    reason = finding("few_cells", cells=fit.n, parameters=parameters, needed=parameters + 2)
    return replace(fit, status=NOT_IDENTIFIED, finding=fit.finding or reason)


def _likelihood_rows(cells: Observations, fits: Sequence[LikelihoodFit]) -> list[LawRow]:
    """The row of each fit."""
    rows = []
    for fit, difference in zip(fits, aicc_differences(fits), strict=True):
        held_out = checks(cells, saturating(fit.form))
        rows.append(LawRow(fit=fit, aicc_difference=difference, checks=held_out))
    return rows


def _warnings(analysis: Analysis, robust_fit: PowerLawFit) -> list[Finding]:
    """What the numbers say against the chosen law, the gravest first."""
    assert analysis.chosen is not None and analysis.quality is not None
    warnings = list(analysis.quality.warnings)

    unknown = (math.nan, math.nan)
    low, high = analysis.intervals.get("b", unknown)
    if high < 0:
        warnings.append(finding("negative_offset", low=low, high=high))

    edge = analysis.unseen
    if edge and edge.n_test >= MIN_COVERAGE_CELLS and edge.coverage < POOR_COVERAGE:
        warnings.append(finding("poor_coverage", coverage=edge.coverage))

    sample = analysis.bootstrap
    if sample and sample.status == NOT_IDENTIFIED:
        warnings.append(finding("bootstrap_missing", cause=sample.finding))
    warnings += robust.disagreements(analysis.paper, robust_fit)

    for profile in analysis.profiles.values():
        if not profile.monotone:
            warnings.append(finding("profile_not_monotone", parameter=profile.name))
    if sample and sample.failed:
        warnings.append(finding("failed_draws", draws=sample.failed))
    return warnings

"""law.json: what `pml fit` writes and `pml predict` reads; schema, writer and reader.

Every record below is one object of the file, its fields are the keys. Numbers are at full
precision; what is not finite is null. Covariances are row by row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import scipy

from pml_cli import __version__
from pml_cli.errors import UserError, did_you_mean
from pml_cli.io import jsonable
from pml_cli.law.analysis import LawRow
from pml_cli.law.bits_line import BitsLine, LineGroup
from pml_cli.law.bootstrap import Bootstrap, Profile
from pml_cli.law.capacity import BitsPerParameter, UnseenGain
from pml_cli.law.findings import NOT_IDENTIFIED, OK, Finding
from pml_cli.law.fit_groups import GroupFit
from pml_cli.law.fitted_law import (
    BaseLoss,
    FittedLaw,
    LengthCurve,
    bootstrap_theta,
    normal_theta,
    text_theta,
)
from pml_cli.law.forms import Form
from pml_cli.law.group_comparison import Comparison, Tie
from pml_cli.law.lack_of_fit import LackOfFit
from pml_cli.law.law_fields import FileFields, LawFields
from pml_cli.law.mle import LikelihoodFit
from pml_cli.law.model_selection import (
    EDGE,
    Check,
    IntraclassCorrelation,
    RatioTest,
    edge_of,
)
from pml_cli.law.observations import SIZE_AXES, Observations, SizeAxis
from pml_cli.law.parameters import THETA_NAMES, Interval
from pml_cli.law.power_law import PowerLawFit
from pml_cli.law.quality import Quality
from pml_cli.law.recall_law import NAMES, RecallFit
from pml_cli.law.text_deviations import TextDeviation
from pml_cli.results.folder import beside
from pml_cli.stats import MIN_CLUSTERS, Array, percent_error
from pml_cli.validation import checked, load_json, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 4

# Raised where the same cells would now give other laws or bands. 1: the law of exact recall counts
# every trained cell and every draw.
METHOD = 1
FILE_NAME = "law.json"
# What helps where the file cannot be used.
AGAIN = "run `pml fit` again"
ESTIMATORS = {"paper": "least squares", "robust": "relative residuals, Huber's loss"}

Describe = Callable[[Finding | None, SizeAxis], str]
"""Makes the sentence of a finding for a law of that size; empty for None."""
Say = Callable[[Finding | None], str]
"""Makes the sentence of a finding for the size of one group; empty for None."""
Record = TypeVar("Record", bound="DataclassInstance")
ParameterRow = tuple[float, float, float]
"""A value, and the ends of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class PaperRecord:
    """The paper's estimator: least squares on the unsaturated cells."""

    law: str
    """Formula."""
    status: str
    """OK, BOUND_HIT or NOT_IDENTIFIED."""
    reason: str
    """Why the status is not OK; empty where it is."""
    C: float
    """Nats per token at rank 1 and length 1, above b."""
    alpha: float
    beta: float
    b: float
    """Nats per token."""
    r2: float
    """R2 over the unsaturated cells."""
    mape: float
    """Mean absolute error over them, per cent of the measured gain."""
    standard_errors: dict[str, float]
    intervals_95: dict[str, Interval]
    """Intervals by Student's t, assuming independent cells."""
    covariance: list[list[float]]
    """In the order C, alpha, beta, b."""
    spread: float
    """Standard deviation of a cell around the law, nats per token."""
    n: int
    """Cells in the fit."""
    n_saturated: int
    """Cells left out."""


@dataclass(frozen=True, kw_only=True)
class HeldOutRecord:
    """How well the paper's law predicts unsaturated cells of the largest ranks and lengths."""

    mape: float | None
    """MAPE in per cent of the measured gain; null with a reason."""
    reason: str
    ranks: tuple[float, ...]
    """Ranks held out of the fit."""
    lengths: tuple[float, ...]
    """Lengths held out of the fit."""
    n_fit: int
    """Unsaturated cells in the fit."""
    n_test: int
    """Unsaturated cells left out."""


@dataclass(frozen=True, kw_only=True)
class CheckRecord:
    """A held-out check of one law."""

    what: str
    """Which cells were left out of the fit."""
    reason: str
    """Why there is no check, or an incomplete one."""
    mape: float
    """MAPE in per cent of the measured gain over the unsaturated cells left out."""
    mape_all: float
    """MAPE in per cent over all cells left out, saturated ones included."""
    coverage: float
    """Share of the unsaturated cells left out that lie inside the 95 % prediction interval."""
    n_fit: int
    """Cells in the fit."""
    n_test: int
    """Unsaturated cells left out."""
    n_all: int
    """Cells left out."""
    laws: tuple[str, ...]
    """Names of the laws that were fitted to the cells that stayed, one a fold with a fit."""


@dataclass(frozen=True, kw_only=True)
class PowerLawRecord:
    """A law fitted to the unsaturated cells: paper or robust."""

    name: str
    law: str
    estimator: str
    """What is minimised."""
    status: str
    reason: str
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    intervals_95: dict[str, Interval]
    covariance: list[list[float]]
    """In the order C, alpha, beta, b."""
    spread: float
    r2: float
    mape: float
    n: int
    """Cells in the fit."""
    n_saturated: int
    """Cells left out."""
    aicc_difference: float
    """Always null: these laws saw other cells."""
    checks: dict[str, CheckRecord]
    """Held-out checks, by which cells were left out."""


@dataclass(frozen=True, kw_only=True)
class LikelihoodRecord:
    """A law fitted to all cells by censored maximum likelihood."""

    name: str
    """Name of the law in tables: hill + b."""
    law: str
    """Formula."""
    form: dict[str, Any]
    """Fields of forms.Form."""
    estimator: str
    status: str
    reason: str
    parameters: dict[str, float]
    """Parameters in natural units."""
    intervals_95_naive: dict[str, Interval]
    """Intervals from the covariance, assuming independent cells."""
    theta: dict[str, float]
    """Parameters on the scale of the fit, by the names of parameters.THETA_NAMES."""
    centre: dict[str, float]
    """Mean log rank and mean log length, where c is centred: `log_rank`, `log_length`."""
    covariance: list[list[float]]
    """Covariance of theta, assuming independent cells."""
    covariance_clustered: list[list[float]]
    """Covariance of theta from the scores of the clusters of one text and length."""
    clusters: int
    """Number of clusters of one text and length."""
    covariance_texts: list[list[float]]
    """Covariance of theta from the scores of the texts."""
    texts: int
    nll: float
    """Negative log-likelihood, a sum over the cells."""
    aicc: float
    r2: float
    """R2 over the unsaturated cells."""
    mape: float
    """MAPE over the unsaturated cells, per cent of the measured gain."""
    r2_all: float
    """R2 over all cells."""
    mape_all: float
    n: int
    """Cells in the fit: all."""
    n_saturated: int
    """Number of saturated cells, whose gains are lower limits."""
    cells_sha256: str
    """SHA-256 of the cells: AICc of laws compares only where it is equal."""
    aicc_difference: float
    """AICc above the smallest AICc of these laws."""
    checks: dict[str, CheckRecord]
    """Held-out checks, by which cells were left out."""


@dataclass(frozen=True, kw_only=True)
class BootstrapRecord:
    """The cluster bootstrap of the chosen law."""

    status: str
    reason: str
    clusters: int
    """Texts; texts times lengths where there are fewer than four."""
    draws: int
    """Number of bootstrap draws that converged."""
    failed: int
    """Number of bootstrap draws that did not converge."""
    intervals_95: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class ProfileRecord:
    """Profile likelihood of one parameter of the chosen law."""

    values: list[float]
    """Values at which the parameter was held fixed."""
    deviance: list[float]
    """Twice the fall of the log-likelihood at each value."""
    interval_95: Interval
    """null at a side that the likelihood does not close."""


@dataclass(frozen=True, kw_only=True)
class RecallRecord:
    """The law of exact recall."""

    status: str
    reason: str
    parameters: dict[str, float]
    """a, g, h."""
    n: int
    """Cells."""
    exact: int
    """Cells of which every sample is recalled exactly."""
    texts: int
    clusters: int
    """The texts; of one to three texts, texts times lengths."""
    blur: dict[str, float]
    """Width of the error that the steps between the ranks and lengths tried leave, on logs."""
    draws: int
    """Number of bootstrap draws."""


@dataclass(frozen=True, kw_only=True)
class RangeRecord:
    """Least and largest of the cells a law may use; empty without cells."""

    rank: list[float]
    length: list[float]


@dataclass(frozen=True, kw_only=True)
class LengthCurveRecord:
    """Mean loss of the base model at each length, nats per token."""

    length: list[float]
    nats: list[float]


@dataclass(frozen=True, kw_only=True)
class BaseLossRecord:
    """Mean loss of the base model at each length, and that of each text."""

    length: list[float]
    nats: list[float]
    texts: list[LengthCurveRecord]


@dataclass(frozen=True, kw_only=True)
class ExponentRecord:
    """alpha or beta by every form that fits nearly as well as the chosen one."""

    interval_95: Interval
    """95 % interval of the weighted mixture, as in the tables."""
    forms: tuple[str, ...]
    weights: list[float]
    """Weight of each form; they add up to 1."""
    values: list[float]
    """The exponent by each form."""
    errors: list[float]
    """Standard error by each form, texts and cells of one length as clusters."""


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """One group of comparable cells."""

    name: str
    """Name of the group in tables."""
    slug: str
    """Name of the group in cells.csv and in `draws`."""
    key: dict[str, Any]
    """The settings that the cells share."""
    cells: int
    """Number of cells, including those that no law may use."""
    fit: PaperRecord
    """The paper's estimator."""
    held_out: HeldOutRecord
    laws: list[PowerLawRecord | LikelihoodRecord]
    """Every law, in the order of the tables."""
    chosen: str | None
    """The name of one of the laws."""
    unseen: CheckRecord | None
    """The largest ranks and longest lengths by the law that is chosen without them, of which `laws`
    has the name; null without a chosen law."""
    intervals_95: dict[str, Interval]
    """Intervals of the chosen law's parameters, as in the tables; empty without a chosen law."""
    bootstrap: BootstrapRecord | None
    """Bootstrap of the chosen law; null with draws=0."""
    profiles: dict[str, ProfileRecord]
    """Profile likelihoods of the chosen law, by parameter."""
    exponents: dict[str, ExponentRecord]
    """alpha and beta over all forms; empty without a chosen law."""
    lack_of_fit: LackOfFit | None
    """p of two tests that the chosen form describes the cells."""
    texts: list[TextDeviation]
    """How far the gains of each text lie from the chosen law."""
    constant_capacity: RatioTest | None
    """Likelihood-ratio test of beta = 1 in the chosen law."""
    alike_within_clusters: IntraclassCorrelation
    """Correlation of residuals that share text and length."""
    recall: RecallRecord
    """The law of exact recall."""
    all_recall: RecallRecord | None
    """Law of recalling every sample of a run; null where runs have one sample each."""
    share_recall: dict[str, RecallRecord]
    """Laws of recalling at least 0.5, 0.9 and 0.99 of the samples; empty with one sample a cell."""
    tokens_per_sample: float
    """Mean target tokens of a sample."""
    capacity: list[BitsPerParameter]
    """Bits per parameter, for each rank and way of counting bits."""
    control: UnseenGain | None
    """Gain on unseen sequences of the source."""
    range: RangeRecord
    """Range of the ranks and lengths that were trained."""
    base_loss: BaseLossRecord
    warnings: list[str]
    conclusions: list[str]
    """What the fit allows to conclude, and the sweep to run next."""


@dataclass(frozen=True, kw_only=True)
class ComparedGroupRecord:
    """One group of a comparison."""

    name: str
    parameters: dict[str, float]
    """Parameters of the common form."""
    intervals_95: dict[str, Interval]
    """95 % intervals of alpha and beta."""
    n: int
    aicc_cost: float
    """AICc of the common form above that of this group's best."""


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord:
    """Groups compared with --by."""

    by: tuple[str, ...]
    """Settings in which the groups differ."""
    common: str
    """Settings in which they agree, as text."""
    form: str | None
    """The name of the common form; null where there is none."""
    reason: str
    groups: list[ComparedGroupRecord]
    ties: list[Tie]
    """Tests of shared exponents."""


@dataclass(frozen=True, kw_only=True)
class LawFile:
    """The whole file."""

    format: int
    method: int
    """METHOD of the pml that fitted it."""
    versions: dict[str, str]
    """pml, numpy, scipy."""
    inputs: dict[str, Any]
    """cells, and the sha256 of what the fit saw."""
    saturated_below: float
    """Final loss, nats per token, at or below which a cell is saturated."""
    x: str
    """What the ranks of the laws are: rank or parameters."""
    comparisons: list[ComparisonRecord]
    """Comparisons of groups, with --by."""
    bits_lines: list[BitsLine]
    """Parameters against bits, a line for each loss with several groups."""
    groups: list[GroupRecord]
    draws: dict[str, dict[str, list[float]]]
    """Slug to parameter (and recall_a, all_recall_a and so on) to the bootstrap's values."""


def law_file(
    groups: Sequence[GroupFit],
    comparisons: Sequence[Comparison],
    describe: Describe,
    *,
    lines: Sequence[BitsLine],
    inputs: dict[str, Any],
    saturated_below: float,
    axis: SizeAxis,
) -> LawFile:
    """The content of law.json.

    Args:
        describe: makes the sentence of a finding.
        lines: parameters against bits.
        inputs: number and hash of the cells.
    """
    versions = {"pml": __version__, "numpy": np.__version__, "scipy": scipy.__version__}

    def say(finding: Finding | None) -> str:
        return describe(finding, axis)

    draws = {}
    for group in groups:
        draws[group.slug] = group.analysis.draws | _recall_draws("recall", group.recall)
        if group.all_recall:
            draws[group.slug] |= _recall_draws("all_recall", group.all_recall)
        for share, recall in group.share_recall.items():
            draws[group.slug] |= _recall_draws(f"share_{share:g}_recall", recall)

    return LawFile(
        format=FORMAT,
        method=METHOD,
        versions=versions,
        inputs=inputs,
        saturated_below=saturated_below,
        x=axis.name,
        comparisons=[_comparison_record(comparison, say) for comparison in comparisons],
        bits_lines=list(lines),
        groups=[_group_record(group, describe) for group in groups],
        draws=draws,
    )


def to_text(content: LawFile) -> str:
    """JSON with a key on each line, but the draws on one: a line for each number is too long."""
    plain = jsonable(content)
    draws = json.dumps(plain.pop("draws"), allow_nan=False)
    head = json.dumps(plain, indent=1, allow_nan=False)
    return f'{head[:-2]},\n "draws": {draws}\n}}\n'


def fitted_laws(content: LawFile) -> list[FittedLaw]:
    """The laws of a fit, as they will be read back from its law.json."""
    plain: dict[str, Any] = json.loads(to_text(content))
    return [_fitted_law(group, plain) for group in plain["groups"] if _has_law(group)]


def _record_of(kind: type[Record], source: Any, **values: Any) -> Record:
    """A record whose fields are attributes of `source`, but for those given by `values`."""
    names = {field.name for field in fields(kind)}
    copied = {name: getattr(source, name) for name in names - set(values)}
    return kind(**copied, **values)


def _group_record(group: GroupFit, describe: Describe) -> GroupRecord:
    """One group with every law on it."""
    analysis = group.analysis

    def say(finding: Finding | None) -> str:
        return describe(finding, group.axis)

    return GroupRecord(
        name=group.name,
        slug=group.slug,
        key=group.key,
        cells=len(group.cells),
        fit=_paper_record(analysis.paper, group.axis, say),
        held_out=_held_out_record(group, say),
        laws=[_law_record(row, group.axis, say) for row in analysis.rows],
        chosen=analysis.chosen.name if analysis.chosen else None,
        unseen=_check_record(analysis.unseen, say) if analysis.unseen else None,
        intervals_95=analysis.intervals if analysis.chosen else {},
        bootstrap=_bootstrap_record(analysis.bootstrap, say),
        profiles={name: _profile_record(profile) for name, profile in analysis.profiles.items()},
        exponents=_exponent_records(analysis.quality),
        lack_of_fit=analysis.quality.lack_of_fit if analysis.quality else None,
        texts=analysis.quality.texts if analysis.quality else [],
        constant_capacity=analysis.constant_capacity,
        alike_within_clusters=analysis.residual_correlation,
        recall=_recall_record(group.recall, say),
        all_recall=_recall_record(group.all_recall, say) if group.all_recall else None,
        share_recall={
            f"{share:g}": _recall_record(recall, say)
            for share, recall in group.share_recall.items()
        },
        tokens_per_sample=group.tokens_per_sample,
        capacity=group.bits,
        control=group.control,
        range=_range_record(group.observed),
        base_loss=_base_loss_record(group.observed),
        warnings=[say(warning) for warning in group.warnings],
        conclusions=[say(conclusion) for conclusion in group.conclusions],
    )


def _exponent_records(quality: Quality | None) -> dict[str, ExponentRecord]:
    """alpha and beta over all forms."""
    if quality is None:
        return {}
    return {
        name: ExponentRecord(
            interval_95=mixture.interval,
            forms=mixture.forms,
            weights=mixture.weights.tolist(),
            values=mixture.values.tolist(),
            errors=mixture.errors.tolist(),
        )
        for name, mixture in quality.exponents.items()
    }


def _paper_record(fit: PowerLawFit, axis: SizeAxis, say: Say) -> PaperRecord:
    """The paper's fit, its parameters as keys of their own."""
    return _record_of(
        PaperRecord,
        fit,
        law=fit.form.formula(axis.column),
        reason=say(fit.finding),
        standard_errors=fit.errors,
        intervals_95=fit.intervals,
        covariance=fit.covariance.tolist(),
        n=fit.n_used,
    )


def _held_out_record(group: GroupFit, say: Say) -> HeldOutRecord:
    """The check of the paper's law on the edge, of the unsaturated cells alone."""
    observed = group.observed
    ranks, lengths = edge_of(observed)
    check = group.analysis.paper_row.checks[EDGE]

    unsaturated = ~observed.saturated
    test = check.left_out & unsaturated
    fitted = ~check.left_out & unsaturated

    # The error counts where the fit without these cells has a prediction for them.
    mape: float | None = None
    reason = say(check.finding)
    predicted = check.predicted[test]
    if len(predicted) and np.isfinite(predicted).all():
        mape = percent_error(observed.delta[test], predicted)
        reason = ""
    return HeldOutRecord(
        mape=mape,
        reason=reason,
        ranks=ranks,
        lengths=lengths,
        n_fit=int(fitted.sum()),
        n_test=int(test.sum()),
    )


def _law_record(row: LawRow, axis: SizeAxis, say: Say) -> PowerLawRecord | LikelihoodRecord:
    """One row of the tables, with its held-out checks."""
    fit = row.fit
    common = {
        "law": fit.form.formula(axis.column),
        "reason": say(fit.finding),
        "covariance": fit.covariance.tolist(),
        "aicc_difference": row.aicc_difference,
        "checks": {what: _check_record(check, say) for what, check in row.checks.items()},
    }
    if isinstance(fit, PowerLawFit):
        return _record_of(
            PowerLawRecord,
            fit,
            estimator=ESTIMATORS[fit.name],
            standard_errors=fit.errors,
            intervals_95=fit.intervals,
            n=fit.n_used,
            **common,
        )

    assert isinstance(fit, LikelihoodFit)
    log_rank, log_length = fit.centre
    return _record_of(
        LikelihoodRecord,
        fit,
        form=jsonable(fit.form),
        estimator="censored maximum likelihood, all cells",
        intervals_95_naive=fit.intervals,
        theta=dict(zip(THETA_NAMES, fit.theta.tolist(), strict=True)),
        centre={"log_rank": log_rank, "log_length": log_length},
        covariance_clustered=fit.clustered.tolist(),
        covariance_texts=fit.by_text.tolist(),
        cells_sha256=fit.fingerprint,
        **common,
    )


def _check_record(check: Check, say: Say) -> CheckRecord:
    """A check, without its predictions."""
    return _record_of(CheckRecord, check, reason=say(check.finding))


def _bootstrap_record(sample: Bootstrap | None, say: Say) -> BootstrapRecord | None:
    """A bootstrap, without its draws: those stand at the end of the file."""
    if sample is None:
        return None
    return _record_of(
        BootstrapRecord,
        sample,
        reason=say(sample.finding),
        draws=len(sample.draws),
        intervals_95=sample.intervals,
    )


def _profile_record(profile: Profile) -> ProfileRecord:
    """A profile, in natural units."""
    return ProfileRecord(
        values=profile.values.tolist(),
        deviance=profile.deviance.tolist(),
        interval_95=profile.interval,
    )


def _recall_record(recall: RecallFit, say: Say) -> RecallRecord:
    """The law of exact recall, without its draws."""
    return _record_of(
        RecallRecord,
        recall,
        reason=say(recall.finding),
        parameters=dict(zip(NAMES, recall.theta.tolist(), strict=True)),
        blur={"rank": recall.rank_blur, "length": recall.length_blur},
        draws=len(recall.draws),
    )


def _recall_draws(prefix: str, recall: RecallFit) -> dict[str, list[float]]:
    """Draws of a, g and h, (D,) by the names that they have in the file: <prefix>_a and so on."""
    columns = zip(NAMES, recall.draws.T.tolist(), strict=True)
    return {f"{prefix}_{name}": column for name, column in columns if column}


def _range_record(cells: Observations) -> RangeRecord:
    """What was trained."""
    if not len(cells):
        return RangeRecord(rank=[], length=[])
    return RangeRecord(rank=_ends(cells.rank), length=_ends(cells.length))


def _ends(values: Array) -> list[float]:
    """The smallest and the largest of (N,) values."""
    return [float(values.min()), float(values.max())]


def _base_loss_record(cells: Observations) -> BaseLossRecord:
    """Mean base loss at each length, over all cells and of each text."""
    mean = _length_curve_record(cells)
    texts = []
    for text in np.unique(cells.text):
        of_text = cells.take(cells.text == text)
        texts.append(_length_curve_record(of_text))
    return BaseLossRecord(length=mean.length, nats=mean.nats, texts=texts)


def _length_curve_record(cells: Observations) -> LengthCurveRecord:
    """Mean base loss at each length."""
    lengths = np.unique(cells.length)
    nats = []
    for length in lengths:
        base = cells.base[cells.length == length]
        nats.append(float(base.mean()))
    return LengthCurveRecord(length=lengths.tolist(), nats=nats)


def _comparison_record(comparison: Comparison, say: Say) -> ComparisonRecord:
    """A comparison of groups; `form` is null where they share none."""
    groups = [
        ComparedGroupRecord(
            name=group.name,
            parameters=group.fit.parameters,
            intervals_95={name: group.interval(name) for name in ("alpha", "beta")},
            n=group.fit.n,
            aicc_cost=group.cost,
        )
        for group in comparison.groups
    ]
    return ComparisonRecord(
        by=comparison.by,
        common=comparison.common,
        form=comparison.form.name if comparison.form else None,
        reason=say(comparison.finding),
        groups=groups,
        ties=comparison.ties,
    )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a law.json can answer."""

    file: Path
    is_outdated: bool
    """Whether `pml fit` would now give other laws or bands for the same cells."""
    laws: list[FittedLaw]
    """Laws of the groups that have a law of the gain or of exact recall."""
    left_out: dict[str, str]
    """The names of the other groups, each with the reason."""
    lines: list[BitsLine]
    """Parameters against bits, over several groups."""
    parameters: dict[str, dict[str, ParameterRow]]
    """Value and interval of each parameter of the chosen law of the gain, by the name of the
    group; empty for a group without a chosen law."""


def load(path: Path, group: str | None = None) -> list[FittedLaw]:
    """The laws of a report; see `load_report`."""
    return load_report(path, group).laws


def load_report(path: Path, group: str | None = None) -> Report:
    """The laws of a report.

    Args:
        path: law.json, a folder that has it, or one whose fit/ has it.
        group: name or slug of one group; all when None.

    Raises:
        UserError: there is no law.json, it is of another format or damaged, or no group has that
            name.
    """
    file = _law_json_path(path)
    content = _read_content(file)

    groups = content["groups"]
    if group is not None:
        groups = _groups_named(group, groups)
    for entry in groups:
        _check_chosen(file, entry)
    try:
        answering = [entry for entry in groups if _has_law(entry)]
        laws = [_fitted_law(entry, content) for entry in answering]
        lines = [_bits_line(entry) for entry in content.get("bits_lines", [])]
    # Whatever is wrong inside a law.json of this format, the file is damaged.
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error}); {AGAIN}") from error

    left_out = {entry["name"]: _reasons(entry) for entry in groups if entry not in answering}
    if not laws and not lines:
        details = "; ".join(sorted(set(left_out.values())))
        raise UserError(f"{file}: no law was identified: {details}")
    parameters = {entry["name"]: _parameter_rows(entry) for entry in answering}
    return Report(
        file=file,
        # Reports of earlier versions do not say it.
        is_outdated=content.get("method", 0) < METHOD,
        laws=laws,
        left_out=left_out,
        lines=lines,
        parameters=parameters,
    )


def _parameter_rows(group: dict[str, Any]) -> dict[str, ParameterRow]:
    """Value and interval of each parameter of the chosen law.

    Reports of earlier versions have no interval.
    """
    intervals = group.get("intervals_95", {})
    unknown = (math.nan, math.nan)
    rows = {}
    for law in group["laws"]:
        if law["name"] != group["chosen"]:
            continue
        for name, value in law["parameters"].items():
            low, high = intervals.get(name, unknown)
            rows[name] = (_number(value), _number(low), _number(high))
    return rows


def _number(value: float | None) -> float:
    """A number of the file; null is one that is not finite."""
    return math.nan if value is None else float(value)


def _bits_line(content: dict[str, Any]) -> BitsLine:
    """A line with its groups."""
    line = _from_json(BitsLine, _with_nan(content))
    covariance = [[_number(value) for value in row] for row in content["covariance"]]
    groups = [_from_json(LineGroup, _with_nan(group)) for group in content["groups"]]
    return replace(line, covariance=covariance, groups=groups)


def _with_nan(content: dict[str, Any]) -> dict[str, Any]:
    """An object of the file whose numbers are none as nan: those that are not finite are null."""
    return {name: math.nan if value is None else value for name, value in content.items()}


def _has_law(group: dict[str, Any]) -> bool:
    """Whether a group has a law of the gain or of exact recall."""
    return group["chosen"] is not None or group["recall"]["status"] == OK


def _reasons(group: dict[str, Any]) -> str:
    """Why a group has no law."""
    gain = group["fit"]["reason"] or "no law of the gain is identified"
    return f"{gain}; exact recall: {group['recall']['reason']}"


def _groups_named(name: str, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups of that name or slug."""
    named = [group for group in groups if name in (group["slug"], group["name"])]
    if not named:
        slugs = {group["slug"] for group in groups}
        raise UserError(f"group={name}: {did_you_mean(name, slugs)}")
    return named


def _law_json_path(path: Path) -> Path:
    """The law.json that a path means."""
    # Earlier versions wrote the report of one run into its folder.
    folders = (path, beside(path, "fit"), path / "fit")
    for file in (path, *(folder / FILE_NAME for folder in folders)):
        if file.is_file():
            return file
    missing = "" if path.exists() else " (no such folder)"
    raise UserError(f"{path}: no law.json here{missing}; make it with `pml fit {path}`")


def _read_content(file: Path) -> dict[str, Any]:
    """The content of a law.json of this format."""
    content = load_json(file, AGAIN)
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{file}: not a law.json (the key `format` is missing); {AGAIN}")

    found_format = content["format"]
    if found_format != FORMAT:
        raise UserError(f"{file}: format {shown(found_format)}, this pml reads {FORMAT}; {AGAIN}")
    fields: dict[str, Any] = checked(file, content, FileFields, AGAIN)
    return fields


def _check_chosen(file: Path, group: dict[str, Any]) -> None:
    """Refuse a group whose chosen law is not among its laws, or damaged.

    Raises:
        UserError: names the group.
    """
    if group["chosen"] is None:
        return
    named = [law for law in group["laws"] if law["name"] == group["chosen"]]
    if not named:
        raise UserError(f"{file}: {group['slug']}: has no law {group['chosen']}; {AGAIN}")
    for law in named:
        checked(file, law, LawFields, AGAIN)


def _from_json(kind: type[Record], content: dict[str, Any]) -> Record:
    """A record from its object in the file; its values stay as JSON has them.

    Raises:
        KeyError: a key is missing.
    """
    names = [field.name for field in fields(kind)]
    return kind(**{name: content[name] for name in names})


def _fitted_law(group: dict[str, Any], content: dict[str, Any]) -> FittedLaw:
    """The laws of one group."""
    # Those of the laws of recall lie beside those of the law of the gain.
    draws = dict(content["draws"].get(group["slug"], {}))
    recall_draws = [draws.pop(f"recall_{name}", []) for name in NAMES]
    all_recall_draws = [draws.pop(f"all_recall_{name}", []) for name in NAMES]

    share_recall = {}
    # Reports of earlier versions have none.
    for share, record in group.get("share_recall", {}).items():
        of_share = [draws.pop(f"share_{share}_recall_{name}", []) for name in NAMES]
        recall = _recall_fit(record, of_share)
        if recall is not None:
            share_recall[float(share)] = recall

    trained = _from_json(RangeRecord, group["range"])
    if trained.rank != sorted(trained.rank) or trained.length != sorted(trained.length):
        raise ValueError("a range has its lower end above its upper end")
    base = _from_json(BaseLossRecord, group["base_loss"])
    if trained.length and not base.length:
        raise ValueError("base_loss is empty although the group has cells")
    texts = [_from_json(LengthCurveRecord, text) for text in group["base_loss"]["texts"]]
    return FittedLaw(
        name=group["name"],
        axis=SIZE_AXES[content["x"]],
        ranks=(trained.rank[0], trained.rank[1]),
        lengths=(trained.length[0], trained.length[1]),
        base=BaseLoss(mean=_length_curve(base), texts=[_length_curve(text) for text in texts]),
        recall=_recall_fit(group["recall"], recall_draws),
        recall_reason=group["recall"]["reason"],
        all_recall=_recall_fit(group["all_recall"], all_recall_draws),
        share_recall=share_recall,
        tokens_per_fact=group["tokens_per_sample"] or math.nan,
        **_gain_law(group, draws),
    )


def _gain_law(group: dict[str, Any], draws: dict[str, list[float]]) -> dict[str, Any]:
    """The fields of a `FittedLaw` that are those of the gain; empty ones where there is no law.

    Args:
        draws: of the bootstrap, (D,) by the name of the parameter.
    """
    if group["chosen"] is None:
        return {
            "form": None,
            "form_reason": group["fit"]["reason"],
            "theta": np.empty((0, len(THETA_NAMES))),
            "centre": (0.0, 0.0),
            "status": NOT_IDENTIFIED,
            "texts": 1,
            "text_spread": 0.0,
        }

    chosen = next(law for law in group["laws"] if law["name"] == group["chosen"])
    record = _from_json(LikelihoodRecord, chosen)
    return {
        "form": Form(**record.form),
        "form_reason": "",
        "theta": _theta(record, group["bootstrap"], draws),
        "centre": (record.centre["log_rank"], record.centre["log_length"]),
        "status": record.status,
        "texts": record.texts,
        "text_spread": _text_spread(group["texts"]),
    }


def _text_spread(texts: list[dict[str, Any]]) -> float:
    """Standard deviation over texts of how far each lies from the law; 0 for fewer than two."""
    deviations = [text["deviation"] for text in texts if text["cells"]]
    return float(np.std(deviations, ddof=1)) if len(deviations) > 1 else 0.0


def _theta(
    record: LikelihoodRecord,
    bootstrap: dict[str, Any] | None,
    draws: dict[str, list[float]],
) -> Array:
    """The fit and draws of it, (1 + D, P).

    Args:
        bootstrap: a `BootstrapRecord`, as in the file.
        draws: of the bootstrap, (D,) by the name of the parameter; empty without one.
    """
    theta = np.array([record.theta[name] for name in THETA_NAMES], float)
    by_text = np.array(record.covariance_texts, float)
    if 1 < record.texts < MIN_CLUSTERS and np.isfinite(by_text).all():
        sample = text_theta(theta, by_text, record.texts, Form(**record.form))
    elif bootstrap and draws:
        centre = (record.centre["log_rank"], record.centre["log_length"])
        sample = bootstrap_theta(theta, centre, draws, bootstrap["clusters"])
    else:
        naive = np.array(record.covariance, float)
        clustered = np.array(record.covariance_clustered, float)
        sample = normal_theta(theta, [naive, clustered])
    return np.concatenate([theta[None], sample])


def _recall_fit(content: dict[str, Any] | None, draws: list[list[float]]) -> RecallFit | None:
    """A law of exact recall with its draws, (D,) for each of a, g, h; None where there is none."""
    if content is None or content["status"] != OK:
        return None
    record = _from_json(RecallRecord, content)
    theta = [record.parameters[name] for name in NAMES]
    return RecallFit(
        status=OK,
        finding=None,
        theta=np.array(theta, float),
        draws=np.array(draws, float).T,
        n=record.n,
        exact=record.exact,
        texts=record.texts,
        clusters=record.clusters,
        rank_blur=record.blur["rank"],
        length_blur=record.blur["length"],
    )


def _length_curve(record: LengthCurveRecord | BaseLossRecord) -> LengthCurve:
    """Arrays of a record, (V,) each."""
    lengths = np.array(record.length, float)
    nats = np.array(record.nats, float)
    if len(lengths) != len(nats):
        raise ValueError("base_loss: length and nats differ in number")
    return LengthCurve(log_length=np.log(lengths), nats=nats)

"""The runs that `pml forgetting` measures, on each kind of text, and forgetting.json.

The one number of a run is `harm`: by how many nats per token its adapter raises the loss of text of
the kinds that ship with pml, each kind the same weight, on parts that no penalty reads. Without
torch until something is measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pml_cli.config.cache_key import CacheKey
from pml_cli.config.reports import Forgetting
from pml_cli.config.schema import Loss, Model, Run
from pml_cli.data.generic_text import KINDS, beginnings, generic_pool, generic_windows
from pml_cli.data.source import Sample
from pml_cli.data.windows import Pool, text_pool, trained_targets
from pml_cli.evaluation.finished_runs import (
    FinishedRun,
    ForgettingEntry,
    Measurements,
    OnMeasured,
    OnStage,
    Texts,
    finished_run_list,
    measure_missing,
    no_stage,
)
from pml_cli.evaluation.subject import EvalRun
from pml_cli.io import finite_or_none
from pml_cli.results.run_id import loss_label
from pml_cli.stats import t_quantile

if TYPE_CHECKING:
    from pml_cli.evaluation.forgetting import Readings, WindowMeans
    from pml_cli.model.adapter_bank import AdapterBank
    from pml_cli.model.split_model import SplitModel

FILE_NAME = "forgetting.json"

# Of forgetting.json.
FORMAT = 1

# What the base model writes by itself, and the user's file.
OWN = "own"
FILE = "file"

# Recall and the penalty as it ended, of result.json; runs of earlier versions have no penalty.
MORE_FIELDS = ("token_accuracy", "exact_match", "keep", "keep_harm")

# Tokens of a text, more than any has.
ALL_TOKENS = 2**40

# After so many, what was measured is written down. The base has read short texts already.
RUNS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Harm:
    """Rise of the loss on other text through an adapter, nats per token."""

    mean: float | None
    """Mean over KINDS, each with the same weight; None where one of them was not measured."""

    low: float | None
    """The 95 % interval over the windows of text; None where a kind has a single one."""

    high: float | None


def harm_of(rises: Mapping[str, ArrayLike]) -> Harm:
    """The harm of one run.

    Args:
        rises: of each kind of text, by how much the loss of each window rises, (n,); others than
            KINDS do not count.
    """
    if not set(KINDS) <= set(rises):
        return Harm(mean=None, low=None, high=None)

    of_kinds = [np.asarray(rises[kind], float) for kind in KINDS]
    mean = float(np.mean([values.mean() for values in of_kinds]))
    errors = np.array([_standard_error(values) for values in of_kinds])
    if not np.isfinite(errors).all():
        return Harm(mean=mean, low=None, high=None)
    if not errors.any():
        return Harm(mean=mean, low=mean, high=mean)

    # Satterthwaite's degrees of freedom: the kinds differ in how much their windows differ.
    variances = errors**2
    degrees_of_kinds = np.array([len(values) - 1 for values in of_kinds])
    degrees = variances.sum() ** 2 / (variances**2 / degrees_of_kinds).sum()
    half = t_quantile(degrees) * math.sqrt(variances.sum()) / len(KINDS)
    return Harm(mean=mean, low=mean - half, high=mean + half)


def _standard_error(values: NDArray[np.float64]) -> float:
    """Standard error of the mean of independent values; nan for a single one."""
    if len(values) < 2:
        return math.nan
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def measurable_runs(
    runs: pd.DataFrame, settings: Forgetting
) -> tuple[list[FinishedRun], list[str]]:
    """The runs that can be measured, and one line for each distinct fault of the others.

    Args:
        runs: rows of result.json, with `folder`.
    """
    pools: dict[CacheKey, dict[str, Pool]] = {}

    def texts_of(run: Run, samples: list[Sample]) -> tuple[Texts, Sequence[object]]:
        model = CacheKey(run.model)
        if model not in pools:
            pools[model] = _pools(run.model, settings)
        of_model = pools[model]

        targets = trained_targets(run, samples)
        # What the penalty has seen is no test of it. What ships with pml is in two parts anyway.
        seen = [window.target for window in generic_windows(run)]
        texts: Texts = {}
        for kind, pool in of_model.items():
            has_other_text = kind == FILE or run.loss.keep_text is not None
            avoided = [*targets, *seen] if has_other_text else targets
            texts[kind] = pool.windows_without(avoided, ALL_TOKENS)
        depends_on: list[object] = [FORMAT, [(kind, of_model[kind].hash) for kind in of_model]]
        if OWN in settings.kinds:
            texts[OWN] = beginnings(run.model)
            depends_on += [OWN, [prompt.prompt for prompt in texts[OWN]]]
        return texts, depends_on

    measurable, faults = finished_run_list(runs, settings, texts_of, MORE_FIELDS)
    for finished in measurable:
        finished.fields.update(_penalty_fields(finished.subject.run.loss))
    return measurable, faults


def _penalty_fields(loss: Loss) -> dict[str, Any]:
    """`method`: the loss without what keeps other text; `penalty`: what does, in words."""
    defaults = Loss()
    changed = {}
    for name in ("keep", "keep_harm", "keep_by", "keep_text"):
        if loss.keeps and getattr(loss, name) != getattr(defaults, name):
            changed[name] = getattr(loss, name)
    if "keep_text" in changed:
        changed["keep_text"] = Path(changed["keep_text"]).name

    parts = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in changed.items()
    ]
    plain = {name: getattr(defaults, name) for name in changed}
    return {
        "method": loss_label(dataclasses.replace(loss, **plain)),
        "penalty": " ".join(parts).replace("keep_", ""),
        "asked_keep": loss.keep,
        "asked_harm": loss.keep_harm,
    }


def _pools(model: Model, settings: Forgetting) -> dict[str, Pool]:
    """The windows of each kind, but for what the model itself writes."""
    pools = {}
    for kind in settings.kinds:
        if kind != OWN:
            pools[kind] = generic_pool(model, kind, "held_out")
    if settings.text is not None:
        pools[FILE] = text_pool(model, settings.text)
    return pools


def measure(
    runs: Sequence[EvalRun],
    device: str,
    on_measured: OnMeasured,
    on_stage: OnStage = no_stage,
) -> None:
    """Measure every run; each model is loaded once, and reads a short text once.

    Args:
        runs: what to measure.
        device: `model.device` of all of them.
        on_measured: called with the runs that are done.
        on_stage: called with the kind of text that is read now.

    Raises:
        UserError: a model cannot be loaded, has other weights than it had, or an adapter does not
            fit.
    """
    # Imported here: torch takes seconds, and a repeated report measures nothing.
    from pml_cli.evaluation.adapters import adapters_by_sites, for_each_model
    from pml_cli.evaluation.forgetting import Readings
    from pml_cli.model.adapter_bank import stack

    def measure_group(base: SplitModel, group: Sequence[EvalRun]) -> None:
        texts = {run.id: _with_own_text(base, run.texts) for run in group}
        for loaded in adapters_by_sites(base, group):
            readings = Readings(base)
            for start in range(0, len(loaded), RUNS_AT_ONCE):
                chunk = loaded[start : start + RUNS_AT_ONCE]
                bank = stack([adapter for _, adapter in chunk])
                by_run = _by_kind(readings, bank, [texts[run.id] for run, _ in chunk], on_stage)
                chunk_runs = [run for run, _ in chunk]
                entries = map(entry_of, by_run)
                on_measured(list(zip(chunk_runs, entries, strict=True)))

    for_each_model(runs, device, measure_group)


def _with_own_text(base: SplitModel, texts: Texts) -> Texts:
    """The texts, with what the model writes in place of the beginnings."""
    from pml_cli.evaluation.own_text import own_text

    if OWN not in texts:
        return texts
    # A streamed model would be read once a token.
    own = [] if base.stream else own_text(base, texts[OWN])
    return texts | {OWN: own}


def _by_kind(
    readings: Readings, bank: AdapterBank, texts: Sequence[Texts], on_stage: OnStage
) -> list[dict[str, WindowMeans]]:
    """The windows of each kind of text that a run has, run by run."""
    by_run: list[dict[str, WindowMeans]] = [{} for _ in texts]
    kinds = dict.fromkeys(kind for of_run in texts for kind in of_run)
    for kind in kinds:
        on_stage(kind)
        cells = [of_run.get(kind, []) for of_run in texts]
        for compared, measured in zip(by_run, readings.by_window(bank, cells), strict=True):
            if measured is not None:
                compared[kind] = measured
    return by_run


def entry_of(windows: Mapping[str, WindowMeans]) -> dict[str, Any]:
    """What forgetting.json holds of the measurement of one run.

    Args:
        windows: of each kind of text that was measured.

    Returns:
        `harm` with `harm_low` and `harm_high` (`Harm`), and of each of `kinds`: windows, tokens,
            base_loss, loss, harm, kl, changed, and their standard errors over windows (_se).
    """
    harm = harm_of({kind: measured.harm for kind, measured in windows.items()})
    kinds = {}
    for kind, measured in windows.items():
        row: dict[str, Any] = {"windows": len(measured.tokens), **measured.total()}
        row["harm"] = row["loss"] - row["base_loss"]
        errors = {"harm": measured.harm, "kl": measured.means["kl"]}
        errors["changed"] = measured.means["changed"]
        for name, values in errors.items():
            row[f"{name}_se"] = finite_or_none(_standard_error(values))
        kinds[kind] = row
    return {"harm": harm.mean, "harm_low": harm.low, "harm_high": harm.high, "kinds": kinds}


def measure_runs(
    runs: pd.DataFrame,
    settings: Forgetting,
    out: Path,
    show: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The forgetting of finished runs; what forgetting.json in `out` holds is not measured again.

    Args:
        runs: rows of result.json, with `folder`.
        settings: kinds of text, device and the like; `out` and `figures` are not read.
        out: folder of forgetting.json, which gets what is measured.
        show: called with the number of runs done, and of all that are measured now.

    Returns:
        the entries of forgetting.json of the runs that can be measured (RUN_FIELDS, MORE_FIELDS,
            and `entry_of`), and one line for each distinct fault of the others.

    Raises:
        UserError: a model cannot be loaded, has other weights than it had, or an adapter does not
            fit; forgetting.json cannot be read.
    """
    selected, faults = measurable_runs(runs, settings)
    measurements = Measurements(out / FILE_NAME, FORMAT, ForgettingEntry)
    missing = measurements.missing(selected)
    if missing:
        measure_missing(measurements, missing, partial(measure, device=settings.device), show)
    return measurements.of(selected), faults

"""Finished runs that are to be measured again, and the file that holds what was measured.

For `pml lasting` and `pml forgetting`, each with its own texts. The file has an entry for each run
that was measured. Its `key` is a hash of all that the measurement depends on, so that a run is
measured again only where that has changed. Without torch: a repeated report measures nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import pandas as pd
from pydantic import AfterValidator
from typing_extensions import Required, TypedDict

from pml_cli.config.load import has_movable_data, has_movable_model, moved_files, read_run
from pml_cli.config.reports import RunSettings
from pml_cli.config.schema import Run
from pml_cli.data.opened import samples_of, tokens_hash
from pml_cli.data.source import Sample
from pml_cli.errors import UserError
from pml_cli.evaluation.conditions import CONDITIONS
from pml_cli.evaluation.subject import EvalRun
from pml_cli.io import jsonable, write_json
from pml_cli.results.folder import RunFolder
from pml_cli.validation import Count, Number, checked, read_json

# What an entry has of result.json.
RUN_FIELDS = [
    "id",
    "folder",
    "model",
    "data",
    "data_seed",
    "adapter",
    "layer",
    "loss",
    "setting",
    "rank",
    "seqlen",
    "target_tokens",
    "samples",
    "seed",
    "lr",
    "steps",
]

# Those of them without which a run belongs to no group of a table.
NEEDED = [name for name in RUN_FIELDS if name != "setting"]

Texts: TypeAlias = dict[str, list[Sample]]
"""Text that a run was not trained on, by name."""

TextsOf: TypeAlias = Callable[[Run, list[Sample]], tuple[Texts, Sequence[object]]]
"""From a run and what it was trained on, to its texts and what they depend on."""

OnMeasured: TypeAlias = Callable[[list[tuple[EvalRun, dict[str, Any]]]], None]
"""Called with runs that have been measured, and what was measured of each."""

OnStage: TypeAlias = Callable[[str], None]
"""Called with what is measured now, in a few words."""


def no_stage(_stage: str) -> None:
    """Ignore progress."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One finished run, and all that its measurement depends on."""

    fields: dict[str, Any]
    """RUN_FIELDS of result.json, and more of them where they were asked for."""

    subject: EvalRun
    key: str
    """A hash of the adapter, the texts and what else decides the measurement."""


class TrainedOn(TypedDict):
    """env.json of a run that is to be measured: hashes of its tokens and of the base model."""

    tokens: str
    base_weights: str


class EntriesFile(TypedDict):
    """The file of `Measurements`."""

    format: int
    runs: list[Any]


class Entry(TypedDict):
    """What was measured of one run, of this version's format."""

    id: str
    key: str


class ConditionFields(TypedDict, total=False):
    """Recall under one condition."""

    status: Required[str]
    token_accuracy: Number | None
    exact_match: Number | None
    final_loss: Number | None
    share_above_threshold: Number | None
    log10_p: Number | None
    lost: Number | None
    lost_above: Number | None
    won: Number | None
    kept_whole: Number | bool | None
    first_failure: Number | None
    least_margin: Number | None
    least_right_margin: Number | None
    shift_rms: Number | None
    fall_worst: Number | None
    violations: Number | None
    edit_distance: Number | None
    free_exact_match: Number | None
    # Beyond greedy recall.
    prefix_share: Number | None
    recall_from_8: Number | None
    recall_from_32: Number | None
    extractable_50: Number | None
    compression_ratio: Number | None
    log10_p_07: Number | None
    t50: Number | None
    recall_after_wrong: Number | None
    accuracy_after_wrong: Number | None


class TextFields(TypedDict):
    """Forgetting of one text."""

    base_loss: Number | None
    loss: Number | None
    kl: Number | None
    changed: Number | None


class DamageFields(TypedDict):
    """Forgetting of both texts of `pml lasting`."""

    text: TextFields
    random: TextFields


def _with_every_condition(conditions: dict[str, Any]) -> dict[str, Any]:
    for condition in CONDITIONS:
        if condition.name not in conditions:
            raise ValueError(f"has no {condition.name}")
    return conditions


class LastingEntry(Entry):
    """An entry of lasting.json."""

    conditions: Annotated[dict[str, ConditionFields], AfterValidator(_with_every_condition)]
    damage: DamageFields


class KindFields(TypedDict):
    """Forgetting of one kind of text, which is there where it was measured."""

    base_loss: Number
    loss: Number
    kl: Number
    changed: Number
    windows: Count
    tokens: Count
    harm: Number | None


class ForgettingEntry(Entry):
    """An entry of forgetting.json."""

    kinds: dict[str, KindFields]
    harm: Number | None
    harm_low: Number | None
    harm_high: Number | None


class Measurements:
    """What was measured of runs, by their ids: the entries of lasting.json or forgetting.json."""

    def __init__(self, path: Path, file_format: int, schema: type = Entry) -> None:
        """Read the file; none, or one of another format, has no entries.

        Args:
            path: the file.
            file_format: of this version.
            schema: of an entry.

        Raises:
            UserError: it cannot be read.
        """
        self.path = path
        self.format = file_format
        self._entries = _read_entries(path, file_format, schema)
        self._unsaved = False

    def missing(self, runs: Iterable[FinishedRun]) -> list[FinishedRun]:
        """The runs that are to be measured; entries of those that have changed are dropped."""
        missing = []
        for run in runs:
            entry = self._entries.get(run.fields["id"], {})
            if entry.get("key") != run.key:
                self._entries.pop(run.fields["id"], None)
                missing.append(run)
        return missing

    def add(self, run: FinishedRun, measured: dict[str, Any]) -> None:
        """Add the entry of a run; numbers that are not finite are null."""
        self._entries[run.fields["id"]] = jsonable({**run.fields, "key": run.key, **measured})
        self._unsaved = True

    def save(self) -> None:
        """Write all entries, as long as there is no report; nothing where none is new."""
        if self._unsaved:
            write_json(self.path, {"format": self.format, "runs": list(self._entries.values())})
            self._unsaved = False

    def of(self, runs: Iterable[FinishedRun]) -> list[dict[str, Any]]:
        """The entries of runs, whose folders may have moved since."""
        return [self._entries[run.fields["id"]] | run.fields for run in runs]

    def others(self, runs: Iterable[FinishedRun]) -> list[dict[str, Any]]:
        """The entries of all runs but these."""
        ids = {run.fields["id"] for run in runs}
        return [entry for run_id, entry in self._entries.items() if run_id not in ids]


def _read_entries(path: Path, file_format: int, schema: type) -> dict[str, Any]:
    if not os.path.lexists(path):
        return {}

    remedy = "delete it to measure anew"
    content = read_json(path, EntriesFile, remedy)
    if content["format"] != file_format:
        return {}
    entries = {}
    for entry in content["runs"]:
        checked(path, entry, schema, remedy)
        entries[entry["id"]] = entry
    return entries


def measure_missing(
    measurements: Measurements,
    missing: Sequence[FinishedRun],
    measure: Callable[..., None],
    show: Callable[[int, int], None] | None = None,
    on_stage: OnStage = no_stage,
) -> None:
    """Measure runs and add their entries; the file is written whenever some are done.

    Args:
        measurements: gets the entries.
        missing: what `Measurements.missing` gives.
        measure: measures `runs`, and hands them to `on_measured` as they are done.
        show: called with the number of runs done, and of all.
        on_stage: called with what is measured now.

    Raises:
        UserError: a model cannot be loaded, has other weights than it had, or an adapter does not
            fit.
    """
    by_id = {run.subject.id: run for run in missing}
    done = 0

    def on_measured(results: list[tuple[EvalRun, dict[str, Any]]]) -> None:
        nonlocal done
        for subject, measured in results:
            measurements.add(by_id[subject.id], measured)
        measurements.save()
        done += len(results)
        if show is not None:
            show(done, len(missing))

    with moved_files():
        measure([run.subject for run in missing], on_measured=on_measured, on_stage=on_stage)


def finished_run_list(
    runs: pd.DataFrame,
    settings: RunSettings,
    texts_of: TextsOf,
    more_fields: Sequence[str] = (),
) -> tuple[list[FinishedRun], list[str]]:
    """Every run with its samples and texts, and the faults of those that cannot be measured.

    Args:
        runs: rows of result.json, with `folder`.
        settings: where model and data are now, and whether a model's own code may run.
        texts_of: the texts that a run is measured on.
        more_fields: of result.json, beside RUN_FIELDS; None where a run has none.

    Returns:
        The runs that can be measured, and one line for each distinct fault.

    Raises:
        UserError: a new place of what none of the runs has.
    """
    names = [*RUN_FIELDS, *more_fields]
    rows = runs.reindex(columns=list(dict.fromkeys([*runs.columns, *names])))

    measurable: list[FinishedRun] = []
    faults: list[str] = []
    for row in rows.to_dict("records"):
        fields = {name: _json_value(row[name]) for name in names}
        try:
            subject = _subject(fields, settings)
            texts, depends_on = texts_of(subject.run, subject.samples)
        except UserError as error:
            faults.append(str(error))
            continue
        key = _measurement_key(subject, depends_on)
        subject = dataclasses.replace(subject, texts=texts)
        measurable.append(FinishedRun(fields=fields, subject=subject, key=key))

    _check_moved(settings, [run.subject.run for run in measurable])
    return measurable, list(dict.fromkeys(faults))


def _check_moved(settings: RunSettings, runs: Sequence[Run]) -> None:
    """Refuse a new place of what none of the runs has.

    Raises:
        UserError: names the setting.
    """
    if not runs:
        return

    if settings.model.path and not any(map(has_movable_model, runs)):
        path = settings.model.path
        raise UserError(f"model.path={path}: these runs use the embedded model; leave it out")
    if settings.data.path and not any(map(has_movable_data, runs)):
        path = settings.data.path
        raise UserError(f"data.path={path}: these runs read no data file; leave it out")


def _json_value(value: Any) -> Any:
    """A field of result.json as JSON holds it: pandas has nan for null."""
    if isinstance(value, list):
        return value
    return None if pd.isna(value) else value


def _subject(fields: dict[str, Any], settings: RunSettings) -> EvalRun:
    """One run, without its texts.

    Raises:
        UserError: result.json lacks a field, the adapter is missing, the data is not what the run
            was trained on, or its model runs code of its own and the settings do not allow that.
    """
    path = Path(fields["folder"])
    folder = RunFolder(path.parent, path.name)
    lacking = [name for name in NEEDED if fields[name] is None]
    if lacking:
        raise UserError(
            f"{folder.result}: lacks the field {lacking[0]} (an older version?); "
            "train this run again"
        )
    if not _weights(folder.adapter).is_file():
        raise UserError(
            f"{folder.path}: this run has no adapter/ folder, so there is nothing to measure"
        )

    run = read_run(
        folder.config,
        model_path=settings.model.path,
        data_path=settings.data.path,
    )
    check_code_is_allowed(run, folder, settings.trust_remote_code)

    # A foreign config.yaml could ask for any length, and for all of the memory.
    if fields["seqlen"] is not None and run.seqlen != fields["seqlen"]:
        raise UserError(
            f"{folder.config}: seqlen={run.seqlen}: must be {fields['seqlen']} as in result.json"
        )

    environment = read_environment(folder)
    samples = trained_samples(run, folder.path)
    if tokens_hash(samples) != environment["tokens"]:
        raise UserError(
            f"{folder.path}: its data is no longer what it was trained on ({run.data.source})"
        )

    return EvalRun(
        id=fields["id"],
        run=run,
        samples=samples,
        adapter=folder.adapter,
        weights=environment["base_weights"],
    )


def _weights(adapter: Path) -> Path:
    return adapter / "adapter_model.safetensors"


def check_code_is_allowed(run: Run, folder: RunFolder, allowed: bool) -> None:
    """Refuse a run whose model brings code of its own, unless the command line allows it.

    Args:
        run: as it was read back.
        folder: of the run.
        allowed: what the command line says.

    Raises:
        UserError: it does, and the command line does not.
    """
    # A folder may come from others: the file alone must not make this process run a model's code.
    if run.model.trust_remote_code and not allowed:
        raise UserError(
            f"{folder.config}: model.trust_remote_code=true, so this would run its model's own "
            "code; give trust_remote_code=true to allow it"
        )


def trained_samples(run: Run, folder: Path) -> list[Sample]:
    """The samples of a run that was read back.

    Args:
        run: as `read_run` gives it.
        folder: of the run, for errors.

    Raises:
        UserError: its model or data cannot be read, with the setting that says where it is now.
    """
    try:
        with moved_files():
            return samples_of(run)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def read_environment(folder: RunFolder) -> dict[str, Any]:
    """`tokens` and `base_weights` of env.json.

    Raises:
        UserError: it cannot be read.
    """
    content = read_json(folder.env, TrainedOn, "train this run again")
    return {name: content[name] for name in ("tokens", "base_weights")}


def _measurement_key(subject: EvalRun, depends_on: Sequence[object]) -> str:
    """A hash of all that decides the measurement of one run."""
    adapter = hashlib.sha256(_weights(subject.adapter).read_bytes()).hexdigest()
    digest = hashlib.sha256(repr([*depends_on, adapter]).encode())
    return digest.hexdigest()[:16]

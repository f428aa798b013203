"""What `pml lasting` measures: finished runs with their adapters and texts, and lasting.json.

lasting.json has an entry for each run that was measured. Its `key` is a hash of all that the
measurement depends on, so that a run is measured again only where that has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pml_cli.config.cache_key import CacheKey
from pml_cli.config.load import has_movable_data, has_movable_model, moved_files, read_run
from pml_cli.config.reports import Lasting
from pml_cli.config.schema import Run
from pml_cli.data.opened import source_of, tokens_hash
from pml_cli.data.source import Sample
from pml_cli.errors import UserError
from pml_cli.evaluation.conditions import CONDITIONS
from pml_cli.evaluation.eval_text import Pool, random_pool, text_pool, trained_targets
from pml_cli.evaluation.subject import EvalRun
from pml_cli.runs.folder import RunFolder

# Of lasting.json.
FORMAT = 1

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


@dataclass(frozen=True, kw_only=True)
class LastingRun:
    """One finished run, and all that its measurement depends on."""

    fields: dict[str, Any]
    """RUN_FIELDS of result.json."""

    subject: EvalRun
    key: str
    """A hash of the adapter, texts, conditions and settings."""

    def is_measured(self, entries: dict[str, Any]) -> bool:
        """Whether the entries of lasting.json (by run id) hold this very measurement."""
        entry = entries.get(self.fields["id"], {})
        return bool(entry.get("key") == self.key)


def read_entries(path: Path) -> dict[str, Any]:
    """The entries of a lasting.json by run id; none where it is missing or of another format.

    Raises:
        UserError: the file cannot be read.
    """
    if not path.exists():
        return {}

    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            return {}
        return {entry["id"]: entry for entry in content["runs"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not readable ({error}); delete it to measure anew") from error


def measurable_runs(
    runs: pd.DataFrame,
    settings: Lasting,
) -> tuple[list[LastingRun], list[str]]:
    """Every run with its samples and texts, and the faults of those that cannot be measured.

    Args:
        runs: rows of result.json, with `folder`.

    Returns:
        The runs that can be measured, and one line for each distinct fault.
    """
    columns = list(dict.fromkeys([*runs.columns, *RUN_FIELDS]))
    rows = runs.reindex(columns=columns)
    pools: dict[CacheKey, dict[str, Pool]] = {}

    measurable: list[LastingRun] = []
    faults: list[str] = []
    for row in rows.to_dict("records"):
        fields = {name: _json_value(row[name]) for name in RUN_FIELDS}
        try:
            measurable.append(_lasting_run(fields, settings, pools))
        except UserError as error:
            faults.append(str(error))
    _check_moved(settings, [run.subject.run for run in measurable])
    return measurable, list(dict.fromkeys(faults))


def _check_moved(settings: Lasting, runs: Sequence[Run]) -> None:
    """Refuse a new place of what none of the runs has.

    Raises:
        UserError: names the setting.
    """
    if not runs:
        return

    if settings.model.path and not any(map(has_movable_model, runs)):
        path = settings.model.path
        raise UserError(f"model.path={path}: these runs are of the embedded model; leave it out")
    if settings.data.path and not any(map(has_movable_data, runs)):
        path = settings.data.path
        raise UserError(f"data.path={path}: the data of these runs is in no file; leave it out")


def _json_value(value: Any) -> Any:
    """A field of result.json as JSON holds it: pandas has nan for null."""
    if isinstance(value, list):
        return value
    return None if pd.isna(value) else value


def _lasting_run(
    fields: dict[str, Any],
    settings: Lasting,
    pools: dict[CacheKey, dict[str, Pool]],
) -> LastingRun:
    """One run.

    Args:
        pools: of each model the texts by name; filled in where a model is new.

    Raises:
        UserError: the adapter is missing, the data is not what the run was trained on, or its
            model runs code of its own and the settings do not allow that.
    """
    path = Path(fields["folder"])
    folder = RunFolder(path.parent, path.name)
    weights = folder.adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{folder.path}: no adapter/ in this run's folder, so there is nothing to measure"
        )

    run = read_run(
        folder.config,
        model_path=settings.model.path,
        data_path=settings.data.path,
    )
    check_code_is_allowed(run, folder, settings.trust_remote_code)

    environment = read_environment(folder)
    samples = trained_samples(run, folder.path)
    if tokens_hash(samples) != environment["tokens"]:
        raise UserError(
            f"{folder.path}: its data is no longer what it was trained on ({run.data.source})"
        )

    model = CacheKey(run.model)
    if model not in pools:
        pools[model] = {
            "text": text_pool(run.model, settings.text),
            "random": random_pool(run.model, settings.tokens),
        }
    avoided = trained_targets(run, samples)
    texts = {}
    for name, pool in pools[model].items():
        texts[name] = pool.windows_without(avoided, settings.tokens)

    subject = EvalRun(
        id=fields["id"],
        run=run,
        samples=samples,
        adapter=folder.adapter,
        weights=environment["base_weights"],
        texts=texts,
    )
    key = _measurement_key(weights, settings, list(pools[model].values()))
    return LastingRun(fields=fields, subject=subject, key=key)


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
            return source_of(run).take(run.seqlen)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def read_environment(folder: RunFolder) -> dict[str, Any]:
    """`tokens` and `base_weights` of env.json.

    Raises:
        UserError: it cannot be read.
    """
    try:
        environment = json.loads(folder.env.read_text("utf-8"))
        return {name: environment[name] for name in ("tokens", "base_weights")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.env}: not readable ({error}); train this run again") from error


def _measurement_key(weights: Path, settings: Lasting, pools: Sequence[Pool]) -> str:
    """A hash of all that decides the measurement of one run."""
    content = [
        FORMAT,
        [condition.name for condition in CONDITIONS],
        settings.tokens,
        settings.decode,
        [pool.hash for pool in pools],
        hashlib.sha256(weights.read_bytes()).hexdigest(),
    ]
    digest = hashlib.sha256(repr(content).encode())
    return digest.hexdigest()[:16]

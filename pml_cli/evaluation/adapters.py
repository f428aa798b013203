"""The models and adapters of finished runs, loaded to be run again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

from safetensors import SafetensorError

from pml_cli.errors import UserError
from pml_cli.evaluation.subject import EvalRun
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.device import free_memory
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel

LoadedRuns: TypeAlias = list[tuple[EvalRun, AdapterBank]]
"""Runs, each with its adapter, a bank of one; all on the same modules."""


def for_each_model(
    runs: Sequence[EvalRun], device: str, measure: Callable[[SplitModel, list[EvalRun]], None]
) -> None:
    """Load each model once, and measure the runs that were trained on it.

    Args:
        runs: of any models.
        device: `model.device` of all of them. Nothing is compiled: readers run few passes.
        measure: called with each model and its runs; keeps neither the model nor its tensors.

    Raises:
        UserError: a model cannot be loaded, or has other weights than it had.
    """
    by_model: dict[str, list[EvalRun]] = {}
    for run in runs:
        model = dataclasses.replace(run.run.model, device=device, compile=False)
        by_model.setdefault(repr(model), []).append(run)

    for i, group in enumerate(by_model.values()):
        if i:
            # What the model before has left.
            free_memory()
        base = load_model(dataclasses.replace(group[0].run.model, device=device, compile=False))
        check_weights(base, group)
        measure(base, group)
        # Not beside the next one.
        del base


def check_weights(base: SplitModel, runs: Sequence[EvalRun]) -> None:
    """Refuse a model that has other weights than in the training of a run.

    Raises:
        UserError: names the first such run.
    """
    # Margins on other weights would say nothing about the run.
    weights = base.weights_hash()
    for run in runs:
        if run.weights != weights:
            raise UserError(
                f"{run.adapter.parent}: the weights of model={run.run.model.name} differ from "
                "those it was trained on; give model.path= of the original weights, or train it "
                "again (early versions of pml used another hash)"
            )


def adapters_by_sites(base: SplitModel, runs: Sequence[EvalRun]) -> list[LoadedRuns]:
    """The runs with their adapters, those on the same modules together.

    Raises:
        UserError: an adapter cannot be read, or does not fit the run's settings.
    """
    by_sites: dict[str, LoadedRuns] = {}
    for run in runs:
        bank = load_adapter(base, run)
        sites = repr(list(bank.sites))
        by_sites.setdefault(sites, []).append((run, bank))
    return list(by_sites.values())


def load_adapter(base: SplitModel, run: EvalRun) -> AdapterBank:
    """The adapter of a finished run, a bank of one on the model's device.

    Raises:
        UserError: it cannot be read, or does not fit the run's settings.
    """
    settings = run.run
    bank = AdapterBank.initial(
        base.sites(settings.adapter),
        settings.adapter,
        ranks=[settings.rank],
        seeds=[settings.seed],
        dtype=base.adapter_dtype,
    )

    try:
        bank.load(0, run.adapter)
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{run.adapter}: not the adapter of this run ({reason})") from error
    return bank.to(base.device)

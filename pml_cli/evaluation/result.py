"""The numbers of a finished run: the body of result.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.data.cell import CellPlan
from pml_cli.data.opened import source_of
from pml_cli.evaluation import decoding, held_out_gain
from pml_cli.evaluation.recall_scores import base_fields, mean_edit_distance, recall_fields
from pml_cli.model.adapter_bank import AdapterBank, stack
from pml_cli.model.files import hub_id
from pml_cli.model.split_model import SplitModel
from pml_cli.results.run_id import loss_label, settings_label
from pml_cli.stats import LN2
from pml_cli.training.batches import SampleOrder
from pml_cli.training.scores import summarise
from pml_cli.training.trainer import Cell

NOT_MEASURED: dict[str, Any] = {
    "free_accuracy": None,
    "free_exact_match": None,
    "edit_distance": None,
    "unseen_exact_match": None,
    **held_out_gain.NOT_MEASURED,
}


@dataclass(frozen=True, kw_only=True)
class ExtraMeasures:
    """What was measured of one cell after its training."""

    fields: dict[str, Any]
    """Fields of result.json: free-running recall, recall of test samples, the gain on held-out
    samples; None where they are not measured."""

    decoded: list[list[int]] | None
    """Token ids of each sample as decoded from its prompt; None: not decoded."""


def result_of(plan: CellPlan, cell: Cell, base: SplitModel) -> dict[str, Any]:
    """The body of result.json, but for `extra_measures` and times.

    Args:
        plan: the cell as it was planned.
        cell: the cell after its training.
        base: the model that it was trained on.

    Returns:
        settings and numbers; losses in nats per target token.
    """
    assert cell.initial is not None
    assert cell.final is not None
    assert cell.adapter is not None

    run = cell.run
    summary = summarise(cell.final)
    tokens = len(cell.final.nll)
    # The last token of a sample is predicted, not read.
    inputs = sum(len(sample.prompt) + len(sample.target) - 1 for sample in plan.samples)
    base_loss = float(cell.initial.nll.mean())
    delta_loss = base_loss - summary["final_loss"]

    # Known only where the distribution of the source is: random tokens.
    source_nats = source_of(run).entropy
    bits_memorised = None
    if source_nats is not None:
        bits_memorised = tokens * (source_nats - summary["final_loss"]) / LN2

    return {
        "model": run.model.name,
        "hub_id": hub_id(run.model),
        "data": run.data.label,
        "data_seed": run.data.seed,
        "adapter": run.adapter.kind,
        "loss": loss_label(run.loss),
        "setting": settings_label(run),
        "layer": base.first_layer(cell.adapter),
        "lr": run.train.peak_lr,
        "steps": plan.steps,
        "rank": run.rank,
        "seqlen": run.seqlen,
        "target_tokens": tokens,
        "samples": len(plan.samples),
        "trainable_parameters": cell.adapter.parameter_count(0),
        "effective_parameters": cell.adapter.effective_parameter_count(0, inputs),
        "seed": run.seed,
        "base_loss": base_loss,
        **summary,
        **recall_fields(plan.samples, cell.final),
        **base_fields(plan.samples, cell.initial),
        "delta_loss": delta_loss,
        "bits_gained": tokens * delta_loss / LN2,
        "source_nats": source_nats,
        "bits_memorised": bits_memorised,
        "steps_to_recall": _steps_to_recall(cell),
        "keep": cell.keep,
        "keep_harm": cell.keep_harm,
        "gradient_above": float(pd.concat(cell.curve)["gradient_above"].mean()),
        "tokens_seen": _tokens_seen(plan, cell.steps_run),
        "steps_run": cell.steps_run,
        "passes": cell.steps_run,
        "converged": cell.converged,
        "expected_gain": cell.expected_gain,
        # Of a cell that has converged the rest of the steps would have changed nothing.
        "stopped_early": cell.steps_run < plan.steps and not cell.converged,
    }


def _steps_to_recall(cell: Cell) -> int | None:
    """The first logged step at which every target token is predicted correctly, if any."""
    # Recall may be lost again later: the first time counts.
    logged = pd.concat(cell.logged)
    steps = logged["step"].to_numpy(int)
    failed_steps = steps[~logged["correct"].to_numpy(bool)]
    recalled_steps = np.setdiff1d(steps, failed_steps)
    return int(recalled_steps[0]) if len(recalled_steps) else None


def _tokens_seen(plan: CellPlan, steps: int) -> int:
    """Target tokens that the training has scored, each as often as it was."""
    train = plan.run.train
    lengths = [len(sample.target) for sample in plan.samples]
    # The same draws as in the training: the order depends on nothing else.
    order = SampleOrder(len(lengths), train.batch, plan.run.seed, train.curriculum)
    if order.is_full_batch:
        return steps * sum(lengths)

    tokens = 0
    for _ in range(steps):
        tokens += sum(lengths[i] for i in order.next())
    return tokens


def extra_measures(base: SplitModel, cells: Sequence[Cell]) -> list[ExtraMeasures]:
    """Measures that need another pass over the model, of cells that have just left their pack.

    All cells are decoded as one batch.
    """
    fields = {id(cell): {**NOT_MEASURED} for cell in cells}
    decoded_ids: dict[int, list[list[int]]] = {}

    # An adapter that has failed has weights, but no numbers worth having.
    trained = [cell for cell in cells if cell.failure is None]
    decodable = [cell for cell in trained if cell.run.train.decode]
    if decodable:
        bank = _bank(decodable)
        for cell, decoded in zip(decodable, _decoded(base, bank, decodable), strict=True):
            decoded_ids[id(cell)] = decoded
            fields[id(cell)] |= decoding.recall(cell.samples, decoded)
            fields[id(cell)]["edit_distance"] = mean_edit_distance(cell.samples, decoded)
        for cell, unseen in zip(decodable, _unseen_recall(base, bank, decodable), strict=True):
            fields[id(cell)]["unseen_exact_match"] = unseen
    if trained:
        for cell, gain in zip(trained, _gains(base, trained), strict=True):
            fields[id(cell)] |= gain

    measures = []
    for cell in cells:
        of_cell = ExtraMeasures(fields=fields[id(cell)], decoded=decoded_ids.get(id(cell)))
        measures.append(of_cell)
    return measures


def _gains(base: SplitModel, cells: Sequence[Cell]) -> list[dict[str, float | None]]:
    """The gain of trained cells on held-out samples of their sources."""
    held_out = []
    for cell in cells:
        source = source_of(cell.run)
        held_out.append(source.held_out(cell.run.seqlen))
    return held_out_gain.measure(base, _bank(cells), held_out)


def _decoded(base: SplitModel, bank: AdapterBank, cells: Sequence[Cell]) -> decoding.Decoded:
    """Token ids of every sample of trained cells, as their adapters write them by themselves."""
    scores = []
    for cell in cells:
        assert cell.final is not None
        scores.append(cell.final)
    samples = [cell.samples for cell in cells]
    # A reader wants to see what came out instead; not of a model that is read from its files once
    # a token.
    beyond = base.stream is None
    return decoding.decode_within_memory(base, bank, samples, scores, beyond=beyond)


def _unseen_recall(
    base: SplitModel,
    bank: AdapterBank,
    cells: Sequence[Cell],
) -> list[float | None]:
    """The share of the test samples of each cell's source that its adapter writes exactly."""
    test_samples = [source_of(cell.run).test_samples for cell in cells]
    # Nothing is known of these: they were never scored.
    recalls = decoding.measure(base, bank, test_samples)
    return [recall["free_exact_match"] for recall in recalls]


def _bank(cells: Sequence[Cell]) -> AdapterBank:
    """The adapters of trained cells as one bank."""
    banks = []
    for cell in cells:
        assert cell.adapter is not None
        banks.append(cell.adapter)
    return stack(banks)

"""The numbers of a finished run: the body of result.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.data.cell import CellPlan
from pml_cli.data.opened import source_of
from pml_cli.evaluation import decoding, held_out_gain
from pml_cli.model.adapter_bank import AdapterBank, stack
from pml_cli.model.split_model import SplitModel
from pml_cli.runs.run_id import loss_label, settings_label
from pml_cli.stats import LN2
from pml_cli.training.batches import SampleOrder
from pml_cli.training.scores import summarise
from pml_cli.training.trainer import Cell


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
    base_loss = float(cell.initial.nll.mean())
    delta_loss = base_loss - summary["final_loss"]
    source_nats = source_of(run).entropy
    bits_memorised = None
    if source_nats is not None:
        bits_memorised = tokens * (source_nats - summary["final_loss"]) / LN2

    return {
        "model": run.model.name,
        "data": run.data.label,
        "data_seed": run.data.seed,
        "adapter": run.adapter.kind,
        "loss": loss_label(run.loss),
        "setting": settings_label(run),
        "layer": base.first_layer(cell.adapter),
        "lr": run.train.lr,
        "steps": plan.steps,
        "rank": run.rank,
        "seqlen": run.seqlen,
        "target_tokens": tokens,
        "samples": len(plan.samples),
        "trainable_parameters": cell.adapter.parameter_count(0),
        "seed": run.seed,
        "base_loss": base_loss,
        **summary,
        "delta_loss": delta_loss,
        "bits_gained": tokens * delta_loss / LN2,
        "source_nats": source_nats,
        "bits_memorised": bits_memorised,
        "steps_to_recall": _steps_to_recall(cell),
        "gradient_above": float(pd.concat(cell.curve)["gradient_above"].mean()),
        "tokens_seen": _tokens_seen(plan, cell.steps_run),
        "steps_run": cell.steps_run,
        "stopped_early": cell.steps_run < plan.steps,
    }


def _steps_to_recall(cell: Cell) -> int | None:
    """The first logged step at which every target token is predicted correctly; None: there is none."""
    logged = pd.concat(cell.logged)
    steps = logged["step"].to_numpy(int)
    failed_steps = steps[~logged["correct"].to_numpy(bool)]
    recalled_steps = np.setdiff1d(steps, failed_steps)
    return int(recalled_steps[0]) if len(recalled_steps) else None


def _tokens_seen(plan: CellPlan, steps: int) -> int:
    """Target tokens that the training has scored, each as often as it was."""
    train = plan.run.train
    lengths = [len(sample.target) for sample in plan.samples]
    order = SampleOrder(len(lengths), train.batch, plan.run.seed, train.curriculum)
    if order.is_full_batch:
        return steps * sum(lengths)
    return sum(lengths[i] for _ in range(steps) for i in order.next())


def extra_measures(base: SplitModel, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Measures that need another pass over the model, of cells that have just left their pack.

    Returns:
        of each cell free-running recall, recall of test samples and the gain on held-out samples; None where they are not
        measured. All cells are decoded as one batch.
    """
    results: list[dict[str, Any]] = [
        {
            "free_accuracy": None,
            "free_exact_match": None,
            "unseen_exact_match": None,
            **held_out_gain.NOT_MEASURED,
        }
        for _ in cells
    ]
    trained = [k for k, cell in enumerate(cells) if cell.failure is None]
    decoded = [k for k in trained if cells[k].run.train.decode]
    if decoded:
        for k, recall in zip(decoded, _recall(base, [cells[k] for k in decoded]), strict=True):
            results[k] |= recall
    if trained:
        held_out = [source_of(cells[k].run).held_out(cells[k].run.seqlen) for k in trained]
        gains = held_out_gain.measure(base, _bank([cells[k] for k in trained]), held_out)
        for k, gain in zip(trained, gains, strict=True):
            results[k] |= gain
    return results


def _recall(base: SplitModel, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Free-running recall of trained cells, and of the test samples of their sources."""
    bank = _bank(cells)
    scores = [cell.final for cell in cells if cell.final is not None]
    recall = decoding.measure(base, bank, [cell.samples for cell in cells], scores)
    test_recall = decoding.measure(base, bank, [source_of(cell.run).test_samples for cell in cells])
    return [
        {**ours, "unseen_exact_match": test["free_exact_match"]}
        for ours, test in zip(recall, test_recall, strict=True)
    ]


def _bank(cells: Sequence[Cell]) -> AdapterBank:
    """The adapters of trained cells as one bank."""
    return stack([cell.adapter for cell in cells if cell.adapter is not None])

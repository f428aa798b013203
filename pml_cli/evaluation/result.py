"""What is written down of a finished run: its numbers (result.json) and where it ran (env.json)."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.data.cell import CellPlan
from pml_cli.data.opened import source_of
from pml_cli.evaluation.held_out_gain import control_gains
from pml_cli.evaluation.recall import decode_within_memory, free_running
from pml_cli.model.adapter_bank import stack
from pml_cli.model.split_model import SplitModel
from pml_cli.runs.run_id import loss_label, settings_label
from pml_cli.stats import LN2
from pml_cli.training.batches import SampleOrder
from pml_cli.training.scores import summarise
from pml_cli.training.trainer import Cell

VERSIONS = ("pml-cli", "torch", "transformers", "peft", "numpy", "pandas", "hydra-core")


def result_of(planned: CellPlan, cell: Cell, base: SplitModel) -> dict[str, Any]:
    """The numbers of one finished run: the body of result.json. Losses in nats per target token, base model first."""
    assert cell.initial is not None
    assert cell.final is not None
    assert cell.adapter is not None
    run, summary = cell.run, summarise(cell.final)
    base_loss, tokens = float(cell.initial.nll.mean()), len(cell.final.nll)
    delta, nats = base_loss - summary["final_loss"], source_of(run).entropy
    return {
        "model": run.model.name,
        "data": run.data.label,
        "data_seed": run.data.seed,
        "adapter": run.adapter.kind,
        "loss": loss_label(run.loss),
        "setting": settings_label(run),
        "layer": base.first_layer(cell.adapter),
        "lr": run.train.lr,
        "steps": planned.steps,
        "rank": run.rank,
        "seqlen": run.seqlen,
        "target_tokens": tokens,
        "samples": len(planned.samples),
        "trainable_parameters": cell.adapter.parameter_count(0),
        "seed": run.seed,
        "base_loss": base_loss,
        **summary,
        "delta_loss": delta,
        "bits_gained": tokens * delta / LN2,
        "source_nats": nats,
        "bits_memorised": None if nats is None else tokens * (nats - summary["final_loss"]) / LN2,
        "steps_to_recall": _steps_to_recall(cell),
        "gradient_above": float(pd.concat(cell.curve)["gradient_above"].mean()),
        "tokens_seen": _tokens_seen(planned, cell.steps_run),
        "steps_run": cell.steps_run,
        "stopped_early": cell.steps_run < planned.steps,
    }


def _steps_to_recall(cell: Cell) -> int | None:
    """The first logged step with every target token predicted right; None: there was none."""
    logged = pd.concat(cell.logged)
    steps = np.unique(logged["step"].to_numpy(int))
    wrong = logged["step"].to_numpy(int)[~logged["correct"].to_numpy(bool)]
    right = np.setdiff1d(steps, wrong)
    return int(right[0]) if len(right) else None


def _tokens_seen(planned: CellPlan, steps: int) -> int:
    """Target tokens that the training has scored, each as often as it was."""
    train, lengths = planned.run.train, [len(sample.target) for sample in planned.samples]
    order = SampleOrder(len(lengths), train.batch, planned.run.seed, train.curriculum)
    if order.is_full_batch:
        return steps * sum(lengths)
    return sum(lengths[i] for _ in range(steps) for i in order.next())


def recalled(base: SplitModel, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Free-running recall of each cell, and recall of unseen samples where its source has some; decoded as one batch."""
    out: list[dict[str, Any]] = [
        {"free_accuracy": None, "free_exact_match": None, "unseen_exact_match": None} for _ in cells
    ]
    chosen = [k for k, cell in enumerate(cells) if cell.failure is None and cell.run.train.decode]
    if not chosen:
        return out
    bank = stack([adapter for k in chosen if (adapter := cells[k].adapter) is not None])
    scores = [final for k in chosen if (final := cells[k].final) is not None]
    decoded = decode_within_memory(base, bank, [cells[k].samples for k in chosen], scores)
    unseen = [source_of(cells[k].run).test_samples for k in chosen]
    guessed = decode_within_memory(base, bank, unseen)
    for i, k in enumerate(chosen):
        out[k] |= free_running(cells[k].samples, decoded[i])
        if unseen[i]:
            out[k]["unseen_exact_match"] = free_running(unseen[i], guessed[i])["free_exact_match"]
    return out


def controls(base: SplitModel, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What each adapter gains on sequences of its source that it has not seen."""
    trained = [
        (k, cell.adapter)
        for k, cell in enumerate(cells)
        if cell.failure is None and cell.adapter is not None
    ]
    out: list[dict[str, Any]] = [{"control_base_loss": None, "control_gain": None} for _ in cells]
    if trained:
        samples = [source_of(cells[k].run).held_out(cells[k].run.seqlen) for k, _ in trained]
        found = control_gains(base, stack([adapter for _, adapter in trained]), samples)
        for (k, _), gains in zip(trained, found, strict=True):
            out[k] = gains
    return out


def environment(base: SplitModel) -> dict[str, Any]:
    """Versions, machine, and the hash of the base's weights: the body of env.json but for the tokens."""
    return {
        "versions": {name: _version(name) for name in VERSIONS}
        | {"python": platform.python_version()},
        "platform": platform.platform(),
        "device": str(base.device),
        "dtype": str(base.dtype).removeprefix("torch."),
        "commit": _commit(),
        "base_weights": base.weights_hash(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of pml's own checkout, where it runs from one."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return asked.stdout.strip() or None

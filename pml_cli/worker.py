"""Packs to run folders: keeps the base loaded, trains pack after pack, writes one folder per cell."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from .adapters import stack
from .base import FrozenBase
from .compose import to_yaml
from .config import Data, MixedData
from .engine import Cell, Observer, train_pack
from .errors import UserError
from .identity import loss_label, setting
from .loading import load_base
from .plan import Pack, Planned, source_of
from .recall import decode, free_running, summarise
from .records import RunFolder

FAULTS = (RuntimeError, MemoryError, IndexError, ValueError)  # of a pack; anything else is a fault of pml
Report = Callable[[Planned, str | None], None]  # told of every ended cell: its plan, and why it failed (None: it did not)


class Worker:
    """Trains packs one after the other; a base model stays loaded until a pack wants another."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._base: tuple[str, FrozenBase] | None = None
        self._env: dict[str, Any] | None = None

    def base_for(self, pack: Pack) -> FrozenBase:
        """The pack's base model, loaded once.

        Raises:
            UserError: it cannot be loaded, or has no place for the pack's adapters.
        """
        run = pack.cells[0].run
        if self._base is None or self._base[0] != repr(run.model):
            self._base, self._env = None, None  # free the last one first
            self._base = (repr(run.model), load_base(run.model))
        base = self._base[1]
        base.sites(run.adapter)
        return base

    def run(self, pack: Pack, observe: Observer | None, report: Report) -> None:
        """Train one pack and write its folders. A cell that fails leaves error.json and harms no other.

        Raises:
            UserError: the model or the adapter's place does not exist.
        """
        base = self.base_for(pack)
        folders = {id(c): RunFolder(self.root, c.id) for c in pack.cells}
        began = time.perf_counter()
        cells = [Cell(planned.run, planned.samples) for planned in pack.cells]
        try:
            train_pack(base, cells, observe)
            extras = _recalled(base, cells)
        except FAULTS as error:  # out of memory and the like: the pack's cells failed, the sweep goes on
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            for planned in pack.cells:
                folder = folders[id(planned)]
                folder.write_text(folder.config, to_yaml(planned.run))
                folder.fail(reason, traceback.format_exc())
                report(planned, reason)
            return
        seconds = (time.perf_counter() - began) / len(cells)
        for planned, cell, extra in zip(pack.cells, cells, extras, strict=True):
            self._write(base, folders[id(planned)], planned, cell, extra | {"seconds": seconds, "pack_size": len(cells)})
            report(planned, cell.failure)

    def _write(self, base: FrozenBase, folder: RunFolder, planned: Planned, cell: Cell, extra: dict[str, Any]) -> None:
        """All files of one run, result.json last."""
        folder.write_text(folder.config, to_yaml(cell.run))
        folder.write_json(folder.env, self._environment(base) | {"tokens": _tokens_hash(planned)})
        folder.write_table(folder.tokens, pd.concat(cell.logged, ignore_index=True))
        folder.write_table(folder.curve, pd.concat(cell.curve, ignore_index=True))
        if cell.failure is not None:
            folder.fail(cell.failure)
            return
        assert cell.adapter is not None
        adapter = cell.adapter
        folder.write_adapter(lambda aside: adapter.save(0, aside, cell.run.model.path))
        folder.finish(result_of(planned, cell, base) | extra)

    def _environment(self, base: FrozenBase) -> dict[str, Any]:
        if self._env is None:
            names = ("pml-cli", "torch", "transformers", "peft", "numpy", "pandas", "hydra-core")
            self._env = {
                "versions": {name: _version(name) for name in names} | {"python": platform.python_version()},
                "platform": platform.platform(),
                "device": str(base.device),
                "dtype": str(base.dtype).removeprefix("torch."),
                "commit": _commit(),
                "base_weights": base.weights_hash(),
            }
        return self._env


def check_places(packs: Sequence[Pack]) -> None:
    """Refuse adapters that have no place in their model, before anything is trained; no weights are loaded for it.

    Raises:
        UserError: all faults at once, one line each.
    """
    runs = {repr((pack.cells[0].run.model, pack.cells[0].run.adapter)): pack.cells[0].run for pack in packs}
    bases: dict[str, FrozenBase] = {}
    faults: dict[str, None] = {}
    for run in runs.values():
        key = repr(run.model)
        try:
            if key not in bases:
                bases[key] = load_base(dataclasses.replace(run.model, weights="random", device="meta"))
            bases[key].sites(run.adapter)
        except UserError as error:
            faults[str(error)] = None
    if faults:
        raise UserError("\n".join(faults))


def result_of(planned: Planned, cell: Cell, base: FrozenBase) -> dict[str, Any]:
    """The numbers of one finished run: the body of result.json. Losses in nats per target token, base model first."""
    assert cell.initial is not None
    assert cell.final is not None
    assert cell.adapter is not None
    run, summary = cell.run, summarise(cell.final)
    base_loss, tokens = float(cell.initial.nll.mean()), len(cell.final.nll)
    delta, nats = base_loss - summary["final_loss"], source_of(run).nats
    return {
        "model": run.model.name,
        "data": data_label(run.data),
        "data_seed": run.data.seed,
        "adapter": run.adapter.kind,
        "loss": loss_label(run.loss),
        "setting": setting(run),
        "layer": base.first_layer(cell.adapter),
        "lr": run.train.lr,
        "steps": planned.steps,
        "rank": run.rank,
        "seqlen": run.seqlen,
        "target_tokens": tokens,
        "samples": len(planned.samples),
        "trainable_parameters": cell.adapter.count(0),
        "seed": run.seed,
        "base_loss": base_loss,
        **summary,
        "delta_loss": delta,
        "bits_gained": tokens * delta / math.log(2),
        "source_nats": nats,
        "bits_memorised": None if nats is None else tokens * (nats - summary["final_loss"]) / math.log(2),
        "steps_run": cell.steps_run,
        "stopped_early": cell.steps_run < planned.steps,
    }


def data_label(data: Data) -> str:
    """What was remembered, in a word: the source, and what tells two of its kind apart."""
    if isinstance(data, MixedData):
        return f"mixed:{data.random_share:g}"
    path = getattr(data, "path", None)
    return f"{data.source}:{Path(path).stem}" if path else data.source


def _recalled(base: FrozenBase, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Free-running recall of each cell, and recall of unseen samples where its source has some; decoded as one batch."""
    out: list[dict[str, Any]] = [
        {"free_accuracy": None, "free_exact_match": None, "unseen_exact_match": None} for _ in cells
    ]
    chosen = [k for k, cell in enumerate(cells) if cell.failure is None and cell.run.train.decode]
    if not chosen:
        return out
    bank = stack([adapter for k in chosen if (adapter := cells[k].adapter) is not None])
    scores = [final for k in chosen if (final := cells[k].final) is not None]
    decoded = decode(base, bank, [cells[k].samples for k in chosen], scores)
    unseen = [source_of(cells[k].run).test for k in chosen]
    guessed = decode(base, bank, unseen)
    for i, k in enumerate(chosen):
        out[k] |= free_running(cells[k].samples, decoded[i])
        if unseen[i]:
            out[k]["unseen_exact_match"] = free_running(unseen[i], guessed[i])["free_exact_match"]
    return out


def _tokens_hash(planned: Planned) -> str:
    return hashlib.sha256(repr([(s.prompt, s.target) for s in planned.samples]).encode()).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of pml's own checkout, where it runs from one."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return asked.stdout.strip() or None

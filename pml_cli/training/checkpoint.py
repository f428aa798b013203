"""A pack in the middle of its training, kept on disk: whoever claims its cells next goes on from there.

One safetensors file for cells trained together, `.pml/checkpoints/KEY.safetensors`, replaced whole; so they are all at the
same step.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from pml_cli.config.schema import FORMAT
from pml_cli.io import atomic_write, save_tensors
from pml_cli.training.trainer import CURVE, TrainerState

TABLES = ("logged", "curve")


@dataclass(frozen=True)
class CheckpointHeader:
    """What the head of a checkpoint says; the state itself is read by `load`."""

    path: Path
    step: int
    pack: list[str]  # ids of all cells that the pack began with, in order
    cells: list[str]  # ids of those still in training, in order
    draws: list[int]
    seconds: float  # of training so far


class Checkpoints:
    """The checkpoints of one results folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / ".pml" / "checkpoints"

    def path(self, cells: Sequence[str]) -> Path:
        """Where those who train these cells keep them: others may have other cells of the same pack."""
        return (
            self.folder / f"{hashlib.sha256(' '.join(cells).encode()).hexdigest()[:16]}.safetensors"
        )

    def save(self, path: Path, pack: Sequence[str], state: TrainerState, seconds: float) -> None:
        """Keep the state of a pack that began with the cells `pack`."""
        tensors = dict(state.tensors)
        for name in TABLES:
            tables = getattr(state, name)
            joined = pd.concat([t.assign(cell=i) for i, t in enumerate(tables)], ignore_index=True)
            buffer = io.BytesIO()
            joined.to_parquet(buffer, index=False, compression="zstd")
            tensors[f"table.{name}"] = torch.frombuffer(
                bytearray(buffer.getvalue()), dtype=torch.uint8
            )
        head = {
            "format": FORMAT,
            "step": state.step,
            "pack": list(pack),
            "cells": [pack[place] for place in state.cells],
            "draws": state.draws,
            "columns": list(CURVE),
            "seconds": seconds,
        }
        atomic_write(path, lambda aside: save_tensors(tensors, aside, {"pml": json.dumps(head)}))

    def find(self, wanted: Sequence[str]) -> list[CheckpointHeader]:
        """Checkpoints that hold some of the wanted cells, the furthest first. Damaged ones count as absent."""
        found = []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    head = json.loads(file.metadata()["pml"])
                same = head.pop("format") == FORMAT and head.pop("columns") == list(CURVE)
                if same and set(head["cells"]) & set(wanted):
                    found.append(CheckpointHeader(path, **head))
            except (OSError, SafetensorError, ValueError, KeyError, TypeError):
                continue
        return sorted(found, key=lambda kept: -kept.step)

    def load(
        self, kept: CheckpointHeader, pack: Sequence[str], cells: Sequence[str]
    ) -> TrainerState:
        """The state of some of a checkpoint's cells, for a pack that holds them.

        Args:
            pack: ids of the cells that the pack is built with now, in order.
            cells: the ids to go on with, a part of kept.cells.
        """
        with safe_open(kept.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tables = {name: _split(tensors.pop(f"table.{name}"), len(kept.cells)) for name in TABLES}
        state = TrainerState(
            kept.step,
            list(range(len(kept.cells))),
            tensors,
            tables["logged"],
            tables["curve"],
            kept.draws,
        )
        chosen = sorted(
            (kept.cells.index(cell) for cell in cells), key=lambda i: pack.index(kept.cells[i])
        )
        part = state.of(chosen)
        return TrainerState(
            part.step,
            [pack.index(kept.cells[i]) for i in chosen],
            part.tensors,
            part.logged,
            part.curve,
            part.draws,
        )


def _split(raw: torch.Tensor, count: int) -> list[pd.DataFrame]:
    joined = pd.read_parquet(io.BytesIO(raw.numpy().tobytes()))
    parts = dict(iter(joined.groupby("cell")))
    empty = joined.iloc[:0]
    return [parts.get(i, empty).drop(columns="cell").reset_index(drop=True) for i in range(count)]

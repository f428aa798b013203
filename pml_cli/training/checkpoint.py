"""Checkpoints: a pack in the middle of its training on disk, for whichever worker claims its cells next.

One safetensors file for cells trained together, `.pml/checkpoints/KEY.safetensors`, replaced atomically; so they are all
at the same step.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pml_cli.config.schema import FORMAT
from pml_cli.io import atomic_write, save_tensors
from pml_cli.training.curve import COLUMNS
from pml_cli.training.trainer import TrainerState

# Fields of TrainerState that hold a table for each cell; each is stored as one parquet file in a tensor of bytes.
_TABLES = ("logged", "curve")


@dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """The metadata of a checkpoint; the state itself is read by `Checkpoints.load`."""

    path: Path
    step: int
    pack: list[str]
    """Ids of all cells that the pack began with, in order."""
    cells: list[str]
    """Ids of those still in training, in order."""
    draws: list[int]
    """Minibatches that each of `cells` has drawn."""
    seconds: float
    """Training time so far."""


class Checkpoints:
    """The checkpoints of one results folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / ".pml" / "checkpoints"

    def path(self, cells: Sequence[str]) -> Path:
        """The file of a worker that trains these cells; other workers may train other cells of the same pack."""
        key = hashlib.sha256(" ".join(cells).encode()).hexdigest()[:16]
        return self.folder / f"{key}.safetensors"

    def save(self, path: Path, pack: Sequence[str], state: TrainerState, seconds: float) -> None:
        """Write the state of a pack.

        Args:
            path: from `path`.
            pack: ids of the cells that the pack began with, in order.
            state: what to write.
            seconds: training time so far.
        """
        tensors = dict(state.tensors)
        for name in _TABLES:
            tensors[f"table.{name}"] = _pack_tables(getattr(state, name))
        header = {
            "format": FORMAT,
            "step": state.step,
            "pack": list(pack),
            "cells": [pack[position] for position in state.cells],
            "draws": state.draws,
            "columns": list(COLUMNS),
            "seconds": seconds,
        }
        metadata = {"pml": json.dumps(header)}
        atomic_write(path, lambda temporary: save_tensors(tensors, temporary, metadata))

    def find(self, cells: Sequence[str]) -> list[CheckpointHeader]:
        """Checkpoints that hold some of these cells, the furthest first; unreadable ones count as absent."""
        headers = [_read_header(path) for path in sorted(self.folder.glob("*.safetensors"))]
        matching = [
            header for header in headers if header is not None and set(header.cells) & set(cells)
        ]
        return sorted(matching, key=lambda header: -header.step)

    def load(
        self, header: CheckpointHeader, pack: Sequence[str], cells: Sequence[str]
    ) -> TrainerState:
        """The state of some of a checkpoint's cells, for a pack that holds them.

        Args:
            header: from `find`.
            pack: ids of the cells that the pack is built with now, in order.
            cells: the ids to go on with, some of header.cells.
        """
        with safe_open(header.path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tables = {
            name: _unpack_tables(tensors.pop(f"table.{name}"), len(header.cells))
            for name in _TABLES
        }
        stored = TrainerState(
            step=header.step,
            cells=list(range(len(header.cells))),
            tensors=tensors,
            logged=tables["logged"],
            curve=tables["curve"],
            draws=header.draws,
        )

        # In the order of the new pack, whatever the order in the old one.
        rows = sorted(
            (header.cells.index(cell) for cell in cells),
            key=lambda row: pack.index(header.cells[row]),
        )
        positions = [pack.index(header.cells[row]) for row in rows]
        return replace(stored.select(rows), cells=positions)


def _read_header(path: Path) -> CheckpointHeader | None:
    """None: damaged, of another format, or with other columns in its training curve."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["pml"])
        if header.pop("format") != FORMAT or header.pop("columns") != list(COLUMNS):
            return None
        return CheckpointHeader(path=path, **header)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def _pack_tables(tables: Sequence[pd.DataFrame]) -> Tensor:
    """The tables of all cells as one parquet file, its bytes (n,)."""
    joined = pd.concat([table.assign(cell=i) for i, table in enumerate(tables)], ignore_index=True)
    buffer = io.BytesIO()
    joined.to_parquet(buffer, index=False, compression="zstd")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _unpack_tables(raw: Tensor, count: int) -> list[pd.DataFrame]:
    """The table of each of `count` cells, from the bytes of `_pack_tables`."""
    joined = pd.read_parquet(io.BytesIO(raw.numpy().tobytes()))
    by_cell = dict(iter(joined.groupby("cell")))
    empty = joined.iloc[:0]
    return [by_cell.get(i, empty).drop(columns="cell").reset_index(drop=True) for i in range(count)]

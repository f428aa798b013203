"""Checkpoints: a pack in training on disk, for whichever worker claims its cells next.

One safetensors file for cells trained together, `.pml/checkpoints/KEY.safetensors`, replaced
atomically; so they are all at the same step.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from pyarrow import ArrowException
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pml_cli.config.schema import FORMAT
from pml_cli.io import atomic_write, own_folder, remove_leftovers, save_tensors
from pml_cli.results.run_folders import run_key
from pml_cli.training.checkpoint_header import (
    FOLDER,
    CheckpointHeader,
    checkpoint_files,
    read_header,
)
from pml_cli.training.curve import COLUMNS
from pml_cli.training.trainer import TrainerState

# Fields of TrainerState that hold a table for each cell. Each is stored as one parquet file, in a
# tensor of bytes: so a checkpoint is one file, replaced at once.
_TABLES = ("logged", "curve")


class Checkpoints:
    """The checkpoints of one results folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.joinpath(*FOLDER)

    def path(self, cells: Sequence[str]) -> Path:
        """The file of a worker that trains these cells.

        Other workers may train other cells of the same pack, under other names.
        """
        keys = [run_key(cell) for cell in cells]
        digest = hashlib.sha256(" ".join(keys).encode())
        return self.folder / f"{digest.hexdigest()[:16]}.safetensors"

    def save(
        self,
        path: Path,
        pack: Mapping[str, str],
        state: TrainerState,
        seconds: float,
    ) -> None:
        """Write the state of a pack.

        Args:
            path: from `path`.
            pack: the cells that the pack began with, in order: id to the hash of its tokens.
            state: what to write.
            seconds: training time so far.
        """
        own_folder(self.out, *FOLDER)
        keys = [run_key(cell) for cell in pack]
        tensors = dict(state.tensors)
        for name in _TABLES:
            tensors[f"table.{name}"] = _pack_tables(getattr(state, name))

        header = {
            "format": FORMAT,
            "digest": _digest(tensors),
            "step": state.step,
            "pack": keys,
            "cells": [keys[position] for position in state.cells],
            "hashes": dict(zip(keys, pack.values(), strict=True)),
            "draws": state.draws,
            "columns": list(COLUMNS),
            "seconds": seconds,
        }

        metadata = {"pml": json.dumps(header)}
        # Of these cells no other process writes one.
        remove_leftovers(path)
        atomic_write(
            path, lambda temporary: save_tensors(tensors, temporary, metadata), durable=True
        )

    def find(self, cells: Sequence[str]) -> list[CheckpointHeader]:
        """Checkpoints that hold some of these cells, the furthest first.

        Unreadable ones count as absent.
        """
        matching = []
        keys = {run_key(cell) for cell in cells}
        for path in checkpoint_files(self.out):
            header = read_header(path)
            # The pending part of the curve is a tensor of these columns.
            if header is None or header.columns != list(COLUMNS):
                continue
            if not keys.isdisjoint(header.cells):
                matching.append(header)

        return sorted(matching, key=lambda header: -header.step)

    def load(
        self, header: CheckpointHeader, pack: Sequence[str], cells: Sequence[str]
    ) -> TrainerState | None:
        """The state of some of a checkpoint's cells, for a pack that holds them.

        Args:
            header: from `find`.
            pack: ids of the cells that the pack is built with now, in order.
            cells: ids of the cells to resume, some of those that it holds.

        Returns:
            None where the file is damaged, by its digest or its shape.

        Raises:
            OSError: it cannot be read, which says nothing of what is in it.
        """
        pack_keys = [run_key(cell) for cell in pack]
        keys = [run_key(cell) for cell in cells]
        # Read whole: nearly all cells of an interrupted pack are resumed.
        try:
            with safe_open(header.path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            return None
        # A file whose bytes differ from what pml wrote is not resumed.
        if header.digest and _digest(tensors) != header.digest:
            return None

        # An earlier version, or another program, may have written it without a digest.
        rows = len(header.cells)
        try:
            tables = {name: _unpack_tables(tensors.pop(f"table.{name}"), rows) for name in _TABLES}
        except (LookupError, ValueError, TypeError, OSError, ArrowException):
            return None
        if any(tensor.shape[:1] != (rows,) for tensor in tensors.values()):
            return None
        stored = TrainerState(
            step=header.step,
            cells=list(range(len(header.cells))),
            tensors=tensors,
            logged=tables["logged"],
            curve=tables["curve"],
            draws=header.draws,
        )

        # In the order of the new pack, which may differ from that of the old one.
        ordered = sorted(keys, key=pack_keys.index)
        selected = stored.select([header.cells.index(key) for key in ordered])
        return replace(selected, cells=[pack_keys.index(key) for key in ordered])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _pack_tables(tables: Sequence[pd.DataFrame]) -> Tensor:
    """The tables of all cells as one parquet file, its bytes (n,)."""
    labelled = [table.assign(cell=i) for i, table in enumerate(tables)]
    joined = pd.concat(labelled, ignore_index=True)
    buffer = io.BytesIO()
    joined.to_parquet(buffer, index=False, compression="zstd")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _unpack_tables(raw: Tensor, count: int) -> list[pd.DataFrame]:
    """The table of each of `count` cells, from the bytes (n,) of `_pack_tables`."""
    buffer = io.BytesIO(raw.numpy().tobytes())
    joined = pd.read_parquet(buffer)
    by_cell = dict(iter(joined.groupby("cell")))
    # groupby yields nothing for a cell without rows.
    empty = joined.iloc[:0]
    tables = [by_cell.get(i, empty) for i in range(count)]
    return [table.drop(columns="cell").reset_index(drop=True) for table in tables]

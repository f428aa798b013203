"""`--dry-run`: what a sweep would do, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pml_cli import format
from pml_cli.config.schema import Request
from pml_cli.data.cell import CellPlan
from pml_cli.format import counted
from pml_cli.launch import cost_model
from pml_cli.launch.devices import expectation, expected_seconds
from pml_cli.launch.packing import Pack

LISTED = 30  # packs in the table


def show(
    console: Console, request: Request, cells: Sequence[CellPlan], packs: Sequence[Pack]
) -> None:
    """What a sweep would do and cost: its packs, their work, memory and time."""
    missing = sum(len(pack.cells) for pack in packs)
    console.print(
        f"{counted(cells, 'cell')}, {len(cells) - missing} done already, {missing} to train in {counted(packs, 'pack')}"
    )
    if not packs:
        return
    work_of, memory = (
        [cost_model.flops(pack) for pack in packs],
        [cost_model.memory(pack) for pack in packs],
    )
    seconds = expected_seconds(request.launch, packs)
    rows = [_row(pack) for pack in packs]
    names = ("model", "data", "loss", "steps")
    varied = [i for i in range(len(names)) if len({row[i] for row in rows}) > 1]
    table = Table(box=None, pad_edge=False)
    for column in (
        "pack",
        "cells",
        "rank",
        "l",
        "tokens",
        "work",
        "memory",
        "time",
        *(names[i] for i in varied),
    ):
        table.add_column(column, justify="left" if column in names[:3] else "right", no_wrap=True)
    for number, (pack, flops, took) in list(
        enumerate(zip(packs, work_of, seconds, strict=True), 1)
    )[:LISTED]:
        runs = [cell.run for cell in pack.cells]
        table.add_row(
            str(number), str(len(runs)), _span({r.rank for r in runs}), _span({r.seqlen for r in runs}),
            str(pack.step_tokens), format.flops_text(flops), format.bytes_text(memory[number - 1]),
            "-" if took is None else format.duration_text(took), *(rows[number - 1][i] for i in varied),
        )  # fmt: skip
    console.print(table)
    if len(packs) > LISTED:
        console.print(f"and {len(packs) - LISTED} more packs", highlight=False)
    if again := sum(pack.checkpointing for pack in packs):
        words = (
            "run the layers above the adapter twice a step, to keep less (activation checkpointing)"
        )
        console.print(
            f"{again} of {counted(packs, 'pack')} {words}", highlight=False, soft_wrap=True
        )
    tokens, most = sum(pack.tokens for pack in packs), max(memory)
    console.print(
        "tokens: of one step, padding included. work: of the whole training", highlight=False
    )
    console.print(f"in all: {tokens:,} tokens, {format.flops_text(sum(work_of))}", highlight=False)
    console.print(
        f"memory of a device: up to about {format.bytes_text(most)} (tensors of the largest pack)",
        highlight=False,
    )
    console.print(expectation(request.launch, packs, seconds), highlight=False, soft_wrap=True)
    console.print(f"results go to {request.out}", highlight=False, soft_wrap=True)


def _row(pack: Pack) -> tuple[str, str, str, str]:
    """Model, data, loss and steps of a pack, for a table that has a column for what varies."""
    runs = [cell.run for cell in pack.cells]
    words = (
        {r.model.name for r in runs},
        {r.data.source for r in runs},
        {r.loss.kind for r in runs},
    )
    model, data, loss = (",".join(sorted(w)) for w in words)
    return model, data, loss, str(pack.cells[0].steps)


def _span(values: set[int]) -> str:
    kept = sorted(values)
    return ",".join(map(str, kept)) if len(kept) <= 2 else f"{kept[0]}..{kept[-1]}"

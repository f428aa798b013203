"""`--dry-run`: what a sweep would do, and what that costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table

from pml_cli.config.schema import Launch, Request
from pml_cli.data.cell import CellPlan
from pml_cli.format import MISSING, bytes_text, counted, duration_text, flops_text
from pml_cli.launch import cost_model
from pml_cli.launch.pack import Pack
from pml_cli.launch.throughput import expected_seconds, makespan, timed_by_others
from pml_cli.report.first_token import print_prompts
from pml_cli.report.tables.data import data_sizes, show_warnings
from pml_cli.report.tables.layout import plain_table
from pml_cli.results.run_id import loss_label

# Packs in the table at most.
MAX_PACKS = 30

COLUMNS = ("pack", "cells", "rank", "l", "tokens", "work", "memory", "time")
TEXT_COLUMNS = ("model", "data", "loss")


def show(
    console: Console, request: Request, cells: Sequence[CellPlan], packs: Sequence[Pack]
) -> None:
    """Print what a sweep would do and cost: its packs, their work, memory and time.

    Args:
        console: where to.
        request: the sweep.
        cells: every cell of it.
        packs: those that are not done, as they would be trained together.
    """
    missing = sum(len(pack.cells) for pack in packs)
    console.print(
        f"{counted(cells, 'cell')}, {len(cells) - missing} done already, "
        f"{missing} to train in {counted(packs, 'pack')}"
    )
    print_prompts(request.runs, console, console)
    for line in data_sizes(cells):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    show_warnings(console, cells)
    if not packs:
        return

    flops = [cost_model.training_flops(pack) for pack in packs]
    memory = [cost_model.peak_memory(pack) for pack in packs]
    seconds = expected_seconds(request.launch, packs)
    others = timed_by_others(request.launch, packs)
    console.print(_pack_table(packs, flops, memory, seconds, others))

    lines = []
    if len(packs) > MAX_PACKS:
        lines.append(f"and {len(packs) - MAX_PACKS} more packs")
    streamed = sum(bool(pack.model.stream) for pack in packs)
    if streamed:
        lines.append(
            f"{streamed} of {counted(packs, 'pack')} read the layers below the adapter one at a "
            "time (model.stream)"
        )
    checkpointing = sum(pack.checkpointing for pack in packs)
    if checkpointing:
        lines.append(
            f"{checkpointing} of {counted(packs, 'pack')} run the layers above the adapter twice "
            "a step, to keep less (activation checkpointing)"
        )
    tokens = sum(pack.tokens for pack in packs)
    lines += [
        "tokens: of one step, padding included. work: of the whole training",
        f"in all: {counted(tokens, 'token', spec=',')}, {_targets(packs):,} of them targets; "
        f"{flops_text(sum(flops))}",
        f"memory of a device: up to about {bytes_text(max(memory))} (tensors of the largest pack)",
        time_line(request.launch, packs, seconds, others),
        f"results go to {request.out}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _targets(packs: Sequence[Pack]) -> int:
    """Scored tokens of all steps."""
    per_step = [cost_model.PackWork(pack).scored_tokens for pack in packs]
    steps = [pack.cells[0].steps for pack in packs]
    return round(sum(a * b for a, b in zip(per_step, steps, strict=True)))


def show_script(console: Console, script: str) -> None:
    """Print the batch script that would be submitted, if there is one."""
    if script:
        console.print("\nthe script for sbatch (the id of its launch is another one then):")
        console.print(script.strip(), markup=False, highlight=False, soft_wrap=True)


def time_line(
    launch: Launch,
    packs: Sequence[Pack],
    seconds: Sequence[float | None],
    others: Collection[str] = (),
) -> str:
    """The time that a sweep will take.

    Args:
        launch: where it will run.
        packs: to be trained.
        seconds: that each is expected to take; None: unknown.
        others: models whose times are those of other models.
    """
    durations = [duration for duration in seconds if duration is not None]
    # A sum of some packs would promise too little.
    if len(durations) < len(packs):
        return "time: unknown (no pack was trained on this kind of device yet)"

    workers = launch.visible_devices([cell.run for cell in packs[0].cells])
    devices = min(len(workers), len(packs))
    duration = duration_text(makespan(durations, devices))
    on_devices = f" on {devices} devices" if devices > 1 else ""
    measured = "from packs trained here before; start-up and queue time not included"
    if others:
        measured = (
            f"estimated from other models (marked ?): {', '.join(sorted(others))} was not trained "
            "here yet, so this may be wrong by a factor of several"
        )
    return f"time: about {duration}{on_devices}, {measured}"


def _pack_table(
    packs: Sequence[Pack],
    flops: Sequence[float],
    memory: Sequence[float],
    seconds: Sequence[float | None],
    others: Collection[str] = (),
) -> Table:
    """A row a pack; settings have a column where they differ between packs.

    Args:
        packs: what is trained together.
        flops: of each pack's training.
        memory: of each pack, bytes.
        seconds: of each pack; None where it is not known.
        others: models whose times are those of other models: they are marked.
    """
    settings = [_settings(pack) for pack in packs]
    # What all packs share needs no column: 80 characters are few.
    varying = []
    for name in settings[0]:
        if len({values[name] for values in settings}) > 1:
            varying.append(name)
    table = plain_table(*COLUMNS, *varying, text=TEXT_COLUMNS, folded=())

    for index, pack in enumerate(packs[:MAX_PACKS]):
        runs = [cell.run for cell in pack.cells]
        time = seconds[index]
        table.add_row(
            str(index + 1),
            str(len(runs)),
            _range({run.rank for run in runs}),
            _range({run.seqlen for run in runs}),
            str(pack.step_tokens),
            flops_text(flops[index]),
            bytes_text(memory[index]),
            _time_text(time, is_guess=runs[0].model.name in others),
            *[settings[index][name] for name in varying],
        )
    return table


def _time_text(seconds: float | None, *, is_guess: bool) -> str:
    if seconds is None:
        return MISSING
    return f"{duration_text(seconds)} ?" if is_guess else duration_text(seconds)


def _settings(pack: Pack) -> dict[str, str]:
    """What may differ between packs, by column."""
    runs = [cell.run for cell in pack.cells]
    return {
        "model": ",".join(sorted({run.model.name for run in runs})),
        "data": ",".join(sorted({run.data.source for run in runs})),
        "loss": ",".join(sorted({loss_label(run.loss) for run in runs})),
        "steps": str(pack.cells[0].steps),
    }


def _range(values: set[int]) -> str:
    """`8`, `8,16`, or `8..64` of more values."""
    ordered = sorted(values)
    if len(ordered) <= 2:
        return ",".join(map(str, ordered))
    return f"{ordered[0]}..{ordered[-1]}"

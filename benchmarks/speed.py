"""The paper's loop (A), PEFT with transformers' Trainer (B) and pml (C) on the same cells.

    python benchmarks/speed.py             the embedded model (on a GPU: as --paper)
    python benchmarks/speed.py --paper     both 8B shapes, bf16; ten minutes on a GPU
    python benchmarks/speed.py --paper --small --device cpu --lengths 50,200
                                           the same code, small shapes
    python benchmarks/speed.py --shipped 1 --lengths ""
                                           the quickstart grid, A as shipped

A: for every cell a full forward pass with the adapter, a full reference pass without it, backward,
   AdamW, a CSV row a step. As shipped, every cell is three processes, each of which loads the
   model: training, decoding, final loss.
B: the model loaded once; the same adapter through PEFT (`pml_cli.peft_block`), trained by
   transformers.Trainer. With --shipped a process a cell, as in a shell loop.
C: the trainer of `pml sweep`: packs as the planner cuts them (--pack: of so many cells), one logged
   step in --steps.
D: C with model.compile=true (--compile); compiling is part of the warm-up.

They are timed in turn, --repeats times (fewer where --minutes are over), each training from
its beginning: warm-up, then --steps timed steps. They must end with the same loss (asserted). A and
B train --baseline of the cells, whose times are those of any other. --paper also writes each
shape's weights to files and streams them: the longest cell, within 12 GB.

Needs torch, transformers, pandas, psutil, PyYAML and matplotlib, and for B peft and accelerate
(without them B is left out); hydra, omegaconf and submitit only for --shipped. From a checkout:
PYTHONPATH=. python benchmarks/speed.py
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pml_cli.launch.openmp import share_cores

# As pml does, before torch is imported.
share_cores()

import cases
import torch
import transformers
from ways import (
    CLOCKS,
    NAMES,
    TOLERANCE,
    WARM,
    WAYS,
    Clock,
    Losses,
    agree,
    matmul_peak,
    memory,
    paper,
    peft,
    plain_ticks,
    pml,
    short,
    whole_step_flops,
)

from pml_cli.config.schema import Model, Train
from pml_cli.data.cell import CellPlan
from pml_cli.launch import cost_model
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing, make_packs
from pml_cli.model.dims import BYTES, decoder_shape
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel

# Options that are not given, on a CPU and on a GPU (or with --paper).
DEFAULTS = {
    "cpu": {
        "model": "tiny",
        "lengths": "64,256,1024",
        "ranks": "1,2,3,4,6,8,12,16",
        "dtype": "float32",
        "steps": 20,
    },
    "cuda": {
        "model": "qwen3_8b,llama31_8b",
        "lengths": "50,500,2000,10000",
        "ranks": "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16",
        "dtype": "bfloat16",
        "steps": 10,
    },
}

# Bytes that a streamed 8B model may take.
STREAMED_BYTES = 12e9

# Time of a repeat beside its tokens, in tokens.
FIXED_COST = 1000

# Told apart in grey by their markers.
STYLES = {
    "A": ("#d55e00", "o"),
    "B": ("#0072b2", "s"),
    "C": ("#000000", "^"),
    "D": ("#009e73", "D"),
}

HEADINGS = (
    "model",
    "l",
    "way",
    "cells at once",
    "repeats",
    "ms per step and cell: min, median, max",
    "A/way",
    "cells per hour (500 steps)",
    "tokens/s",
    "peak memory, MB",
    "GFLOP per step and cell",
    "of the peak",
    "final loss",
)


@dataclass(kw_only=True)
class Row:
    """What was measured of one way at one length."""

    model: str
    way: str
    length: int

    cells: int
    """Trained at once."""

    ms: list[float]
    """Milliseconds per step and cell, of every repeat."""

    gflop: float
    """By the cost model, per step and cell."""

    memory: int
    """Peak bytes of tensors, weights included."""

    loss: float

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


def main() -> None:
    options = arguments()
    transformers.utils.logging.set_verbosity_error()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = compare(options) if options.lengths else []
    if options.shipped:
        # It needs all that pml needs.
        from shipped import shipped

        lines += shipped(options.shipped_file, options.shipped, WAYS[:-1])
    (options.out / "speed.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def arguments() -> argparse.Namespace:
    """The options, with the defaults of the device."""
    options = parser().parse_args()
    Clock.kind = options.clock
    options.kind = torch.device(options.device).type
    options.paper |= options.kind == "cuda" and options.model is None

    defaults = DEFAULTS["cuda" if options.paper else options.kind]
    if options.paper:
        defaults = defaults | {"minutes": 7.5, "packs": 1, "baseline": 1}
    else:
        defaults = defaults | {"minutes": 0.0, "packs": 0, "baseline": 2}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.ways = WAYS + "D" * options.compile
    options.start = time.perf_counter()
    return options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--paper", action="store_true", help="what is measured on a GPU, also where there is none")
    add("--model", help="options of pml's model group, comma-separated; all but tiny are random")
    add("--small", action="store_true", help="the same architectures, few and narrow layers")
    add("--set", action="append", default=[], help="a setting: model.architecture.vocab_size=512")
    add("--lengths", help="target tokens, comma-separated")
    add("--ranks")
    adapter_help = "mlp_block: the paper's; linear: every projection of every layer"
    add("--adapter", default="mlp_block", choices=("mlp_block", "linear"), help=adapter_help)
    add("--steps", type=int, help="timed steps of a training")
    add("--repeats", type=int, default=5)
    add("--minutes", type=float, help="begin no repeat that would end later; 0: no limit")
    add("--baseline", type=int, help="cells of each length that A and B train")
    add("--pack", type=int, default=0, help="cells of a pack; 0: as the planner cuts")
    add("--packs", type=int, help="packs of each length that C trains; 0: all")
    add("--device", default=device)
    add("--dtype")
    add("--compile", action="store_true", help="time pml with model.compile=true as well")
    streamed_help = "with --paper: each model once more, its lower layers read from files"
    add("--streamed", action=argparse.BooleanOptionalAction, default=True, help=streamed_help)
    shipped_help = "what a sweep costs its user: ranks of each length that A and B train"
    add("--shipped", type=int, default=0, help=shipped_help)
    add("--shipped-file", default="quickstart", help="the sweep file, of ranks and lengths")
    clock_help = "cpu: of all threads, for a machine that does other work"
    add("--clock", default="wall", choices=CLOCKS, help=clock_help)
    add("--out", type=Path, default=Path("outputs/speed"))
    return options


# The comparison


def compare(options: argparse.Namespace) -> list[str]:
    """Measure every model and length; the table, and a figure of each model beside it."""
    names = options.model.split(",")
    lengths = [int(length) for length in options.lengths.split(",")]
    ranks = [int(rank) for rank in options.ranks.split(",")]
    adapter = cases.everywhere() if options.adapter == "linear" else None
    peak = matmul_peak(options.device, getattr(torch, options.dtype))
    # The lengths that are still to be measured.
    remaining = lengths * len(names)

    rows: list[Row] = []
    notes = []
    for name in names:
        base_settings = cases.model(
            name, small=options.small, device=options.device, dtype=options.dtype
        )
        settings, train = cases.changed(base_settings, training(options), options.set)
        base = cases.load(settings)
        for length in lengths:
            planned = cases.cells(settings, ranks, length, train, adapter)
            new_rows = measure(base, planned, options, deadline(options, remaining))
            remaining.pop(0)
            rows += new_rows
            times = ", ".join(f"{row.way} {row.median:.2f} ms" for row in new_rows)
            log(f"{name}, length {length}: {times}")
            save(rows, peak, options.out)

        of_model = [row for row in rows if row.model == name]
        draw(of_model, options.ways, options.out / f"speed-{name}.png")
        del base
        free_memory()
        if options.paper and options.streamed:
            note = measure_streamed(settings, max(lengths), options)
            notes += ["", note]
            log(note)

    minutes = (time.perf_counter() - options.start) / 60
    return [*table(rows, options, peak), *notes, "", f"All of it took {minutes:.1f} minutes."]


def save(rows: Sequence[Row], peak: float, out: Path) -> None:
    """Write what was measured so far: the time of a machine may run out."""
    content = {"peak": peak, "rows": [asdict(row) for row in rows]}
    (out / "speed.json").write_text(json.dumps(content, indent=1), "utf-8")


def log(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def training(options: argparse.Namespace) -> Train:
    """Settings of every training: the last step is not timed."""
    return Train(steps=WARM + options.steps + 1, log_every=options.steps, decode=False)


def deadline(options: argparse.Namespace, lengths: Sequence[int]) -> float:
    """When the first of these lengths should be done: its part of what is left of --minutes."""
    if not options.minutes:
        return math.inf
    start = time.perf_counter()
    remaining = options.start + 60 * options.minutes - start
    costs = [FIXED_COST + length for length in lengths]
    return start + max(0.0, remaining) * costs[0] / sum(costs)


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cut_packs(planned: list[CellPlan], options: argparse.Namespace) -> list[Pack]:
    """The packs that C trains."""
    size = options.pack
    if size:
        packs = [Pack(cells=planned[i : i + size]) for i in range(0, len(planned), size)]
    else:
        packs = make_packs(planned, Packing(gpu=options.kind == "cuda" or options.paper))
    return packs[: options.packs or None]


def measure(
    base: SplitModel, planned: list[CellPlan], options: argparse.Namespace, end: float
) -> list[Row]:
    """Time every way in turn, so that other work on the machine falls on all of them.

    Args:
        base: the model.
        planned: cells of one length.
        options: of the command line.
        end: no repeat is begun that would end later.
    """
    packs = cut_packs(planned, options)
    cells = [cell for pack in packs for cell in pack.cells]
    stride = -(-len(cells) // options.baseline)
    baseline = cells[::stride]

    compiled = SplitModel(base.model, replace(base.settings, compile=True))
    ways = options.ways
    times: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, Losses] = {way: {} for way in ways}
    for _ in range(options.repeats):
        start = time.perf_counter()
        for way in ways:
            if way in "CD":
                model = compiled if way == "D" else base
                seconds = [pml(model, pack, losses[way]) for pack in packs]
                count = len(cells)
            else:
                train = paper if way == "A" else peft
                seconds = [train(base, cell, losses[way]) for cell in baseline]
                count = len(baseline)
            times[way].append(1000 * sum(seconds) / options.steps / count)
        time_now = time.perf_counter()
        if 2 * time_now - start > end:
            break

    agree(losses, TOLERANCE[cells[0].run.model.dtype])
    largest = max(packs, key=lambda pack: pack.step_tokens)
    rows = []
    for way in ways:
        final_losses = [losses[way][cell.id] for cell in baseline]
        row = Row(
            model=cells[0].run.model.name,
            way=way,
            length=cells[0].run.seqlen,
            cells=len(largest.cells) if way in "CD" else 1,
            ms=times[way],
            gflop=step_flops(way, packs) / 1e9,
            memory=peak_memory(way, compiled if way == "D" else base, largest, baseline[0]),
            loss=statistics.mean(final_losses),
        )
        rows.append(row)
    return rows


def step_flops(way: str, packs: Sequence[Pack]) -> float:
    """FLOPs of a step of one cell, by the cost model."""
    if way in "CD":
        cells = sum(len(pack.cells) for pack in packs)
        return sum(cost_model.step_flops(pack) for pack in packs) / cells
    passes = {"A": 2, "B": 1}[way]
    return whole_step_flops(Pack(cells=packs[0].cells[:1]), passes)


def peak_memory(way: str, base: SplitModel, pack: Pack, cell: CellPlan) -> int:
    """Peak bytes of a short training: of C and D of a pack, else of a cell."""
    short_pack = Pack(cells=[short(planned) for planned in pack.cells])
    runs = {
        "A": lambda: paper(base, short(cell), {}),
        "B": lambda: peft(base, short(cell), {}),
        "C": lambda: pml(base, short_pack, {}),
        "D": lambda: pml(base, short_pack, {}),
    }
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    return memory(base.device, runs[way], weights)


def measure_streamed(settings: Model, length: int, options: argparse.Namespace) -> str:
    """Peak memory of the longest cell with the layers below the adapter read from files.

    Args:
        settings: of the model.
        length: of the cell.
        options: of the command line.

    Returns:
        A line for the report.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = cases.write_random(settings, Path(folder), options.device)
        train = replace(training(options), steps=2)
        (planned,) = cases.cells(files, [16], length, train)
        without_checkpointing = cost_model.peak_memory(Pack(cells=[planned]))

        # Less than is needed, so that a small shape takes the same way.
        budget = 0.99 * without_checkpointing if options.small else STREAMED_BYTES
        packing = Packing(gpu=options.kind == "cuda", memory=int(budget))
        (pack,) = make_packs([planned], packing)
        peak = memory(options.device, lambda: pml(load_model(files), pack, {}), 0)
        priced = cost_model.peak_memory(pack)
    free_memory()

    unit, name = (1e9, "GB") if budget > 1e9 else (1e6, "MB")
    all_weights = decoder_shape(settings).parameters * BYTES[settings.dtype]
    checkpointing = "no activation checkpointing"
    if pack.checkpointing:
        checkpointing = "layers above the adapter run twice"
    planned_for = f"planned for {budget / unit:.3g} {name} ({checkpointing})"
    return (
        f"Streamed, {settings.name}: rank 16 at l = {length}, {planned_for}: "
        f"peak {peak / unit:.2f} {name}, priced {priced / unit:.2f}, "
        f"without checkpointing {without_checkpointing / unit:.2f}; "
        f"all weights together {all_weights / unit:.2f} {name}."
    )


# What is shown


def table(rows: Sequence[Row], options: argparse.Namespace, peak: float) -> list[str]:
    """The comparison in Markdown.

    Args:
        rows: of every model, length and way.
        options: of the command line.
        peak: FLOPs a second of a large product.
    """
    lines = [conditions(options, peak)]
    if "B" not in options.ways:
        lines += ["", "B is left out: peft or accelerate is missing."]
    lines += ["", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]

    of_paper = {(row.model, row.length): row.median for row in rows if row.way == "A"}
    for row in rows:
        achieved = row.gflop * 1e9 / (row.median / 1000)
        values = (
            row.model,
            row.length,
            f"{row.way} {NAMES[row.way]}",
            row.cells,
            len(row.ms),
            f"{min(row.ms):.2f}, **{row.median:.2f}**, {max(row.ms):.2f}",
            f"{of_paper[row.model, row.length] / row.median:.2f}",
            f"{3.6e6 / row.median / 500:.0f}",
            f"{row.length / row.median * 1000:.0f}",
            f"{row.memory / 1e6:.0f}",
            f"{row.gflop:.3g}",
            f"{achieved / peak:.0%}",
            f"{row.loss:.4f}",
        )
        lines.append(f"| {' | '.join(map(str, values))} |")
    return lines


def conditions(options: argparse.Namespace, peak: float) -> str:
    """What the numbers hold for."""
    device = f"CPU, {torch.get_num_threads()} threads"
    if options.kind == "cuda":
        device = torch.cuda.get_device_name()
    shapes = "small shapes, " if options.small else ""
    repeats = f"up to {options.repeats} repeats in turn, {options.steps} timed steps each"
    return (
        f"{shapes}{options.dtype}, {device}, matmul peak {peak / 1e12:.3g} TFLOP/s; "
        f"adapter {options.adapter}, ranks {options.ranks}; {repeats}, "
        f"{options.clock} time; torch {torch.__version__}"
    )


def draw(rows: Sequence[Row], ways: str, path: Path) -> None:
    """Time and memory of every way against the length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    canvas, (times, memories) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for way in ways:
        colour, marker = STYLES[way]
        of_way = [row for row in rows if row.way == way]
        x = [row.length for row in of_way]
        median = [row.median for row in of_way]
        below = [row.median - min(row.ms) for row in of_way]
        above = [max(row.ms) - row.median for row in of_way]
        label = f"{way} {NAMES[way]}"
        times.errorbar(
            x, median, [below, above], marker=marker, color=colour, capsize=3, label=label
        )

        megabytes = [row.memory / 1e6 for row in of_way]
        unit = "pack" if way in "CD" else "one cell"
        memories.plot(x, megabytes, marker=marker, color=colour, label=f"{way}, {unit}")

    title = f"Time of a step, {rows[0].model}"
    if any(len(row.ms) > 1 for row in rows):
        title = f"{title}: bars from the least to the most"
    times.set_title(title)
    memories.set_title("Peak memory, weights included")
    for axes, label in ((times, "ms per step and cell"), (memories, "MB")):
        axes.set(xscale="log", yscale="log", xlabel="length, tokens", ylabel=label)
        plain_ticks(axes, sorted({row.length for row in rows}))
        axes.legend()
        axes.grid(alpha=0.3)
    canvas.savefig(path, dpi=130)
    plt.close(canvas)


if __name__ == "__main__":
    main()

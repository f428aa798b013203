"""What pml costs: time and memory against length, rank, pack, model size and workers.

    python benchmarks/cost.py                            some minutes of one thread
    python benchmarks/cost.py --only grid --measured outputs/speed/speed.json
                                                         at rates that speed.py measured
    python benchmarks/cost.py --only curves --quick      a few points: does it run?

Writes cost.md, cost.json, cost.png, and grid.png without --measured.

Curves: random Qwen3 models or the embedded one, CPU time of one thread (wall time on a GPU), the
least of --repeats trainings; memory is the peak of tensors, weights included, beside what
`pml sweep --dry-run` says. Workers: a sweep with launch=local, CPU time of its busiest process
(wall time on a GPU), which is what it takes where each has a core for itself, and the memory that
all of them hold.

The grid: the cells of sweeps/paper_long_context.yaml on Qwen3-8B, random tokens in the place of
the texts, packed for 8 GPUs, longest first to whichever is free. Hours are FLOPs over a rate: a
measured one (--measured: of each length and way), else an assumed one, and then every picture and
table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pml_cli.launch.openmp import share_cores

# As pml does, before torch is imported.
share_cores()

import cases
import numpy as np
import psutil
import torch
import yaml
from ways import WARM, Clock, memory, plain_ticks, pml, short, whole_step_flops

from pml_cli.config.option_files import shipped
from pml_cli.config.schema import MlpBlockAdapter, Model, Run, Train
from pml_cli.data.sources.random import RandomData
from pml_cli.launch import cost_model
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing, check, make_packs
from pml_cli.launch.throughput import makespan
from pml_cli.model.device import MEMORY_SHARE
from pml_cli.model.dims import decoder_shape
from pml_cli.model.loading import load_model

LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
RANKS = (1, 4, 16, 64, 256)
PACK_SIZES = (1, 2, 4, 8, 16)
WORKERS = (1, 2)

# Hidden size and layers.
MODEL_SIZES = ((64, 4), (128, 6), (256, 6), (256, 12), (512, 8))

# Ranks of the two lines of the curve against length.
LINES = {"one cell": (8,), "pack of 8": (1, 2, 3, 4, 6, 8, 12, 16)}

# Timed steps of a training.
STEPS = 4

# The machine of the paper's grid.
GPUS = 8
GPU_BYTES = 141e9

# FLOPs a second: a share of what large bfloat16 products reach on an H200.
ASSUMED_RATE = 0.55 * 790e12

COLOURS = {
    "one cell": ("#000000", "o"),
    "pack of 8": ("#0072b2", "s"),
    "l = 64": ("#0072b2", "s"),
    "l = 256": ("#000000", "o"),
}
PAPER_STYLE = ("#d55e00", "--")
OUR_STYLE = ("#000000", "-")

# FLOPs and length of each job of a grid.
Jobs = list[tuple[float, int]]


@dataclass(kw_only=True)
class Point:
    """One measurement."""

    curve: str
    """What varies: length, rank, pack, parameters, workers."""

    line: str
    x: float

    ms: float
    """Milliseconds per step and cell; of workers: seconds."""

    megabytes: float
    """Measured peak."""

    priced: float | None = None
    """Megabytes by the cost model."""

    gflops: float | None = None
    """GFLOP a second."""


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = []
    if options.only != "grid":
        lines += curves(options)
    if options.only != "curves":
        lines += grid(options)
    (options.out / "cost.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("curves", "grid"), default=None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two points of every curve")
    parser.add_argument(
        "--measured", type=Path, default=None, help="speed.json of speed.py on the GPU in question"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/cost"))
    return parser.parse_args()


# The curves


def curves(options: argparse.Namespace) -> list[str]:
    """Measure and draw every curve; its table in Markdown."""
    Clock.kind = "cpu" if options.device == "cpu" else "wall"
    torch.set_num_threads(1)

    points = list(measured_points(options))
    points += [measure_workers(options, count) for count in WORKERS]
    content = [asdict(point) for point in points]
    (options.out / "cost.json").write_text(json.dumps(content, indent=1), "utf-8")
    draw(points, options)
    return curve_table(points)


def measured_points(options: argparse.Namespace) -> Iterator[Point]:
    """Every point but those of workers."""

    def chosen(values: tuple) -> tuple:
        return values[:2] if options.quick else values

    tiny = cases.model("tiny", device=options.device)
    for length in chosen(LENGTHS):
        for line, ranks in LINES.items():
            yield measure(options, tiny, length, ranks, curve="length", line=line, x=length)

    for rank in chosen(RANKS):
        yield measure(options, tiny, 256, (rank,), curve="rank", line="one cell", x=rank)

    for length in (64, 256):
        for size in chosen(PACK_SIZES):
            ranks = (8,) * size
            line = f"l = {length}"
            yield measure(options, tiny, length, ranks, curve="pack", line=line, x=size)

    for width, layers in chosen(MODEL_SIZES):
        base = sized(width, layers, options.device)
        parameters = decoder_shape(base).parameters
        yield measure(options, base, 128, (8,), curve="parameters", line="one cell", x=parameters)


def curve_table(points: Sequence[Point]) -> list[str]:
    """The points in Markdown; workers have a table of their own."""
    lines = [
        "| against | line | x | ms per step and cell | GFLOP/s | peak MB | priced MB |",
        "|---|---|---|---|---|---|---|",
    ]
    worker_lines = [
        "",
        "| workers | CPU seconds of the busiest process | MB that all processes hold |",
        "|---|---|---|",
    ]
    for point in points:
        if point.curve == "workers":
            worker_lines.append(f"| {point.x:g} | {point.ms:.1f} | {point.megabytes:.0f} |")
            continue
        numbers = f"{point.ms:.2f} | {point.gflops:.0f} | {point.megabytes:.1f}"
        place = f"{point.curve} | {point.line} | {point.x:g}"
        lines.append(f"| {place} | {numbers} | {point.priced:.1f} |")
    return lines + worker_lines


def sized(width: int, layers: int, device: str) -> Model:
    """A random Qwen3 with the embedded model's vocabulary and proportions.

    Args:
        width: hidden size.
        layers: depth.
        device: of the model.
    """
    architecture = {
        "model_type": "qwen3",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * width,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "head_dim": 32,
        "vocab_size": 2048,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    name = f"w{width}d{layers}"
    return Model(name=name, weights="random", architecture=architecture, device=device)


def measure(
    options: argparse.Namespace,
    base: Model,
    length: int,
    ranks: Sequence[int],
    *,
    curve: str,
    line: str,
    x: float,
) -> Point:
    """The least time of a step of one pack over the repeats, and the peak of a short training.

    Args:
        options: device and repeats.
        base: the model.
        length: target tokens.
        ranks: of the cells; equal ranks differ in their seed.
        curve, line, x: of the point.
    """
    train = Train(steps=WARM + STEPS + 1, log_every=STEPS, decode=False)
    runs = []
    for seed, rank in enumerate(ranks):
        run = Run(rank=rank, seqlen=length, seed=seed, model=base, data=RandomData(), train=train)
        runs.append(run)
    pack = Pack(cells=check(runs))
    loaded = load_model(base)
    seconds = min(pml(loaded, pack, {}) for _ in range(options.repeats)) / STEPS

    short_pack = Pack(cells=[short(cell) for cell in pack.cells])
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    peak = memory(loaded.device, lambda: pml(loaded, short_pack, {}), weights)

    point = Point(
        curve=curve,
        line=line,
        x=x,
        ms=1000 * seconds / len(ranks),
        megabytes=peak / 1e6,
        priced=cost_model.peak_memory(pack) / 1e6,
        gflops=cost_model.step_flops(pack) / seconds / 1e9,
    )
    text = f"{curve} {line} {x:g}: {point.ms:.2f} ms, {point.megabytes:.1f} MB"
    print(text, file=sys.stderr, flush=True)
    return point


def measure_workers(options: argparse.Namespace, count: int) -> Point:
    """Eight cells of 256 tokens through `pml sweep launch=local`, start and records included."""
    steps = 20 if options.quick else 200
    cpu_seconds: dict[int, float] = {}
    peak = 0
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "rank=1,2,3,4,6,8,12,16",
            "seqlen=256",
            f"train.steps={steps}",
            "train.decode=false",
            f"out={folder}/runs",
            "launch=local",
            f"launch.devices={count}",
            "launch.threads=1",
            "launch.pack_tokens=512",
            f"model.device={options.device}",
        ]
        command = [sys.executable, "-m", "pml_cli", "sweep", *arguments]
        environment = os.environ | {"PML_CACHE": folder}
        start = time.perf_counter()
        sweep = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while sweep.poll() is None:
            usage = list(process_usage(sweep.pid))
            cpu_seconds |= {pid: seconds for pid, seconds, _ in usage}
            peak = max(peak, sum(size for *_, size in usage))
            time.sleep(0.5)
        wall = time.perf_counter() - start

    if sweep.returncode:
        raise SystemExit(f"the sweep with {count} workers ended with {sweep.returncode}")
    seconds = max(cpu_seconds.values()) if options.device == "cpu" else wall
    return Point(curve="workers", line="a sweep", x=count, ms=seconds, megabytes=peak / 1e6)


def process_usage(pid: int) -> Iterator[tuple[int, float, int]]:
    """A process and all that it started: id, seconds of CPU time, bytes that it holds alone."""
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            # It may end in between.
            with suppress(psutil.Error):
                user, system = process.cpu_times()[:2]
                yield process.pid, user + system, process.memory_full_info().uss


# The paper's grid


def grid(options: argparse.Namespace) -> list[str]:
    """Hours of the paper's default grid on 8 GPUs, in Markdown."""
    runs = paper_runs()
    cells = check(runs)
    memory_budget = int(MEMORY_SHARE * GPU_BYTES)
    packs = make_packs(cells, Packing(devices=GPUS, gpu=True, memory=memory_budget))

    jobs: dict[str, Jobs] = {
        "A": [
            (cell.steps * whole_step_flops(Pack(cells=[cell]), 2), cell.run.seqlen)
            for cell in cells
        ],
        "C": [(cost_model.training_flops(pack), pack.cells[0].run.seqlen) for pack in packs],
    }
    if options.measured:
        rates = measured_rates(options.measured)
        source = f"rates of {options.measured}"
    else:
        rates = {"A": assumed_rate, "C": assumed_rate}
        source = f"an assumed {ASSUMED_RATE / 1e12:.0f} TFLOP/s a GPU; GPU not measured"
        draw_grid(jobs, options.out / "grid.png")

    rows = []
    for way, name in (("A", "the paper's loop"), ("C", "pml")):
        total = sum(flops for flops, _ in jobs[way]) / 1e18
        rows.append(f"| {name} | {total:.1f} | {hours(jobs[way], rates[way]):.1f} |")

    run = runs[0]
    size = f"{len(cells)} cells of {run.train.steps} steps on {run.model.name}"
    return [
        "",
        f"The paper's default grid, {size}, {len(packs)} packs, {GPUS} GPUs; "
        f"computed with {source}:",
        "",
        "| | EFLOP | hours |",
        "|---|---|---|",
        *rows,
    ]


def paper_runs() -> list[Run]:
    """The runs of sweeps/paper_long_context.yaml, read without Hydra; random tokens as texts."""
    sweep = read_yaml("sweeps", "paper_long_context.yaml")
    train = Train(**read_yaml("conf", "train", f"{sweep['train']}.yaml"))
    base = cases.model(sweep["model"], device="cuda")
    adapter = MlpBlockAdapter(dropout=sweep["adapter.dropout"])
    runs = []
    for rank in sweep["rank"]:
        for length in sweep["seqlen"]:
            run = Run(
                rank=rank,
                seqlen=length,
                seed=sweep["seed"],
                model=base,
                data=RandomData(),
                adapter=adapter,
                train=train,
            )
            runs.append(run)
    return runs


def read_yaml(folder: str, *names: str) -> dict:
    """A YAML file that pml ships."""
    return yaml.safe_load(shipped(folder).joinpath(*names).read_text("utf-8"))


def hours(jobs: Jobs, rate: Callable[[int], float]) -> float:
    """Hours until the last GPU is done.

    Args:
        jobs: to be done.
        rate: FLOPs a second by length.
    """
    return spread([flops / rate(length) for flops, length in jobs]) / 3600


def spread(seconds: Sequence[float]) -> float:
    """When the last of the GPUs is done; the longest job goes first, to whichever is free."""
    return makespan(sorted(seconds, reverse=True), GPUS)


def assumed_rate(length: int) -> float:
    """FLOPs a second, without a measurement."""
    return ASSUMED_RATE


def measured_rates(path: Path) -> dict[str, Callable[[int], float]]:
    """FLOPs a second by length, of each way, interpolated between the lengths measured.

    Args:
        path: speed.json; only its first model counts.
    """
    rows = json.loads(path.read_text("utf-8"))["rows"]
    return {way: _interpolated_rate(rows, way) for way in "AC"}


def _interpolated_rate(rows: list[dict], way: str) -> Callable[[int], float]:
    points = []
    for row in rows:
        if row["way"] == way and row["model"] == rows[0]["model"]:
            step_seconds = float(np.median(row["ms"])) / 1000
            points.append((row["length"], row["gflop"] * 1e9 / step_seconds))
    points.sort()

    log_lengths = np.log([length for length, _ in points])
    rates = [rate for _, rate in points]
    return lambda length: float(np.interp(np.log(length), log_lengths, rates))


# Figures

COLUMNS = {
    "length": "length, tokens",
    "rank": "rank (l = 256)",
    "pack": "cells in a pack",
    "parameters": "million parameters (l = 128)",
    "workers": "workers, one thread each",
}

# Curves that are nearly flat start at 0.
FLAT = ("rank", "workers")


def draw(points: Sequence[Point], options: argparse.Namespace) -> None:
    """Time above, memory below; a column for each thing that varies."""
    plt = pyplot()
    canvas, axes = plt.subplots(2, len(COLUMNS), figsize=(17, 6.8), layout="constrained")
    for (curve, label), (time_axes, memory_axes) in zip(COLUMNS.items(), axes.T, strict=True):
        of_curve = [point for point in points if point.curve == curve]
        draw_column(of_curve, curve, time_axes, memory_axes)
        for panel in (time_axes, memory_axes):
            style_axes(panel, curve, sorted({point.x for point in of_curve}))
            panel.set_xlabel(label)

    clock = "CPU time of one thread"
    if options.device != "cpu":
        clock = f"wall time, {torch.cuda.get_device_name()}"
    canvas.suptitle(
        f"What training costs: embedded model and random Qwen3 models, {clock}; "
        "workers: a sweep of 8 cells"
    )
    canvas.savefig(options.out / "cost.png", dpi=80)
    plt.close(canvas)


def draw_column(points: Sequence[Point], curve: str, time_axes, memory_axes) -> None:
    """The lines of one curve."""
    unit = 1e6 if curve == "parameters" else 1
    for line in dict.fromkeys(point.line for point in points):
        of_line = [point for point in points if point.line == line]
        colour, marker = COLOURS.get(line, ("#000000", "o"))
        x = [point.x / unit for point in of_line]
        ms = [point.ms for point in of_line]
        megabytes = [point.megabytes for point in of_line]
        time_axes.plot(x, ms, color=colour, marker=marker, label=line)
        memory_axes.plot(x, megabytes, color=colour, marker=marker, label=f"{line}, measured")
        if curve != "workers":
            priced = [point.priced for point in of_line]
            memory_axes.plot(x, priced, color=colour, linestyle=":", label=f"{line}, priced")

    is_workers = curve == "workers"
    time_axes.set_title(f"time against {curve}")
    time_axes.set_ylabel("CPU s of the busiest process" if is_workers else "ms per step and cell")
    memory_axes.set_title(f"memory against {curve}")
    memory_axes.set_ylabel("MB of all processes" if is_workers else "peak MB, weights included")


def style_axes(axes, curve: str, x: list[float]) -> None:
    """Scales, ticks and legend of one panel."""
    if curve == "parameters":
        x = [0.5, 1, 2, 5, 10, 20]
    if curve in FLAT:
        axes.set(xscale="linear" if curve == "workers" else "log", ylim=(0, None))
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
    else:
        axes.set(xscale="log", yscale="log")
        plain_ticks(axes, x)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def draw_grid(jobs: dict[str, Jobs], path: Path) -> None:
    """Hours against the rate that a GPU sustains."""
    plt = pyplot()
    canvas, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    rates = np.geomspace(50e12, 800e12, 30)
    lines = (
        ("A", "the paper's loop, cell by cell", PAPER_STYLE),
        ("C", "pml: prefix once, packs", OUR_STYLE),
    )
    for way, name, (colour, style) in lines:
        y = [hours(jobs[way], lambda _, rate=rate: rate) for rate in rates]
        axes.plot(rates / 1e12, y, color=colour, linestyle=style, label=name)

    assumed = ASSUMED_RATE / 1e12
    label = f"assumed: {assumed:.0f} (55 % of 790)"
    axes.axvline(assumed, color="#777777", linestyle=":", label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="TFLOP/s that each GPU sustains",
        ylabel="hours on 8 GPUs",
    )
    plain_ticks(axes, [50, 100, 200, 400, 800])
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title("The paper's default grid, Qwen3-8B: computed, GPU not measured")
    canvas.savefig(path, dpi=100)
    plt.close(canvas)


def pyplot():
    """matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    main()

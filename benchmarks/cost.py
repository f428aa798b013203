"""What pml costs: time and memory against length, rank, pack, model size and workers; and the paper's grid on 8 GPUs.

    python benchmarks/cost.py                            some minutes of one thread; cost.png, grid.png, cost.md
    python benchmarks/cost.py --only grid --measured outputs/speed/speed.json    at rates that speed.py measured
    python benchmarks/cost.py --only curves --quick      a few points: does it run?

Curves: random Qwen3 models or the embedded one, CPU time of one thread (wall time on a GPU), the least of --repeats
trainings; memory is the peak of tensors, weights included, beside what `pml sweep --dry-run` says. Workers: a sweep with
launch=local, CPU time of its busiest process (wall time on a GPU), which is what it takes where each has a core for itself,
and the memory that all of them hold.

The grid: the cells of sweeps/paper_long_context.yaml on Qwen3-8B, random tokens in the place of the texts, packed for 8
GPUs, longest first to whoever is free. Hours are FLOPs over a rate: measured ones (--measured: of each length and
way), else an assumed one, and then every picture and table says so.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pml_cli.launch.openmp import share_cores

share_cores()  # as pml does, before torch is imported

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
from pml_cli.model.dims import decoder_shape
from pml_cli.model.loading import load_model

LENGTHS, RANKS, PACKS = (32, 64, 128, 256, 512, 1024, 2048), (1, 4, 16, 64, 256), (1, 2, 4, 8, 16)
SIZES = ((64, 4), (128, 6), (256, 6), (256, 12), (512, 8))  # width, layers
WORKERS = (1, 2)
STEPS = 4  # timed
GPUS, GPU_BYTES = 8, 141e9
ASSUMED = 0.55 * 790e12  # FLOPs a second: a share of what large bf16 products reach on an H200
COLOURS = {
    "one cell": ("#000000", "o"),
    "pack of 8": ("#0072b2", "s"),
    "l = 64": ("#0072b2", "s"),
    "l = 256": ("#000000", "o"),
}
PAPER = ("#d55e00", "--")


@dataclass
class Point:
    curve: str  # what varies: length, rank, pack, parameters, workers
    line: str
    x: float
    ms: float  # per step and cell; of workers: seconds
    megabytes: float
    priced: float | None = None  # megabytes
    gflops: float | None = None  # a second


def main() -> None:
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
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    words = []
    if asked.only != "grid":
        words += curves(asked)
    if asked.only != "curves":
        words += grid(asked)
    (asked.out / "cost.md").write_text("\n".join(words) + "\n", "utf-8")
    print("\n".join(words))


# -- curves


def curves(asked: argparse.Namespace) -> list[str]:
    Clock.kind = "cpu" if asked.device == "cpu" else "wall"
    torch.set_num_threads(1)

    def some(values: tuple) -> tuple:
        return values[:2] if asked.quick else values

    tiny = cases.model("tiny", device=asked.device)
    points = []
    for length in some(LENGTHS):
        points += [
            timed(asked, tiny, "length", line, length, length, ranks)
            for line, ranks in KINDS.items()
        ]
    points += [timed(asked, tiny, "rank", "one cell", rank, 256, (rank,)) for rank in some(RANKS)]
    for length in (64, 256):
        points += [
            timed(asked, tiny, "pack", f"l = {length}", n, length, (8,) * n) for n in some(PACKS)
        ]
    for width, layers in some(SIZES):
        base = sized(width, layers, asked.device)
        points.append(
            timed(asked, base, "parameters", "one cell", decoder_shape(base).parameters, 128, (8,))
        )
    points += [workers(asked, n) for n in WORKERS]
    (asked.out / "cost.json").write_text(json.dumps([vars(p) for p in points], indent=1), "utf-8")
    draw(points, asked)
    words = [
        "| against | line | x | ms per step and cell | GFLOP/s | peak MB | priced MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for p in points[: -len(WORKERS)]:
        words.append(
            f"| {p.curve} | {p.line} | {p.x:g} | {p.ms:.2f} | {p.gflops:.0f} | {p.megabytes:.1f} | {p.priced:.1f} |"
        )
    words += [
        "",
        "| workers | CPU seconds of the busiest process | MB that all processes hold |",
        "|---|---|---|",
    ]
    return words + [
        f"| {p.x:g} | {p.ms:.1f} | {p.megabytes:.0f} |" for p in points[-len(WORKERS) :]
    ]


KINDS = {"one cell": (8,), "pack of 8": (1, 2, 3, 4, 6, 8, 12, 16)}


def sized(width: int, layers: int, device: str) -> Model:
    """A random Qwen3 of this width and depth, with the embedded model's vocabulary and proportions."""
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 64, "head_dim": 32}
    sizes = {
        "model_type": "qwen3",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * width,
    }
    sizes |= heads | {
        "vocab_size": 2048,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    return Model(name=f"w{width}d{layers}", weights="random", architecture=sizes, device=device)


def timed(
    asked: argparse.Namespace,
    base: Model,
    curve: str,
    line: str,
    x: float,
    length: int,
    ranks: tuple,
) -> Point:
    """One pack: the least time of a step over the repeats, and the peak of a short training. Equal ranks differ in seed."""
    train = Train(steps=WARM + STEPS + 1, log_every=STEPS, decode=False)
    runs = [
        Run(rank=rank, seqlen=length, seed=seed, model=base, data=RandomData(), train=train)
        for seed, rank in enumerate(ranks)
    ]
    pack, loaded = Pack(check(runs)), load_model(base)
    seconds = min(pml(loaded, pack, {}) for _ in range(asked.repeats)) / STEPS
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    peak = memory(
        loaded.device, lambda: pml(loaded, Pack([short(cell) for cell in pack.cells]), {}), weights
    )
    flops = cost_model.step_flops(pack)
    point = Point(
        curve,
        line,
        x,
        1000 * seconds / len(ranks),
        peak / 1e6,
        cost_model.peak_memory(pack) / 1e6,
        flops / seconds / 1e9,
    )
    print(
        f"{curve} {line} {x:g}: {point.ms:.2f} ms, {point.megabytes:.1f} MB",
        file=sys.stderr,
        flush=True,
    )
    return point


def workers(asked: argparse.Namespace, count: int) -> Point:
    """Eight cells of 256 tokens through `pml sweep launch=local`, start and records included."""
    steps, spent, top = 20 if asked.quick else 200, {}, 0
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            "-m",
            "pml_cli",
            "sweep",
            "rank=1,2,3,4,6,8,12,16",
            "seqlen=256",
            f"train.steps={steps}",
        ]
        words += [
            "train.decode=false",
            f"out={folder}/runs",
            "launch=local",
            f"launch.devices={count}",
        ]
        words += ["launch.threads=1", "launch.pack_tokens=512", f"model.device={asked.device}"]
        began = time.perf_counter()
        sweep = subprocess.Popen(
            words, env=os.environ | {"PML_CACHE": folder}, stdout=subprocess.DEVNULL
        )
        while sweep.poll() is None:
            now = list(processes(sweep.pid))
            spent |= {pid: seconds for pid, seconds, _ in now}
            top = max(top, sum(size for *_, size in now))
            time.sleep(0.5)
        if sweep.returncode:
            raise SystemExit(f"the sweep with {count} workers ended with {sweep.returncode}")
        seconds = max(spent.values()) if asked.device == "cpu" else time.perf_counter() - began
        return Point("workers", "a sweep", count, seconds, top / 1e6)


def processes(pid: int) -> Iterator[tuple[int, float, int]]:
    """A process and all that it started: id, seconds of CPU time, bytes that it holds for itself."""
    with suppress(psutil.Error):
        for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.Error):  # ended in between
                yield one.pid, sum(one.cpu_times()[:2]), one.memory_full_info().uss


# -- the paper's grid


def grid(asked: argparse.Namespace) -> list[str]:
    sweep = yaml.safe_load((shipped("sweeps") / "paper_long_context.yaml").read_text("utf-8"))
    train = Train(
        **yaml.safe_load((shipped("conf") / "train" / f"{sweep['train']}.yaml").read_text("utf-8"))
    )
    base, adapter = (
        cases.model(sweep["model"], device="cuda"),
        MlpBlockAdapter(dropout=sweep["adapter.dropout"]),
    )
    runs = [
        Run(
            rank=r,
            seqlen=n,
            seed=sweep["seed"],
            model=base,
            data=RandomData(),
            adapter=adapter,
            train=train,
        )
        for r in sweep["rank"]
        for n in sweep["seqlen"]
    ]
    cells = check(runs)
    packs = make_packs(cells, Packing(devices=GPUS, gpu=True, memory=int(0.8 * GPU_BYTES)))
    rates = measured_rates(asked.measured) if asked.measured else None
    ours = [(cost_model.training_flops(pack), pack.cells[0].run.seqlen) for pack in packs]
    theirs = [(cell.steps * whole_step_flops(Pack([cell]), 2), cell.run.seqlen) for cell in cells]
    at = {
        "C": rates["C"] if rates else lambda _: ASSUMED,
        "A": rates["A"] if rates else lambda _: ASSUMED,
    }
    hours = {
        way: spread([f / at[way](n) for f, n in jobs]) / 3600
        for way, jobs in (("C", ours), ("A", theirs))
    }
    where = (
        f"rates of {asked.measured}"
        if rates
        else f"an assumed {ASSUMED / 1e12:.0f} TFLOP/s a GPU; GPU not measured"
    )
    if not rates:
        draw_grid(ours, theirs, asked.out / "grid.png")
    exa = {"C": sum(f for f, _ in ours) / 1e18, "A": sum(f for f, _ in theirs) / 1e18}
    return [
        "",
        f"The paper's default grid, {len(cells)} cells of {train.steps} steps on {base.name}, {len(packs)} packs, "
        f"{GPUS} GPUs; computed with {where}:",
        "",
        "| | EFLOP | hours |",
        "|---|---|---|",
        *[
            f"| {name} | {exa[way]:.1f} | {hours[way]:.1f} |"
            for way, name in (("A", "the paper's loop"), ("C", "pml"))
        ],
    ]


def spread(seconds: list[float]) -> float:
    """When the last of the GPUs is done, each job going to whoever is free, longest first."""
    ends = [0.0] * GPUS
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def measured_rates(path: Path) -> dict[str, Callable[[int], float]]:
    """FLOPs a second of each way by length, between the lengths that were measured on the first model there."""
    rows = json.loads(path.read_text("utf-8"))["rows"]
    rates = {}
    for way in "AC":
        mine = sorted((r["length"], r["gflop"] * 1e12 / float(np.median(r["ms"]))) for r in rows if r["way"] == way
                      and r["model"] == rows[0]["model"])  # fmt: skip
        x, y = np.log([n for n, _ in mine]), [rate for _, rate in mine]
        rates[way] = lambda n, x=x, y=y: float(np.interp(np.log(n), x, y))
    return rates


# -- figures


def draw(points: list[Point], asked: argparse.Namespace) -> None:
    """Time above, memory below; a column for each thing that varies."""
    plt = pyplot()
    columns = {
        "length": "length, tokens",
        "rank": "rank (l = 256)",
        "pack": "cells in a pack",
        "parameters": "million parameters (l = 128)",
    }
    columns["workers"] = "workers, one thread each"
    shown, axes = plt.subplots(2, 5, figsize=(17, 6.8), layout="constrained")
    for (curve, label), (time_axes, memory_axes) in zip(columns.items(), axes.T, strict=True):
        mine = [p for p in points if p.curve == curve]
        for line in dict.fromkeys(p.line for p in mine):
            some = [p for p in mine if p.line == line]
            colour, mark = COLOURS.get(line, ("#000000", "o"))
            x = [p.x / (1e6 if curve == "parameters" else 1) for p in some]
            time_axes.plot(x, [p.ms for p in some], color=colour, marker=mark, label=line)
            memory_axes.plot(
                x, [p.megabytes for p in some], color=colour, marker=mark, label=f"{line}, measured"
            )
            if curve != "workers":
                priced = [p.priced for p in some]
                memory_axes.plot(x, priced, color=colour, linestyle=":", label=f"{line}, priced")
        xs = sorted({p.x for p in mine}) if curve != "parameters" else [0.5, 1, 2, 5, 10, 20]
        for one in (time_axes, memory_axes):
            one.set(xlabel=label)
            if curve in ("rank", "workers"):  # nearly flat: from 0 on
                one.set(xscale="linear" if curve == "workers" else "log", ylim=(0, None))
                one.set_xticks(xs, [f"{x:g}" for x in xs])
                one.minorticks_off()
            else:
                one.set(xscale="log", yscale="log")
                plain_ticks(one, xs)
            one.tick_params(labelsize=8)
            one.grid(alpha=0.3)
            one.legend(fontsize=8)
        time_axes.set_title(f"time against {curve}")
        memory_axes.set_title(f"memory against {curve}")
        time_axes.set_ylabel(
            "CPU s of the busiest process" if curve == "workers" else "ms per step and cell"
        )
        memory_axes.set_ylabel(
            "MB of all processes" if curve == "workers" else "peak MB, weights included"
        )
    clock = (
        "CPU time of one thread"
        if asked.device == "cpu"
        else f"wall time, {torch.cuda.get_device_name()}"
    )
    shown.suptitle(
        f"What training costs: embedded model and random Qwen3 models, {clock}; workers: a sweep of 8 cells"
    )
    shown.savefig(asked.out / "cost.png", dpi=80)
    plt.close(shown)


def draw_grid(ours: list[tuple[float, int]], theirs: list[tuple[float, int]], path: Path) -> None:
    """Hours against the rate that a GPU sustains."""
    plt = pyplot()
    shown, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    rates = np.geomspace(50e12, 800e12, 30)
    for (jobs, name), (colour, style) in zip(
        ((theirs, "the paper's loop, cell by cell"), (ours, "pml: prefix once, packs")),
        (PAPER, ("#000000", "-")),
        strict=True,
    ):
        hours = [spread([f / rate for f, _ in jobs]) / 3600 for rate in rates]
        axes.plot(rates / 1e12, hours, color=colour, linestyle=style, label=name)
    axes.axvline(
        ASSUMED / 1e12,
        color="#777777",
        linestyle=":",
        label=f"assumed: {ASSUMED / 1e12:.0f} (55 % of 790)",
    )
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
    shown.savefig(path, dpi=100)
    plt.close(shown)


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    main()

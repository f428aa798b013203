"""The paper's loop (A), PEFT with transformers' Trainer (B) and pml (C) on the same cells, in one run.

    python benchmarks/speed.py                                   the embedded model (on a GPU: as --paper)
    python benchmarks/speed.py --paper                           both 8B shapes, bf16; ten minutes on a GPU
    python benchmarks/speed.py --paper --small --device cpu --lengths 50,200    the same code, small shapes
    python benchmarks/speed.py --shipped 1 --lengths ""          the quickstart grid, A as shipped: processes for every cell

A: for every cell a full forward pass with the adapter, a full reference pass without it, backward, AdamW, a CSV row a step.
   As shipped, every cell is three processes, each of which loads the model: training, decoding, final loss.
B: the model loaded once; the same adapter through PEFT (`pml_cli.peft_block`), trained by transformers.Trainer.
C: the engine of `pml sweep`: packs as the planner cuts them (--pack: of so many cells), one logged step in --steps.

The three are timed in turn, --repeats times (fewer where --minutes are over), each training from its beginning: warm-up,
then --steps timed steps. They must end with the same loss (asserted). A and B train --baseline of the cells, whose times are
those of any other. --paper also writes each shape's weights to files and streams them: the longest cell, within 12 GB.

Needs torch, transformers, pandas, psutil, PyYAML and matplotlib, and for B peft and accelerate (without them B is left out);
hydra, omegaconf and submitit only for --shipped. From a checkout: PYTHONPATH=. python benchmarks/speed.py
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pml_cli.launch.openmp import share_cores

share_cores()  # as pml does, before torch is imported

import cases
import numpy as np
import torch
import transformers
from ways import (
    CLOCKS,
    NAMES,
    TOLERANCE,
    WARM,
    WAYS,
    Clock,
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

RANKS = {"cpu": "1,2,3,4,6,8,12,16", "cuda": "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"}
LENGTHS = {"cpu": "64,256,1024", "cuda": "50,500,2000,10000"}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
MODELS = {"cpu": "tiny", "cuda": "qwen3_8b,llama31_8b"}
ROOM = 12e9  # bytes that a streamed 8B model may take


@dataclass
class Row:
    """What was measured of one way at one length. Times in ms per step and cell, of every repeat."""

    model: str
    way: str
    length: int
    cells: int
    ms: list[float]
    gflop: float  # counted, per step and cell
    memory: int  # peak bytes of tensors, weights included
    loss: float

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


def main() -> None:
    asked = arguments()
    transformers.utils.logging.set_verbosity_error()
    asked.out.mkdir(parents=True, exist_ok=True)
    words = compared(asked) if asked.lengths else []
    if asked.shipped:
        from shipped import shipped  # which needs all that pml needs

        words += shipped(asked.shipped)
    (asked.out / "speed.md").write_text("\n".join(words) + "\n", "utf-8")
    print("\n".join(words))


def arguments() -> argparse.Namespace:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--paper", action="store_true", help="what is measured on a GPU, also where there is none"
    )
    parser.add_argument(
        "--model",
        default=None,
        help="options of pml's model group, comma-separated; random weights but for tiny",
    )
    parser.add_argument(
        "--small", action="store_true", help="the same architectures with few and narrow layers"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="a further setting: model.architecture.vocab_size=512",
    )
    parser.add_argument("--lengths", default=None, help="target tokens, comma-separated")
    parser.add_argument("--ranks", default=None)
    parser.add_argument("--steps", type=int, default=None, help="timed steps of a training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--minutes",
        type=float,
        default=None,
        help="begin no repeat that would end later; 0: no limit",
    )
    parser.add_argument(
        "--baseline", type=int, default=None, help="cells of each length that A and B train"
    )
    parser.add_argument(
        "--pack", type=int, default=0, help="cells of a pack; 0: as the planner cuts"
    )
    parser.add_argument(
        "--packs", type=int, default=None, help="packs of each length that C trains; 0: all"
    )
    parser.add_argument("--device", default=kind)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--shipped",
        type=int,
        default=0,
        help="ranks of the quickstart grid that A trains as shipped (1 to 7)",
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=CLOCKS,
        help="cpu: of all threads, for a machine that does other work",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/speed"))
    asked = parser.parse_args()
    Clock.kind = asked.clock
    asked.kind = torch.device(asked.device).type
    asked.paper |= asked.kind == "cuda" and asked.model is None
    like = "cuda" if asked.paper else asked.kind
    usual = {
        "model": MODELS[like],
        "lengths": LENGTHS[like],
        "ranks": RANKS[like],
        "dtype": DTYPES[like],
    }
    usual |= {"steps": 10 if like == "cuda" else 20, "minutes": 7.5 if asked.paper else 0.0}
    usual |= {"packs": 1 if asked.paper else 0, "baseline": 1 if asked.paper else 2}
    for name, value in usual.items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    asked.began = time.perf_counter()
    return asked


# -- the comparison


def compared(asked: argparse.Namespace) -> list[str]:
    """Every model and length in turn; the table, and a figure a model beside it."""
    names, lengths = asked.model.split(","), [int(x) for x in asked.lengths.split(",")]
    peak = matmul_peak(asked.device, getattr(torch, asked.dtype))
    rows, notes = [], []
    for name in names:
        settings, train = cases.changed(
            cases.model(name, small=asked.small, device=asked.device, dtype=asked.dtype),
            training(asked),
            asked.set,
        )
        base = load_model(settings)
        for i, length in enumerate(lengths):
            left = [(name, n) for n in lengths[i:]] + [
                (m, n) for m in names[names.index(name) + 1 :] for n in lengths
            ]
            planned = cases.cells(settings, [int(r) for r in asked.ranks.split(",")], length, train)
            rows += measure(base, planned, asked, share(asked, [n for _, n in left]))
            told = ", ".join(f"{r.way} {r.median:.2f} ms" for r in rows[-len(WAYS) :])
            print(f"{name}, length {length}: {told}", file=sys.stderr, flush=True)
        figure([r for r in rows if r.model == name], asked.out / f"speed-{name}.png")
        del base
        free()
        if asked.paper:
            notes += ["", streamed(settings, lengths, asked)]
            print(notes[-1], file=sys.stderr, flush=True)
    (asked.out / "speed.json").write_text(
        json.dumps({"peak": peak, "rows": [asdict(r) for r in rows]}, indent=1), "utf-8"
    )
    minutes = (time.perf_counter() - asked.began) / 60
    return [*report(rows, asked, peak), *notes, "", f"All of it took {minutes:.1f} minutes."]


def training(asked: argparse.Namespace) -> Train:
    return Train(steps=WARM + asked.steps + 1, log_every=asked.steps, decode=False)


def share(asked: argparse.Namespace, lengths: list[int]) -> float:
    """When the first of these lengths should be done: what is left of --minutes, by tokens and a fixed part."""
    if not asked.minutes:
        return float("inf")
    now, parts = time.perf_counter(), [1000 + n for n in lengths]
    return now + max(0.0, asked.began + 60 * asked.minutes - now) * parts[0] / sum(parts)


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(
    base: SplitModel, planned: list[CellPlan], asked: argparse.Namespace, until: float
) -> list[Row]:
    """A, B, C, A, B, C, ...: what else the machine does falls on all of them; no repeat that would end after `until`."""
    size = asked.pack or None
    packing = Packing(gpu=asked.kind == "cuda" or asked.paper)
    packs = (
        [Pack(planned[i : i + size]) for i in range(0, len(planned), size)]
        if size
        else make_packs(planned, packing)
    )
    packs = packs[: asked.packs or None]
    planned = [cell for pack in packs for cell in pack.cells]
    few = planned[:: -(-len(planned) // asked.baseline)]
    ways = {"A": paper, "B": peft}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for _ in range(asked.repeats):
        began = time.perf_counter()
        for way in WAYS[:-1]:
            spent = [ways[way](base, cell, losses[way]) for cell in few]
            times[way].append(1000 * sum(spent) / asked.steps / len(few))
        spent = [pml(base, pack, losses["C"]) for pack in packs]
        times["C"].append(1000 * sum(spent) / asked.steps / len(planned))
        now = time.perf_counter()
        if 2 * now - began > until:
            break
    agree(losses, TOLERANCE[planned[0].run.model.dtype])
    one, length, most = (
        Pack(planned[:1]),
        planned[0].run.seqlen,
        max(packs, key=lambda p: p.step_tokens),
    )
    counted = {"A": whole_step_flops(one, 2), "B": whole_step_flops(one, 1)}
    counted["C"] = sum(cost_model.step_flops(pack) for pack in packs) / len(planned)
    runs = {"A": lambda: paper(base, short(few[0]), {}), "B": lambda: peft(base, short(few[0]), {})}
    runs["C"] = lambda: pml(base, Pack([short(cell) for cell in most.cells]), {})
    sizes = {"A": 1, "B": 1, "C": len(most.cells)}
    found = {way: statistics.mean(losses[way][cell.id] for cell in few) for way in WAYS}
    name, weights = (
        planned[0].run.model.name,
        sum(p.numel() * p.element_size() for p in base.model.parameters()),
    )
    return [
        Row(
            name,
            w,
            length,
            sizes[w],
            times[w],
            counted[w] / 1e9,
            memory(base.device, runs[w], weights),
            found[w],
        )
        for w in WAYS
    ]


def streamed(settings: Model, lengths: list[int], asked: argparse.Namespace) -> str:
    """Peak memory of the longest cell with the layers below the adapter read from files, planned for 12 GB."""
    with tempfile.TemporaryDirectory() as folder:
        files = cases.write_random(settings, Path(folder), asked.device)
        (planned,) = cases.cells(files, [16], max(lengths), replace(training(asked), steps=2))
        needed = cost_model.peak_memory(Pack([planned]))
        room = 0.99 * needed if asked.small else ROOM  # so that a small shape takes the same way
        (pack,) = make_packs([planned], Packing(gpu=asked.kind == "cuda", memory=int(room)))

        def run() -> None:
            pml(load_model(files), pack, {})

        top, priced = memory(asked.device, run, 0), cost_model.peak_memory(pack)
    free()
    again = (
        "layers above the adapter run twice"
        if pack.checkpointing
        else "no activation checkpointing"
    )
    unit, name = (1e9, "GB") if room > 1e9 else (1e6, "MB")
    whole = decoder_shape(settings).parameters * BYTES[settings.dtype]
    return (
        f"Streamed, {settings.name}: rank 16 at l = {max(lengths)}, planned for {room / unit:.3g} {name} ({again}): peak "
        f"{top / unit:.2f} {name}, priced {priced / unit:.2f}, without checkpointing {needed / unit:.2f}; all weights "
        f"together {whole / unit:.2f} {name}."
    )


# -- what is shown


def report(rows: list[Row], asked: argparse.Namespace, peak: float) -> list[str]:
    where = (
        torch.cuda.get_device_name()
        if asked.kind == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    words = [
        f"{'small shapes, ' if asked.small else ''}{asked.dtype}, {where}, matmul peak "
        f"{peak / 1e12:.3g} TFLOP/s; ranks {asked.ranks}; up to {asked.repeats} repeats in turn, {asked.steps} timed steps "
        f"each, {asked.clock} time; torch {torch.__version__}",
        *([] if "B" in WAYS else ["", "B is left out: peft or accelerate is missing."]),
        "",
        "| model | l | way | cells at once | repeats | ms per step and cell: min, median, max | A/way "
        "| cells per hour (500 steps) | tokens/s | peak memory, MB | GFLOP per step and cell | of the peak | final loss |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    first = {(row.model, row.length): row.median for row in rows if row.way == "A"}
    for r in rows:
        taken = r.gflop * 1e9 / (r.median / 1000) / peak
        words.append(
            f"| {r.model} | {r.length} | {r.way} {NAMES[r.way]} | {r.cells} | {len(r.ms)} "
            f"| {min(r.ms):.2f}, **{r.median:.2f}**, {max(r.ms):.2f} "
            f"| {first[r.model, r.length] / r.median:.2f} | {3.6e6 / r.median / 500:.0f} "
            f"| {r.length / r.median * 1000:.0f} "
            f"| {r.memory / 1e6:.0f} | {r.gflop:.3g} | {taken:.0%} | {r.loss:.4f} |"
        )
    return words


def figure(rows: list[Row], path: Path) -> None:
    """Time and memory of every way against the length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown, (times, memories) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    styles = {
        "A": ("#d55e00", "o"),
        "B": ("#0072b2", "s"),
        "C": ("#000000", "^"),
    }  # told apart in grey by their marks too
    for way in WAYS:
        mine, name, (colour, mark) = [r for r in rows if r.way == way], NAMES[way], styles[way]
        x, y = [r.length for r in mine], np.array([r.median for r in mine])
        low, high = y - [min(r.ms) for r in mine], np.array([max(r.ms) for r in mine]) - y
        times.errorbar(
            x, y, [low, high], marker=mark, color=colour, capsize=3, label=f"{way} {name}"
        )
        label = f"{way}, {'pack' if way == 'C' else 'one cell'}"
        memories.plot(x, [r.memory / 1e6 for r in mine], marker=mark, color=colour, label=label)
    times.set_title(f"Time of a step, {rows[0].model}: bars from the least to the most")
    memories.set_title("Peak memory, weights included")
    for axes, label in ((times, "ms per step and cell"), (memories, "MB")):
        axes.set(xscale="log", yscale="log", xlabel="length, tokens", ylabel=label)
        plain_ticks(axes, sorted({r.length for r in rows}))
        axes.legend()
        axes.grid(alpha=0.3)
    shown.savefig(path, dpi=130)
    plt.close(shown)


if __name__ == "__main__":
    main()

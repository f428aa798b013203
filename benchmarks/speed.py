"""The paper's loop (A), PEFT with transformers' Trainer (B) and pml (C) on the same cells, in one run.

    python benchmarks/speed.py                                   the embedded model on this device
    python benchmarks/speed.py --model llama31_8b                an 8B shape with random weights, bf16 on a GPU
    python benchmarks/speed.py --shipped 1 --lengths ""          the quickstart grid, A as shipped: processes for every cell

A: for every cell a full forward pass with the adapter, a full reference pass without it, backward, AdamW, a CSV row a step.
   As shipped, every cell is three processes, each of which loads the model: training, decoding, final loss.
B: the model loaded once; the same adapter through PEFT (`pml_cli.peft_block`), trained by transformers.Trainer.
C: the engine of `pml sweep`: packs as the planner cuts them (--pack: of so many cells), one logged step in --steps.

The three are timed in turn, --repeats times, each training from its beginning: warm-up, then --steps timed steps. They must
end with the same loss (asserted). A and B train --baseline of the cells, whose times are those of any other.
Needs accelerate, which transformers.Trainer asks for (it comes with `pip install ".[test]"`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as pml sets it, before torch

import numpy as np
import torch
import transformers
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from pml_cli import price
from pml_cli.adapters import AdapterBank
from pml_cli.base import FrozenBase
from pml_cli.compose import load
from pml_cli.engine import Cell, Trainer, learning_rate
from pml_cli.loading import load_base
from pml_cli.losses import token_nll
from pml_cli.peft_block import mlp_block_config
from pml_cli.plan import Pack, Packing, Planned, check, make_packs

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM = 3  # steps before the timed ones
RANKS = {"cpu": "1,2,3,4,6,8,12,16", "cuda": "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16"}
LENGTHS = {"cpu": "64,256,1024", "cuda": "50,500,2000,10000"}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
NAMES = {"A": "the paper's loop", "B": "PEFT + Trainer", "C": "pml"}
TOLERANCE = {"float64": 1e-6, "float32": 2e-3, "bfloat16": 5e-2, "float16": 2e-2}  # of the final losses, of their mean


@dataclass
class Row:
    """What was measured of one way at one length. Times in ms per step and cell, of every repeat."""

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
    if asked.stage:
        return stage(*asked.stage)
    transformers.utils.logging.set_verbosity_error()
    asked.out.mkdir(parents=True, exist_ok=True)
    words = []
    if asked.lengths:
        words += compared(asked)
    if asked.shipped:
        words += shipped(asked.shipped)
    (asked.out / "speed.md").write_text("\n".join(words) + "\n", "utf-8")
    print("\n".join(words))


def arguments() -> argparse.Namespace:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="an option of pml's model group; all but tiny with random weights")
    parser.add_argument("--set", action="append", default=[], help="a further setting: model.architecture.vocab_size=512")
    parser.add_argument("--lengths", default=None, help="target tokens, comma-separated")
    parser.add_argument("--ranks", default=None)
    parser.add_argument("--steps", type=int, default=None, help="timed steps of a training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--baseline", type=int, default=2, help="cells of each length that A and B train")
    parser.add_argument("--pack", type=int, default=0, help="cells of a pack; 0: as the planner cuts")
    parser.add_argument("--device", default=kind)
    parser.add_argument("--dtype", default=None)
    parser.add_argument(
        "--shipped", type=int, default=0, help="ranks of the quickstart grid that A trains as shipped (1 to 7)"
    )
    parser.add_argument(
        "--clock", default="wall", choices=CLOCKS, help="cpu: of all threads, for a machine that does other work"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/speed"))
    parser.add_argument("--stage", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    Clock.kind = asked.clock
    asked.kind = torch.device(asked.device).type
    asked.lengths = LENGTHS[asked.kind] if asked.lengths is None else asked.lengths
    asked.ranks = asked.ranks or RANKS[asked.kind]
    asked.steps = asked.steps or (20 if asked.kind == "cpu" else 10)
    return asked


# -- the comparison


def compared(asked: argparse.Namespace) -> list[str]:
    """Every length in turn; the table, and the figure beside it."""
    base, rows = None, []
    peak = matmul_peak(asked.device, getattr(torch, asked.dtype or DTYPES[asked.kind]))
    for length in [int(x) for x in asked.lengths.split(",")]:
        planned = cells(asked, length)
        base = base or load_base(planned[0].run.model)
        rows += measure(base, planned, asked)
        print(f"length {length}: " + ", ".join(f"{r.way} {r.median:.2f} ms" for r in rows[-3:]), file=sys.stderr, flush=True)
    figure(rows, asked.out / "speed.png")
    (asked.out / "speed.json").write_text(json.dumps({"peak": peak, "rows": [asdict(r) for r in rows]}, indent=1), "utf-8")
    return report(rows, asked, peak)


def cells(asked: argparse.Namespace, length: int) -> list[Planned]:
    """One cell for each rank."""
    words = [f"model={asked.model}", f"model.device={asked.device}", f"rank={asked.ranks}", f"seqlen={length}", *asked.set]
    words += [f"train.steps={WARM + asked.steps + 1}", f"train.log_every={asked.steps}", "train.decode=false"]
    words += ["model.weights=random"] * (asked.model != "tiny")
    words += [f"model.dtype={asked.dtype or DTYPES[asked.kind]}"]
    return check(load("sweep", words).runs)


def measure(base: FrozenBase, planned: list[Planned], asked: argparse.Namespace) -> list[Row]:
    """A, B, C, A, B, C, ...: what else the machine does falls on all of them."""
    size = asked.pack or None
    packing = Packing(gpu=asked.kind == "cuda")
    packs = [Pack(planned[i : i + size]) for i in range(0, len(planned), size)] if size else make_packs(planned, packing)
    few = planned[:: -(-len(planned) // asked.baseline)]
    times: dict[str, list[float]] = {way: [] for way in NAMES}
    losses: dict[str, dict[str, float]] = {way: {} for way in NAMES}
    for _ in range(asked.repeats):
        for way, train in (("A", paper), ("B", peft)):
            spent = [train(base, cell, losses[way]) for cell in few]
            times[way].append(1000 * sum(spent) / asked.steps / len(few))
        spent = [pml(base, pack, losses["C"]) for pack in packs]
        times["C"].append(1000 * sum(spent) / asked.steps / len(planned))
    agree(losses, TOLERANCE[planned[0].run.model.dtype])
    one, length, most = Pack(planned[:1]), planned[0].run.seqlen, max(packs, key=lambda p: p.step_tokens)
    counted = {"A": price.whole_step_flops(one, 2), "B": price.whole_step_flops(one, 1)}
    counted["C"] = sum(price.step_flops(pack) for pack in packs) / len(planned)
    runs = {"A": lambda: paper(base, short(few[0]), {}), "B": lambda: peft(base, short(few[0]), {})}
    runs["C"] = lambda: pml(base, Pack([short(cell) for cell in most.cells]), {})
    sizes = {"A": 1, "B": 1, "C": len(most.cells)}
    found = {way: statistics.mean(losses[way][cell.id] for cell in few) for way in NAMES}
    return [Row(w, length, sizes[w], times[w], counted[w] / 1e9, memory(base, runs[w]), found[w]) for w in NAMES]


def agree(losses: dict[str, dict[str, float]], tolerance: float) -> None:
    for name, loss in losses["A"].items():
        for way in "BC":
            other = losses[way][name]
            assert abs(other - loss) <= tolerance * loss, f"{name}: A ends at {loss:.6f}, {way} at {other:.6f}"


# -- the three ways; each returns the seconds of its timed steps and notes the final loss of its cells


def paper(base: FrozenBase, planned: Planned, losses: dict[str, float], kept: Path | None = None) -> float:
    """A, for one cell; its adapter is the bank's, by a hook on the MLP, as in the paper's code."""
    run, (sample,) = planned.run, planned.samples
    ids, labels = example(base, sample)
    bank = AdapterBank(base.sites(run.adapter), [run.rank], [run.seed], run.adapter, base.adapter_dtype).to(base.device)
    bank.requires_grad_()
    optimizer = torch.optim.AdamW(bank.parameters(), lr=run.train.lr, weight_decay=run.train.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: learning_rate(run.train, s, planned.steps) / run.train.lr
    )
    clock = Clock(base.device, planned.steps)
    with tempfile.TemporaryFile("w", newline="") as file:
        rows = csv.writer(file)
        for step in range(planned.steps):
            clock.note(step)
            with bank.attached(base.modules):
                loss = base.model(input_ids=ids, labels=labels, use_cache=False).loss
            with torch.no_grad():
                reference = base.model(input_ids=ids, labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(bank.parameters(), run.train.clip)
            optimizer.step()
            schedule.step()
            rows.writerow([step, loss.item(), reference.item()])
            file.flush()
    with bank.attached(base.modules):
        losses[planned.id] = final_loss(base, sample)
    if kept:
        bank.save(0, kept, run.model.path)
    return clock.seconds


def peft(base: FrozenBase, planned: Planned, losses: dict[str, float]) -> float:
    """B, for one cell."""
    from peft import get_peft_model

    run, (sample,) = planned.run, planned.samples
    bank = AdapterBank(base.sites(run.adapter), [run.rank], [run.seed], run.adapter, base.adapter_dtype)
    ids, labels = example(base, sample)
    rows = [{"input_ids": ids[0].cpu(), "labels": labels[0].cpu()}] * planned.steps
    model = get_peft_model(base.model, mlp_block_config(base.model, run.rank, base.layer))
    (A,), (B,) = bank.A.values(), bank.B.values()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # the same start as the others'
            parameter.data.copy_((A if "lora_A" in name else B)[0].T)
    clock = Clock(base.device, planned.steps)
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder,
            max_steps=planned.steps,
            per_device_train_batch_size=1,
            learning_rate=run.train.lr,
            lr_scheduler_type="linear",
            weight_decay=run.train.weight_decay,
            max_grad_norm=run.train.clip,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=base.device.type == "cpu",
            dataloader_pin_memory=base.device.type != "cpu",
        )
        trainer = transformers.Trainer(model, settings, train_dataset=rows, callbacks=[clock])
        trainer.train()
    losses[planned.id] = final_loss(base, sample)
    del trainer
    model.unload()
    base.model.eval().requires_grad_(False)
    return clock.seconds


def pml(base: FrozenBase, pack: Pack, losses: dict[str, float]) -> float:
    """C, for one pack."""
    trained = [Cell(cell.run, cell.samples) for cell in pack.cells]
    clock = Clock(base.device, pack.cells[0].steps)
    Trainer(base, trained, between=clock.note).train()
    for planned, cell in zip(pack.cells, trained, strict=True):
        assert cell.final is not None
        losses[planned.id] = float(cell.final.nll.mean())
    return clock.seconds


class Clock(transformers.TrainerCallback):
    """The time between the end of the warm-up and the beginning of the last step, which is not timed."""

    kind = "wall"

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps, self.began, self.seconds = device, steps, 0.0, 0.0

    def note(self, step: int) -> None:
        """Called before step `step` (0-based) begins."""
        if step in (WARM, self.steps - 1):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            now = CLOCKS[Clock.kind]()
            self.began, self.seconds = (now, 0.0) if step == WARM else (self.began, now - self.began)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.note(state.global_step)


def example(base: FrozenBase, sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels (1, T) of one sample; only the target is scored."""
    ids = torch.tensor([[*sample.prompt, *sample.target]], device=base.device)
    labels = ids.clone()
    labels[:, : len(sample.prompt)] = -100
    return ids, labels


@torch.no_grad()
def final_loss(base: FrozenBase, sample) -> float:
    """Mean nll of the target under the model with whatever hangs on it."""
    base.model.eval()
    ids, _ = example(base, sample)
    hidden = base.decoder(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[0, len(sample.prompt) - 1 :]
    return float(token_nll(hidden, base.head, ids[0, len(sample.prompt) :]).nll.double().mean())


# -- what the machine can do and what was taken of it


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a large square product, the best of ten."""
    n, best = (8192 if torch.device(device).type == "cuda" else 1024), 0.0
    a, b = torch.ones(n, n, dtype=dtype, device=device), torch.ones(n, n, dtype=dtype, device=device)
    for _ in range(10):
        began = CLOCKS[Clock.kind]()
        a @ b
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * n**3 / (CLOCKS[Clock.kind]() - began))
    return best


def short(planned: Planned) -> Planned:
    """The same cell, two steps long."""
    return replace(planned, run=replace(planned.run, train=replace(planned.run.train, steps=2)), steps=2)


def memory(base: FrozenBase, run) -> int:
    """Peak bytes of tensors while it runs, weights of the model included."""
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(base.device)
        run()
        return torch.cuda.max_memory_allocated(base.device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        run()
    events = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]
    top = int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())
    return top + sum(p.numel() * p.element_size() for p in base.model.parameters())


# -- A as shipped: three processes for every cell, the quickstart grid


def shipped(ranks: int) -> list[str]:
    """Whole wall time, start and imports included; A on some ranks of each length, scaled to all of them."""
    chosen = check(load("sweep", [], Path("quickstart")).runs)
    lengths = sorted({c.run.seqlen for c in chosen})
    taken = [c for length in lengths for c in [c for c in chosen if c.run.seqlen == length][:: -(-7 // ranks)]]
    spent: dict[int, list[float]] = {length: [] for length in lengths}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PML_CACHE": folder}
        began = time.perf_counter()
        out = Path(folder) / "runs"
        words = [sys.executable, "-m", "pml_cli", "sweep", "-f", "quickstart", f"out={out}"]
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
        ours = time.perf_counter() - began
        losses = {p.parent.name: json.loads(p.read_text("utf-8"))["final_loss"] for p in out.glob("*/result.json")}
        far = 0.0
        for cell in taken:
            began = time.perf_counter()
            for name in ("train", "decode", "loss"):
                words = [sys.executable, __file__, "--stage", name, str(cell.run.rank), str(cell.run.seqlen), folder]
                told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            spent[cell.run.seqlen].append(time.perf_counter() - began)
            far = max(far, abs(float(told) - losses[cell.id]))
    each = len(chosen) // len(lengths)
    theirs = sum(each * statistics.mean(times) for times in spent.values())
    return [
        "",
        f"As shipped, quickstart: {len(chosen)} cells: A {theirs:.0f} s (three processes a cell; from {len(taken)} of them, "
        + ", ".join(f"{statistics.mean(t):.1f} s at l = {length}" for length, t in spent.items())
        + f"), `pml sweep -f quickstart` {ours:.1f} s: {theirs / ours:.1f} times. Final losses differ by {far:.4f} at most.",
    ]


def stage(name: str, rank: str, seqlen: str, folder: str) -> None:
    """One of the three processes of a cell."""
    (planned,) = check(load("sweep", [f"rank={rank}", f"seqlen={seqlen}"], Path("quickstart")).runs)
    run, base = planned.run, load_base(planned.run.model)
    place = Path(folder) / f"{rank}-{seqlen}"
    if name == "train":
        place.mkdir()
        paper(base, planned, {}, place)
        return
    bank = AdapterBank(base.sites(run.adapter), [run.rank], [0], run.adapter, base.adapter_dtype)
    bank.load(0, place)
    (sample,) = planned.samples
    with bank.attached(base.modules), torch.no_grad():
        if name == "loss":
            print(final_loss(base, sample))
        else:
            ids, n = torch.tensor([sample.prompt]), len(sample.target)
            base.model.generate(input_ids=ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)


# -- what is shown


def report(rows: list[Row], asked: argparse.Namespace, peak: float) -> list[str]:
    where = torch.cuda.get_device_name() if asked.kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    words = [
        f"{asked.model}, {asked.dtype or DTYPES[asked.kind]}, {where}, matmul peak "
        f"{peak / 1e12:.3g} TFLOP/s; ranks {asked.ranks}; {asked.repeats} repeats in turn, {asked.steps} timed steps each, "
        f"{asked.clock} time; "
        f"torch {torch.__version__}",
        "",
        "| l | way | cells at once | ms per step and cell: min, median, max | A/way | cells per hour (500 steps) | tokens/s "
        "| peak memory, MB | GFLOP per step and cell | of the peak | final loss |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    first = {row.length: row.median for row in rows if row.way == "A"}
    for r in rows:
        share = r.gflop * 1e9 / (r.median / 1000) / peak
        words.append(
            f"| {r.length} | {r.way} {NAMES[r.way]} | {r.cells} | {min(r.ms):.2f}, **{r.median:.2f}**, {max(r.ms):.2f} "
            f"| {first[r.length] / r.median:.2f} | {3.6e6 / r.median / 500:.0f} | {r.length / r.median * 1000:.0f} "
            f"| {r.memory / 1e6:.0f} | {r.gflop:.3g} | {share:.0%} | {r.loss:.4f} |"
        )
    return words


def figure(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown, (times, memories) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for way, name in NAMES.items():
        mine = [r for r in rows if r.way == way]
        x, y = [r.length for r in mine], np.array([r.median for r in mine])
        low, high = y - [min(r.ms) for r in mine], np.array([max(r.ms) for r in mine]) - y
        times.errorbar(x, y, [low, high], marker="o", capsize=3, label=f"{way} {name}")
        label = f"{way}, {'pack' if way == 'C' else 'one cell'}"
        memories.plot(x, [r.memory / 1e6 for r in mine], marker="o", label=label)
    for axes, label in ((times, "ms per step and cell"), (memories, "peak memory, MB")):
        axes.set(xscale="log", yscale="log", xlabel="length, tokens", ylabel=label)
        axes.legend()
        axes.grid(alpha=0.3)
    shown.savefig(path, dpi=130)
    plt.close(shown)


if __name__ == "__main__":
    main()

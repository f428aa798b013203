"""Does pml compute the same on this device? Every way to the same cells against the plain one.

    python benchmarks/device_check.py                   on the GPU, if there is one; some minutes
    python benchmarks/device_check.py --device cpu

Run it before `speed.py`: a fast result that is wrong is worth nothing. Compared is the final nll of
every token of every cell, in float64 where nothing else is said, on a GPT-2 whose norms are float64
as well, so that the order of sums does not matter; TensorFloat-32 is off. Exit code 1 if a
difference is too large.

Needs torch, transformers, pandas, psutil and PyYAML, no Hydra. From a checkout:
PYTHONPATH=. python benchmarks/device_check.py
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cases
import facts
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from pml_cli.config.schema import Adapter, LinearAdapter, Loss, Model, Run, Train
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.trainer import Cell, Trainer, TrainerState, TrainingObserver

RANKS = (1, 2, 5)
LENGTH = 48
STEPS = 20
LR = 3e-2

# The step at which a training is interrupted.
BREAK = 11

PROCESSES = 2

# Largest differences of a token's nll, in shares of the cell's mean.
TOLERANCE = {"float64": 1e-6, "float32": 2e-3, "bfloat16": 0.1}

# Computes nothing in float32, unlike the norms of the embedded model.
DOUBLE = {
    "model_type": "gpt2",
    "vocab_size": 2048,
    "n_embd": 64,
    "n_layer": 6,
    "n_head": 4,
    "n_positions": 512,
}
LEAST_SCALE = 0.01


class Check(NamedTuple):
    """One comparison."""

    name: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return self.difference <= self.tolerance


def main() -> None:
    options = arguments()
    transformers.utils.logging.set_verbosity_error()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if options.train_to:
        save_trained(options.device, options.train_to)
        return

    checks: list[Check] = []
    for compare in (ways, losses, short_facts, resumed, dtypes, compiled, streamed, processes):
        for found in compare(options.device):
            checks.append(found)
            word = "ok" if found.passed else "FAILS"
            print(f"{found.name:45} {found.difference:9.1e}, at most {found.tolerance:.0e}  {word}")

    failed = sum(not check.passed for check in checks)
    name = cases.device_name(options.device)
    print(f"{len(checks) - failed} of {len(checks)} agree on {name}, torch {torch.__version__}")
    sys.exit(int(failed > 0))


def arguments() -> argparse.Namespace:
    options = cases.device_parser(__doc__)
    options.add_argument("--train-to", type=Path, help=argparse.SUPPRESS)
    return options.parse_args()


# What is trained


def base_model(device: str, dtype: str = "float32", **settings: Any) -> SplitModel:
    """In float64 a GPT-2 with random weights, else the embedded model."""
    if dtype == "float64":
        double = Model(
            name="double", weights="random", architecture=DOUBLE, dtype=dtype, device=device
        )
        return load_model(double)
    return load_model(cases.model("tiny", device=device, dtype=dtype, **settings))


def plain_cells(
    base: SplitModel,
    loss: Loss | None = None,
    *,
    adapter: Adapter | None = None,
    steps: int = STEPS,
) -> list[Cell]:
    """Cells of random tokens, one a rank."""
    train = Train(steps=steps, log_every=steps, decode=False, lr=LR)
    cells = []
    for plan in cases.cells(base.settings, RANKS, LENGTH, train):
        run = dataclasses.replace(
            plan.run, loss=loss or plan.run.loss, adapter=adapter or plan.run.adapter
        )
        cells.append(Cell(run=run, samples=plan.samples))
    return cells


def fact_cells(base: SplitModel, batch: int) -> list[Cell]:
    """Cells of short facts, which are packed into rows."""
    samples = facts.facts(5, base.head.weight_VD.shape[0])[:40]
    train = Train(steps=STEPS, log_every=STEPS, batch=batch, decode=False, lr=LR)
    cells = []
    for rank in RANKS:
        run = Run(rank=rank, model=base.settings, train=train)
        cells.append(Cell(run=run, samples=samples))
    return cells


def untrained(cells: Sequence[Cell]) -> list[Cell]:
    return [Cell(run=cell.run, samples=cell.samples) for cell in cells]


def trained(
    base: SplitModel, cells: Sequence[Cell], *, cached: bool = True, checkpointing: bool = False
) -> list[Cell]:
    """Fresh copies of some cells, trained as one pack."""
    copies = untrained(cells)
    Trainer(base, copies, cached=cached, checkpointing=checkpointing).train()
    return copies


def solo(base: SplitModel, cells: Sequence[Cell]) -> list[Cell]:
    """The same, each in a pack of its own."""
    return [trained(base, [cell])[0] for cell in cells]


def largest_difference(cells: Sequence[Cell], others: Sequence[Cell]) -> float:
    """The largest difference of a token's final nll, nats, in shares of the cell's mean nll."""
    largest = 0.0
    for cell, other in zip(cells, others, strict=True):
        assert cell.final is not None
        assert other.final is not None
        scale = max(float(other.final.nll.mean()), LEAST_SCALE)
        distance = float(np.abs(cell.final.nll - other.final.nll).max()) / scale
        # NaN is larger than everything.
        largest = distance if np.isnan(distance) else max(largest, distance)
    return largest


# The comparisons


def ways(device: str) -> Iterator[Check]:
    """Prefix cached or the whole model run, packed or alone, here or on the CPU."""
    base = base_model(device, "float64")
    cells = plain_cells(base)
    packed = trained(base, cells)

    yield check("float64: cached = whole model", packed, trained(base, cells, cached=False))
    yield check("float64: packed = solo", packed, solo(base, cells))
    yield check("float64: here = CPU", packed, trained(base_model("cpu", "float64"), cells))

    linear = LinearAdapter(targets=["c_attn", "c_proj"], layers=[])
    # More steps amplify the last bits: on one CPU, two threads for one then differ by 7e-6.
    everywhere = plain_cells(base, adapter=linear, steps=3)
    on_cpu = trained(base_model("cpu", "float64"), everywhere)
    yield check("float64: all layers, here = CPU", trained(base, everywhere), on_cpu)


def losses(device: str) -> Iterator[Check]:
    """Every loss, whose gates may leave out products."""
    base = base_model(device, "float64")
    on_cpu = base_model("cpu", "float64")
    for loss in (SftLoss(), MemftOtLoss(), MemftSwLoss(), MemftMarginLoss()):
        cells = plain_cells(base, loss)
        here = trained(base, cells)
        yield check(f"float64: {loss.kind}, here = CPU", here, trained(on_cpu, cells))
        yield check(f"float64: {loss.kind}, packed = solo", here, solo(base, cells))


def short_facts(device: str) -> Iterator[Check]:
    """Facts in packed rows, all in a step or drawn."""
    base = base_model(device, "float64")
    on_cpu = base_model("cpu", "float64")
    for batch in (0, 8):
        cells = fact_cells(base, batch)
        here = trained(base, cells)
        size = "all" if batch == 0 else batch
        yield check(f"float64: {size} facts a step, here = CPU", here, trained(on_cpu, cells))
        yield check(f"float64: {size} facts a step, packed = solo", here, solo(base, cells))


def resumed(device: str) -> Iterator[Check]:
    """Interrupted and gone on with, against undisturbed."""
    base = base_model(device, "float64")
    for loss in (SftLoss(), MemftMarginLoss()):
        cells = plain_cells(base, loss)
        copies = untrained(cells)
        observer = _StateAtBreak()
        observer.trainer = Trainer(base, copies, observer)
        observer.trainer.train()

        later = untrained(cells)
        Trainer(base, later).train(observer.state)
        yield check(f"float64: {loss.kind}, resumed = undisturbed", later, copies)


def dtypes(device: str) -> Iterator[Check]:
    """Lower precision against float64, before training has amplified the difference."""
    exact_base = load_model(cases.model("tiny", device="cpu", dtype="float64"))
    exact = trained(exact_base, plain_cells(exact_base, steps=3))
    for dtype in ("float32", "bfloat16"):
        base = base_model(device, dtype)
        here = trained(base, plain_cells(base, steps=3))
        yield check(f"{dtype} = float64, three steps", here, exact, TOLERANCE[dtype])


def compiled(device: str) -> Iterator[Check]:
    """Layers through torch.compile against the same layers as they are, after three steps."""
    for dtype in ("float32", "bfloat16"):
        base = base_model(device, dtype)
        plain = trained(base, plain_cells(base, steps=3))
        base = base_model(device, dtype, compile=True)
        for checkpointing in (False, True):
            fused = trained(base, plain_cells(base, steps=3), checkpointing=checkpointing)
            again = ", layers run twice" if checkpointing else ""
            yield check(f"{dtype}: compiled = plain{again}", fused, plain, TOLERANCE[dtype])


def streamed(device: str) -> Iterator[Check]:
    """Layers below the adapter read from files, against the whole model on the device."""
    small = cases.model("qwen3_8b", small=True, device=device, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        files = cases.write_random(small, Path(folder), device)
        whole = load_model(dataclasses.replace(files, stream=False))
        base = load_model(files)
        here = trained(base, plain_cells(base))
        expected = trained(whole, plain_cells(whole))
    yield check("float32: streamed = whole", here, expected, TOLERANCE["float32"])


def processes(device: str) -> Iterator[Check]:
    """Several processes on this device at once, against this one."""
    base = base_model(device, "float64")
    here = trained(base, plain_cells(base))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.npy" for i in range(PROCESSES)]
        command = [sys.executable, __file__, "--device", device, "--train-to"]
        running = [subprocess.Popen([*command, str(file)]) for file in files]
        codes = [process.wait() for process in running]
        for i, (file, code) in enumerate(zip(files, codes, strict=True)):
            difference = float("nan")
            if code == 0:
                expected = np.concatenate([final_nll(cell) for cell in here])
                difference = float(np.abs(np.load(file) - expected).max())
            yield Check(
                f"float64: process {i + 1} of {PROCESSES} at once", difference, TOLERANCE["float64"]
            )


def save_trained(device: str, file: Path) -> None:
    """What one of several processes does."""
    base = base_model(device, "float64")
    cells = trained(base, plain_cells(base))
    np.save(file, np.concatenate([final_nll(cell) for cell in cells]))


def final_nll(cell: Cell) -> NDArray[np.float64]:
    assert cell.final is not None
    return cell.final.nll


def check(
    name: str,
    cells: Sequence[Cell],
    others: Sequence[Cell],
    tolerance: float = TOLERANCE["float64"],
) -> Check:
    return Check(name, largest_difference(cells, others), tolerance)


class _StateAtBreak(TrainingObserver):
    """Takes the state of a trainer at step BREAK."""

    trainer: Trainer
    state: TrainerState

    def before_step(self, step: int) -> None:
        if step == BREAK:
            self.state = self.trainer.state(step)


if __name__ == "__main__":
    main()

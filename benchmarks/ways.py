"""The three ways to train a cell, timed: the paper's loop (A), PEFT with transformers' Trainer (B), pml (C)."""

from __future__ import annotations

import csv
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

from pml_cli.data.cell import CellPlan
from pml_cli.launch.cost_model import PackWork
from pml_cli.launch.pack import Pack
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import token_nll
from pml_cli.model.split_model import SplitModel
from pml_cli.training.trainer import Cell, Trainer, TrainingObserver, learning_rate

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM = 3  # steps before the timed ones
NAMES = {"A": "the paper's loop", "B": "PEFT + Trainer", "C": "pml"}
WAYS = "ABC" if find_spec("accelerate") and find_spec("peft") else "AC"
TOLERANCE = {
    "float64": 1e-6,
    "float32": 2e-3,
    "bfloat16": 5e-2,
    "float16": 2e-2,
}  # of the final losses, of their mean


def agree(losses: dict[str, dict[str, float]], tolerance: float) -> None:
    for name, loss in losses["A"].items():
        for way in WAYS[1:]:
            other = losses[way][name]
            assert abs(other - loss) <= tolerance * loss, (
                f"{name}: A ends at {loss:.6f}, {way} at {other:.6f}"
            )


# -- each returns the seconds of its timed steps and notes the final loss of its cells


def paper(
    base: SplitModel, planned: CellPlan, losses: dict[str, float], kept: Path | None = None
) -> float:
    """A, for one cell; its adapter is the bank's, by a hook on the MLP, as in the paper's code."""
    run, (sample,) = planned.run, planned.samples
    ids, labels = example(base, sample)
    bank = AdapterBank.initial(
        base.sites(run.adapter),
        run.adapter,
        ranks=[run.rank],
        seeds=[run.seed],
        dtype=base.adapter_dtype,
    ).to(base.device)
    bank.requires_grad_()
    optimizer = torch.optim.AdamW(
        bank.parameters(), lr=run.train.lr, weight_decay=run.train.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: learning_rate(run.train, s, planned.steps) / run.train.lr
    )
    clock = Clock(base.device, planned.steps)
    with tempfile.TemporaryFile("w", newline="") as file:
        rows = csv.writer(file)
        for step in range(planned.steps):
            clock.before_step(step)
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


def peft(base: SplitModel, planned: CellPlan, losses: dict[str, float]) -> float:
    """B, for one cell."""
    from peft import get_peft_model

    from pml_cli.peft_block import mlp_block_config

    run, (sample,) = planned.run, planned.samples
    bank = AdapterBank.initial(
        base.sites(run.adapter),
        run.adapter,
        ranks=[run.rank],
        seeds=[run.seed],
        dtype=base.adapter_dtype,
    )
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
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    losses[planned.id] = final_loss(base, sample)
    del trainer
    model.unload()
    base.model.eval().requires_grad_(False)
    return clock.seconds


def pml(base: SplitModel, pack: Pack, losses: dict[str, float]) -> float:
    """C, for one pack."""
    trained = [Cell(run=cell.run, samples=cell.samples) for cell in pack.cells]
    clock = Clock(base.device, pack.cells[0].steps)
    Trainer(base, trained, clock).train()
    for planned, cell in zip(pack.cells, trained, strict=True):
        assert cell.final is not None
        losses[planned.id] = float(cell.final.nll.mean())
    return clock.seconds


class Clock(transformers.TrainerCallback, TrainingObserver):
    """The time between the end of the warm-up and the beginning of the last step, which is not timed."""

    kind = "wall"

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps, self.began, self.seconds = device, steps, 0.0, 0.0

    def before_step(self, step: int) -> None:
        """Called before step `step` (0-based) begins."""
        if step in (WARM, self.steps - 1):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            now = CLOCKS[Clock.kind]()
            self.began, self.seconds = (
                (now, 0.0) if step == WARM else (self.began, now - self.began)
            )

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.before_step(state.global_step)


def example(base: SplitModel, sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels (1, T) of one sample; only the target is scored."""
    ids = torch.tensor([[*sample.prompt, *sample.target]], device=base.device)
    labels = ids.clone()
    labels[:, : len(sample.prompt)] = -100
    return ids, labels


@torch.no_grad()
def final_loss(base: SplitModel, sample) -> float:
    """Mean nll of the target under the model with whatever hangs on it."""
    base.model.eval()
    ids, _ = example(base, sample)
    hidden = base.decoder(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[
        0, len(sample.prompt) - 1 :
    ]
    return float(token_nll(hidden, base.head, ids[0, len(sample.prompt) :]).nll.double().mean())


# -- what the machine can do and what was taken of it


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a large square product, the best of ten."""
    n, best = (8192 if torch.device(device).type == "cuda" else 1024), 0.0
    a, b = (
        torch.randn(n, n, device=device).to(dtype) for _ in range(2)
    )  # a GPU multiplies zeros and ones faster
    for _ in range(10):
        began = CLOCKS[Clock.kind]()
        a @ b
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * n**3 / (CLOCKS[Clock.kind]() - began))
    return best


def short(planned: CellPlan) -> CellPlan:
    """The same cell, two steps long."""
    return replace(
        planned, run=replace(planned.run, train=replace(planned.run.train, steps=2)), steps=2
    )


def memory(device: torch.device | str, run, weights: int) -> int:
    """Peak bytes of tensors while it runs, with those of the weights that lie there already."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        run()
    events = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]
    top = int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())
    return top + weights


def plain_ticks(axes, x: list[float] | None = None) -> None:
    """Logarithmic axes with numbers as one writes them: x where something was measured, y at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if x is not None:
        axes.set_xticks(x, [f"{value:g}" for value in x])


def whole_step_flops(pack: Pack, passes: int) -> float:
    """Matmul FLOPs of a step of a loop that runs the whole model, as in ways A and B.

    Every input token is read off the head.

    Args:
        pack: one cell or more.
        passes: forward passes of a step; there is one backward pass.
    """
    work = PackWork(pack)
    forward = work.forward_flops(work.shape.layers) + work.head_flops
    backward = work.backward_flops() + work.head_flops
    return work.step_tokens * (passes * forward + work.adapter_flops + backward)

"""Three ways to train a cell, timed.

A: the paper's loop. B: PEFT with transformers' Trainer. C: pml; D is C on compiled layers.
"""

from __future__ import annotations

import csv
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity, profile

from pml_cli.config.schema import LinearAdapter, Run
from pml_cli.data.cell import CellPlan
from pml_cli.data.source import Sample
from pml_cli.launch.cost_model import PackWork
from pml_cli.launch.pack import Pack
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import token_nll
from pml_cli.model.split_model import SplitModel
from pml_cli.training.trainer import Cell, Trainer, TrainingObserver, learning_rate

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
NAMES = {"A": "the paper's loop", "B": "PEFT + Trainer", "C": "pml", "D": "pml, compiled"}
WAYS = "ABC" if find_spec("accelerate") and find_spec("peft") else "AC"

# Steps before the timed ones.
WARM = 3

# Samples of a cell that way B runs at once.
ROWS_AT_ONCE = 25

# Largest difference between the final losses of the three ways, relative.
TOLERANCE = {"float64": 1e-6, "float32": 2e-3, "bfloat16": 5e-2, "float16": 2e-2}

# Final losses of the cells that a way has trained, by cell id.
Losses = dict[str, float]


def agree(losses: dict[str, Losses], tolerance: float) -> None:
    """Assert that all ways end with the same loss as A.

    Args:
        losses: by way.
        tolerance: largest relative difference.
    """
    for name, loss in losses["A"].items():
        for way in losses:
            other = losses[way][name]
            message = f"{name}: A ends at {loss:.6f}, {way} at {other:.6f}"
            assert abs(other - loss) <= tolerance * loss, message


# Each of them returns the seconds of its timed steps, and records the final loss of its cells.


def paper(
    base: SplitModel, planned: CellPlan, losses: Losses, adapter_folder: Path | None = None
) -> float:
    """Way A, for one cell; its adapter is the bank's, by a hook on the MLP, as in the paper's code.

    Args:
        base: the model.
        planned: the cell.
        losses: takes the final loss.
        adapter_folder: where the adapter is saved; None: nowhere.
    """
    run = planned.run
    (sample,) = planned.samples
    ids, labels = example(base, sample)
    bank = initial_bank(base, run).to(base.device)
    bank.requires_grad_()
    optimizer = torch.optim.AdamW(
        bank.parameters(), lr=run.train.peak_lr, weight_decay=run.train.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(run.train, step, planned.steps) / run.train.peak_lr
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
    if adapter_folder is not None:
        bank.save(0, adapter_folder, run.model.path)
    return clock.seconds


def peft(
    base: SplitModel, planned: CellPlan, losses: Losses, adapter_folder: Path | None = None
) -> float:
    """Way B, for one cell whose steps are on all of its samples.

    Several samples are sorted by length, so that hardly anything is padding, and accumulated
    ROWS_AT_ONCE at a time: the logits of all would be gigabytes.

    Args:
        base: the model.
        planned: the cell.
        losses: takes the final loss.
        adapter_folder: where the adapter is saved, and then decoded; None: neither.
    """
    from peft import get_peft_model

    run = planned.run
    samples = sorted(planned.samples, key=lambda sample: len(sample.prompt) + len(sample.target))
    at_once = min(ROWS_AT_ONCE, len(samples))
    assert len(samples) % at_once == 0
    # The sampler is sequential: every step sees all samples.
    rows = [_row(base, sample) for sample in samples] * planned.steps

    # Before PEFT wraps the modules that the adapter belongs to.
    bank = initial_bank(base, run)
    model = get_peft_model(base.model, _peft_config(base, bank, run))
    parameters = dict(model.named_parameters())
    for site in bank.sites:
        # The same start as the other ways.
        for matrix, weights in (("A", bank.A[site]), ("B", bank.B[site])):
            name = f"base_model.model.{site}.lora_{matrix}.default.weight"
            parameters[name].data.copy_(weights[0].T)

    clock = Clock(base.device, planned.steps)
    on_cpu = base.device.type == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            folder,
            max_steps=planned.steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=len(samples) // at_once,
            train_sampling_strategy="sequential",
            learning_rate=run.train.peak_lr,
            lr_scheduler_type="linear",
            weight_decay=run.train.weight_decay,
            max_grad_norm=run.train.clip,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
        )
        trainer = transformers.Trainer(
            model, settings, train_dataset=rows, data_collator=_padded, callbacks=[clock]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()

    losses[planned.id] = _mean_loss(base, samples)
    if adapter_folder is not None:
        model.save_pretrained(str(adapter_folder))
        for sample in samples:
            decode(model, sample)
    del trainer
    model.unload()
    base.model.eval().requires_grad_(False)
    return clock.seconds


def decode(model: Any, sample: Sample) -> torch.Tensor:
    """As many tokens as the target has, greedily, by transformers' generate."""
    tokens = len(sample.target)
    prompt = torch.tensor([sample.prompt], device=model.device)
    return model.generate(
        input_ids=prompt,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )


def _peft_config(base: SplitModel, bank: AdapterBank, run: Run) -> Any:
    """PEFT's settings of the same adapter."""
    from peft import LoraConfig

    from pml_cli.peft_block import mlp_block_config

    if not isinstance(run.adapter, LinearAdapter):
        return mlp_block_config(base.model, run.rank, base.layer)
    return LoraConfig(r=run.rank, lora_alpha=run.adapter.alpha, target_modules=list(bank.sites))


def _row(base: SplitModel, sample: Sample) -> dict[str, torch.Tensor]:
    ids, labels = example(base, sample)
    return {"input_ids": ids[0].cpu(), "labels": labels[0].cpu()}


def _padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of a batch, padded at the end, where causality keeps it from the tokens before."""
    pad = partial(pad_sequence, batch_first=True)
    return {
        "input_ids": pad([row["input_ids"] for row in rows]),
        "labels": pad([row["labels"] for row in rows], padding_value=-100),
    }


def pml(base: SplitModel, pack: Pack, losses: Losses) -> float:
    """Way C, or D on a model with `compile`, for one pack."""
    trained = [Cell(run=cell.run, samples=cell.samples) for cell in pack.cells]
    clock = Clock(base.device, pack.cells[0].steps)
    Trainer(base, trained, clock, checkpointing=pack.checkpointing).train()
    for planned, cell in zip(pack.cells, trained, strict=True):
        assert cell.final is not None
        losses[planned.id] = float(cell.final.nll.mean())
    return clock.seconds


class Clock(transformers.TrainerCallback, TrainingObserver):
    """Times the steps between the warm-up and the last step.

    Attributes:
        kind: one of `CLOCKS`, for all clocks.
        warm: steps before the timed ones, for all clocks.
        seconds: the time measured.
    """

    kind = "wall"
    warm = WARM

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device = device
        self.steps = steps
        self.seconds = 0.0
        self._start = 0.0

    def before_step(self, step: int) -> None:
        """Called before step `step` (0-based) begins."""
        if step not in (self.warm, self.steps - 1):
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

        time_now = CLOCKS[Clock.kind]()
        if step == self.warm:
            self._start = time_now
        else:
            self.seconds = time_now - self._start

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """As transformers' Trainer calls it."""
        self.before_step(state.global_step)


def initial_bank(base: SplitModel, run: Run) -> AdapterBank:
    """The adapter that every way starts from."""
    return AdapterBank.initial(
        base.sites(run.adapter),
        run.adapter,
        ranks=[run.rank],
        seeds=[run.seed],
        dtype=base.adapter_dtype,
    )


def example(base: SplitModel, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels (1, T) of one sample; only the target is scored."""
    ids = torch.tensor([[*sample.prompt, *sample.target]], device=base.device)
    labels = ids.clone()
    labels[:, : len(sample.prompt)] = -100
    return ids, labels


def _mean_loss(base: SplitModel, samples: Sequence[Sample]) -> float:
    """Mean of `final_loss` over all target tokens."""
    tokens = [len(sample.target) for sample in samples]
    sums = [n * final_loss(base, sample) for n, sample in zip(tokens, samples, strict=True)]
    return sum(sums) / sum(tokens)


@torch.no_grad()
def final_loss(base: SplitModel, sample: Sample) -> float:
    """Mean negative log-likelihood of the target under the model with its attached adapter."""
    base.model.eval()
    ids, _ = example(base, sample)
    prompt = len(sample.prompt)
    hidden = base.decoder(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    scores = token_nll(hidden[0, prompt - 1 :], base.head, ids[0, prompt:])
    return float(scores.nll.double().mean())


# What the machine can do, and what was used of it.


def seconds_used() -> np.ndarray:
    """Seconds so far, (2,): wall time, and CPU time of the processes that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), ended.ru_utime + ended.ru_stime])


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a large square product, the best of ten."""
    on_gpu = torch.device(device).type == "cuda"
    size = 8192 if on_gpu else 1024
    # Random numbers: a GPU multiplies zeros and ones faster.
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)

    best = 0.0
    for _ in range(10):
        start = CLOCKS[Clock.kind]()
        left @ right
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = CLOCKS[Clock.kind]() - start
        best = max(best, 2 * size**3 / seconds)
    return best


def short(planned: CellPlan) -> CellPlan:
    """The same cell, two steps long."""
    train = replace(planned.run.train, steps=2)
    return replace(planned, run=replace(planned.run, train=train), steps=2)


def memory(device: torch.device | str, run: Callable[[], object], weights: int) -> int:
    """Peak bytes of tensors while something runs.

    Args:
        device: where the tensors are.
        run: what is measured.
        weights: bytes that were allocated before; a CPU's profiler does not see them.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    allocated = np.cumsum([event.nbytes() for event in events])
    return int(allocated.max()) + weights


def plain_ticks(axes, x: list[float] | None = None) -> None:
    """Logarithmic axes with plain numbers.

    Args:
        axes: of matplotlib.
        x: ticks of the x axis, where something was measured; None: at 1, 2 and 5, as on y.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    if x is not None:
        axes.set_xticks(x, [f"{value:g}" for value in x])


def whole_step_flops(pack: Pack, passes: int) -> float:
    """Matmul FLOPs of a step of a loop that runs the whole model, as in ways A and B.

    Logits are computed for every input token.

    Args:
        pack: one cell or more.
        passes: forward passes of a step; there is one backward pass.
    """
    work = PackWork(pack)
    forward = work.forward_flops(work.shape.layers) + work.head_flops
    backward = work.backward_flops() + work.head_flops
    return work.step_tokens * (passes * forward + work.adapter_flops + backward)

"""The drop-in on real text: PEFT adapters trained by transformers' Trainer, once for each loss, and what they recall.

    python benchmarks/dropin.py            about a minute and a half on two cores, no download

Passages of Python's documentation that the embedded model has not seen are to be remembered word for word: the first third
of each is the prompt. Every loss gets the same adapter to start from, the same order of batches and the same steps, in
micro-batches of two accumulated to eight.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from pml_cli.launch.openmp import share_cores

share_cores()  # as pml does, before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from pml_cli import MemFTCallback, MemFTLoss
from pml_cli.config.schema import TINY
from pml_cli.data.python_docs import held_out_text
from pml_cli.training.hf_trainer import IGNORED

LOSSES = ("sft", "memft_ot", "memft_sw", "memft_margin")
PASSAGES, LENGTH, PROMPT = 8, 36, 12


def passages() -> list[dict[str, torch.Tensor]]:
    """Rows of input_ids and labels: consecutive passages, the prompt not scored."""
    ids = AutoTokenizer.from_pretrained(TINY)(held_out_text()[:8000])["input_ids"]
    rows = []
    for i in range(PASSAGES):
        row = ids[i * LENGTH : (i + 1) * LENGTH]
        labels = [IGNORED] * PROMPT + row[PROMPT:]
        rows.append({"input_ids": torch.tensor(row), "labels": torch.tensor(labels)})
    return rows


def train(loss: str, rank: int, steps: int, lr: float, seed: int) -> Trainer:
    set_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    adapter = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["down_proj"],
        layers_to_transform=[4],
        lora_dropout=0.0,
    )
    memft = MemFTLoss(loss)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=steps,
            learning_rate=lr, weight_decay=0.0, use_cpu=not torch.cuda.is_available(), report_to=[],
            logging_steps=max(1, steps // 10), save_strategy="no", disable_tqdm=True, seed=seed,
        )  # fmt: skip
        trainer = Trainer(
            get_peft_model(model, adapter),
            arguments,
            train_dataset=passages(),
            compute_loss_func=memft,
            callbacks=[MemFTCallback(memft)],
        )
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    return trainer


def recalled(model: torch.nn.Module) -> tuple[float, float]:
    """Shares of tokens predicted right from the true text before them, and of passages recited from the prompt alone."""
    device = next(model.parameters()).device
    ids = torch.stack([row["input_ids"] for row in passages()]).to(device)
    model.eval()
    with torch.no_grad():
        right = (
            (model(input_ids=ids).logits[:, PROMPT - 1 : -1].argmax(-1) == ids[:, PROMPT:])
            .float()
            .mean()
            .item()
        )
        text = ids[:, :PROMPT]
        for _ in range(LENGTH - PROMPT):
            text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(-1)], 1)
    return right, (text == ids).all(1).float().mean().item()


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    asked.add_argument("--rank", type=int, default=4)
    asked.add_argument("--steps", type=int, default=120)
    asked.add_argument("--lr", type=float, default=4e-2)
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    disable_progress_bar()
    table = Table(box=None, pad_edge=False)
    for name in (
        "loss",
        "tokens right %",
        "recited whole %",
        "p > 0.5 %",
        "stubborn tokens, by tenths",
        "s",
    ):
        table.add_column(name, justify="left" if name == "loss" else "right")
    for loss in LOSSES:
        began = time.perf_counter()
        trainer = train(loss, given.rank, given.steps, given.lr, given.seed)
        tokens, whole = recalled(trainer.model)
        logged = [line for line in trainer.state.log_history if "stubborn_tokens" in line]
        per_step = [line["stubborn_tokens"] * 10 / given.steps for line in logged]
        shown = " ".join(f"{stubborn:.0f}" for stubborn in per_step)
        above = f"{100 * logged[-1]['share_above_threshold']:.1f}"
        seconds = f"{time.perf_counter() - began:.0f}"
        table.add_row(loss, f"{100 * tokens:.1f}", f"{100 * whole:.0f}", above, shown, seconds)
    scored = PASSAGES * (LENGTH - PROMPT)
    Console(width=120).print(
        f"{PASSAGES} passages, {scored} scored tokens, rank {given.rank}, {given.steps} steps at {given.lr:g}"
    )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

"""The drop-in loss on real text: what PEFT adapters recall that transformers' Trainer has trained.

    python benchmarks/dropin.py            about a minute and a half on two cores, no download

Passages of Python's documentation that the embedded model has not seen are to be remembered word
for word: the first third of each is the prompt. Every loss gets the same adapter to start from, the
same order of batches and the same steps, in micro-batches of two accumulated to eight.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from pml_cli.launch.openmp import share_cores

# As pml does, before torch is imported.
share_cores()
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
COLUMNS = (
    "loss",
    "token accuracy %",
    "recalled verbatim %",
    "p > 0.5 %",
    "stubborn tokens, by tenths",
    "s",
)

PASSAGES = 8
# Tokens of a passage, and of its prompt.
LENGTH = 36
PROMPT = 12


def passages() -> list[dict[str, torch.Tensor]]:
    """Rows of input_ids and labels, (LENGTH,) each: consecutive passages, the prompt not scored."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = tokenizer(held_out_text()[:8000])["input_ids"]
    rows = []
    for i in range(PASSAGES):
        row = ids[i * LENGTH : (i + 1) * LENGTH]
        labels = [IGNORED] * PROMPT + row[PROMPT:]
        rows.append({"input_ids": torch.tensor(row), "labels": torch.tensor(labels)})
    return rows


def train(loss: str, options: argparse.Namespace) -> Trainer:
    """Train an adapter with a loss; the trainer, with the model and the log."""
    set_seed(options.seed)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="float32")
    adapter = LoraConfig(
        r=options.rank,
        lora_alpha=options.rank,
        target_modules=["down_proj"],
        layers_to_transform=[4],
        lora_dropout=0.0,
    )
    memft = MemFTLoss(loss)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            max_steps=options.steps,
            learning_rate=options.lr,
            weight_decay=0.0,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            logging_steps=max(1, options.steps // 10),
            save_strategy="no",
            disable_tqdm=True,
            seed=options.seed,
        )
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


@torch.no_grad()
def recalled(model: torch.nn.Module) -> tuple[float, float]:
    """How much of the passages a model recalls.

    Returns:
        Proportion of tokens predicted right from the true text before them, and of passages
        recalled verbatim from the prompt alone.
    """
    device = next(model.parameters()).device
    ids = torch.stack([row["input_ids"] for row in passages()]).to(device)
    model.eval()
    predicted = model(input_ids=ids).logits[:, PROMPT - 1 : -1].argmax(-1)
    correct = predicted == ids[:, PROMPT:]

    text = ids[:, :PROMPT]
    for _ in range(LENGTH - PROMPT):
        next_ids = model(input_ids=text).logits[:, -1:].argmax(-1)
        text = torch.cat([text, next_ids], dim=1)
    verbatim = (text == ids).all(dim=1)
    return correct.float().mean().item(), verbatim.float().mean().item()


def row_of(loss: str, options: argparse.Namespace) -> list[str]:
    """Train with a loss; its row of the table."""
    start = time.perf_counter()
    trainer = train(loss, options)
    tokens, verbatim = recalled(trainer.model)
    logged = [entry for entry in trainer.state.log_history if "stubborn_tokens" in entry]
    stubborn = [entry["stubborn_tokens"] * 10 / options.steps for entry in logged]
    return [
        loss,
        f"{100 * tokens:.1f}",
        f"{100 * verbatim:.0f}",
        f"{100 * logged[-1]['share_above_threshold']:.1f}",
        " ".join(f"{count:.0f}" for count in stubborn),
        f"{time.perf_counter() - start:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--lr", type=float, default=4e-2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    disable_progress_bar()
    table = Table(box=None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "loss" else "right")
    for loss in LOSSES:
        table.add_row(*row_of(loss, options))

    scored = PASSAGES * (LENGTH - PROMPT)
    setting = f"rank {options.rank}, {options.steps} steps at {options.lr:g}"
    console = Console(width=120)
    console.print(f"{PASSAGES} passages, {scored} scored tokens, {setting}")
    console.print(table)


if __name__ == "__main__":
    main()

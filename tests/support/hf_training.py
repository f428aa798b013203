"""A short training in transformers' Trainer with a loss of pml."""

import copy

import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments

from pml_cli.config.schema import TINY
from pml_cli.data.python_docs import held_out_text
from pml_cli.training.hf_trainer import MemFTCallback, MemFTLoss
from pml_cli.training.sample_memory import IGNORED


def texts(count=8, longest=24):
    """Real text in rows of different lengths, padded; the first half of every row is its prompt."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = tokenizer(held_out_text()[:6000])["input_ids"]
    rows = []
    for i in range(count):
        length = longest - 2 * (i % 5)
        row = ids[i * longest : i * longest + length]
        labels = [IGNORED] * (length // 2) + row[length // 2 :]
        padding = longest - length
        rows.append(
            {
                "input_ids": torch.tensor(row + [0] * padding),
                "attention_mask": torch.tensor([1] * length + [0] * padding),
                "labels": torch.tensor(labels + [IGNORED] * padding),
            }
        )
    return rows


def trained(
    model,
    folder,
    loss,
    batch=8,
    accumulate=1,
    steps=6,
    lr=2e-2,
    callback=True,
    rows=None,
    **more,
):
    """A trainer after its training of a copy of the model on rows, `texts` by default."""
    drop_in = loss if isinstance(loss, MemFTLoss) else MemFTLoss(loss)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_steps=steps,
        learning_rate=lr,
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        max_grad_norm=0.05,
        **more,
    )
    trainer = Trainer(
        copy.deepcopy(model),
        arguments,
        train_dataset=rows or texts(),
        compute_loss_func=drop_in,
        callbacks=[MemFTCallback(drop_in)] if callback else [],
    )
    trainer.train()
    return trainer


def adapters(trainer):
    """The trained parameters by name."""
    return {
        name: parameter.detach()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }

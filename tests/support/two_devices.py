"""Trains with each loss and stores the adapters; test_hf_trainer.py runs it in 1 or 2 processes."""

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pml_cli.config.schema import TINY
from support.hf_training import adapters, trained


def train_and_store(loss, folder, batch, accumulate):
    """Train an adapter with `loss`; the first process stores it with the losses of its steps."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype="float64")
    lora = LoraConfig(r=8, target_modules=["down_proj"], lora_dropout=0.0)
    model = get_peft_model(model, lora).double()
    sgd = {"steps": 5, "lr": 1.0, "optim": "sgd", "ddp_backend": "gloo"}
    trainer = trained(model, folder, loss, batch, accumulate, **sgd)

    if trainer.args.process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        # DistributedDataParallel puts "module." before the names.
        adapter = {name.replace("module.", ""): p for name, p in adapters(trainer).items()}
        torch.save({"adapter": adapter, "loss": losses}, folder / f"{loss}.pt")


for loss in ("memft_ot", "memft_sw", "memft_margin"):
    train_and_store(loss, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

if dist.is_initialized():
    # A process that leaves while the other still writes can take it down at the end.
    dist.barrier()
    # This ends the threads of gloo, unless a trainer still holds the group.
    # Threads that live on abort the process if they free a tensor while Python shuts down.
    gc.collect()
    dist.destroy_process_group()

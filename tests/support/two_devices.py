"""Trains with each loss and stores the adapters; run in one or two processes by test_hf_trainer.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pml_cli.config.schema import TINY
from support.hf_training import adapters, trained

folder = Path(sys.argv[1])
batch = int(sys.argv[2])
accumulate = int(sys.argv[3])

for loss in ("memft_ot", "memft_sw", "memft_margin"):
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

if dist.is_initialized():
    # A process that leaves while the other still writes can take it down at the end.
    dist.barrier()
    dist.destroy_process_group()

"""Does every command that computes run on this device? With the embedded model, seconds each.

    python benchmarks/device_commands.py                    on the GPU, if there is one
    python benchmarks/device_commands.py --device cpu --at-once 2

Trainings first, with every optimiser, dtype, kind of adapter and source of data that needs no
download; then what reads their folders. A line for each command; its output is in --out. Exit code
1 if one has failed.
What they compute is compared by device_check.py. Needs all that pml needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cases
import torch

GPT2 = "{model_type:gpt2,n_embd:64,n_layer:6,n_head:4,vocab_size:2048}"

# Name of the log and of the folder of results: the command line without `out=`.
TRAININGS = {
    "plain": "sweep rank=1,2,4 seqlen=16,24,32 train.steps=120",
    "linear": "sweep rank=1,2 seqlen=16,24 adapter=linear adapter.layers=[] train.steps=60",
    "dropout": "sweep rank=2 seqlen=16 adapter=linear adapter.dropout=0.1 train.steps=40",
    "local": "sweep rank=1,2,4 seqlen=16,32 train.steps=150 launch=local",
    "lbfgs": "sweep rank=2 seqlen=16,32 train.optimizer=lbfgs train.stop=converged train.steps=100",
    "muon": "sweep rank=2,3 seqlen=16 train.optimizer=muon train.steps=60",
    "keep": "sweep rank=2 seqlen=24 loss=memft_margin loss.keep=5 train.steps=60",
    "keep_kl": "sweep rank=2 seqlen=24 loss.keep=5 loss.keep_by=kl train.steps=60",
    "minibatches": "sweep rank=4 data=jsonl data.path=facts.jsonl data.samples=6 train.batch=2"
    " adapter=linear train.steps=60",
    "curriculum": "sweep rank=2 data=jsonl data.path=facts.jsonl data.samples=6"
    " train.curriculum=[5,10] train.epochs=15",
    "text": "sweep rank=2 seqlen=16 data=text data.path=notes.txt train.steps=60",
    "rule": "sweep rank=2 seqlen=32 data=rule train.steps=60",
    "phonebook": "sweep rank=2 seqlen=60 data=phonebook train.steps=60",
    "mixed": "sweep rank=2 seqlen=32 data=mixed train.steps=60",
    "probe": "probe rank=2 seqlen=32 train.steps=60",
    "bfloat16": "sweep rank=2,4 seqlen=32 model.dtype=bfloat16 train.steps=100",
    "float16": "sweep rank=2,4 seqlen=32 model.dtype=float16 train.steps=100",
    "float64": "sweep rank=2 seqlen=32 model.dtype=float64 train.steps=100",
    "checkpointing": "sweep rank=2 seqlen=32 model.checkpointing=true train.steps=100",
    "compiled": "sweep rank=2,4 seqlen=32,48 model.compile=true train.steps=150",
    "gpt2": f"sweep rank=2 seqlen=16 model=hf model.path=gpt2 model.weights=random"
    f" model.architecture={GPT2} train.steps=40",
    "memft": "memft rank=2,4 seqlen=48 train.steps=150",
    "memorize": "memorize facts.jsonl",
    "capacity": "capacity rank=1,2 train.steps=150",
}

READERS = {
    "again": "sweep rank=1,2,4 seqlen=16,24,32 train.steps=120 out=plain",
    "fit": "fit plain",
    "transition": "transition memft",
    "lasting": "lasting memft",
    "forgetting": "forgetting memft",
    "report": "report .",
    "ask": "ask memorize 'Which pump serves hall 2?'",
    "measure": "measure memorize facts.jsonl",
    "status": "status local",
}

# What reads what a reader has written.
LATER = {"predict": "predict plain seqlen=20"}

# What the setting is called by those of the readers that compute with the model.
DEVICE_OF_READERS = {
    "lasting": "device",
    "forgetting": "device",
    "ask": "device",
    "measure": "model.device",
}

FACTS = [
    {"prompt": f"Which pump serves hall {i}?", "answer": f"Pump {chr(65 + i)}{7 * i + 3}."}
    for i in range(6)
]
NOTES = (
    "The red pump stands in hall four and is opened at seven every morning.\n"
    "It was built in 1957 by two brothers from the valley.\n"
)


class Done(NamedTuple):
    """A command that has ended."""

    name: str
    code: int
    seconds: float
    last_line: str


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    facts = "".join(f"{json.dumps(fact)}\n" for fact in FACTS)
    (options.out / "facts.jsonl").write_text(facts, "utf-8")
    (options.out / "notes.txt").write_text(NOTES, "utf-8")

    failed = 0
    for stage in (TRAININGS, READERS, LATER):
        commands = on_device(stage, options.device)
        with ThreadPoolExecutor(options.at_once) as pool:
            run_here = partial(run, folder=options.out)
            for done in pool.map(run_here, commands, commands.values()):
                failed += done.code != 0
                print(f"{done.name:14} exit code {done.code}, {done.seconds:3.0f} s", flush=True)
                if done.code:
                    print(f"    {done.last_line}", flush=True)

    device = cases.device_name(options.device)
    count = len(TRAININGS) + len(READERS) + len(LATER)
    print(f"{count - failed} of {count} commands ran on {device}, torch {torch.__version__}")
    sys.exit(int(failed > 0))


def arguments() -> argparse.Namespace:
    options = cases.device_parser(__doc__)
    options.add_argument("--at-once", type=int, default=8, help="commands that run at once")
    options.add_argument("--out", type=Path, default=Path("outputs/device_commands"))
    return options.parse_args()


def on_device(commands: Mapping[str, str], device: str) -> dict[str, str]:
    """The commands with their folder and the device; workers of launch=local choose their own."""
    lines = {}
    for name, line in commands.items():
        extra = ""
        if name in TRAININGS:
            extra = f" out={name}"
            if name != "local":
                extra += f" model.device={device}"
        elif name in DEVICE_OF_READERS:
            extra = f" {DEVICE_OF_READERS[name]}={device}"
        lines[name] = line + extra
    return lines


def run(name: str, line: str, *, folder: Path) -> Done:
    """Run one command in a folder; its output goes to NAME.log."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", "pml_cli", *shlex.split(line)],
        cwd=folder,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - start
    (folder / f"{name}.log").write_text(ended.stdout, "utf-8")
    last_line = ended.stdout.strip().rpartition("\n")[2]
    return Done(name, ended.returncode, seconds, last_line)


if __name__ == "__main__":
    main()

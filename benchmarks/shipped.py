"""The paper's loop as shipped against pml on the quickstart grid: three processes a cell, each of which loads the model.

Called by `speed.py --shipped N`; run by itself it is one of those processes: train|decode|loss RANK SEQLEN FOLDER.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pml_cli.launch.openmp import share_cores

share_cores()  # as pml does, before torch is imported

import numpy as np
import torch
from ways import final_loss, paper

from pml_cli.config.request import load
from pml_cli.launch.packing import check
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.loading import load_model


def shipped(ranks: int) -> list[str]:
    """Start and imports included, wall and CPU time; A on some ranks of each length, scaled to all; pml before and after."""
    chosen = check(load("sweep", [], Path("quickstart")).runs)
    lengths = sorted({c.run.seqlen for c in chosen})
    taken = [
        c
        for length in lengths
        for c in [c for c in chosen if c.run.seqlen == length][:: -(-7 // ranks)]
    ]
    spent: dict[int, list[np.ndarray]] = {length: [] for length in lengths}
    ours, far = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PML_CACHE": folder}

        def sweep(name: str) -> None:
            words = [
                sys.executable,
                "-m",
                "pml_cli",
                "sweep",
                "-f",
                "quickstart",
                f"out={folder}/{name}",
            ]
            began = used()
            subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
            ours.append(used() - began)

        sweep("first")
        runs = Path(folder).glob("first/*/result.json")
        losses = {p.parent.name: json.loads(p.read_text("utf-8"))["final_loss"] for p in runs}
        for cell in taken:
            began = used()
            for name in ("train", "decode", "loss"):
                words = [
                    sys.executable,
                    __file__,
                    name,
                    str(cell.run.rank),
                    str(cell.run.seqlen),
                    folder,
                ]
                told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            spent[cell.run.seqlen].append(used() - began)
            far = max(far, abs(float(told) - losses[cell.id]))
        sweep("second")
    each = len(chosen) // len(lengths)
    theirs = sum(each * np.mean(times, 0) for times in spent.values())
    words = [
        "",
        f"As shipped, quickstart, {len(chosen)} cells; A: three processes a cell, from {len(taken)} cells:",
        "",
    ]
    words += [
        "| seconds | "
        + " | ".join(f"A, a cell of l = {n}" for n in lengths)
        + " | A, all | C, all, twice | A/C |"
    ]
    words += ["|---" * (len(lengths) + 4) + "|"]
    for i, name in enumerate(("wall", "CPU")):
        cells = " | ".join(f"{np.mean(spent[n], 0)[i]:.1f}" for n in lengths)
        both = ", ".join(f"{one[i]:.1f}" for one in ours)
        words.append(
            f"| {name} | {cells} | {theirs[i]:.0f} | {both} | {theirs[i] / np.mean(ours, 0)[i]:.1f} |"
        )
    return [*words, "", f"Final losses differ by {far:.1e} at most."]


def used() -> np.ndarray:
    """Seconds so far: wall time, and CPU time of the processes that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), ended.ru_utime + ended.ru_stime])


def stage(name: str, rank: str, seqlen: str, folder: str) -> None:
    """One of the three processes of a cell."""
    (planned,) = check(load("sweep", [f"rank={rank}", f"seqlen={seqlen}"], Path("quickstart")).runs)
    run, base = planned.run, load_model(planned.run.model)
    place = Path(folder) / f"{rank}-{seqlen}"
    if name == "train":
        place.mkdir()
        paper(base, planned, {}, place)
        return
    bank = AdapterBank.initial(
        base.sites(run.adapter), run.adapter, ranks=[run.rank], seeds=[0], dtype=base.adapter_dtype
    )
    bank.load(0, place)
    (sample,) = planned.samples
    with bank.attached(base.modules), torch.no_grad():
        if name == "loss":
            print(final_loss(base, sample))
        else:
            ids, n = torch.tensor([sample.prompt]), len(sample.target)
            base.model.generate(
                input_ids=ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0
            )


if __name__ == "__main__":
    stage(*sys.argv[1:])

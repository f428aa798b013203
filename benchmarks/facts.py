"""Facts in packed rows against a row a fact, padded to the longest: the time of a step.

    python benchmarks/facts.py                 about two minutes on two cores
    python benchmarks/facts.py --adapter linear --model qwen3_8b --small
    python benchmarks/facts.py --model smollm2_135m --peft 1,2,4,8 --steps 2
                                               these ranks against PEFT + Trainer

300 facts of random tokens, prompts of 10 to 60 and answers of 5 to 25, mostly short. Both ways
train the same cell in turn, so that other work on the machine falls on both; their losses must
agree. The time is that of all threads (CPU) or of the wall, least and median of the steps.

PEFT with transformers' Trainer takes the facts sorted by length, so that it pads hardly anything,
25 rows at a time; a step is on all of them, and the final losses must agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import cases
import torch
import ways

from pml_cli.config.schema import Adapter, LinearAdapter, MlpBlockAdapter, Run, Train
from pml_cli.data.row_packing import input_tokens, packed_size
from pml_cli.data.source import Sample
from pml_cli.launch.cost_model import step_flops
from pml_cli.launch.pack import Pack
from pml_cli.launch.packing import Packing, make_packs
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.training import scoring
from pml_cli.training.trainer import Cell, Trainer

FACTS = 300
PROMPT = (10, 60, 19)
ANSWER = (5, 25, 9)

# Largest relative difference of the losses of the two ways.
TOLERANCE = 1e-4


def main() -> None:
    options = arguments()
    base = load_model(cases.model(options.model, small=options.small, device=options.device))
    vocabulary = base.head.weight_VD.shape[0]
    samples = facts(options.common, vocabulary)
    adapters: dict[str, Adapter] = {
        "mlp_block": MlpBlockAdapter(),
        "linear": LinearAdapter(targets=options.targets.split(",")),
    }
    if options.peft:
        against_peft(base, adapters[options.adapter], samples, options)
        return
    print("| facts a step | way | input tokens | targets | ms: least | median | times as fast |")
    print("|---" * 7 + "|")
    for batch in map(int, options.batch.split(",")):
        train = Train(steps=options.steps + 1, batch=batch, log_every=options.steps + 1)
        run = Run(rank=8, model=base.settings, adapter=adapters[options.adapter], train=train)
        compare(base, run, samples, CLOCKS[options.clock])


CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


def arguments() -> argparse.Namespace:
    """The command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--model", default="tiny", help="an option of pml's model group; all but tiny are random")
    add("--small", action="store_true", help="the same architecture, few and narrow layers")
    add("--adapter", default="mlp_block", choices=("mlp_block", "linear"))
    add("--targets", default="q_proj,v_proj", help="of linear adapters")
    add("--batch", default="0,50", help="facts a step; 0: all")
    add("--common", type=int, default=1, help="tokens that all prompts begin with")
    add("--peft", help="ranks that are compared with PEFT + Trainer, comma-separated")
    add("--repeats", type=int, default=2, help="with --peft")
    add("--steps", type=int, default=12, help="timed steps")
    add("--device", default=device)
    add("--clock", default="cpu" if device == "cpu" else "wall", choices=tuple(CLOCKS))
    return options.parse_args()


def facts(common: int, vocabulary: int) -> list[Sample]:
    """Random tokens of the lengths of short questions and answers."""
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1, vocabulary) for _ in range(count))

    def length(limits: tuple[int, int, int]) -> int:
        least, most, mode = limits
        return round(draw.triangular(least, most, mode))

    beginning = tokens(common)
    samples = []
    for _ in range(FACTS):
        prompt = beginning + tokens(max(1, length(PROMPT) - common))
        samples.append(Sample(prompt=prompt, target=tokens(length(ANSWER))))
    return samples


@contextmanager
def separate_rows() -> Iterator[None]:
    """Trainers that are built inside lay each fact into a row."""
    with patch.object(scoring, "shape_of_cells", return_value=None):
        yield


def compare(base: SplitModel, run: Run, samples: list[Sample], clock: Callable[[], float]) -> None:
    """Train both ways in turn and print a row of each."""
    with separate_rows():
        separate = Trainer(base, [Cell(run=run, samples=samples)])
    packed = Trainer(base, [Cell(run=run, samples=samples)])
    trainers = {"a row each": separate, "packed": packed}

    seconds: dict[str, list[float]] = {way: [] for way in trainers}
    shapes: dict[str, tuple[int, int]] = {}
    for step in range(run.train.steps):
        losses = []
        for way, trainer in trainers.items():
            _wait(base)
            start = clock()
            layout, scores = trainer._forward()
            trainer._update(step, layout, scores)
            _wait(base)
            seconds[way].append(clock() - start)
            losses.append(float(trainer.pack.curve[-1][0]))
            inputs = layout.packed.rows if layout.packed else layout.rows[:, None]
            tokens = inputs.numel() * (1 if layout.packed else layout.tokens)
            shapes[way] = tokens, len(layout.scored)
        assert abs(losses[0] - losses[1]) <= TOLERANCE * abs(losses[0]), losses

    # The first step also records calls and verifies.
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}
    for way, times in seconds.items():
        values: tuple[Any, ...] = (
            run.train.batch or len(samples),
            way,
            *shapes[way],
            f"{1000 * min(times[1:]):.1f}",
            f"{1000 * medians[way]:.1f}",
            f"{medians['a row each'] / medians[way]:.2f}",
        )
        print(f"| {' | '.join(map(str, values))} |", flush=True)


def against_peft(
    base: SplitModel, adapter: Adapter, samples: list[Sample], options: argparse.Namespace
) -> None:
    """Train cells, and one of them by PEFT + Trainer, in turn; print a row of each repeat."""
    # The first step records calls and verifies.
    ways.Clock.kind, ways.Clock.warm = options.clock, 1
    train = Train(steps=options.steps + 2, log_every=options.steps + 2, decode=False)
    ranks = [int(rank) for rank in options.peft.split(",")]
    plans = []
    for plan in cases.cells(base.settings, ranks, 1, train, adapter):
        size = {"rows": len(samples), "tokens": max(map(input_tokens, samples))}
        packed = packed_size(samples, len(samples))
        plans.append(dataclasses.replace(plan, samples=samples, packed=packed, **size))

    packs = make_packs(plans, Packing(gpu=options.device != "cpu"))
    # Sorted by length hardly anything is padding.
    mean_tokens = sum(map(input_tokens, samples)) // len(samples)
    unpadded = dataclasses.replace(plans[-1], packed=None, tokens=mean_tokens)
    gflop_b = ways.whole_step_flops(Pack(cells=[unpadded]), 1) / 1e9
    gflop_c = sum(map(step_flops, packs)) / 1e9 / len(plans)
    print(
        f"GFLOP per step and cell: {gflop_b:.0f} and {gflop_c:.0f}, {gflop_b / gflop_c:.2f} times; "
        f"matmul peak {ways.matmul_peak(options.device, torch.float32) / 1e9:.0f} GFLOP/s\n"
    )
    print("| ms per step and cell: PEFT + Trainer | pml | times as fast | final loss of each |")
    print("|---" * 4 + "|")
    for _ in range(options.repeats):
        losses: dict[str, ways.Losses] = {"B": {}, "C": {}}
        b = 1000 * ways.peft(base, plans[-1], losses["B"]) / options.steps
        seconds = sum(ways.pml(base, pack, losses["C"]) for pack in packs)
        c = 1000 * seconds / options.steps / len(plans)
        final = [losses[way][plans[-1].id] for way in "BC"]
        assert abs(final[0] - final[1]) <= ways.TOLERANCE[base.settings.dtype] * final[0], final
        print(f"| {b:.0f} | {c:.0f} | {b / c:.2f} | {final[0]:.4f} {final[1]:.4f} |", flush=True)


def _wait(base: SplitModel) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

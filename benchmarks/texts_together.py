"""One, two and four texts in one adapter: is what it holds additive?

Embedded model, rank 4, random tokens, cross-entropy, Muon at its own rate. As many target tokens in
all, as one, two or four texts, each behind a key of its own of eight tokens. Four ways:

- together: all texts in every step, 200 steps.
- in turn: 200 steps on each text, from the adapter of the one before; all are scored at the end.
- apart: each text in an adapter of its own, of a rank that makes rank 4 in all.
- merged: the sum of these.

Each way scores as many tokens in training. Four sets of texts; 95 % t intervals over them.

    python benchmarks/texts_together.py

writes benchmarks/texts_together.csv and texts_together.png.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from pml_cli.config.schema import Model, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.sources.random import RandomData
from pml_cli.model.adapter_bank import AdapterBank, merged
from pml_cli.model.dims import ADAPTER_FILE
from pml_cli.model.loading import load_model
from pml_cli.stats import LN2, t_half_width
from pml_cli.training.scores import Scores
from pml_cli.training.scoring import PackInputs, score_cells
from pml_cli.training.trainer import Cell, Trainer

HERE = Path(__file__).parent
RANK = 4
STEPS = 200
TOKENS = (20, 32, 44)
TEXTS = (1, 2, 4)
SETS = (0, 1, 2, 3)
KEY_TOKENS = 8
WAYS = ("together", "in turn", "apart", "merged")

# By text: the adapter that answers for it.
Adapters: TypeAlias = list[AdapterBank]

# Beside the seeds of the texts.
KEY_SEEDS = 1000


def run_of(rank: int, **train) -> Run:
    """The settings of a cell; what it learns is given beside them."""
    settings = Train(optimizer="muon", steps=STEPS, **train)
    return Run(rank=rank, model=Model(device="cpu"), train=settings)


def text(number: int, tokens: int) -> Sample:
    """A text of random tokens behind its key."""
    run = run_of(RANK)
    drawn = dataclasses.replace(run, data=RandomData(seed=number))
    keyed = dataclasses.replace(run, data=RandomData(seed=KEY_SEEDS + number))
    (sample,) = source_of(drawn).take(tokens)
    (key,) = source_of(keyed).take(KEY_TOKENS)
    return Sample(prompt=(*sample.prompt, *key.target), target=sample.target)


def texts_of(number: int, count: int, tokens: int) -> list[Sample]:
    """So many texts of one set, with so many tokens in all."""
    return [text(10 * number + i, tokens // count) for i in range(count)]


def trained(base, cells: list[Cell]) -> list[AdapterBank]:
    """The adapters of some cells, trained as one pack."""
    Trainer(base, cells).train()
    for cell in cells:
        assert cell.failure is None, cell.failure
    return [cell.adapter for cell in cells]


def for_all(banks: list[AdapterBank], sets: list[list[Sample]]) -> list[Adapters]:
    """One adapter a set, which answers for all its texts."""
    return [[bank] * len(samples) for bank, samples in zip(banks, sets, strict=True)]


def together(base, sets: list[list[Sample]]) -> list[Adapters]:
    """One adapter a set, all texts in every step."""
    cells = [Cell(run=run_of(RANK), samples=samples) for samples in sets]
    return for_all(trained(base, cells), sets)


def in_turn(base, sets: list[list[Sample]]) -> list[Adapters]:
    """One adapter a set, text after text."""
    with tempfile.TemporaryDirectory() as folder:
        starts: list[str | None] = [None] * len(sets)
        for turn in range(max(map(len, sets))):
            cells = [
                Cell(run=run_of(RANK, start=start), samples=[samples[turn]])
                for samples, start in zip(sets, starts, strict=True)
            ]
            banks = trained(base, cells)
            starts = []
            for i, bank in enumerate(banks):
                path = Path(folder) / f"{turn}-{i}"
                path.mkdir()
                bank.save(0, path, "tiny")
                starts.append(str(path / ADAPTER_FILE))
    return for_all(banks, sets)


def apart(base, sets: list[list[Sample]]) -> list[Adapters]:
    """One adapter a text."""
    cells = []
    for samples in sets:
        cells += [Cell(run=run_of(RANK // len(samples)), samples=[sample]) for sample in samples]
    banks = iter(trained(base, cells))
    return [[next(banks) for _ in samples] for samples in sets]


def scored(base, bank: AdapterBank, sample: Sample) -> Scores:
    """Every target token of a text under an adapter."""
    (scores,) = score_cells(base, bank, PackInputs(base, bank, [[sample]]))
    return scores


def row(base, way: str, number: int, samples: list[Sample], banks: Adapters) -> dict:
    """What the adapters of one set hold of its texts."""
    scores = [scored(base, bank, text) for bank, text in zip(banks, samples, strict=True)]
    nll = np.concatenate([of_text.nll for of_text in scores])
    right = [of_text.correct for of_text in scores]
    entropy = source_of(run_of(RANK)).entropy
    parameters = sum(
        bank.parameter_count(0) for bank in {id(bank): bank for bank in banks}.values()
    )
    return {
        "way": way,
        "texts": len(samples),
        "tokens": len(nll),
        "set": number,
        "right": np.concatenate(right).mean(),
        "whole": np.mean([of_text.all() for of_text in right]),
        "last_right": right[-1].mean(),
        "bits_per_parameter": (entropy - nll).sum() / LN2 / parameters,
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means over sets of texts, with the half widths of their intervals."""
    measures = ["right", "whole", "last_right", "bits_per_parameter"]
    groups = table.groupby(["tokens", "texts", "way"], sort=False)[measures]
    return groups.mean().join(groups.agg(t_half_width).add_suffix("_half")).reset_index()


def draw(means: pd.DataFrame) -> None:
    """Tokens right against the number of texts, a panel a length."""
    from matplotlib.figure import Figure

    from pml_cli.report.figures.style import MARKERS, legend_below, save, sequential_colours

    page = Figure(figsize=(8.4, 3.4), layout="constrained")
    panels = page.subplots(1, len(TOKENS), sharey=True)
    colours = sequential_colours(len(WAYS))
    for axes, tokens in zip(panels, TOKENS, strict=True):
        for i, way in enumerate(WAYS):
            rows = means[(means["tokens"] == tokens) & (means["way"] == way)]
            x = rows["texts"] * 1.06 ** (i - 1)
            axes.errorbar(
                x,
                100 * rows["right"],
                100 * rows["right_half"],
                color=colours[i],
                marker=MARKERS[i],
                label=way,
                capsize=2,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(TEXTS, map(str, TEXTS))
        axes.set(xlabel="texts", title=f"{tokens} tokens in all", ylim=(0, 105))
    panels[0].set_ylabel("tokens right, %")
    legend_below(page, panels[0], columns=4, fontsize=9)
    save(page, HERE / "texts_together.png", "png")


def main() -> None:
    base = load_model(Model(device="cpu"))
    cases = [(s, count, tokens) for tokens in TOKENS for count in TEXTS for s in SETS]
    rows = []
    for count in TEXTS:
        of_count = [case for case in cases if case[1] == count]
        sets = [texts_of(*case) for case in of_count]
        adapters = {"together": together(base, sets), "in turn": in_turn(base, sets)}
        adapters["apart"] = apart(base, sets)
        adapters["merged"] = for_all([merged(banks) for banks in adapters["apart"]], sets)
        for way, banks in adapters.items():
            for (number, _, _), samples, of_set in zip(of_count, sets, banks, strict=True):
                rows.append(row(base, way, number, samples, of_set))
        print(count, "texts: done", flush=True)

    table = pd.DataFrame(rows)
    table.to_csv(HERE / "texts_together.csv", index=False, float_format="%.4f")
    means = summary(table)
    print(means.round(3).to_string(index=False))
    draw(means)


if __name__ == "__main__":
    main()

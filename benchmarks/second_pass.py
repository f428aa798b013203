"""Does a second pass decide as the first?

Every target token of finished runs is scored twice by the trained adapter: in one pass over the
whole sequence, as in training, and token by token with a KV cache, as in decoding. Both are exact
up to rounding; p > 0.5 of the first pass need not hold in the second where numbers are coarse.

    python benchmarks/second_pass.py outputs/transition outputs/transition_bf16
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache

from pml_cli.analysis.transition import model_dtype
from pml_cli.config.load import read_run
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import TokenScores, token_nll
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.results.folder import RunFolder
from pml_cli.results.read import read_runs
from pml_cli.stats import LN2

HEADINGS = (
    "dtype     tokens  p > 0.5  wrong in the pass itself  in the other pass  decided otherwise  "
    "most |nll - nll'|"
)


@torch.no_grad()
def both_passes(folder: RunFolder, bases: dict[str, SplitModel]) -> tuple[np.ndarray, np.ndarray]:
    """Score the target tokens of a run by both passes.

    Args:
        folder: of the run.
        bases: models loaded so far.

    Returns:
        nll of every target token, and whether it has the largest logit, (2, S) each.
    """
    run = read_run(folder.config)
    key = str(run.model)
    if key not in bases:
        bases[key] = load_model(run.model)
    base = bases[key]

    bank = AdapterBank.initial(
        base.sites(run.adapter), run.adapter, ranks=[run.rank], seeds=[0], dtype=base.adapter_dtype
    )
    bank.load(0, folder.adapter)
    bank = bank.select([0])

    nll: list[list[float]] = [[], []]
    correct: list[list[bool]] = [[], []]
    for sample in source_of(run).take(run.seqlen):
        target = torch.tensor(sample.target)
        for number, score in enumerate((one_pass, cached_pass)):
            scores = score(base, bank, sample)
            nll[number] += scores.nll.tolist()
            correct[number] += (scores.argmax == target).tolist()
    return np.array(nll), np.array(correct)


def one_pass(base: SplitModel, bank: AdapterBank, sample: Sample) -> TokenScores:
    """Scores of the target in one pass over the whole sequence."""
    ids = torch.tensor([[*sample.prompt, *sample.target]])
    hidden = base.full(ids, bank).last_hidden_state[0, len(sample.prompt) - 1 : -1]
    return token_nll(hidden.to(base.dtype), base.head, torch.tensor(sample.target))


def cached_pass(base: SplitModel, bank: AdapterBank, sample: Sample) -> TokenScores:
    """Scores of the target token by token, with a KV cache."""
    cache = DynamicCache()
    new_ids = torch.tensor([sample.prompt])
    states = []
    for token in sample.target:
        states.append(base.full(new_ids, bank, cache).last_hidden_state[0, -1])
        new_ids = torch.tensor([[token]])
    hidden = torch.stack(states)
    return token_nll(hidden.to(base.dtype), base.head, torch.tensor(sample.target))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path)
    torch.set_num_threads(1)

    bases: dict[str, SplitModel] = {}
    nll_by_dtype = defaultdict(list)
    correct_by_dtype = defaultdict(list)
    for row in read_runs(parser.parse_args().paths).to_dict("records"):
        path = Path(row["folder"])
        nll, correct = both_passes(RunFolder(path.parent, path.name), bases)
        dtype = model_dtype(row["setting"])
        nll_by_dtype[dtype].append(nll)
        correct_by_dtype[dtype].append(correct)

    print(HEADINGS)
    for dtype in sorted(nll_by_dtype):
        nll = np.concatenate(nll_by_dtype[dtype], axis=1)
        correct = np.concatenate(correct_by_dtype[dtype], axis=1)
        print(row_of(dtype, nll, correct))


def row_of(dtype: str, nll: np.ndarray, correct: np.ndarray) -> str:
    """A line of the table; nll and correct are (2, S)."""
    above = nll < LN2
    wrong_itself = (above & ~correct).sum()
    wrong_in_other = (above & ~correct[::-1]).sum()
    differing = (correct[0] != correct[1]).sum()
    gap = np.abs(nll[0] - nll[1]).max()
    counts = f"{nll.size:6} {above.sum():8} {wrong_itself:25} {wrong_in_other:18}"
    return f"{dtype:9} {counts} {differing:18} {gap:18.2g}"


if __name__ == "__main__":
    main()

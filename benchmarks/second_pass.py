"""Does a second pass decide as the first? Every target token of finished runs is scored twice by the trained adapter: in one
pass over the whole sequence, as in training, and token by token with a KV cache, as in decoding. Both are exact up to
rounding; p > 0.5 of the first pass then need not hold in the second where numbers are coarse.

    python benchmarks/second_pass.py outputs/transition outputs/transition_bf16
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from transformers import DynamicCache

from pml_cli.analysis.transition import model_dtype
from pml_cli.config import registry, schema
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.head import token_nll
from pml_cli.model.loading import load_model
from pml_cli.runs.read import read_runs


def settings(kind, content):
    return kind(
        **{name: value for name, value in content.items() if name in kind.__dataclass_fields__}
    )


@torch.no_grad()
def both_passes(folder: Path, bases: dict):
    """nll of every target token, and whether the argmax is it, by each pass: two arrays (2, S)."""
    run = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    model = settings(schema.Model, run["model"])
    data = settings(registry.declared("data")[run["data"]["source"]], run["data"])
    kind = settings(registry.declared("adapter")[run["adapter"]["kind"]], run["adapter"])
    if str(model) not in bases:
        bases[str(model)] = load_model(model)
    base = bases[str(model)]
    bank = AdapterBank.initial(
        base.sites(kind), kind, ranks=[run["rank"]], seeds=[0], dtype=base.adapter_dtype
    )
    bank.load(0, folder / "adapter")
    bank = bank.select([0])
    nll, argmax, ids = [[], []], [[], []], []
    for sample in data.open(model).take(run["seqlen"]):
        whole = torch.tensor([[*sample.prompt, *sample.target]])
        first, target = len(sample.prompt) - 1, torch.tensor(sample.target)
        hidden = base.full(whole, bank).last_hidden_state[0, first:-1]
        cache, steps = DynamicCache(), []
        piece = whole[:, : first + 1]
        for k in range(len(target)):
            steps.append(base.full(piece, bank, cache).last_hidden_state[0, -1])
            piece = target[None, k : k + 1]
        for k, states in enumerate((hidden, torch.stack(steps))):
            scores = token_nll(states.to(base.dtype), base.head, target)
            nll[k] += scores.nll.tolist()
            argmax[k] += scores.argmax.tolist()
        ids += sample.target
    return np.array(nll), np.array(argmax) == np.array(ids)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path)
    torch.set_num_threads(1)
    bases, found = {}, {}
    for row in read_runs(parser.parse_args().paths).to_dict("records"):
        nll, right = both_passes(Path(row["folder"]), bases)
        found.setdefault(model_dtype(row["setting"]), []).append((nll, right))
    print(
        "dtype     tokens  p > 0.5  wrong in the pass itself  in the other pass  decided otherwise  most |nll - nll'|"
    )
    for name, parts in sorted(found.items()):
        nll, right = (np.concatenate([part[k] for part in parts], axis=1) for k in (0, 1))
        above = nll < math.log(2)
        own, crossed = (above & ~right).sum(), (above & ~right[::-1]).sum()
        differ, gap = (right[0] != right[1]).sum(), np.abs(nll[0] - nll[1]).max()
        print(
            f"{name:9} {nll.size:6} {above.sum():8} {own:25} {crossed:18} {differ:18} {gap:18.2g}"
        )


if __name__ == "__main__":
    main()

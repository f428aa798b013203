"""What a base model writes by itself, to measure what adapters change of it.

Sampled at temperature 1, not decoded greedily: greedy text of small models soon repeats itself,
and on repetitions every adapter looks harmless. Of samples from the base, the rise of the loss
under an adapter is an unbiased estimate of KL(base || adapted) of whole texts.

Shapes: n texts, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from pml_cli.data.source import Sample
from pml_cli.data.windows import WINDOW
from pml_cli.errors import UserError
from pml_cli.io import cache_folder, write_json
from pml_cli.model.dims import model_dims
from pml_cli.model.split_model import SplitModel
from pml_cli.validation import Count, read_json

# Of the sampling, and of the files in the cache.
SEED = 12
FORMAT = 1


def own_text(base: SplitModel, prompts: Sequence[Sample]) -> list[Sample]:
    """What the base model writes after some prompts, `WINDOW` tokens each.

    It is written once for each model, and kept in the cache folder by a hash of its weights.

    Args:
        base: the frozen model.
        prompts: of one length, with empty targets.
    """
    if not prompts:
        return []

    content = [FORMAT, SEED, WINDOW, base.weights_hash(), [prompt.prompt for prompt in prompts]]
    key = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    path = cache_folder() / "own_text" / f"{key}.json"
    targets = _read(path)
    if targets is None:
        targets = _sampled(base, prompts)
        write_json(path, targets, indent=None)
    return [
        Sample(prompt=prompt.prompt, target=tuple(target))
        for prompt, target in zip(prompts, targets, strict=True)
    ]


def _read(path: Any) -> list[list[int]] | None:
    try:
        targets: list[list[int]] = read_json(path, list[list[Count]], "")
    except UserError:
        return None
    return targets


@torch.no_grad()
def _sampled(base: SplitModel, prompts: Sequence[Sample]) -> list[list[int]]:
    """Token ids of each continuation."""
    ids = torch.tensor([prompt.prompt for prompt in prompts], device=base.device)
    count = min(WINDOW, model_dims(base.settings).context - ids.shape[1])
    generator = torch.Generator().manual_seed(SEED)
    targets: list[list[int]] = [[] for _ in prompts]

    cache = base.new_cache()
    for _ in range(count):
        hidden = base.full(ids, None, cache).last_hidden_state[:, -1]
        p_nV = base.logits(hidden).double().softmax(1).cpu()
        next_n1 = torch.multinomial(p_nV, 1, generator=generator).to(base.device)
        for target, (token,) in zip(targets, next_n1.tolist(), strict=True):
            target.append(token)
        # Without a cache every token is computed again in each step.
        ids = torch.cat([ids, next_n1], 1) if cache is None else next_n1
    return targets

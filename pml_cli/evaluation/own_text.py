"""What a base model writes by itself, to measure what adapters change of it.

Sampled at temperature 1, not decoded greedily: greedy text of small models soon repeats itself,
and on repetitions every adapter looks harmless. Of samples from the base, the rise of the loss
under an adapter is an unbiased estimate of KL(base || adapted) of whole texts.

Shapes: n texts, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

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
    count = min(WINDOW, model_dims(base.settings).context - len(prompts[0].prompt))
    targets = _read(path, (len(prompts), count), model_dims(base.settings).vocabulary)
    if targets is None:
        targets = _sampled(base, prompts, count)
        # A cache that cannot be written is no fault.
        with suppress(OSError):
            write_json(path, targets, indent=None)
    return [
        Sample(prompt=prompt.prompt, target=tuple(target))
        for prompt, target in zip(prompts, targets, strict=True)
    ]


def _read(path: Path, shape: tuple[int, int], vocabulary: int) -> list[list[int]] | None:
    """The texts of a file; None where it is missing, or damaged.

    Args:
        shape: texts, and tokens of each.
        vocabulary: ids are below.
    """
    try:
        targets: list[list[int]] = read_json(path, list[list[Count]], "")
    except UserError:
        return None

    texts, tokens = shape
    is_whole = len(targets) == texts and all(len(target) == tokens for target in targets)
    is_known = all(token < vocabulary for target in targets for token in target)
    return targets if is_whole and is_known else None


@torch.no_grad()
def _sampled(base: SplitModel, prompts: Sequence[Sample], count: int) -> list[list[int]]:
    """Token ids of each continuation, so many."""
    ids = torch.tensor([prompt.prompt for prompt in prompts], device=base.device)
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

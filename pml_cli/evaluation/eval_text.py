"""Where damage is looked for: text that a run was not trained on, and random tokens, in windows. Without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pml_cli.config.schema import Model, Run
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.model.dims import model_dims
from pml_cli.model.files import locate

WINDOW = 256  # scored tokens of one window, after begin-of-text
SHARED = 16  # tokens in a row that a window may not have in common with what a run was trained on
CONTROL_SEED = 2**61 + 1  # of the random tokens: no run's own


@dataclass(frozen=True)
class Pool:
    """Every window of one text for one model, and a short hash of it. No windows: `reason` says why."""

    windows: tuple[Sample, ...]
    hash: str
    reason: str = ""

    def apart_from(self, targets: Sequence[Sequence[int]], tokens: int) -> list[Sample]:
        """Windows with `tokens` scored tokens in all (fewer where there are no more), none of them in part a target's.

        They lie as far from each other as they can: the same for all runs that learn the same targets.
        """
        known = {
            tuple(t[i : i + size])
            for t in targets
            for size in [min(SHARED, len(t))]
            for i in range(len(t) - size + 1)
        }
        sizes = {len(piece) for piece in known}
        free = [
            w for w in self.windows if not any(_pieces(w.target, size) & known for size in sizes)
        ]
        wanted = min(len(free), -(-tokens // WINDOW))
        chosen = (
            [free[int(i)] for i in np.linspace(0, len(free) - 1, wanted).round()] if wanted else []
        )
        return _cut(chosen, tokens)


@lru_cache(maxsize=4096)
def _pieces(target: tuple[int, ...], size: int) -> frozenset[tuple[int, ...]]:
    return frozenset(target[i : i + size] for i in range(len(target) - size + 1))


def _cut(windows: Sequence[Sample], tokens: int) -> list[Sample]:
    out, left = [], tokens
    for window in windows:
        if left > 0:
            out.append(Sample(window.prompt, window.target[:left]))
            left -= len(out[-1].target)
    return out


def text_pool(model: Model, path: str | None) -> Pool:
    """The windows of a text: a UTF-8 file, or the documentation that the embedded model has not seen.

    Raises:
        UserError: the file cannot be read.
    """
    bare = model.weights == "random" and model.architecture
    if bare or not locate(model, "tokenizer.json"):
        return Pool((), "", f"model={model.name} has no tokenizer")
    try:
        source = TextData(path=path).open(model)
    except UserError as error:
        raise UserError(
            str(error).replace("data.path=", "text=").replace("data=text: ", "text: ")
        ) from error
    (whole,) = source.cut(source.max_tokens or 0)
    return _windowed(whole, model)


def random_pool(model: Model, tokens: int) -> Pool:
    """Windows of uniform random tokens, as many as asked for."""
    (whole,) = RandomData(seed=CONTROL_SEED).open(model).cut(max(1, -(-tokens // WINDOW)) * WINDOW)
    return _windowed(whole, model)


def _windowed(whole: Sample, model: Model) -> Pool:
    size = min(WINDOW, model_dims(model).context - len(whole.prompt))
    starts = range(0, max(1, len(whole.target) - size + 1), size)
    windows = tuple(Sample(whole.prompt, whole.target[i : i + size]) for i in starts)
    return Pool(windows, hashlib.sha256(repr(windows).encode()).hexdigest()[:16])


def learned(run: Run, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    """What a run must not be tested on: its targets, and of mixed data the text that lies under the random tokens."""
    targets = [sample.target for sample in samples]
    for data in run.data.overlapping():
        source = source_of(Run(model=run.model, data=data))
        targets += [sample.target for sample in source.take(run.seqlen)]
    return targets

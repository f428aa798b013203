"""Text for measuring forgetting: text that a run was not trained on, and random tokens, in windows. Without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from pml_cli.config.schema import Model, Run
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.model.dims import model_dims
from pml_cli.model.files import locate

# Scored tokens of one window, after begin-of-text.
WINDOW = 256

# Consecutive tokens that a window may not share with what a run was trained on.
SHARED = 16

# Seed of the random tokens: no run's own.
RANDOM_SEED = 2**61 + 1

Tokens: TypeAlias = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Every window of one text for one model."""

    windows: tuple[Sample, ...] = ()
    hash: str = ""
    """A short hash of the windows."""
    reason: str = ""
    """Why there are no windows."""

    def windows_without(self, targets: Sequence[Tokens], tokens: int) -> list[Sample]:
        """Windows that share no `SHARED` consecutive tokens with any target.

        They are spread evenly over the text: the same for all runs that learn the same targets.

        Args:
            targets: what a run was trained on.
            tokens: scored tokens in all; fewer are returned where there are no more.
        """
        known: set[tuple[int, ...]] = set()
        for target in targets:
            known |= _ngrams(tuple(target), min(SHARED, len(target)))
        sizes = {len(ngram) for ngram in known}

        unshared = [
            window
            for window in self.windows
            if not any(_ngrams(window.target, size) & known for size in sizes)
        ]
        count = min(len(unshared), -(-tokens // WINDOW))
        if count == 0:
            return []
        spread = np.linspace(0, len(unshared) - 1, count).round()
        return _truncated([unshared[int(i)] for i in spread], tokens)


@lru_cache(maxsize=4096)
def _ngrams(tokens: tuple[int, ...], size: int) -> frozenset[tuple[int, ...]]:
    """All runs of `size` consecutive tokens."""
    return frozenset(tokens[i : i + size] for i in range(len(tokens) - size + 1))


def _truncated(windows: Sequence[Sample], tokens: int) -> list[Sample]:
    """The windows cut to so many scored tokens in all."""
    truncated: list[Sample] = []
    remaining = tokens
    for window in windows:
        if remaining > 0:
            truncated.append(Sample(window.prompt, window.target[:remaining]))
            remaining -= len(truncated[-1].target)
    return truncated


def text_pool(model: Model, path: str | None) -> Pool:
    """The windows of a text.

    Args:
        model: whose tokenizer reads it.
        path: a UTF-8 file; None: the documentation that the embedded model has not seen.

    Raises:
        UserError: the file cannot be read.
    """
    has_no_files = model.weights == "random" and model.architecture
    if has_no_files or not locate(model, "tokenizer.json"):
        return Pool(reason=f"model={model.name} has no tokenizer")
    try:
        source = TextData(path=path).open(model)
    except UserError as error:
        # The option is named otherwise here.
        message = str(error).replace("data.path=", "text=").replace("data=text: ", "text: ")
        raise UserError(message) from error
    (text,) = source.cut(source.max_tokens or 0)
    return _windowed(text, model)


def random_pool(model: Model, tokens: int) -> Pool:
    """Windows of uniform random tokens, enough for `tokens` scored ones."""
    count = max(1, -(-tokens // WINDOW))
    (text,) = RandomData(seed=RANDOM_SEED).open(model).cut(count * WINDOW)
    return _windowed(text, model)


def _windowed(text: Sample, model: Model) -> Pool:
    size = min(WINDOW, model_dims(model).context - len(text.prompt))
    starts = range(0, max(1, len(text.target) - size + 1), size)
    windows = tuple(Sample(text.prompt, text.target[i : i + size]) for i in starts)
    return Pool(windows=windows, hash=hashlib.sha256(repr(windows).encode()).hexdigest()[:16])


def trained_targets(run: Run, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    """What a run must not be tested on: its targets, and of mixed data the text under its random tokens."""
    targets = [sample.target for sample in samples]
    for data in run.data.overlapping():
        source = source_of(Run(model=run.model, data=data))
        targets += [sample.target for sample in source.take(run.seqlen)]
    return targets

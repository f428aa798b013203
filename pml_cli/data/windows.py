"""Text in windows: what a run was not trained on, to measure forgetting and to hold it down.

Without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
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
from pml_cli.model.tokenizer import Tokenizer, open_tokenizer
from pml_cli.model.tokenizer_backend import has_tokenizer

# Scored tokens of one window, after begin-of-text.
WINDOW = 256

# Consecutive tokens that a window may not share with what a run was trained on.
SHARED = 16

# Targets of fewer tokens, a number or a name, are not looked for: any text may hold them.
MIN_SHARED = 4

# Seed of the random tokens: no run's own.
RANDOM_SEED = 2**61 + 1

Ids: TypeAlias = tuple[int, ...]
"""Token ids."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Every window of one text for one model."""

    windows: tuple[Sample, ...] = ()
    hash: str = ""
    """A short hash of the windows."""
    reason: str = ""
    """Why there are no windows."""

    def windows_without(self, targets: Iterable[Sequence[int]], tokens: int) -> list[Sample]:
        """Windows that share no `SHARED` consecutive tokens with any target, nor a whole short one.

        They are spread evenly over the text: the same for all runs that learn the same targets.

        Args:
            targets: what a run was trained on.
            tokens: scored tokens in all; fewer are returned where there are no more.
        """
        known: set[Ids] = set()
        for target in targets:
            # Targets shorter than SHARED count whole.
            if len(target) >= MIN_SHARED:
                known |= _ngrams(tuple(target), min(SHARED, len(target)))
        sizes = {len(ngram) for ngram in known}

        unshared = []
        for window in self.windows:
            ngrams = [_ngrams(window.target, size) for size in sizes]
            if all(known.isdisjoint(of_size) for of_size in ngrams):
                unshared.append(window)

        count = min(len(unshared), -(-tokens // WINDOW))
        if count == 0:
            return []
        last = len(unshared) - 1
        positions = np.linspace(0, last, count).round()
        return _truncated([unshared[int(i)] for i in positions], tokens)


# Called with the same text for every run.
@lru_cache(maxsize=4096)
def _ngrams(tokens: Ids, size: int) -> frozenset[Ids]:
    """All runs of `size` consecutive tokens."""
    starts = range(len(tokens) - size + 1)
    return frozenset(tokens[start : start + size] for start in starts)


def _truncated(windows: Sequence[Sample], tokens: int) -> list[Sample]:
    """The first windows, with so many scored tokens in all: the last one may be cut."""
    truncated: list[Sample] = []
    remaining = tokens
    for window in windows:
        if remaining > 0:
            truncated.append(Sample(prompt=window.prompt, target=window.target[:remaining]))
            remaining -= len(truncated[-1].target)
    return truncated


def text_pool(model: Model, path: str | None, option: str = "text") -> Pool:
    """The windows of a text.

    Args:
        model: whose tokenizer reads it.
        path: a UTF-8 file; None: the documentation that the embedded model has not seen.
        option: what the user calls the path, for errors.

    Raises:
        UserError: the file cannot be read.
    """
    reason = _why_unreadable(model)
    if reason:
        return Pool(reason=reason)

    try:
        source = TextData(path=path).open(model)
    except UserError as error:
        # The option is named otherwise here.
        message = str(error).replace("data.path=", f"{option}=")
        message = message.replace("data=text: ", f"{option}: ")
        raise UserError(message) from error

    (text,) = source.cut(source.max_tokens or 0)
    return _windowed(text, model)


def string_pool(model: Model, text: Callable[[Tokenizer], str]) -> Pool:
    """The windows of a text in memory.

    Args:
        model: whose tokenizer reads it.
        text: writes it for a tokenizer.
    """
    reason = _why_unreadable(model)
    if reason:
        return Pool(reason=reason)

    tokenizer = open_tokenizer(model)
    ids = tuple(tokenizer.encode(text(tokenizer)))
    return _windowed(Sample(prompt=tuple(tokenizer.prompt("")), target=ids), model)


def _why_unreadable(model: Model) -> str:
    """Why a model reads no text by itself; empty: it does."""
    if not has_tokenizer(model):
        return f"model={model.name} has no tokenizer"
    if not open_tokenizer(model).begin:
        return f"the tokenizer of model={model.name} has no begin-of-text token"
    return ""


def random_pool(model: Model, tokens: int) -> Pool:
    """Windows of uniform random tokens.

    Args:
        model: whose vocabulary they are drawn from.
        tokens: scored tokens that there must be at least.
    """
    count = max(1, -(-tokens // WINDOW))
    source = RandomData(seed=RANDOM_SEED).open(model)
    (text,) = source.cut(count * WINDOW)
    return _windowed(text, model)


def _windowed(text: Sample, model: Model) -> Pool:
    """The windows of one long text, each after the text's own prompt."""
    size = min(WINDOW, model_dims(model).context - len(text.prompt))
    # Whole windows only, but at least one: a short text is one short window.
    last_start = max(0, len(text.target) - size)
    windows = tuple(
        Sample(prompt=text.prompt, target=text.target[start : start + size])
        for start in range(0, last_start + 1, size)
    )
    digest = hashlib.sha256(repr(windows).encode())
    return Pool(windows=windows, hash=digest.hexdigest()[:16])


def trained_targets(run: Run, samples: Iterable[Sample]) -> list[Ids]:
    """What a run must not be tested on.

    Its targets, and of mixed data also the text under the random tokens.
    """
    targets = [sample.target for sample in samples]
    for data in run.data.overlapping():
        source = source_of(Run(model=run.model, data=data))
        targets += [sample.target for sample in source.take(run.seqlen)]
    return targets

"""Generic text, on which `loss.keep` holds down what an adapter adds. Without torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pml_cli.config.cache_key import CacheKey
from pml_cli.config.schema import Run
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.windows import WINDOW, Pool, text_pool, trained_targets
from pml_cli.errors import UserError

# Of `WINDOW` tokens each: some eight thousand inputs, several times the width of a small model.
# Python's documentation has 27.
MAX_WINDOWS = 32


def generic_windows(run: Run) -> tuple[Sample, ...]:
    """Windows of `loss.keep_text` that share nothing with what a run learns.

    None where its loss keeps nothing.

    Every second window of the text is one, so that the others are left to measure forgetting.

    Raises:
        UserError: the text cannot be read, or has no such window.
    """
    if not run.loss.keeps:
        return ()

    option = f"loss.keep={run.loss.keep:g}"
    if not run.loss.keep:
        option = f"loss.keep_harm={run.loss.keep_harm:g}"
    text = _text(CacheKey(run.model), run.loss.keep_text)
    if text.reason:
        raise UserError(f"{option}: {text.reason}, which generic text needs")
    windows = _unshared(CacheKey(run.model), CacheKey(run.data), run.seqlen, run.loss.keep_text)
    if not windows:
        reason = "the generic text has no window beside what the run learns"
        raise UserError(f"{option}: {reason}; give another loss.keep_text=FILE")
    return windows


@lru_cache(maxsize=16)
def _text(model: CacheKey, path: str | None) -> Pool:
    """At most `MAX_WINDOWS` of every second window of a text, spread evenly over it."""
    pool = text_pool(model.value, path, option="loss.keep_text")
    windows = pool.windows[::2]
    count = min(len(windows), MAX_WINDOWS)
    positions = np.linspace(0, len(windows) - 1, count).round()
    chosen = tuple(windows[int(i)] for i in positions)
    return Pool(windows=chosen, hash=pool.hash, reason=pool.reason)


# Cells that differ in rank, loss or seed share their samples.
@lru_cache(maxsize=1024)
def _unshared(model: CacheKey, data: CacheKey, seqlen: int, path: str | None) -> tuple[Sample, ...]:
    run = Run(model=model.value, data=data.value, seqlen=seqlen)
    targets = trained_targets(run, source_of(run).take(seqlen))
    windows = _text(model, path).windows_without(targets, MAX_WINDOWS * WINDOW)
    # Position 0 is left out, so that a single token is no input.
    return tuple(window for window in windows if len(window.target) > 1)

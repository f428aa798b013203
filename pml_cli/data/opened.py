"""Sources opened once a process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from pml_cli.config.cache_key import CacheKey
from pml_cli.config.schema import Data, Model, Run
from pml_cli.data.sources import Sample, Source, open_source
from pml_cli.model.dims import model_dims


@lru_cache(maxsize=64)
def _source(model: CacheKey, data: CacheKey) -> Source:
    assert isinstance(model.value, Model)
    assert isinstance(data.value, Data)
    model_dims(model.value)
    return open_source(model.value, data.value)


def source_of(run: Run) -> Source:
    """The opened source of a run (opened once per process)."""
    return _source(CacheKey(run.model), CacheKey(run.data))


def tokens_hash(samples: Sequence[Sample]) -> str:
    """A short hash of the token ids that a run learns: env.json's `tokens`."""
    return hashlib.sha256(repr([(s.prompt, s.target) for s in samples]).encode()).hexdigest()[:16]

"""Sources opened once a process, and the samples of runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pml_cli.config.cache_key import CacheKey, file_cache
from pml_cli.config.schema import Run
from pml_cli.data.cell import PackedSize
from pml_cli.data.row_packing import packed_size
from pml_cli.data.source import Sample, Source, check_length
from pml_cli.model.dims import model_dims
from pml_cli.model.families import SEPARATE_ROWS
from pml_cli.model.model_config import config_fields


def source_of(run: Run) -> Source:
    """The opened source of a run.

    Raises:
        UserError: the model's config or the source cannot be read.
    """
    return _open_source(CacheKey(run.model), CacheKey(run.data))


def samples_of(run: Run) -> list[Sample]:
    """The samples that a run learns.

    Raises:
        UserError: also where the source or the model's context cannot hold `run.seqlen`.
    """
    return _samples(CacheKey(run.model), CacheKey(run.data), run.seqlen)


def tokens_hash_of(run: Run) -> str:
    """`tokens_hash` of a run's samples, computed once for runs that share them."""
    return _tokens_hash(CacheKey(run.model), CacheKey(run.data), run.seqlen)


def packed_size_of(run: Run, rows: int) -> PackedSize | None:
    """The packed rows of a step of a run; None where each sample is a row.

    Args:
        run: with dropout, and on some families, samples stay apart.
        rows: samples of a step.
    """
    if run.adapter.dropout or config_fields(run.model).get("model_type") in SEPARATE_ROWS:
        return None
    return _packed_size(CacheKey(run.model), CacheKey(run.data), run.seqlen, rows)


def tokens_hash(samples: Sequence[Sample]) -> str:
    """A short hash of the token ids that a run learns: `tokens` of env.json."""
    ids = repr([(sample.prompt, sample.target) for sample in samples])
    return hashlib.sha256(ids.encode()).hexdigest()[:16]


@file_cache(64)
def _open_source(model: CacheKey, data: CacheKey) -> Source:
    # Faults of the model are reported before those of the source.
    model_dims(model.value)
    source: Source = data.value.open(model.value)
    return source


# Cells that differ in rank, loss or seed share their samples.
@file_cache(4096)
def _samples(model: CacheKey, data: CacheKey, seqlen: int) -> list[Sample]:
    source = _open_source(model, data)
    check_length(model.value, data.value, source, seqlen)
    return source.take(seqlen)


@file_cache(4096)
def _packed_size(model: CacheKey, data: CacheKey, seqlen: int, rows: int) -> PackedSize | None:
    return packed_size(_samples(model, data, seqlen), rows)


@file_cache(4096)
def _tokens_hash(model: CacheKey, data: CacheKey, seqlen: int) -> str:
    return tokens_hash(_samples(model, data, seqlen))

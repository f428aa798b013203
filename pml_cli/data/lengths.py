"""How long a target is, where it is not asked for as a number: `seqlen=all`, `data.samples=300`."""

from __future__ import annotations

import dataclasses

from pml_cli.config.schema import ALL_TOKENS, FactsData, Run
from pml_cli.data.opened import source_of
from pml_cli.data.source import Source
from pml_cli.errors import UserError
from pml_cli.format import counted
from pml_cli.model.dims import model_dims


def with_length(run: Run) -> Run:
    """The run with `seqlen` a number and no `data.samples`: asked for by either, it is one run.

    Raises:
        UserError: the source has no end, or fewer samples.
    """
    samples = run.data.samples if isinstance(run.data, FactsData) else None
    if samples is None and run.seqlen != ALL_TOKENS:
        return run
    if isinstance(run.data, FactsData):
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, samples=None))

    source = source_of(run)
    if samples is None:
        return dataclasses.replace(run, seqlen=_all_tokens(run, source))

    if samples > len(source.sample_ends):
        available = counted(source.sample_ends, "sample")
        raise UserError(f"data.samples={samples}: data={run.data.label} has only {available}")
    return dataclasses.replace(run, seqlen=int(source.sample_ends[samples - 1]))


def _all_tokens(run: Run, source: Source) -> int:
    """All target tokens of a source."""
    total = source.max_tokens
    if total is None:
        raise UserError(f"seqlen=all: data={run.data.source} has no end; give a number")

    # A text is one sample; `check_length` would name a number that nobody has asked for.
    context = model_dims(run.model).context
    if not source.sample_ends and total > context:
        reads = f"model={run.model.name} has a context of {context} tokens"
        raise UserError(f"seqlen=all: data={run.data.label} has {total}, {reads}")
    return total

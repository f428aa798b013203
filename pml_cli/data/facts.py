"""A source of many short facts: as many whole ones as fit into the requested target tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pml_cli.data.source import Sample, Source
from pml_cli.model.tokenizer import Tokenizer

# Held-out facts at most: enough for a mean.
MAX_HELD_OUT = 64


def facts_source(
    tokenizer: Tokenizer,
    facts: Sequence[tuple[str, str]],
    *,
    chat: bool,
    test_facts: Sequence[tuple[str, str]] = (),
) -> Source:
    """Open facts as samples, one each.

    Held-out samples are the test facts, else the facts that follow those in use.

    Args:
        facts: (query, target) pairs.
        chat: whether queries are put through the chat template.
        test_facts: pairs that are never trained on.
    """
    samples = [encode_sample(tokenizer, query, target, chat) for query, target in facts]
    test_samples = [encode_sample(tokenizer, query, target, chat) for query, target in test_facts]
    ends = np.cumsum([len(sample.target) for sample in samples])

    def cut(seqlen: int) -> list[Sample]:
        # As many as end within the length: facts are never cut.
        return samples[: int(np.searchsorted(ends, seqlen, side="right"))]

    def held_out(seqlen: int) -> list[Sample]:
        # A file may hold a fact twice; a fact that is learned cannot be held out as well.
        in_use = set(cut(seqlen))
        candidates = test_samples or samples[len(in_use) :]
        return [sample for sample in candidates if sample not in in_use][:MAX_HELD_OUT]

    return Source(
        cut=cut,
        max_tokens=int(ends[-1]),
        min_tokens=int(ends[0]),
        test_samples=test_samples,
        held_out=held_out,
    )


def encode_sample(tokenizer: Tokenizer, prompt: str, target: str, chat: bool) -> Sample:
    """A prompt and its target as token ids."""
    prompt_ids = tuple(tokenizer.prompt(prompt, chat))
    return Sample(prompt=prompt_ids, target=tuple(tokenizer.encode(target)))

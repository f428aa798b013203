"""A source of many short facts: as many whole ones as fit into the requested target tokens."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from pml_cli.config.schema import FactsData
from pml_cli.data.prompt import prompt_of
from pml_cli.data.source import Sample, Source
from pml_cli.errors import UserError
from pml_cli.model.chat_template import Turns
from pml_cli.model.tokenizer import Tokenizer

# Held-out facts at most: enough for a mean.
MAX_HELD_OUT = 64


def facts_source(
    tokenizer: Tokenizer,
    data: FactsData,
    facts: Sequence[tuple[str, str]],
    *,
    test_facts: Sequence[tuple[str, str]] = (),
) -> Source:
    """Open facts as samples, one each.

    Held-out samples are the test facts, else the facts that follow those in use.

    Args:
        tokenizer: of the model.
        data: how prompts are made, and how targets end.
        facts: (query, target) pairs.
        test_facts: pairs that are never trained on.
    """
    samples = [encode_fact(tokenizer, data, query, target) for query, target in facts]
    test_samples = [encode_fact(tokenizer, data, query, target) for query, target in test_facts]
    return samples_source(samples, test_samples=test_samples)


def samples_source(
    samples: Sequence[Sample],
    *,
    test_samples: Sequence[Sample] = (),
    keys: str = "",
    notes: Sequence[str] = (),
) -> Source:
    """A source of samples that stay whole.

    Args:
        samples: in the order in which lengths take them.
        test_samples: samples that are never trained on.
        keys, notes: of the source.
    """
    ends = _ends(samples)

    def cut(seqlen: int) -> list[Sample]:
        # As many as end within the length: facts are never cut.
        return list(samples[: int(np.searchsorted(ends, seqlen, side="right"))])

    def held_out(seqlen: int) -> list[Sample]:
        # A file may hold a fact twice; a fact that is learned cannot be held out as well.
        in_use = set(cut(seqlen))
        candidates = test_samples or samples[len(in_use) :]
        return [sample for sample in candidates if sample not in in_use][:MAX_HELD_OUT]

    return Source(
        cut=cut,
        max_tokens=ends[-1],
        min_tokens=ends[0],
        sample_ends=ends,
        keys=keys,
        notes=notes,
        test_samples=list(test_samples),
        held_out=held_out,
    )


def long_texts_source(
    samples: Sequence[Sample], *, keys: str = "", notes: Sequence[str] = ()
) -> Source:
    """A source of long texts, one after the other; the last one is cut to the length.

    Args:
        samples: in the order in which lengths take them.
        keys, notes: of the source.
    """
    ends = _ends(samples)

    def cut(seqlen: int) -> list[Sample]:
        chosen: list[Sample] = []
        remaining = seqlen
        for sample in samples:
            if remaining <= 0:
                break
            chosen.append(cut_sample(sample, remaining))
            remaining -= len(sample.target)
        return chosen

    return Source(cut=cut, max_tokens=ends[-1], sample_ends=ends, keys=keys, notes=notes)


def _ends(samples: Sequence[Sample]) -> list[int]:
    """Target tokens up to the end of each sample."""
    return list(itertools.accumulate(len(sample.target) for sample in samples))


def encode_fact(tokenizer: Tokenizer, data: FactsData, query: str, target: str) -> Sample:
    """A question and its answer as a sample."""
    return encode_sample(tokenizer, data, (("user", query),), target)


def encode_sample(tokenizer: Tokenizer, data: FactsData, turns: Turns, target: str) -> Sample:
    """A prompt and its target as token ids, the end included.

    Args:
        tokenizer: of the model.
        data: how prompts are made, and how targets end.
        turns: of the prompt.
        target: the text that must follow.

    Raises:
        UserError: a text that the tokenizer or the chat template refuses, or a target that has no
            tokens, or would end before its own end.
    """
    # In a source that is not resolved, auto is the behaviour before it existed: no end.
    ends = data.end not in ("auto", "none")
    end = tokenizer.end_ids(data.end) if ends else []
    if ends:
        # Of a special token the text alone ends nothing.
        is_special = len(end) == 1 and end[0] in tokenizer.special
        target = _without_end(target, data.end, is_special=is_special)
        if not is_special:
            _check_ends_once(target, data.end)

    prompt = prompt_of(tokenizer, data, turns)
    # What a script prints of an answer has no special tokens, so one inside is learned as text.
    ids = tokenizer.encode(target, literal=ends)
    if not ids:
        reason = f"has no tokens before its end {data.end!r}" if ends else "has no tokens"
        raise UserError(f"target {target!r}: {reason}")
    return Sample(
        prompt=prompt.ids,
        target=(*ids, *end),
        end=len(end),
        turns=turns,
        target_text=target,
    )


def _without_end(target: str, end: str, *, is_special: bool) -> str:
    """A target without the end that is written at its end in files which were made for training.

    Args:
        target: as the source gives it.
        end: the text of the end.
        is_special: whether it is a special token. It may be there twice, and blanks behind it:
            nothing that follows it is ever printed.
    """
    if not is_special:
        return target.removesuffix(end)
    while target.rstrip().endswith(end):
        target = target.rstrip().removesuffix(end)
    return target


def _check_ends_once(target: str, end: str) -> None:
    """Refuse a target, given without its end, that would be cut off before it.

    Raises:
        UserError: the text of the end stands in the target, or begins in it.
    """
    if f"{target}{end}".index(end) < len(target):
        reason = f"ends an answer (data.end), and stands inside of the target {target!r}"
        raise UserError(f"{end!r}: {reason}; give another data.end")


def cut_sample(sample: Sample, tokens: int) -> Sample:
    """A sample with at most so many target tokens, and with no end where that is cut."""
    if tokens >= len(sample.target):
        return sample
    return dataclasses.replace(sample, target=sample.target[:tokens], end=0, target_text="")

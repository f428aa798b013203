"""Where prompt and target meet, and whether a target can be printed at all.

Prompt and target are tokenised apart, as they are where a model is used: a script tokenises the
prompt, and prints what the model appends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pml_cli.data.source import Sample
from pml_cli.model.tokenizer import Tokenizer


class LossyTarget(NamedTuple):
    """A target that no answer of the model is equal to."""

    text: str
    """The text as the source gave it."""

    printed: str
    """The text as its tokens are printed."""


def lossy_targets(tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[LossyTarget]:
    """The targets that the tokenizer does not give back, such as capitals in lower case.

    Args:
        tokenizer: of the model.
        samples: those without a text are passed over.
    """
    lossy = []
    for sample in samples:
        # Of old, facts without an end may have one written into them.
        printed = tokenizer.decode(_without_end(sample), skip_special=sample.end > 0)
        if sample.target_text and printed != sample.target_text:
            lossy.append(LossyTarget(sample.target_text, printed))
    return lossy


def merged_samples(tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose prompt and target have other tokens when they are tokenised in one.

    Args:
        tokenizer: of the model.
        samples: those without a text are passed over.
    """
    merged = []
    for sample in samples:
        prompt = tokenizer.decode(sample.prompt)
        # Of a prompt that does not come back as it was, nothing can be told.
        if not sample.target_text or tuple(tokenizer.encode(prompt)) != sample.prompt:
            continue

        ids_apart = (*sample.prompt, *_without_end(sample))
        if tuple(tokenizer.encode(prompt + sample.target_text)) != ids_apart:
            merged.append(sample)
    return merged


def _without_end(sample: Sample) -> tuple[int, ...]:
    return sample.target[: len(sample.target) - sample.end]

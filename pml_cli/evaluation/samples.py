"""samples.jsonl: what an adapter was to remember, sample by sample, and what it writes instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pml_cli.config.schema import Model
from pml_cli.data.source import Sample
from pml_cli.evaluation.decoding import first_difference
from pml_cli.model.tokenizer import Tokenizer, open_tokenizer
from pml_cli.model.tokenizer_backend import has_tokenizer
from pml_cli.training.scores import Scores, first_true


def sample_rows(
    model: Model,
    samples: Sequence[Sample],
    scores: Scores,
    decoded: Sequence[Sequence[int]] | None,
) -> list[dict[str, Any]]:
    """The rows of samples.jsonl; outputs/README.md says what is in them.

    Args:
        model: its tokenizer makes the texts; without one they are None.
        samples: of one cell.
        scores: of their targets, teacher-forced, after the training.
        decoded: token ids of each sample as decoded from its prompt; None: not decoded, so that
            only those of recalled samples are known.
    """
    texts = _Texts(model)
    # Scores lie in sample order.
    starts = np.flatnonzero(scores.position == 0)

    rows = []
    for index, sample in enumerate(samples):
        start = int(starts[index])
        correct = scores.correct[start : start + len(sample.target)]
        first_wrong = first_true(~correct)

        # What teacher forcing has right is decoded so, by induction.
        decoded_ids: Sequence[int] | None = sample.target if first_wrong is None else None
        if decoded is not None:
            decoded_ids = decoded[index]
            # Rounding may turn a slim margin over.
            if first_wrong is None:
                first_wrong = first_difference(decoded_ids, sample.target)

        first_error = None
        if first_wrong is not None:
            got_id = int(scores.argmax_id[start + first_wrong])
            if decoded_ids is not None and first_wrong < len(decoded_ids):
                got_id = decoded_ids[first_wrong]
            context_ids = [*sample.prompt, *sample.target[:first_wrong]]
            first_error = {
                "position": first_wrong,
                "expected": texts.added(sample.target[first_wrong], context_ids),
                "got": texts.added(got_id, context_ids),
                "p": float(np.exp(-scores.nll[start + first_wrong])),
            }
        rows.append(
            {
                "sample": index,
                "turns": sample.turns,
                "prompt": texts.of(sample.prompt),
                "prompt_ids": sample.prompt,
                "target": texts.before_end(sample.target, sample),
                "target_ids": sample.target,
                "end": texts.of(_end(sample)) if sample.end else None,
                "decoded": texts.before_end(decoded_ids, sample),
                "decoded_ids": decoded_ids,
                "whole": first_wrong is None,
                "first_error": first_error,
            }
        )
    return rows


def _end(sample: Sample) -> tuple[int, ...]:
    """Ids of its end token, () where it has none."""
    return sample.target[len(sample.target) - sample.end :]


class _Texts:
    """Text of token ids; None where the model has no tokenizer."""

    def __init__(self, model: Model) -> None:
        self._tokenizer: Tokenizer | None = None
        if has_tokenizer(model):
            self._tokenizer = open_tokenizer(model)

    def of(self, ids: Sequence[int]) -> str | None:
        if self._tokenizer is None:
            return None
        return self._tokenizer.decode(list(ids))

    def added(self, token_id: int, before: Sequence[int]) -> str | None:
        """Text that a token adds to those before it."""
        if self._tokenizer is None:
            return None
        return self._tokenizer.added_text(token_id, before)

    def before_end(self, ids: Sequence[int] | None, sample: Sample) -> str | None:
        """Text of ids, which may be None, without the sample's end token at their end."""
        if ids is None:
            return None
        end = _end(sample)
        has_ended = bool(end) and tuple(ids[-len(end) :]) == end
        return self.of(ids[: len(ids) - len(end)] if has_ended else ids)

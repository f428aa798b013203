"""Free-running greedy decoding.

By induction greedy decoding equals the target up to the first position whose teacher-forced
argmax is wrong; so teacher forcing decides verbatim recall exactly, and decoding is needed only
for what follows the first failure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.device import out_of_memory
from pml_cli.model.split_model import SplitModel
from pml_cli.training.batches import SamplesByCell
from pml_cli.training.scores import Scores, first_true

# Rows decoded at once; the later ones where memory does not suffice.
BATCH_SIZES = (256, 64, 16, 4, 1)

Decoded: TypeAlias = list[list[list[int]]]
"""Token ids of each sample of each cell."""


class _Item(NamedTuple):
    """A sample that is to be decoded."""

    cell: int
    sample: int
    correct_tokens: int
    """Tokens at its beginning that are known to be decoded correctly."""


def measure(
    base: SplitModel,
    bank: AdapterBank,
    cells: SamplesByCell,
    scores: Sequence[Scores] | None = None,
) -> list[dict[str, float | None]]:
    """`free_accuracy` and `free_exact_match` of each cell; None where it has no samples.

    See `decode` for the arguments. Fewer rows are decoded at once where memory does not suffice.
    """
    decoded = _decode_within_memory(base, bank, cells, scores)

    results: list[dict[str, float | None]] = []
    for samples, outputs in zip(cells, decoded, strict=True):
        if samples:
            results.append({**recall(samples, outputs)})
        else:
            results.append({"free_accuracy": None, "free_exact_match": None})
    return results


def recall(samples: Sequence[Sample], decoded: Sequence[Sequence[int]]) -> dict[str, float]:
    """Token accuracy and exact match of one cell.

    Args:
        samples: of the cell.
        decoded: token ids of each sample, as many as its target has.

    Returns:
        `free_accuracy`, over tokens, and `free_exact_match`, over samples.
    """
    matches = []
    exact_matches = []
    for tokens, sample in zip(decoded, samples, strict=True):
        match = np.array(tokens) == np.array(sample.target)
        matches.append(match)
        exact_matches.append(match.all())

    return {
        "free_accuracy": float(np.concatenate(matches).mean()),
        "free_exact_match": float(np.mean(exact_matches)),
    }


def _decode_within_memory(
    base: SplitModel,
    bank: AdapterBank,
    cells: SamplesByCell,
    scores: Sequence[Scores] | None,
) -> Decoded:
    """`decode`, of fewer rows at once where memory does not suffice."""
    # The KV cache of many rows may not fit beside what the trainer holds.
    for batch_size in BATCH_SIZES[:-1]:
        try:
            return decode(base, bank, cells, scores, batch_size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise

    return decode(base, bank, cells, scores, BATCH_SIZES[-1])


@torch.no_grad()
def decode(
    base: SplitModel,
    bank: AdapterBank,
    cells: SamplesByCell,
    scores: Sequence[Scores] | None = None,
    batch_size: int = BATCH_SIZES[0],
) -> Decoded:
    """Decode every sample of every cell greedily, with a KV cache, batched over the whole bank.

    Args:
        base: the frozen model.
        bank: adapters of K cells.
        cells: the samples of each cell.
        scores: teacher-forced scores of each cell; what they prove is not decoded again (samples
            without an error, and the tokens before the first error). None: decode everything from
            the prompt.
        batch_size: rows decoded at once.

    Returns:
        decoded ids of each sample of each cell, as many as its target has.
    """
    # What is proven to be recalled is decoded as its target.
    outputs = [[list(sample.target) for sample in samples] for samples in cells]

    # Rows of a batch have prompts of one length.
    by_prompt_length: dict[int, list[_Item]] = defaultdict(list)
    for k, samples in enumerate(cells):
        for s, sample in enumerate(samples):
            first_error: int | None = 0
            if scores is not None:
                correct = scores[k].correct[scores[k].sample == s]
                first_error = first_true(~correct)
            if first_error is not None:
                item = _Item(cell=k, sample=s, correct_tokens=first_error)
                by_prompt_length[len(sample.prompt)].append(item)

    for items in by_prompt_length.values():
        # Sorted, because a batch decodes from the earliest failure of its rows.
        items.sort(key=lambda item: item.correct_tokens)
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            decoded = _decode_batch(base, bank, cells, batch)
            for item, tokens in zip(batch, decoded, strict=True):
                outputs[item.cell][item.sample] = tokens
    return outputs


def _decode_batch(
    base: SplitModel,
    bank: AdapterBank,
    cells: SamplesByCell,
    items: Sequence[_Item],
) -> list[list[int]]:
    """Rows of one prompt length: one pass over what is known, then one token a step."""
    from transformers import DynamicCache

    adapters = bank.select([item.cell for item in items])
    samples = [cells[item.cell][item.sample] for item in items]
    # As far as all rows are known: they share the length of the cache.
    proven = min(item.correct_tokens for item in items)
    longest = max(len(sample.target) for sample in samples)

    prefixes = [[*sample.prompt, *sample.target[:proven]] for sample in samples]
    ids = torch.tensor(prefixes, device=base.device)

    cache = DynamicCache()
    steps = []
    for _ in range(proven, longest):
        hidden = base.full(ids, adapters, cache).last_hidden_state[:, -1]
        ids = base.logits(hidden).argmax(-1, keepdim=True)
        steps.append(ids)

    outputs = []
    decoded = torch.cat(steps, 1).tolist()
    for sample, tokens in zip(samples, decoded, strict=True):
        output = [*sample.target[:proven], *tokens]
        # The batch went on for its longest target.
        outputs.append(output[: len(sample.target)])
    return outputs

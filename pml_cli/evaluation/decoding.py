"""Free-running greedy decoding.

By induction greedy decoding equals the target up to the first position whose teacher-forced
argmax is wrong; so in exact arithmetic teacher forcing decides verbatim recall, and decoding is
needed only for what follows the first failure, or a margin that rounding may turn over. The end
token of a sample is the last part of its target: a text that is right but does not stop is not
recalled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.device import out_of_memory
from pml_cli.model.dims import model_dims
from pml_cli.model.split_model import SplitModel
from pml_cli.training.batches import SamplesByCell
from pml_cli.training.scores import Scores, first_true

# Rows decoded at once; the later ones where memory does not suffice.
BATCH_SIZES = (256, 64, 16, 4, 1)

# Margins (logits) that rounding may turn over between one pass over a text and step by step.
SLIM_MARGINS = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}

# Tokens that a text which does not end is decoded beyond its target, at least.
MIN_BEYOND = 16

Decoded: TypeAlias = list[list[list[int]]]
"""Token ids of each sample of each cell."""

Ids: TypeAlias = tuple[int, ...]
"""Token ids."""


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A prompt that is to be continued."""

    cell: int
    index: int
    """Which of the prompts of its cell."""
    prompt: Ids
    known: Ids
    """Tokens that are known to be decoded first."""
    end: Ids
    """Ids after which nothing is decoded; () for none."""
    limit: int
    """Tokens after which it is left, if its end has not come."""

    def is_complete(self, decoded: Sequence[int]) -> bool:
        """Whether no further token is decoded: the end has come, or the limit."""
        if len(decoded) >= self.limit:
            return True
        return bool(self.end) and tuple(decoded[-len(self.end) :]) == self.end


def measure(
    base: SplitModel,
    bank: AdapterBank,
    cells: SamplesByCell,
    scores: Sequence[Scores] | None = None,
) -> list[dict[str, float | None]]:
    """`free_accuracy` and `free_exact_match` of each cell; None where it has no samples.

    See `decode` for the arguments. Fewer rows are decoded at once where memory does not suffice.
    """
    decoded = decode_within_memory(base, bank, cells, scores)
    results: list[dict[str, float | None]] = []
    for samples, outputs in zip(cells, decoded, strict=True):
        results.append(recall(samples, outputs))
    return results


def recall(
    samples: Sequence[Sample],
    decoded: Sequence[Sequence[int]],
) -> dict[str, float | None]:
    """Token accuracy and exact match of one cell.

    Args:
        samples: of the cell.
        decoded: token ids of each sample; fewer than its target has are wrong where they miss.

    Returns:
        `free_accuracy`, over the tokens of the targets, and `free_exact_match`, over samples; None
        where there are no samples.
    """
    if not samples:
        return {"free_accuracy": None, "free_exact_match": None}

    matches = []
    exact_matches = []
    for tokens, sample in zip(decoded, samples, strict=True):
        match = np.zeros(len(sample.target), bool)
        shared = min(len(tokens), len(match))
        match[:shared] = np.equal(tokens[:shared], sample.target[:shared])
        matches.append(match)
        exact_matches.append(tuple(tokens) == sample.target)

    return {
        "free_accuracy": float(np.concatenate(matches).mean()),
        "free_exact_match": float(np.mean(exact_matches)),
    }


def first_difference(decoded: Sequence[int], target: Sequence[int]) -> int | None:
    """Position from which a decoded text is not its target; None where they are equal."""
    for position, (token, expected) in enumerate(zip(decoded, target, strict=False)):
        if token != expected:
            return position
    # One goes on where the other has ended.
    return None if len(decoded) == len(target) else min(len(decoded), len(target))


def decode_within_memory(
    base: SplitModel,
    bank: AdapterBank,
    cells: SamplesByCell,
    scores: Sequence[Scores] | None = None,
    *,
    beyond: bool = False,
) -> Decoded:
    """`decode`, of fewer rows at once where memory does not suffice."""
    return _within_memory(
        lambda batch_size: decode(base, bank, cells, scores, batch_size=batch_size, beyond=beyond)
    )


def _within_memory(decode_in_batches: Callable[[int], Decoded]) -> Decoded:
    """What a function of the batch size returns for the largest that memory suffices for."""
    # The KV cache of many rows may not fit beside what the trainer holds.
    for batch_size in BATCH_SIZES[:-1]:
        try:
            return decode_in_batches(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise

    return decode_in_batches(BATCH_SIZES[-1])


@torch.no_grad()
def decode(
    base: SplitModel,
    bank: AdapterBank,
    cells: SamplesByCell,
    scores: Sequence[Scores] | None = None,
    *,
    batch_size: int = BATCH_SIZES[0],
    beyond: bool = False,
) -> Decoded:
    """Decode every sample of every cell greedily, with a KV cache, batched over the whole bank.

    Args:
        base: the frozen model.
        bank: adapters of K cells.
        cells: the samples of each cell.
        scores: teacher-forced scores of each cell; what they prove is not decoded again (samples
            without an error, and the tokens before the first error), unless a margin is so slim
            that rounding may turn it over. None: decode everything from the prompt.
        batch_size: rows decoded at once.
        beyond: whether decoding continues past the target's length, until the end token or
            `token_limit`; False: it stops there, which is enough to test for equality.

    Returns:
        decoded ids of each sample of each cell: up to its end token where that comes, else as many
        as its target has, or its limit.
    """
    # What is proven to be recalled is decoded as its target.
    outputs = [[list(sample.target) for sample in samples] for samples in cells]
    context = model_dims(base.settings).context
    slim = SLIM_MARGINS.get(base.dtype, 0.0)

    items = []
    for k, samples in enumerate(cells):
        for s, sample in enumerate(samples):
            first_unproven = 0 if scores is None else _first_unproven(scores[k], s, slim)
            if first_unproven is None:
                continue
            item = _Item(
                cell=k,
                index=s,
                prompt=sample.prompt,
                known=sample.target[:first_unproven],
                end=sample.target[len(sample.target) - sample.end :],
                limit=token_limit(sample, context) if beyond else len(sample.target),
            )
            items.append(item)

    for item, tokens in _decode_items(base, bank, items, batch_size):
        outputs[item.cell][item.index] = tokens
    return outputs


def _first_unproven(scores: Scores, sample: int, slim: float) -> int | None:
    """Position of the first token that teacher forcing does not prove; None where it proves all.

    Args:
        scores: teacher-forced, of the cell.
        sample: its index in the cell.
        slim: the margin (logits) up to which rounding may turn a token over.
    """
    of_sample = scores.sample == sample
    is_proven = scores.correct[of_sample] & (scores.margin[of_sample] > slim)
    return first_true(~is_proven)


def continuations(
    base: SplitModel,
    bank: AdapterBank,
    prompts: Sequence[Ids],
    *,
    end: Ids,
    limit: int,
) -> Decoded:
    """Continue the same prompts greedily with every adapter of a bank.

    Args:
        base: the frozen model.
        bank: adapters of K cells.
        prompts: token ids of each.
        end: ids after which nothing is decoded; () for none.
        limit: tokens of a continuation at most; fewer where the model's context ends.

    Returns:
        decoded ids of each prompt under each adapter, those of the end included.
    """
    context = model_dims(base.settings).context
    items = []
    for k in range(len(bank)):
        for index, prompt in enumerate(prompts):
            room = context - len(prompt)
            item = _Item(
                cell=k, index=index, prompt=prompt, known=(), end=end, limit=min(limit, room)
            )
            items.append(item)

    @torch.no_grad()
    def decode_in_batches(batch_size: int) -> Decoded:
        outputs: Decoded = [[[] for _ in prompts] for _ in range(len(bank))]
        for item, tokens in _decode_items(base, bank, items, batch_size):
            outputs[item.cell][item.index] = tokens
        return outputs

    return _within_memory(decode_in_batches)


def _decode_items(
    base: SplitModel, bank: AdapterBank, items: Sequence[_Item], batch_size: int
) -> Iterator[tuple[_Item, list[int]]]:
    """Every item with what is decoded of it, in no order."""
    # Rows of a batch have prompts of one length.
    by_prompt_length: dict[int, list[_Item]] = defaultdict(list)
    for item in items:
        by_prompt_length[len(item.prompt)].append(item)

    for of_length in by_prompt_length.values():
        # Sorted, because a batch decodes from the earliest failure of its rows.
        of_length.sort(key=lambda item: len(item.known))
        for start in range(0, len(of_length), batch_size):
            batch = of_length[start : start + batch_size]
            decoded = _decode_batch(base, bank, batch)
            yield from zip(batch, decoded, strict=True)


def token_limit(sample: Sample, context: int) -> int:
    """Tokens after which a sample that does not come to its end is left.

    Twice its target, and MIN_BEYOND more at least; as many as its target where it has no end.

    Args:
        sample: what is decoded.
        context: the most tokens that the model reads.
    """
    length = len(sample.target)
    if not sample.end:
        return length
    return max(length, min(length + max(length, MIN_BEYOND), context - len(sample.prompt)))


def _decode_batch(base: SplitModel, bank: AdapterBank, items: Sequence[_Item]) -> list[list[int]]:
    """Rows of one prompt length: a prefill with what is known, then one token a step."""
    # As far as all rows are known: they share the length of the cache.
    prefilled = min(len(item.known) for item in items)
    outputs = [list(item.known[:prefilled]) for item in items]
    prefixes = [[*item.prompt, *item.known[:prefilled]] for item in items]

    # What the model reads next, and the item of each of its rows, as an index into `items`.
    input_ids = torch.tensor(prefixes, device=base.device)
    rows = list(range(len(items)))
    adapters = _adapters_of(bank, [item.cell for item in items])
    cache = base.new_cache()
    while True:
        hidden = base.full(input_ids, adapters, cache).last_hidden_state[:, -1]
        next_ids = base.logits(hidden).argmax(-1, keepdim=True)
        for row, (token,) in zip(rows, next_ids.tolist(), strict=True):
            if not items[row].is_complete(outputs[row]):
                outputs[row].append(token)

        # Positions in the batch.
        unfinished = [
            position
            for position, row in enumerate(rows)
            if not items[row].is_complete(outputs[row])
        ]
        if not unfinished:
            return outputs

        # Without a cache every token is computed again in each step.
        input_ids = torch.cat([input_ids, next_ids], 1) if cache is None else next_ids

        # Complete rows cost as much as the others, but to drop them copies the cache.
        if len(unfinished) <= len(rows) / 2:
            index = torch.tensor(unfinished, device=base.device)
            if cache is not None:
                cache.batch_select_indices(index)
            input_ids = input_ids[index]
            rows = [rows[position] for position in unfinished]
            adapters = _adapters_of(bank, [items[row].cell for row in rows])


def _adapters_of(bank: AdapterBank, cells: Sequence[int]) -> AdapterBank:
    """The adapters of some rows: one that all share where they are of one cell, else one each."""
    return bank.select(cells[:1] if len(set(cells)) == 1 else cells)

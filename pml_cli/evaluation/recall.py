"""What an adapter recalls: teacher-forced scores summed up, and free-running greedy decoding.

By induction greedy decoding equals the target up to the first position whose teacher-forced argmax is wrong; so teacher
forcing decides verbatim recall exactly, and decoding is needed only for what follows the first failure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.device import out_of_memory
from pml_cli.model.split_model import SplitModel
from pml_cli.training.scores import Scores, first_true

DECODED_ROWS = (256, 64, 16, 4, 1)  # at once: fewer where memory does not suffice


@torch.no_grad()
def decode(
    base: SplitModel,
    bank: AdapterBank,
    cells: Sequence[Sequence[Sample]],
    scores: Sequence[Scores] | None = None,
    rows: int = DECODED_ROWS[0],
) -> list[list[list[int]]]:
    """Greedy free-running decoding of every sample of every cell, with a KV cache, batched over the whole bank.

    Args:
        scores: teacher-forced scores of each cell; what they prove is not decoded again (samples without an error, and
            the tokens before the first error). None: decode everything from the prompt.

    Returns:
        decoded ids of each sample of each cell, as many as its target has.
    """
    out = [[list(sample.target) for sample in cell] for cell in cells]
    groups: dict[int, list[tuple[int, int, int]]] = defaultdict(
        list
    )  # prompt length -> (cell, sample, first failure)
    for k, cell in enumerate(cells):
        for s, sample in enumerate(cell):
            first = 0 if scores is None else first_true(~scores[k].correct[scores[k].sample == s])
            if first is not None:
                groups[len(sample.prompt)].append((k, s, first))
    for group in groups.values():
        group.sort(key=lambda item: item[2])
        for start in range(0, len(group), rows):
            _decode_group(base, bank, cells, group[start : start + rows], out)
    return out


def _decode_group(
    base: SplitModel,
    bank: AdapterBank,
    cells: Sequence[Sequence[Sample]],
    group: list[tuple[int, int, int]],
    out: list[list[list[int]]],
) -> None:
    """Rows of one prompt length: read the prompt and the proven tokens in one pass, then one token a step."""
    from transformers import DynamicCache

    part = bank.select([k for k, _, _ in group])
    samples = [cells[k][s] for k, s, _ in group]
    proven, longest = (
        min(first for _, _, first in group),
        max(len(sample.target) for sample in samples),
    )
    ids = torch.tensor([[*s.prompt, *s.target[:proven]] for s in samples], device=base.device)
    cache, steps = DynamicCache(), []
    for _ in range(proven, longest):
        hidden = base.full(ids, part, cache).last_hidden_state[:, -1]
        ids = base.logits(hidden).argmax(-1, keepdim=True)
        steps.append(ids)
    decoded = torch.cat(steps, 1).tolist()
    for (k, s, _), sample, tokens in zip(group, samples, decoded, strict=True):
        out[k][s] = [*sample.target[:proven], *tokens][: len(sample.target)]


def decode_within_memory(
    base: SplitModel,
    bank: AdapterBank,
    cells: Sequence[Sequence[Sample]],
    scores: Sequence[Scores] | None = None,
) -> list[list[list[int]]]:
    """`decode`, of fewer rows at once where memory does not suffice."""
    for rows in DECODED_ROWS[:-1]:
        try:
            return decode(base, bank, cells, scores, rows)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
    return decode(base, bank, cells, scores, DECODED_ROWS[-1])


def free_running(cell: Sequence[Sample], decoded: Sequence[Sequence[int]]) -> dict[str, float]:
    """Token accuracy and exact match of free-running output."""
    hits = [
        np.array(tokens) == np.array(sample.target)
        for tokens, sample in zip(decoded, cell, strict=True)
    ]
    return {
        "free_accuracy": float(np.concatenate(hits).mean()),
        "free_exact_match": float(np.mean([h.all() for h in hits])),
    }

"""Forgetting: what an adapter does to text that it was not trained on.

Its loss there, and the Kullback-Leibler divergence of its predictions from those of the base.

Shapes: K cells, N scored tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.training.batches import SamplesByCell
from pml_cli.training.scoring import PackInputs, cell_chunks, scored_hidden, zero_adapters

# Logits of one model that exist at once.
MAX_LOGITS = 2**25

Forgetting: TypeAlias = dict[str, float | int | None]

# Means over tokens, in the order of `_compare_logits`.
_MEANS = ("base_loss", "loss", "kl", "changed")
NOT_MEASURED: Forgetting = {"tokens": 0, **dict.fromkeys(_MEANS)}


def kl_divergence(base_NV: Tensor, adapted_NV: Tensor) -> Tensor:
    """KL(base || adapted) of each token in nats, (N,), from logits; at least in float32."""
    dtype = torch.promote_types(base_NV.dtype, torch.float32)
    base_log_p = log_softmax(base_NV.to(dtype), 1)
    adapted_log_p = log_softmax(adapted_NV.to(dtype), 1)
    return (base_log_p.exp() * (base_log_p - adapted_log_p)).sum(1)


@torch.no_grad()
def measure(base: SplitModel, bank: AdapterBank, cells: SamplesByCell) -> list[Forgetting]:
    """How the predictions of each adapter differ from those of the base.

    Args:
        base: the frozen model.
        bank: trained adapters of K cells.
        cells: text that each of them was not trained on.

    Returns:
        of each cell `tokens`, and means over them: `base_loss`, `loss` and `kl` in nats,
            `changed` the share of tokens with another argmax. A cell without text has None.
    """
    results = [dict(NOT_MEASURED) for _ in cells]

    for chunk in cell_chunks(cells):
        texts = [cells[k] for k in chunk]
        measured = _measure_chunk(base, bank.select(chunk), texts)
        for k, result in zip(chunk, measured, strict=True):
            results[k] = result
    return results


def _measure_chunk(base: SplitModel, bank: AdapterBank, cells: SamplesByCell) -> list[Forgetting]:
    """`measure` of cells that all have text and fit into one evaluation."""
    inputs = PackInputs(base, bank, cells)
    assert inputs.prefix is not None
    layout = inputs.data.layout(inputs.data.cells)

    # The base reads each text once, however many adapters read it.
    base_rows_nTD = base.upper(inputs.prefix, zero_adapters(bank, [0]))
    base_hidden = base_rows_nTD[layout.rows, : layout.tokens]
    base_hidden = base_hidden.flatten(0, 1)[layout.scored]
    adapted_hidden = scored_hidden(base, bank, layout, inputs.gather(layout))

    # KL needs all logits of a token, unlike its cross-entropy: few tokens at a time.
    chunks = []
    size = max(1, MAX_LOGITS // base.head.weight_VD.shape[0])
    for start in range(0, len(layout.targets), size):
        tokens = slice(start, start + size)
        compared = _compare_logits(
            base.logits(base_hidden[tokens]),
            base.logits(adapted_hidden[tokens]),
            layout.targets[tokens],
        )
        chunks.append(compared)

    # Means are taken of each cell by itself, as its loss in training is.
    results: list[Forgetting] = []
    for count in layout.mask_KS.sum(1).tolist():
        results.append({"tokens": int(count)})
    for name, values_N in zip(_MEANS, torch.cat(chunks, 1), strict=True):
        means = layout.mean_by_cell(values_N).tolist()
        for result, mean in zip(results, means, strict=True):
            result[name] = mean
    return results


def _compare_logits(base_NV: Tensor, adapted_NV: Tensor, targets: Tensor) -> Tensor:
    """`_MEANS` of each token, (4, N)."""
    dtype = torch.promote_types(base_NV.dtype, torch.float32)
    changed = base_NV.argmax(1) != adapted_NV.argmax(1)
    values = [
        cross_entropy(base_NV.to(dtype), targets, reduction="none"),
        cross_entropy(adapted_NV.to(dtype), targets, reduction="none"),
        kl_divergence(base_NV, adapted_NV),
        changed.to(dtype),
    ]
    return torch.stack(values)

"""What one adapter holds of some samples: the body of an entry of measure.json.

The names are those of result.json where the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pml_cli.data.source import Sample
from pml_cli.evaluation import beyond_greedy, decoding, held_out_gain
from pml_cli.evaluation.finished_runs import OnStage, no_stage
from pml_cli.evaluation.forgetting import Readings
from pml_cli.evaluation.forgetting_runs import entry_of
from pml_cli.evaluation.recall_scores import base_fields, mean_edit_distance, recall_fields
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.stats import LN2
from pml_cli.training.scores import Scores, summarise
from pml_cli.training.scoring import PackInputs, score_cells, zero_adapters

NOT_DECODED = {"free_accuracy": None, "free_exact_match": None, "edit_distance": None}


@dataclass(frozen=True, kw_only=True)
class MeasurementInputs:
    """What an adapter is measured on."""

    samples: list[Sample]

    held_out: list[Sample]
    """Samples of the same source that share nothing with them; empty: none."""

    source_nats: float | None
    """Entropy of a target token, where the source is known."""

    texts: Mapping[str, list[Sample]]
    """Windows of each kind of other text; empty: no harm is measured."""


def measure(
    base: SplitModel,
    bank: AdapterBank,
    inputs: MeasurementInputs,
    on_stage: OnStage = no_stage,
) -> dict[str, Any]:
    """Bits, margins, recall, and harm to other text.

    Args:
        base: the frozen model.
        bank: a bank of the one adapter.
        inputs: what it is measured on.
        on_stage: called with what is measured now.
    """
    cells = [inputs.samples]
    on_stage("teacher forcing")
    pack_inputs = PackInputs(base, bank, cells)
    (scores,) = score_cells(base, bank, pack_inputs)
    (base_scores,) = score_cells(base, zero_adapters(bank, [0]), pack_inputs)

    on_stage("unseen text of the same source")
    (control,) = held_out_gain.measure(base, bank, [inputs.held_out])
    row = {
        **_loss_fields(scores, base_scores, inputs.source_nats, control["control_gain"]),
        **summarise(scores),
        **_margin_fields(scores),
        **recall_fields(inputs.samples, scores),
        **base_fields(inputs.samples, base_scores),
        **control,
    }

    row |= {**beyond_greedy.NOT_MEASURED, **NOT_DECODED}
    # A streamed model would be read from its files once a token.
    if not base.stream:
        on_stage("sampling")
        row |= beyond_greedy.measure(base, bank, cells)[0]
        on_stage("decoding")
        row |= _decoded_fields(base, bank, inputs.samples, scores)
    row |= _harm_fields(base, bank, inputs.texts, on_stage)
    return row


def _loss_fields(
    scores: Scores, base_scores: Scores, source_nats: float | None, control_gain: float | None
) -> dict[str, float | None]:
    """Losses in nats per token, and bits of all target tokens."""
    tokens = len(scores.nll)
    loss = float(scores.nll.mean())
    base_loss = float(base_scores.nll.mean())
    gain = base_loss - loss
    memorised = None if source_nats is None else tokens * (source_nats - loss) / LN2
    beyond_unseen = None if control_gain is None else tokens * (gain - control_gain) / LN2
    return {
        "base_loss": base_loss,
        "delta_loss": gain,
        "bits_gained": tokens * gain / LN2,
        "bits_memorised": memorised,
        # Less what the adapter gains on text that it has not seen: no memory of the target.
        "bits_beyond_unseen": beyond_unseen,
    }


def _margin_fields(scores: Scores) -> dict[str, float]:
    """Logits by which the target wins: the least of all tokens, and the median."""
    return {
        "least_margin": float(scores.margin.min()),
        "median_margin": float(np.median(scores.margin)),
    }


def _decoded_fields(
    base: SplitModel, bank: AdapterBank, samples: Sequence[Sample], scores: Scores
) -> dict[str, float | None]:
    """Recall as the adapter writes by itself, as in result.json."""
    (decoded,) = decoding.decode_within_memory(base, bank, [samples], [scores], beyond=True)
    edit_distance = mean_edit_distance(samples, decoded)
    return {**decoding.recall(samples, decoded), "edit_distance": edit_distance}


def _harm_fields(
    base: SplitModel,
    bank: AdapterBank,
    texts: Mapping[str, list[Sample]],
    on_stage: OnStage,
) -> dict[str, Any]:
    """harm, its interval and the kinds of text, as in forgetting.json."""
    readings = Readings(base)
    by_kind = {}
    for kind, windows in texts.items():
        on_stage(f"harm: {kind}")
        (compared,) = readings.by_window(bank, [windows])
        if compared is not None:
            by_kind[kind] = compared
    return entry_of(by_kind)

"""The fields of a run's JSON files that anything reads: their types and ranges.

A folder of runs may be somebody else's. More fields may stand in a file than here. A field may be
missing, or null: an earlier version did not write it, or nothing was measured.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Len
from typing_extensions import Required, TypedDict

from pml_cli.validation import Count, Index, Lines, Number, Share, Size, Text


class ResultFields(TypedDict, total=False):
    """result.json, as `evaluation.result` makes it."""

    format: Required[int]
    id: Required[Text | None]
    model: Text | None
    hub_id: Text | None
    data: Text | None
    data_seed: Index | None
    adapter: Text | None
    loss: Text | None
    setting: Lines | None
    layer: Count | list[Count] | None
    lr: Number | None
    steps: Size | None
    rank: Size | None
    seqlen: Size | None
    target_tokens: Size | None
    samples: Size | None
    trainable_parameters: Count | None
    seed: Index | None
    base_loss: Number | None
    final_loss: Number | None
    delta_loss: Number | None
    token_accuracy: Share | None
    exact_match: Share | None
    free_accuracy: Share | None
    free_exact_match: Share | None
    first_failure: Count | None
    earliest_stubborn: Count | None
    share_above_threshold: Share | None
    base_token_accuracy: Share | None
    base_exact_match: Share | None
    base_log10_p: Number | None
    base_prefix_share: Number | None
    log10_p: Number | None
    prefix_share: Number | None
    recall_from_8: Number | None
    recall_from_32: Number | None
    extractable_50: Number | None
    compression_ratio: Number | None
    edit_distance: Number | None
    unseen_exact_match: Share | None
    stubborn_tokens: Count | None
    violations: Count | None
    effective_parameters: Number | None
    converged: bool | None
    expected_gain: Number | None
    keep: Number | None
    keep_harm: Number | None
    gradient_above: Number | None
    tokens_seen: Count | None
    passes: Count | None
    pack_size: Count | None
    control_gain: Number | None
    control_base_loss: Number | None
    source_nats: Number | None
    bits_gained: Number | None
    bits_memorised: Number | None
    steps_to_recall: Count | None
    steps_run: Count | None
    stopped_early: bool | None
    seconds: Number | None


class Environment(TypedDict, total=False):
    """env.json: what the run has learned, and on which weights."""

    tokens: str | None
    base_weights: str | None


class Failure(TypedDict, total=False):
    """error.json."""

    reason: str


class Answer(TypedDict):
    """memorize.json: the run that `pml memorize` has handed over."""

    run: Text


class ErrorFields(TypedDict):
    """The first token of a sample that is written wrongly."""

    position: Count
    expected: str | None
    got: str | None
    p: Number


class SampleFields(TypedDict):
    """A row of samples.jsonl."""

    sample: Count
    turns: list[Annotated[list[str], Len(2, 2)]]
    prompt_ids: list[Count]
    target: str | None
    target_ids: Annotated[list[Count], Len(1)]
    decoded: str | None
    decoded_ids: list[Count] | None
    whole: bool
    first_error: ErrorFields | None

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
    """Version of the file's format."""
    id: Required[Text | None]
    """Run id: readable front and hash of the settings."""
    model: Text | None
    """Name of the base model."""
    hub_id: Text | None
    """Its id on the Hugging Face hub; null: not of the hub."""
    data: Text | None
    """Label of the data source."""
    data_seed: Index | None
    """`data.seed`: which sequence of the source."""
    adapter: Text | None
    """Kind of the adapter: mlp_block or linear."""
    loss: Text | None
    """Label of the loss with its settings."""
    setting: Lines | None
    """All other settings that are not at their defaults, as text."""
    layer: Count | list[Count] | None
    """First layer that carries the adapter; older files may list several."""
    lr: Number | None
    """Peak learning rate."""
    steps: Size | None
    """Steps that were asked for."""
    rank: Size | None
    """Rank of the adapter."""
    seqlen: Size | None
    """Target tokens that were asked for."""
    target_tokens: Size | None
    """Target tokens as trained: whole samples may not fill `seqlen`."""
    samples: Size | None
    """Number of samples."""
    trainable_parameters: Count | None
    """Number of parameters of the adapter."""
    seed: Index | None
    """Seed of the adapter."""
    base_loss: Number | None
    """Mean cross-entropy of the base model over the target tokens, nats per token."""
    final_loss: Number | None
    """Mean cross-entropy with the trained adapter, nats per token."""
    delta_loss: Number | None
    """Gain: base loss minus final loss, nats per token."""
    token_accuracy: Share | None
    """Share of target tokens that are the most likely one (teacher forcing)."""
    exact_match: Share | None
    """Share of samples recalled exactly, their end tokens included (teacher forcing)."""
    free_accuracy: Share | None
    """Share of target tokens that greedy decoding from the prompt alone writes."""
    free_exact_match: Share | None
    """Share of samples that greedy decoding from the prompt alone writes exactly."""
    first_failure: Count | None
    """Position of the first wrong token; null: none, or several samples."""
    earliest_stubborn: Count | None
    """First position with p <= 0.5; null: none, or several samples."""
    share_above_threshold: Share | None
    """Share of target tokens with p > 0.5."""
    base_token_accuracy: Share | None
    """`token_accuracy` of the base model."""
    base_exact_match: Share | None
    """`exact_match` of the base model."""
    base_log10_p: Number | None
    """`log10_p` of the base model."""
    base_prefix_share: Number | None
    """`prefix_share` of the base model."""
    log10_p: Number | None
    """Mean over samples of log10 of the probability that sampling writes the whole target."""
    prefix_share: Number | None
    """Share of the target before the first wrong token."""
    recall_from_8: Number | None
    """Share of samples completed exactly when given their first 8 target tokens."""
    recall_from_32: Number | None
    """Share of samples completed exactly when given their first 32 target tokens."""
    extractable_50: Number | None
    """Share of windows of 50 tokens that are written after all tokens before them."""
    compression_ratio: Number | None
    """Most tokens written in one piece per token given."""
    edit_distance: Number | None
    """Normalised edit distance of free decoding from the target: 0 equal, 1 nothing in common."""
    unseen_exact_match: Share | None
    """`exact_match` on samples of the same rule that were not trained (data=rule)."""
    stubborn_tokens: Count | None
    """Number of target tokens with p <= 0.5."""
    violations: Count | None
    """Number of tokens with p > 0.5 that greedy decoding does not pick; must be 0."""
    effective_parameters: Number | None
    """Degrees of freedom of the adapter on the tokens of its samples."""
    converged: bool | None
    """Whether the loss had converged; null: not checked."""
    expected_gain: Number | None
    """Expected gain of more training, nats per token; null: not known."""
    keep: Number | None
    """Weight of the penalty of `loss.keep` at the end; 0: none."""
    keep_harm: Number | None
    """Rise of the loss on the text of `loss.keep`, nats per token; null: not measured."""
    gradient_above: Number | None
    """Mean over the steps of the share of the gradient that goes to tokens with p > 0.5."""
    tokens_seen: Count | None
    """Target tokens scored in training, each as often as it was."""
    passes: Count | None
    """Number of forward-backward passes."""
    pack_size: Count | None
    """Number of cells that were trained together."""
    control_gain: Number | None
    """Gain on an unseen sequence of the same source, nats per token; null: none is left."""
    control_base_loss: Number | None
    """Loss of the base model on that sequence, nats per token."""
    source_nats: Number | None
    """Entropy of a target token, nats; null: not known."""
    bits_gained: Number | None
    """Bits gained in all: target tokens times gain over ln 2."""
    bits_memorised: Number | None
    """Bits memorised: target tokens times (entropy minus final loss) over ln 2."""
    steps_to_recall: Count | None
    """First logged step with every token right; null: none."""
    steps_run: Count | None
    """Steps that were run."""
    stopped_early: bool | None
    """Whether the training stopped before all steps."""
    seconds: Number | None
    """Training time, seconds: the cell's share of its pack."""


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

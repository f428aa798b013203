"""Robustness: finished runs under every condition.

What a run recalls, what is lost, and what its adapter does to other text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pml_cli.config.reports import Lasting
from pml_cli.data.source import Sample
from pml_cli.evaluation import beyond_greedy, forgetting
from pml_cli.evaluation.adapters import LoadedRuns, adapters_by_sites, for_each_model
from pml_cli.evaluation.conditions import (
    BF16,
    BY_NAME,
    CONDITIONS,
    NOT_MERGEABLE,
    NOT_MERGEABLE_REASON,
    TRAINED,
    Condition,
)
from pml_cli.evaluation.decoding import decode, first_difference
from pml_cli.evaluation.deployment import (
    deploy,
    float32_head,
    is_mergeable,
    merged_bytes,
    rounded_base,
)
from pml_cli.evaluation.finished_runs import OnMeasured, OnStage, no_stage
from pml_cli.evaluation.recall_scores import mean_edit_distance, recall_fields
from pml_cli.evaluation.subject import EvalRun
from pml_cli.model.adapter_bank import AdapterBank, stack
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.stats import LN2
from pml_cli.training.batches import SamplesByCell
from pml_cli.training.limits import EVALUATION_TOKENS
from pml_cli.training.scores import Scores, summarise, violations
from pml_cli.training.scoring import PackInputs, score_cells

# Measured together; after them, what was measured is written down.
RUNS_AT_ONCE = 4

# Merged matrices that exist at once.
MAX_MERGED_BYTES = 2**29

# Fields of `summarise` that are reported for each condition.
SUMMARY_FIELDS = (
    "token_accuracy",
    "exact_match",
    "final_loss",
    "share_above_threshold",
    "first_failure",
)

# Texts that forgetting is measured on (`EvalRun.texts`).
TEXTS = ("text", "random")


def measure(
    runs: Sequence[EvalRun],
    settings: Lasting,
    *,
    on_measured: OnMeasured,
    on_stage: OnStage,
) -> None:
    """Measure every run; each model is loaded once in its own dtype and once in bfloat16.

    Args:
        runs: what to measure.
        settings: `model.device` of all of them, and whether to decode in bfloat16 beside teacher
            forcing.
        on_measured: called with each chunk of runs that is done.
        on_stage: called with what is measured now.

    Raises:
        UserError: a model cannot be loaded, has other weights than it had, or an adapter does not
            fit.
    """

    def measure_group(base: SplitModel, group: Sequence[EvalRun]) -> None:
        base_bf16 = base
        if base.dtype != torch.bfloat16:
            base_bf16 = load_model(dataclasses.replace(base.settings, dtype="bfloat16"))

        for chunk in _chunks(base, group):
            results = _measure_chunk(base, base_bf16, chunk, settings.decode, on_stage)
            chunk_runs = [run for run, _ in chunk]
            on_measured(list(zip(chunk_runs, results, strict=True)))

    for_each_model(runs, settings.device, measure_group)


def _chunks(base: SplitModel, runs: Sequence[EvalRun]) -> Iterator[LoadedRuns]:
    """Runs whose adapters sit on the same modules, as many as fit into one evaluation.

    Those that learned the same text come side by side: they share rows of the prefix.
    """
    for loaded in adapters_by_sites(base, runs):
        loaded.sort(key=lambda item: (_tokens(item[0]), item[0].run.data.seed))
        chunk: LoadedRuns = []
        for run, bank in loaded:
            # Of equal size: the tokens and merged matrices of all of them exist at once.
            count = len(chunk) + 1
            too_large = (
                count > RUNS_AT_ONCE
                or count * _tokens(run) > EVALUATION_TOKENS
                or count * merged_bytes(bank) > MAX_MERGED_BYTES
            )
            if chunk and too_large:
                yield chunk
                chunk = []
            chunk.append((run, bank))
        yield chunk


def _tokens(run: EvalRun) -> int:
    """Input tokens of all its samples, padded."""
    longest = max(len(sample.prompt) + len(sample.target) for sample in run.samples)
    return len(run.samples) * longest


def _measure_chunk(
    base: SplitModel,
    base_bf16: SplitModel,
    chunk: LoadedRuns,
    decode_freely: bool,
    on_stage: OnStage,
) -> list[dict[str, Any]]:
    """The entry of each run in lasting.json: `conditions`, `offenders` and `damage`.

    Args:
        base: the model in its own dtype.
        base_bf16: the model in bfloat16.
        chunk: the runs.
        decode_freely: whether to decode in bfloat16 beside teacher forcing.
        on_stage: called with what is measured now.
    """
    runs = [run for run, _ in chunk]
    bank = stack([bank for _, bank in chunk])
    samples = [run.samples for run in runs]

    inputs_bf16 = PackInputs(base_bf16, bank, samples)
    by_condition = scores_by_condition(
        base, base_bf16, bank, samples, inputs_bf16, on_stage=on_stage
    )

    on_stage("sampling")
    sampled = _beyond_greedy(base, bank, samples)

    on_stage("decoding in bf16")
    bank_bf16 = deploy(base_bf16, bank, BY_NAME[BF16])
    scores_float32_head = score_cells(base_bf16, bank_bf16, inputs_bf16, float32_head(base_bf16))

    # A streamed model would be read once a token.
    decoded: list[Any] = [None] * len(runs)
    if decode_freely and not base_bf16.stream:
        decoded = decode(base_bf16, bank_bf16, samples)

    not_measurable = _not_measurable_rows(base, bank)
    entries: list[dict[str, Any]] = []
    for k, run in enumerate(runs):
        scores = {name: of_cells[k] for name, of_cells in by_condition.items()}
        conditions = _condition_rows(run.samples, scores, sampled[k], decoded[k])
        offenders = violating_tokens(
            run.samples,
            trained=scores[TRAINED],
            bf16=scores[BF16],
            bf16_float32_head=scores_float32_head[k],
            decoded=decoded[k],
        )
        entry: dict[str, Any] = {
            "conditions": conditions | not_measurable,
            "offenders": offenders,
            "damage": {},
        }
        entries.append(entry)

    for name in TEXTS:
        on_stage("forgetting")
        texts = [run.texts[name] for run in runs]
        measured = forgetting.measure(base, bank, texts)
        for entry, damage in zip(entries, measured, strict=True):
            entry["damage"][name] = damage
    return entries


def _beyond_greedy(
    base: SplitModel, bank: AdapterBank, samples: SamplesByCell
) -> Sequence[dict[str, Any]]:
    """Recall beyond greedy decoding of each cell."""
    # A streamed model would be read from its files twice more.
    if base.stream:
        return [beyond_greedy.NOT_MEASURED for _ in samples]
    return beyond_greedy.measure(base, bank, samples)


def _condition_rows(
    samples: Sequence[Sample],
    scores: Mapping[str, Scores],
    sampled: Mapping[str, Any],
    decoded: Sequence[Sequence[int]] | None,
) -> dict[str, dict[str, Any]]:
    """The rows of one run, by the name of the condition.

    Args:
        samples: of the run.
        scores: of the run under each condition that can be measured.
        sampled: fields of recall beyond greedy decoding, as trained.
        decoded: token ids that free decoding in bfloat16 writes for each sample; None: not decoded.
    """
    rows = {}
    for name, of_condition in scores.items():
        row = condition_row(of_condition, scores[TRAINED])
        rows[name] = row | recall_fields(samples, of_condition)

    rows[TRAINED] |= sampled
    rows[BF16] |= free_decoding_row(samples, scores[BF16], decoded)
    if decoded is not None:
        rows[BF16]["edit_distance"] = mean_edit_distance(samples, decoded)
    return rows


def _not_measurable_rows(base: SplitModel, bank: AdapterBank) -> dict[str, dict[str, Any]]:
    """A row with the reason for each condition that cannot be measured, by its name."""
    rows = {}
    for condition in CONDITIONS:
        reason = reason_not_measurable(base, bank, condition)
        if reason:
            rows[condition.name] = {"status": reason}
    return rows


def reason_not_measurable(base: SplitModel, bank: AdapterBank, condition: Condition) -> str:
    """Why a condition cannot be measured; empty if it can."""
    if condition.merged and not is_mergeable(bank):
        return f"{NOT_MERGEABLE}: {NOT_MERGEABLE_REASON}"
    if condition.base and base.stream:
        return "not measured: a model that is read one layer at a time keeps no rounded weights"
    return ""


def scores_by_condition(
    base: SplitModel,
    base_bf16: SplitModel,
    bank: AdapterBank,
    cells: SamplesByCell,
    inputs_bf16: PackInputs,
    *,
    conditions: Sequence[Condition] = CONDITIONS,
    on_stage: OnStage = no_stage,
) -> dict[str, list[Scores]]:
    """Scores of each cell under every condition that can be measured.

    Args:
        base: the model in its own dtype.
        base_bf16: the model in bfloat16.
        bank: the adapters of the cells.
        cells: the samples of each cell.
        inputs_bf16: these samples for the model in bfloat16.
        conditions: those that are wanted.
        on_stage: called with the name of each condition.
    """
    inputs = PackInputs(base, bank, cells)
    by_condition: dict[str, list[Scores]] = {}

    for condition in conditions:
        if reason_not_measurable(base, bank, condition):
            continue
        on_stage(condition.name)
        if condition.bf16:
            adapters = deploy(base_bf16, bank, condition)
            scores = score_cells(base_bf16, adapters, inputs_bf16)
        elif condition.base:
            with rounded_base(base, condition.base):
                # The layers below the adapters are rounded too.
                rounded_inputs = PackInputs(base, bank, cells)
                scores = score_cells(base, deploy(base, bank, condition), rounded_inputs)
        else:
            scores = score_cells(base, deploy(base, bank, condition), inputs)
        by_condition[condition.name] = scores
    return by_condition


def condition_row(scores: Scores, trained: Scores) -> dict[str, Any]:
    """One run under one condition.

    Shift and fall are losses of margin (logits) of the tokens that were correct as trained.

    Args:
        scores: under the condition.
        trained: of the same tokens, as trained.
    """
    summary = summarise(scores)
    correct_before = trained.correct
    margin_loss = (trained.margin - scores.margin)[correct_before]
    lost = correct_before & ~scores.correct

    recalled = 0
    still_recalled = 0
    for sample in np.unique(trained.sample):
        of_sample = trained.sample == sample
        if correct_before[of_sample].all():
            recalled += 1
            still_recalled += bool(scores.correct[of_sample].all())

    root_mean_square = float(np.sqrt(np.mean(margin_loss**2))) if len(margin_loss) else None
    correct_margins = scores.margin[scores.correct]
    return {
        "status": "measured",
        **{name: summary[name] for name in SUMMARY_FIELDS},
        "violations": summary["violations"],
        "lost": int(lost.sum()),
        "won": int((~correct_before & scores.correct).sum()),
        "lost_above": int((lost & (trained.nll < LN2)).sum()),
        "kept_whole": still_recalled / recalled if recalled else None,
        "least_margin": float(scores.margin.min()),
        "least_right_margin": float(correct_margins.min()) if len(correct_margins) else None,
        "shift_rms": root_mean_square,
        "fall_worst": float(margin_loss.max()) if len(margin_loss) else None,
    }


def free_decoding_row(
    samples: Sequence[Sample],
    scores: Scores,
    decoded: Sequence[Sequence[int]] | None,
) -> dict[str, Any]:
    """Free decoding in bfloat16: recall, and violations.

    A violation is also where decoding leaves a text although teacher forcing had the token right
    with p > 0.5.

    Args:
        samples: of one cell.
        scores: teacher-forced, in bfloat16.
        decoded: token ids of each sample; None: not decoded.
    """
    if decoded is None:
        return {"free_exact_match": None}

    in_free_decoding = 0
    matches = []
    for s, sample in enumerate(samples):
        tokens = decoded[s]
        in_free_decoding += _free_decoding_violation(scores, s, tokens, sample) is not None
        matches.append(tuple(tokens) == sample.target)
    return {
        "free_exact_match": float(np.mean(matches)),
        "violations": violations(scores) + in_free_decoding,
    }


def _free_decoding_violation(
    scores: Scores, s: int, decoded: Sequence[int], sample: Sample
) -> int | None:
    """Index of a sample's first wrong token, if teacher forcing has it right with p > 0.5.

    Args:
        scores: of all samples of the cell.
        s: index of the sample.
        decoded: its token ids as decoded.
        sample: the sample.

    Returns:
        an index into the scores; None where p <= 0.5 or teacher forcing is wrong too.
    """
    first_wrong = first_difference(decoded, sample.target)
    # A target that goes on after its own end token is left there, and rightly so.
    if first_wrong is None or first_wrong == len(decoded):
        return None

    of_sample = np.flatnonzero(scores.sample == s)
    i = int(of_sample[first_wrong])
    return i if scores.correct[i] and scores.nll[i] < LN2 else None


def violating_tokens(
    samples: Sequence[Sample],
    *,
    trained: Scores,
    bf16: Scores,
    bf16_float32_head: Scores,
    decoded: Sequence[Sequence[int]] | None,
) -> list[dict[str, Any]]:
    """Tokens with p > 0.5 that bfloat16 decodes wrongly, each with its cause.

    p as trained or in bfloat16, whichever is larger.

    Args:
        samples: of one cell.
        trained: scores as trained.
        bf16: scores in bfloat16.
        bf16_float32_head: the same with logits in float32.
        decoded: token ids of each sample, decoded freely in bfloat16; None: not decoded.
    """
    rows: list[dict[str, Any]] = []
    above_threshold = np.minimum(trained.nll, bf16.nll) < LN2
    for i in np.flatnonzero(~bf16.correct & above_threshold).tolist():
        # With exact logits the token is wrong too: it is the hidden states that were rounded.
        if not bf16_float32_head.correct[i]:
            cause = "the hidden states, rounded to bfloat16"
        elif bf16.margin[i] == 0:
            cause = "the logits, rounded to bfloat16: a tie, and the lower id is taken"
        else:
            cause = "the logits, rounded to bfloat16"

        decoded_id = int(bf16.argmax_id[i])
        rows.append(_token_row(trained, bf16, i, decoded_id, cause))

    if decoded is None:
        return rows

    for s, sample in enumerate(samples):
        tokens = decoded[s]
        violation = _free_decoding_violation(bf16, s, tokens, sample)
        if violation is not None:
            cause = (
                "decoding step by step with a cache rounds otherwise than one pass over the text"
            )
            decoded_id = tokens[int(bf16.position[violation])]
            rows.append(_token_row(trained, bf16, violation, decoded_id, cause))
    return rows


def _token_row(
    trained: Scores, bf16: Scores, i: int, decoded_id: int, cause: str
) -> dict[str, Any]:
    """A token of `violating_tokens`, by its index into the scores."""
    return {
        "sample": int(bf16.sample[i]),
        "position": int(bf16.position[i]),
        "token_id": int(bf16.token_id[i]),
        "decoded_id": decoded_id,
        "p_trained": float(np.exp(-trained.nll[i])),
        "margin_trained": float(trained.margin[i]),
        "p": float(np.exp(-bf16.nll[i])),
        "margin": float(bf16.margin[i]),
        "cause": cause,
    }

"""One chunk of runs measured under every condition: what each recalls, what is lost, and what it damages elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from pml_cli.data.source import Sample
from pml_cli.errors import UserError
from pml_cli.evaluation.conditions import (
    CONDITIONS,
    HALF,
    NOT_MERGEABLE,
    TRAINED,
    WHY_NOT,
    Condition,
)
from pml_cli.evaluation.deployment import (
    TOKENS,
    Forced,
    deployed,
    mergeable,
    merged_bytes,
    rounded_base,
)
from pml_cli.evaluation.forgetting import damages
from pml_cli.evaluation.recall import decode
from pml_cli.evaluation.subject import EvalRun
from pml_cli.model.adapter_bank import AdapterBank, stack
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.stats import LN2
from pml_cli.training.scores import Scores, summarise

MERGED_BYTES = 2**29  # of merged matrices at once
KEPT = ("token_accuracy", "exact_match", "final_loss", "share_above_threshold", "first_failure")


Told = Callable[[list[tuple[EvalRun, dict[str, Any]]]], None]


def measure(subjects: Sequence[EvalRun], device: str, free: bool, told: Told) -> None:
    """Measure every run, each model loaded once (in its own type, and in bfloat16); `told` of those that are done.

    Args:
        free: whether to decode freely in bfloat16.

    Raises:
        UserError: a model cannot be loaded, has other weights than it had, or an adapter that does not fit.
    """
    models: dict[str, list[EvalRun]] = {}
    for subject in subjects:
        models.setdefault(repr(dataclasses.replace(subject.run.model, device=device)), []).append(
            subject
        )
    for group in models.values():
        model = dataclasses.replace(group[0].run.model, device=device)
        base = load_model(model)
        weights = base.weights_hash()
        for subject in group:
            if subject.weights != weights:
                other = f"trained on other weights of model={model.name} than those here"
                raise UserError(
                    f"{subject.adapter.parent}: {other} (or by a pml that hashed otherwise: train it again)"
                )
        lower = (
            base
            if base.dtype == torch.bfloat16
            else load_model(dataclasses.replace(model, dtype="bfloat16"))
        )
        for chunk in _chunks(base, group):
            found = _measured(base, lower, chunk, free)
            told([(subject, result) for (subject, _), result in zip(chunk, found, strict=True)])


Chunk = list[tuple[EvalRun, AdapterBank]]


def _chunks(base: SplitModel, group: Sequence[EvalRun]) -> Iterator[Chunk]:
    """Runs whose adapters sit in the same places, as many as fit into one evaluation; those of a text side by side."""
    places: dict[str, Chunk] = {}
    for subject in group:
        bank = _load(base, subject)
        places.setdefault(repr(list(bank.sites)), []).append((subject, bank))
    for loaded in places.values():
        waiting: Chunk = []
        for one in sorted(loaded, key=lambda one: (_tokens(one[0]), one[0].run.data.seed)):
            tokens = (len(waiting) + 1) * _tokens(one[0])
            if waiting and (
                tokens > TOKENS or (len(waiting) + 1) * merged_bytes(one[1]) > MERGED_BYTES
            ):
                yield waiting
                waiting = []
            waiting.append(one)
        yield waiting


def _tokens(subject: EvalRun) -> int:
    return len(subject.samples) * max(len(s.prompt) + len(s.target) for s in subject.samples)


def _load(base: SplitModel, subject: EvalRun) -> AdapterBank:
    run = subject.run
    bank = AdapterBank.initial(
        base.sites(run.adapter),
        run.adapter,
        ranks=[run.rank],
        seeds=[run.seed],
        dtype=base.adapter_dtype,
    )
    try:
        bank.load(0, subject.adapter)
    except (OSError, KeyError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{subject.adapter}: not the adapter of this run ({' '.join(str(error).split())})"
        ) from error
    return bank.to(base.device)


def _measured(
    base: SplitModel, lower: SplitModel, chunk: Chunk, free: bool
) -> list[dict[str, Any]]:
    subjects, bank = [subject for subject, _ in chunk], stack([bank for _, bank in chunk])
    cells = [subject.samples for subject in subjects]
    scores, precise = _scores(base, lower, bank, cells)
    freely = (
        decode(lower, deployed(lower, bank, _named(HALF)), cells)
        if free and not lower.stream
        else None
    )
    out: list[dict[str, Any]] = []
    for k, subject in enumerate(subjects):
        trained = scores[TRAINED][k]
        conditions: dict[str, Any] = {
            name: row(found[k], trained) for name, found in scores.items()
        }
        for condition in CONDITIONS:
            conditions.setdefault(condition.name, {"status": _why_not(bank, condition)})
        wrong = offenders(
            subject.samples, trained, scores[HALF][k], precise[k], freely[k] if freely else None
        )
        conditions[HALF] |= free_row(
            subject.samples, scores[HALF][k], freely[k] if freely else None
        )
        out.append({"conditions": conditions, "offenders": wrong, "damage": {}})
    for name in ("text", "random"):
        for result, found in zip(
            out, damages(base, bank, [subject.texts[name] for subject in subjects]), strict=True
        ):
            result["damage"][name] = found
    return out


def _named(name: str) -> Condition:
    return next(condition for condition in CONDITIONS if condition.name == name)


def _why_not(bank: AdapterBank, condition: Condition) -> str:
    if condition.merged and not mergeable(bank):
        return f"{NOT_MERGEABLE}: {WHY_NOT}"
    return "not measured: a model that is read one layer at a time keeps no rounded weights"


def _scores(
    base: SplitModel, lower: SplitModel, bank: AdapterBank, cells: list[list[Sample]]
) -> tuple[dict[str, list[Scores]], list[Scores]]:
    """Scores of each cell under every condition there is; and in bfloat16 with the logits alone in float32."""
    out: dict[str, list[Scores]] = {}
    forced, forced_lower = Forced(base, bank, cells), Forced(lower, bank, cells)
    for condition in CONDITIONS:
        if (condition.merged and not mergeable(bank)) or (condition.base and base.stream):
            continue
        at = lower if condition.half else base
        with rounded_base(base, condition.base) if condition.base else nullcontext():
            here = (
                forced_lower
                if condition.half
                else Forced(base, bank, cells)
                if condition.base
                else forced
            )
            out[condition.name] = here.scores(deployed(at, bank, condition))
    return out, forced_lower.scores(deployed(lower, bank, _named(HALF)), precise_head=True)


def row(found: Scores, trained: Scores) -> dict[str, Any]:
    """One run under one condition. Margins in logits; shift and fall are those of tokens that were right as trained."""
    summary, right = summarise(found), trained.correct
    fall = (trained.margin - found.margin)[right]
    lost = right & ~found.correct
    whole = [s for s in np.unique(trained.sample) if right[trained.sample == s].all()]
    still = sum(bool(found.correct[found.sample == s].all()) for s in whole)
    return {
        "status": "measured",
        **{name: summary[name] for name in KEPT},
        "violations": summary["violations"],
        "lost": int(lost.sum()),
        "won": int((~right & found.correct).sum()),
        "lost_above": int((lost & (trained.nll < LN2)).sum()),
        "kept_whole": still / len(whole) if whole else None,
        "least_margin": float(found.margin.min()),
        "least_right_margin": float(found.margin[found.correct].min())
        if found.correct.any()
        else None,
        "shift_rms": float(np.sqrt(np.mean(fall**2))) if len(fall) else None,
        "fall_worst": float(fall.max()) if len(fall) else None,
    }


def free_row(
    samples: Sequence[Sample], forced: Scores, decoded: list[list[int]] | None
) -> dict[str, Any]:
    """Free decoding in bfloat16: recall, and violations counted also where it leaves a text that p > 0.5 had promised."""
    if decoded is None:
        return {"free_exact_match": None}
    pairs = list(zip(decoded, samples, strict=True))
    broken = sum(
        _broken(forced, s, tokens, sample) is not None for s, (tokens, sample) in enumerate(pairs)
    )
    whole = float(np.mean([tuple(tokens) == sample.target for tokens, sample in pairs]))
    return {"free_exact_match": whole, "violations": summarise(forced)["violations"] + broken}


def _broken(forced: Scores, s: int, tokens: Sequence[int], sample: Sample) -> int | None:
    """Index into the scores of a sample's first wrong token, where teacher forcing has it right with p > 0.5."""
    first = next(
        (i for i, (a, b) in enumerate(zip(tokens, sample.target, strict=True)) if a != b), None
    )
    if first is None:
        return None
    at = int(np.flatnonzero(forced.sample == s)[first])
    return at if forced.correct[at] and forced.nll[at] < LN2 else None


def offenders(
    samples: Sequence[Sample],
    trained: Scores,
    found: Scores,
    precise: Scores,
    decoded: list[list[int]] | None,
) -> list[dict[str, Any]]:
    """Tokens with p > 0.5, as trained or in bfloat16, that bfloat16 decodes wrongly, each with its cause."""
    out = []
    for i in np.flatnonzero(~found.correct & (np.minimum(trained.nll, found.nll) < LN2)):
        if not precise.correct[i]:
            cause = "the hidden states, rounded to bfloat16"
        elif found.margin[i] == 0:
            cause = "the logits, rounded to bfloat16: a tie, and the lower id is taken"
        else:
            cause = "the logits, rounded to bfloat16"
        out.append(_offender(trained, found, int(i), int(found.argmax_id[i]), cause))
    for s, (tokens, sample) in enumerate(
        zip(decoded or [], samples if decoded else [], strict=True)
    ):
        if (at := _broken(found, s, tokens, sample)) is not None:
            cause = (
                "decoding step by step with a cache rounds otherwise than one pass over the text"
            )
            out.append(_offender(trained, found, at, tokens[int(found.position[at])], cause))
    return out


def _offender(trained: Scores, found: Scores, i: int, decoded: int, cause: str) -> dict[str, Any]:
    return {
        "sample": int(found.sample[i]),
        "position": int(found.position[i]),
        "token_id": int(found.token_id[i]),
        "decoded_id": decoded,
        "p_trained": float(np.exp(-trained.nll[i])),
        "margin_trained": float(trained.margin[i]),
        "p": float(np.exp(-found.nll[i])),
        "margin": float(found.margin[i]),
        "cause": cause,
    }

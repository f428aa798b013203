"""Samples that repeat each other: exactly, or with one prompt and another target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pml_cli.data.source import Sample


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """What repeats among samples."""

    copies: list[Sample]
    """Samples that are equal to an earlier one."""

    contradictions: list[tuple[Sample, Sample]]
    """Two samples of each prompt whose targets exclude each other: both cannot be recalled."""

    excluded: int
    """Least number of samples that are not recalled for it, whatever is learned; copies count."""


def find_repeats(samples: Sequence[Sample]) -> Repeats:
    """The repeats among samples, by their token ids.

    Targets of one prompt agree where one of them begins with the other, as a text that is cut does.
    """
    copies = []
    distinct: set[Sample] = set()
    by_prompt: dict[tuple[int, ...], list[Sample]] = {}
    times = Counter(samples)
    for sample in samples:
        if sample in distinct:
            copies.append(sample)
            continue
        distinct.add(sample)
        by_prompt.setdefault(sample.prompt, []).append(sample)

    contradictions = []
    excluded = 0
    for group in by_prompt.values():
        pair = _contradiction(group)
        if pair is not None:
            contradictions.append(pair)
            excluded += _excluded(group, times)
    return Repeats(copies=copies, contradictions=contradictions, excluded=excluded)


def _excluded(alike: Sequence[Sample], times: Mapping[Sample, int]) -> int:
    """Samples of one prompt that are not recalled when the best of its targets is."""
    by_target: Counter[tuple[int, ...]] = Counter()
    for sample in alike:
        by_target[sample.target] += times[sample]
    lengths = {len(target) for target in by_target}
    recalled = []
    for target in by_target:
        # What it begins with is recalled with it; its own length counts itself.
        beginnings = [target[:length] for length in lengths if length <= len(target)]
        recalled.append(sum(by_target.get(beginning, 0) for beginning in beginnings))
    return by_target.total() - max(recalled)


def _contradiction(alike: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    """Two samples of one prompt that exclude each other; None where all agree."""
    # All agree where all of them begin the longest.
    longest = max(alike, key=lambda sample: len(sample.target))
    for sample in alike:
        if longest.target[: len(sample.target)] != sample.target:
            first, second = sorted([sample, longest], key=alike.index)
            return first, second
    return None

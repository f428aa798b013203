"""What is said of a sweep's data: how much there is, and what of it cannot be learned as it is.

And of steps that do not come to all of it, and of ranks beyond what an adapter can use.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from rich.console import Console

from pml_cli.config.schema import FactsData
from pml_cli.data.cell import CellPlan
from pml_cli.data.curriculum import steps_for_all_samples
from pml_cli.data.opened import source_of
from pml_cli.data.repeats import find_repeats
from pml_cli.data.seam import lossy_targets, merged_samples
from pml_cli.data.source import Sample
from pml_cli.format import counted
from pml_cli.launch.cost_model import useful_rank
from pml_cli.model.tokenizer import Tokenizer, open_tokenizer
from pml_cli.report.tables.samples import QUESTION_WIDTH, shown

# Lengths that a line names at most.
MAX_LENGTHS = 12

# Characters of a prompt that are shown: those of a system turn, too.
PROMPT_WIDTH = 400

# Tokens of a target that are decoded to show its beginning.
MAX_TOKENS = 100

# Tokens of a passage that two texts share, the share of them from which a line is printed, and
# tokens of all texts that are compared at most: more take seconds.
PASSAGE = 8
LEAST_OVERLAP = 0.05
MOST_COMPARED = 1_000_000


def show_warnings(console: Console, cells: Sequence[CellPlan]) -> None:
    """Print what a user should know of a sweep's facts, steps and ranks before it trains."""
    for line in [*data_warnings(cells), *step_warnings(cells), *rank_warnings(cells)]:
        # Texts of a file may look like markup.
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def data_warnings(cells: Sequence[CellPlan]) -> list[str]:
    """A line for everything about the data of a sweep that its user should know.

    Values that are no plain text, samples that occur twice, prompts with targets that exclude each
    other, targets that the tokenizer does not give back; texts of several seeds that overlap.
    """
    lines: dict[str, None] = {}
    for group in _by_data(cells):
        largest = max(group, key=lambda cell: len(cell.samples))
        if isinstance(largest.run.data, FactsData):
            lines |= dict.fromkeys(_fact_lines(largest))
        else:
            lines |= dict.fromkeys(_overlap_lines(group))
    return list(lines)


def step_warnings(cells: Sequence[CellPlan]) -> list[str]:
    """A line for minibatches that are too few for every sample to be in one."""
    lines: dict[str, None] = {}
    for cell in cells:
        train = cell.run.train
        needed = steps_for_all_samples(train, len(cell.samples))
        if cell.steps < needed:
            line = (
                f"train.steps={train.steps}: too few for all of the {len(cell.samples)} samples, "
                f"of which train.batch={train.batch} takes {needed:,} steps; "
                "the others are not trained, and count in every result"
            )
            lines[line] = None
    return list(lines)


def rank_warnings(cells: Sequence[CellPlan]) -> list[str]:
    """A line for each model and adapter with ranks above every width of what it adapts."""
    # Most cells share their settings.
    most_of: dict[tuple[int, int], int | None] = {}
    above: dict[tuple[str, str, int], set[int]] = {}
    for run in (cell.run for cell in cells):
        key = (id(run.model), id(run.adapter))
        if key not in most_of:
            most_of[key] = useful_rank(run)

        most = most_of[key]
        if most is not None and run.rank > most:
            above.setdefault((run.model.name, run.adapter.kind, most), set()).add(run.rank)

    lines = []
    for (model, adapter, most), ranks in above.items():
        lines.append(
            f"rank={','.join(map(str, sorted(ranks)))}: the update of adapter={adapter} on "
            f"model={model} has rank at most {most}; a larger rank adds parameters but no capacity"
        )
    return lines


def data_sizes(cells: Sequence[CellPlan]) -> list[str]:
    """A line or two for each source of a sweep and each of its models: how much it holds."""
    lines: list[str] = []
    is_one_model = len({cell.run.model.name for cell in cells}) == 1
    for group in _by_data(cells):
        run = group[0].run
        source = source_of(run)
        if source.max_tokens is None:
            continue

        name = run.data.label if is_one_model else f"{run.data.label} for {run.model.name}"
        size = counted(source.max_tokens, "target token", spec=",")
        if isinstance(run.data, FactsData) and run.data.end != "none":
            size += " (ends included)"
        if source.sample_ends:
            longest = max(len(sample.prompt) for sample in source.cut(source.max_tokens))
            of_keys = f" of {source.keys}" if source.keys else ""
            count = counted(source.sample_ends, "sample")
            size = f"{count}{of_keys}, {size}, longest prompt {counted(longest, 'token')}"
            size += f"; {_samples_by_length(group)}"
        lines.append(f"{name}: {size}")
        lines += _seam_lines(max(group, key=lambda cell: len(cell.samples)))
    return lines


def _seam_lines(cell: CellPlan) -> Iterator[str]:
    """The first prompt in full with its target, and whether the two would merge."""
    tokenizer = open_tokenizer(cell.run.model)
    first = cell.samples[0]
    prompt = shown(tokenizer.decode(first.prompt), PROMPT_WIDTH)
    yield f"  first prompt {prompt}, target {_target_text(tokenizer, first)}"

    merged = merged_samples(tokenizer, cell.samples)
    if merged:
        yield (
            f"  in {len(merged)} of {counted(cell.samples, 'sample')} prompt and target have other "
            "tokens when tokenised in one; they are tokenised apart, as where a model is asked"
        )


def _target_text(tokenizer: Tokenizer, sample: Sample) -> str:
    """A target in quotes: of a long one the beginning, and its end token."""
    length = len(sample.target) - sample.end
    text = tokenizer.decode(sample.target[: min(length, MAX_TOKENS)])
    end = tokenizer.decode(sample.target[length:]) if sample.end else ""

    room = QUESTION_WIDTH - len(end)
    if len(text) > room > len("..."):
        text = f"{text[: room - 3]}..."
    return shown(text + end, QUESTION_WIDTH)


def _samples_by_length(cells: Sequence[CellPlan]) -> str:
    """How many samples each length takes: `seqlen=64 takes 5, 128 takes 11`."""
    counts: dict[int, set[int]] = {}
    for cell in cells:
        counts.setdefault(cell.run.seqlen, set()).add(len(cell.samples))

    texts = []
    for seqlen in sorted(counts)[:MAX_LENGTHS]:
        # Seeds take the samples in orders of their own.
        low, high = min(counts[seqlen]), max(counts[seqlen])
        texts.append(f"{seqlen} takes {low}" if low == high else f"{seqlen} takes {low} to {high}")
    more = ", ..." if len(counts) > MAX_LENGTHS else ""
    return f"seqlen={', '.join(texts)}{more}"


def _by_data(cells: Iterable[CellPlan]) -> list[list[CellPlan]]:
    """The cells of each model and source; seeds only order what there is."""
    # Most cells share their settings, and texts of settings are slow.
    by_object: dict[tuple[int, int], list[CellPlan]] = {}
    for cell in cells:
        key = (id(cell.run.model), id(cell.run.data))
        by_object.setdefault(key, []).append(cell)

    groups: dict[str, list[CellPlan]] = {}
    for sharing in by_object.values():
        run = sharing[0].run
        text = f"{run.model}{dataclasses.replace(run.data, seed=0)}"
        groups.setdefault(text, []).extend(sharing)
    return list(groups.values())


def _fact_lines(cell: CellPlan) -> Iterator[str]:
    run = cell.run
    name = f"data={run.data.label}"
    for note in source_of(run).notes:
        yield f"{name}: {note}"

    tokenizer = open_tokenizer(run.model)
    lossy = lossy_targets(tokenizer, cell.samples)
    if lossy:
        text, printed = (shown(text, QUESTION_WIDTH) for text in lossy[0])
        yield (
            f"{name}: {counted(lossy, 'target')} cannot be reproduced exactly: the tokenizer of "
            f"model={run.model.name} decodes them to another text; first: {text} becomes {printed}"
        )

    repeats = find_repeats(cell.samples)
    if repeats.contradictions:
        first, second = repeats.contradictions[0]
        targets = f"{_target(first, tokenizer)} and {_target(second, tokenizer)}"
        yield (
            f"{name}: {counted(repeats.contradictions, 'prompt')} with targets that exclude each "
            f"other, so not every sample can be recalled; first: "
            f"{_question(first, tokenizer)} has {targets}"
        )
    if repeats.copies:
        first = repeats.copies[0]
        yield (
            f"{name}: of {len(cell.samples)} samples, {counted(repeats.copies, 'duplicate')}; "
            f"each copy counts in the scores; first: {_question(first, tokenizer)}"
        )


def _overlap_lines(cells: Sequence[CellPlan]) -> Iterator[str]:
    """A line where texts of several seeds, meant as repeats, share much of their tokens."""
    longest: dict[int, CellPlan] = {}
    for cell in cells:
        seed = cell.run.data.seed
        if seed not in longest or cell.tokens > longest[seed].tokens:
            longest[seed] = cell
    if len(longest) < 2 or sum(cell.tokens for cell in longest.values()) > MOST_COMPARED:
        return

    passages = {seed: _passages(cell.samples) for seed, cell in longest.items()}
    seeds_of = defaultdict(list)
    for seed, of_seed in passages.items():
        for passage in of_seed:
            seeds_of[passage].append(seed)

    shared = Counter(pair for seeds in seeds_of.values() for pair in combinations(seeds, 2))
    shares = {
        pair: count / min(len(passages[seed]) for seed in pair) for pair, count in shared.items()
    }
    pairs = [pair for pair, share in shares.items() if share >= LEAST_OVERLAP]
    if pairs:
        first, second = max(pairs, key=lambda pair: shares[pair])
        more = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
        yield (
            f"data={cells[0].run.data.label}: data.seed={first} and {second} share "
            f"{shares[first, second]:.0%} of their text{more}, so they are no independent repeats; "
            "take a longer source, shorter texts or fewer seeds"
        )


def _passages(samples: Sequence[Sample]) -> set[tuple[int, ...]]:
    """Every run of PASSAGE tokens of the targets."""
    return {
        sample.target[begin : begin + PASSAGE]
        for sample in samples
        for begin in range(len(sample.target) - PASSAGE + 1)
    }


def _question(sample: Sample, tokenizer: Tokenizer) -> str:
    text = sample.turns[-1][1] if sample.turns else tokenizer.decode(list(sample.prompt))
    return shown(text, QUESTION_WIDTH)


def _target(sample: Sample, tokenizer: Tokenizer) -> str:
    ids = sample.target[: len(sample.target) - sample.end]
    return shown(tokenizer.decode(list(ids)), QUESTION_WIDTH)

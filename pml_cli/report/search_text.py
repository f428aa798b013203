"""What is said while the least rank is searched, and what to change where none was found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pml_cli.analysis.rank_search import (
    MAX_ROUNDS,
    Answer,
    Cell,
    SearchState,
    Trial,
    still_improves,
)
from pml_cli.config.schema import Run, Train
from pml_cli.format import counted, duration_text, percent
from pml_cli.launch.throughput import expected_seconds, makespan

if TYPE_CHECKING:
    from pml_cli.launch.driver import SweepPlan

# Below this share of the facts, per cent, no weaker --exact is suggested.
WORTH_TAKING = 50


def data_lines(asked: Run, run: Run, left_out: int) -> Iterator[str]:
    """What was decided about the data.

    Args:
        asked: as it was asked for.
        run: as it is trained.
        left_out: tokens of a text beyond the model's context.
    """
    if run.data.chat and not asked.data.chat:
        yield (
            "prompts go through the chat template of the model, as it is asked by chat "
            "(data.chat=false: the plain questions)"
        )
    if left_out:
        yield (
            f"the end of the text, {counted(left_out, 'token', spec=',')}, is beyond the context "
            f"of model={run.model.name} and is left out: {run.seqlen:,} are learned"
        )


def round_title(number: int, cells: Sequence[Cell]) -> str:
    """A round in a few words: `round 2, ranks 5, 6, 7`."""
    ranks = sorted({rank for rank, _ in cells})
    noun = "rank" if len(ranks) == 1 else "ranks"
    return f"round {number}, {noun} {', '.join(map(str, ranks))}"


def budget_line(plan: SweepPlan, seconds_left: float | None) -> str:
    """A warning where a round is expected to take longer than what is left of the budget."""
    if seconds_left is None or not plan.todo:
        return ""
    seconds = [second for second in expected_seconds(plan.request.launch, plan.todo) if second]
    devices = len(plan.request.launch.visible_devices(plan.request.runs))
    expected = makespan(seconds, devices)
    if expected <= seconds_left:
        return ""
    return (
        f"it may take {duration_text(expected)}, less where cells stop early; "
        f"{duration_text(seconds_left)} of the budget are left"
    )


def trial_line(trial: Trial, facts: int | None, failure: str | None) -> str:
    """What one cell has come to.

    Args:
        trial: of the cell.
        facts: how many; None: one text.
        failure: why its training failed; None: it did not.
    """
    cell = f"  rank {trial.rank}, seed {trial.seed}"
    if failure is not None:
        return f"{cell}: failed: {failure}"
    line = f"{cell}: {recalled_text(trial, facts)}"
    if trial.harm is None:
        return line
    return f"{line}, {trial.harm:.2g} nats/token of harm"


def recalled_text(trial: Trial, facts: int | None) -> str:
    """How much is known: `37 of 40 facts whole`, of one text per cent of its tokens."""
    if facts is None:
        return f"{percent(trial.recalled)} % of the tokens right"
    return f"{round(trial.recalled * facts)} of {facts} facts whole"


def plan_lines(state: SearchState) -> list[str]:
    """What follows the first round."""
    return [
        f"then the ranks between what failed and what passed, with {counted(state.seeds, 'seed')}: "
        f"{MAX_ROUNDS} rounds in all, ranks up to {state.ranks[-1]}; cells that know all stop early"
    ]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What advice depends on beside the trials."""

    facts: int | None
    """How many; None: one text."""

    contradictions: int
    """Prompts whose targets exclude each other."""

    excluded: int
    """Facts that cannot be known for it."""

    train: Train
    out_of_time: bool
    """Whether the budget has ended the search."""


def advice(state: SearchState, found: Answer, situation: Situation) -> list[str]:
    """What to change where no rank keeps the limits, a line each.

    Args:
        state: of the search at its end.
        found: its answer.
        situation: the data and the training.
    """
    lines = []
    if situation.out_of_time:
        lines.append("the time budget ran out; run the same command again to resume")
    if found.reached:
        return lines

    facts = situation.facts
    at_most = _recallable(situation)
    asks_for_more = at_most < state.limits.exact
    if facts is not None and asks_for_more:
        most = facts - situation.excluded
        lines.append(
            f"{counted(situation.contradictions, 'question')} with more than one answer: at most "
            f"{most} of {facts} facts can be recalled; correct the file, or pass "
            f"--exact {math.floor(100 * most / facts)}%"
        )
    lines += _weaker_limits(state, facts)

    best = max(trial.recalled for trial in state.trials)
    # Nothing recalls more than can be recalled.
    is_exhausted = asks_for_more and best >= at_most - 1e-9
    if not situation.out_of_time and not is_exhausted:
        lines += _more_room(state, situation.train)
    return lines


def _recallable(situation: Situation) -> float:
    """The largest share of the facts that can be recalled: contradictions exclude each other."""
    if situation.facts is None:
        return 1.0
    return (situation.facts - situation.excluded) / situation.facts


def _weaker_limits(state: SearchState, facts: int | None) -> Iterator[str]:
    """The limits that the best of the tried cells would keep."""
    limits = state.limits
    harmful = [trial for trial in state.trials if limits.recalls(trial) and trial.harm]
    if harmful:
        gentlest = min(harmful, key=lambda trial: trial.harm or 0.0)
        assert gentlest.harm is not None
        weaker = math.ceil(100 * gentlest.harm) / 100
        known = recalled_text(gentlest, facts)
        yield f"with --max-forgetting {weaker:g} rank {gentlest.rank} would do: {known}"
        yield "or hold the training closer to the limit: a smaller loss.keep_harm"
        return

    best = max(state.trials, key=lambda trial: (trial.recalled, -trial.rank))
    share = math.floor(100 * best.recalled + 1e-9)
    if WORTH_TAKING <= share < 100 * limits.exact:
        known = recalled_text(best, facts)
        yield f"with --exact {share}% rank {best.rank} would do: {known}"


def _more_room(state: SearchState, train: Train) -> Iterator[str]:
    """Larger ranks and more steps."""
    tried = state.tried()
    larger = f"rank={2 * tried[-1]},{4 * tried[-1]}"
    if len(tried) == 1:
        yield f"larger ranks: {larger}"
    elif still_improves(state):
        yield f"larger ranks come nearer: {larger}"
    if train.epochs is not None:
        yield f"more epochs: train.epochs={2 * train.epochs}"
    else:
        yield f"more steps: train.steps={2 * train.steps}"

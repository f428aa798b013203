"""What is said while the least rank is searched, and what to change where none was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pml_cli.analysis.rank_search import MAX_ROUNDS, Cell, SearchState, Trial
from pml_cli.config.schema import Run
from pml_cli.format import counted, duration_text, percent
from pml_cli.launch.throughput import expected_seconds, makespan

if TYPE_CHECKING:
    from pml_cli.launch.driver import SweepPlan


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
            f"the last {left_out:,} tokens of the text are beyond the context of "
            f"model={run.model.name} and are left out: {run.seqlen:,} are learned"
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


def trial_line(trial: Trial, samples: int) -> str:
    """What one cell has come to."""
    return f"  rank {trial.rank}, seed {trial.seed}: {recalled_text(trial, samples)}"


def recalled_text(trial: Trial, samples: int) -> str:
    """How much is known: `37 of 40 facts whole`, of one text per cent of its tokens."""
    if samples == 1:
        return f"{percent(trial.recalled)} % of the tokens right"
    return f"{round(trial.recalled * samples)} of {samples} facts whole"


def plan_lines(state: SearchState) -> list[str]:
    """What follows the first round."""
    return [
        f"then the ranks between what failed and what passed, with {counted(state.seeds, 'seed')}: "
        f"{MAX_ROUNDS} rounds in all, ranks up to {state.ranks[-1]}; cells that know all stop early"
    ]


def answer_lines(content: dict[str, Any]) -> Iterator[str]:
    """The answer, until there is a proof."""
    found = content["answer"]
    yield f"rank {found['rank']} ({found['low']} to {found['high']}), run {found['run']}"
    yield f"adapter: {content['out']}/adapter"

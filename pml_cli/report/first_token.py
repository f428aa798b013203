"""What is said of first tokens: of the prompt that runs get, and of those that never moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from pml_cli.config.schema import Run
from pml_cli.data.stream import SINK_PROMPT, sink_models
from pml_cli.model.sink import is_measurable

if TYPE_CHECKING:
    import pandas as pd


def print_prompts(runs: Sequence[Run], console: Console, progress: Console) -> None:
    """Print a line for each model whose first position is a sink: the prompt of runs without one.

    Args:
        runs: as they were asked for, not resolved.
        console: for the warning of runs that have none.
        progress: for the prompt that was chosen.
    """
    for model in sink_models(runs, prompt=None):
        reason = "its first position is an attention sink, so no adapter moves what follows it"
        if not is_measurable(model):
            reason = (
                "assumed, because its weights are not on this machine or cannot run on its CPU; if "
                "its first position turns out not to be an attention sink, the runs use an empty "
                "prompt and get other run ids"
            )
        line = f"data.prompt={SINK_PROMPT!r} for model={model.name}: {reason}"
        progress.print(line, highlight=False, soft_wrap=True)

    for model in sink_models(runs, prompt=""):
        if is_measurable(model):
            line = (
                f"warning: data.prompt='' for model={model.name}: its first position is an "
                "attention sink, so the first token of the target cannot be learned"
            )
            console.print(line, style="yellow", highlight=False, soft_wrap=True)


def print_unmoved(runs: pd.DataFrame, console: Console) -> None:
    """Print a line for each model of which nearly no run without a prompt moved its first token.

    Args:
        runs: one row a run, fields of result.json and `folder`.
        console: to print to.
    """
    # Imported here: SciPy would take longer to import than a dry run takes.
    from pml_cli.law.first_token import unmoved_first_tokens
    from pml_cli.law.observations import RANK
    from pml_cli.report.law_text import sentence

    for finding in unmoved_first_tokens(runs):
        text = Text(f"warning: {sentence(finding, RANK)}", style="yellow")
        console.print(text, soft_wrap=True)

"""The warning that the first token of runs without a prompt never moved."""

from __future__ import annotations

import pandas as pd
from rich.console import Console
from rich.text import Text

from pml_cli.law.first_token import unmoved_first_tokens
from pml_cli.law.observations import RANK
from pml_cli.report.law_text import sentence


def print_unmoved(runs: pd.DataFrame, console: Console) -> None:
    """Print a line for each model of which nearly no run without a prompt moved its first token.

    Args:
        runs: one row a run, fields of result.json and `folder`.
        console: to print to.
    """
    for found in unmoved_first_tokens(runs):
        text = Text(f"warning: {sentence(found, RANK)}", style="yellow")
        console.print(text, soft_wrap=True)

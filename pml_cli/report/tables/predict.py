"""What `pml predict` prints: one table a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pml_cli.format import MISSING
from pml_cli.law.fitted_law import FittedLaw
from pml_cli.law.observations import SIZE_AXES
from pml_cli.report.tables.layout import plain_table

QUANTITIES = {
    "gain": "gain dL",
    "loss": "final loss",
    "bits": "bits gained",
    "recall": "exact recall",
    "all_recall": "all of them",
}
HEADINGS = {"chance": "exact recall", "share": "known"}

# No rank, however large, reaches the target
UNREACHABLE = "none"
# No text is too long for the target
ANY_LENGTH = "any"

# What a band leaves out where nothing tells how texts differ
ONE_TEXT = "one text: the band says nothing of other texts"

# Larger ranks, lengths and bits are not written out: few cells allow bands without end.
LARGEST = 1e9


def show(console: Console, law: FittedLaw, answer: dict[str, Any]) -> None:
    """Print what one law predicts.

    Args:
        console: where to.
        law: the law that was asked.
        answer: as from `answer` of `pml predict`: group, x, target, value and rows, or a reason.
    """
    of_gain = law.form.name if law.form else "exact recall alone"
    console.print(Text(f"{answer['group']}   (law: {of_gain})", style="bold"))
    if "reason" in answer:
        console.print(Text(answer["reason"], style="yellow"), end="\n\n")
        return
    console.print(_table(law, answer))
    console.print(Text(_note(law, answer), style="dim"))
    if law.trained_texts == 1:
        console.print(Text(ONE_TEXT, style="yellow"))
    console.print()


def show_left_out(console: Console, left_out: Mapping[str, str]) -> None:
    """Print the groups that no law answers for, each with the reason."""
    for name, reason in left_out.items():
        console.print(Text(f"left out: {name}: {reason}", style="yellow"))


def _table(law: FittedLaw, answer: dict[str, Any]) -> Table:
    """A line for each predicted quantity of each row; what was given stands on its first line."""
    rows = answer["rows"]
    asked_columns = _asked_columns(law, rows[0])
    headings = [HEADINGS.get(column, column) for column in asked_columns]
    table = plain_table(
        *headings,
        "what",
        "value",
        "95 % band",
        "outside",
        text=("what", "outside"),
        folded=("what", "outside", HEADINGS["chance"]),
    )

    for row in rows:
        cells = [_value_text(row[column], column) for column in asked_columns]
        outside = row["outside"] or MISSING
        for quantity, interval in row.items():
            if not isinstance(interval, dict):
                continue
            missing = _missing_value(quantity, answer["target"])
            table.add_row(
                *cells,
                _quantity_name(quantity, answer),
                _value_text(interval["value"], quantity, missing),
                _band(interval, quantity, missing),
                outside,
            )
            # What was asked stands on the first line of a row alone.
            cells = [""] * len(asked_columns)
            outside = ""
    return table


def _asked_columns(law: FittedLaw, row: dict[str, Any]) -> list[str]:
    """The columns of what was given, in the order of the table."""
    # A cell's base loss is a plain value, too, but has no column.
    if "base_loss" in row:
        return [law.axis.name, "length"]
    names = [column for column, value in row.items() if not isinstance(value, dict | str)]
    # In the order of a sentence: of so many facts this share, by this chance.
    first = [name for name in ("facts", "length", "share", "chance") if name in names]
    return [name for name in names if name not in first] + first


def _quantity_name(quantity: str, answer: dict[str, Any]) -> str:
    if quantity == answer["x"]:
        return f"least {SIZE_AXES[quantity].label}"
    if quantity == "length":
        return "shortest text" if answer["target"] == "bits" else "longest text"
    return QUANTITIES[quantity]


def _missing_value(quantity: str, target: str) -> str:
    """What an infinite answer means: no text is too long, or the target is not reached."""
    if quantity == "length" and target != "bits":
        return ANY_LENGTH
    return UNREACHABLE


def _band(interval: dict[str, float | None], quantity: str, missing: str) -> str:
    low = interval["low"]
    high = interval["high"]
    # Without draws of the law there is a value and no band.
    if low is None and high is None and interval["value"] is not None:
        return MISSING
    lowest = _value_text(low, quantity, missing)
    # A band without an upper end.
    if low is not None and high is None:
        return f"{lowest} or more"
    return f"{lowest} to {_value_text(high, quantity, missing)}"


def _note(law: FittedLaw, answer: dict[str, Any]) -> str:
    """The target, the units, and the range of the cells trained."""
    value = answer["value"] or 0
    target = {
        "verbatim": "Exact recall: probability that greedy decoding gives the whole target back.",
        "loss": f"Target: a final loss of at most {value:g} nats per token.",
        "bits": f"Target: at least {value:g} bits gained in all.",
    }[answer["target"]]
    if "facts" in answer["rows"][0]:
        target = (
            "Exact recall: the chance that at least so many of the facts, of "
            f"{law.tokens_per_fact:.3g} tokens each, come back whole."
        )
    low_rank, high_rank = law.ranks
    low_length, high_length = law.lengths
    return (
        f"{target} Gain and loss in nats per token. Trained: {law.axis.label} {low_rank:g} to "
        f"{high_rank:g}, length {low_length:g} to {high_length:g}."
    )


def _value_text(value: float | None, quantity: str, missing: str = UNREACHABLE) -> str:
    if value is None:
        return missing
    if quantity == "share":
        return "all" if value == 1 else f"{100 * value:.0f} %"
    if quantity in ("chance", "recall", "all_recall"):
        return _probability_text(value)
    if quantity in ("gain", "loss", "base_loss"):
        return f"{value:.2f}"
    return f"{value:,.0f}" if value <= LARGEST else f"over {LARGEST:g}"


def _probability_text(probability: float) -> str:
    # No prediction is certain: neither 0 nor 100.
    if probability < 0.01:
        return "under 1 %"
    if probability > 0.99:
        return "over 99 %"
    return f"{100 * probability:.0f} %"

"""What `pml predict` shows: one table a group."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pml_cli.law.fitted_law import Law

WHAT = {"gain": "gain dL", "loss": "final loss", "bits": "bits gained", "recall": "exact recall"}
HEADINGS = {"chance": "exact recall"}


def show(console: Console, law: Law, found: dict[str, Any]) -> None:
    """The answer of one law (`predict.answer`)."""
    console.print(Text(f"{found['group']}   (law: {law.form.name})", style="bold"))
    if "reason" in found:
        console.print(Text(f"no law of exact recall: {found['reason']}", style="yellow"))
        return
    rows = found["rows"]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    both = "gain" in rows[0]
    asked = (
        [law.x, "length"]
        if both
        else [key for key, value in rows[0].items() if not isinstance(value, dict | str)]
    )
    for key in asked:
        table.add_column(HEADINGS.get(key, key), justify="right", no_wrap=key != "chance")
    table.add_column("what")
    for name in ("value", "95 % band"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("outside")
    for row in rows:
        spans = {key: value for key, value in row.items() if isinstance(value, dict)}
        for place, (key, span) in enumerate(spans.items()):
            head = [_number(row[name], name) if place == 0 else "" for name in asked]
            lost = (
                "any" if key == "length" and found["target"] != "bits" else "none"
            )  # no text is too long; nothing reaches it
            known = span["low"] is not None or span["high"] is not None or span["value"] is None
            ends = [_number(span[end], key, lost) for end in ("low", "high")]
            band = " to ".join(ends) if known else "-"
            outside = (row["outside"] or "-") if place == 0 else ""
            table.add_row(
                *head, _what(key, found), _number(span["value"], key, lost), band, outside
            )
    console.print(table)
    console.print(Text(_note(law, found), style="dim"), end="\n\n")


def _what(key: str, found: dict[str, Any]) -> str:
    if key == found["x"]:
        return f"least {key}"
    if key == "length":
        return "shortest text" if found["target"] == "bits" else "longest text"
    return WHAT[key]


def _note(law: Law, found: dict[str, Any]) -> str:
    goal = {
        "verbatim": "Exact recall: chance that greedy decoding gives the whole target back. ",
        "loss": f"Target: a final loss of at most {found['value'] or 0:g} nats per token. ",
        "bits": f"Target: at least {found['value'] or 0:g} bits gained in all. ",
    }[found["target"]]
    (low, high), (short, long) = law.ranks, law.lengths
    return f"{goal}Gain and loss in nats per token. Trained: {law.x} {low:g} to {high:g}, length {short:g} to {long:g}."


def _number(value: float | None, key: str, lost: str = "none") -> str:
    if value is None:
        return lost
    if key in ("chance", "recall"):
        return (
            f"{100 * value:.0f} %"
            if 0.01 <= value <= 0.99
            else ("under 1 %" if value < 0.01 else "over 99 %")
        )
    if key in ("gain", "loss", "base_loss"):
        return f"{value:.2f}"
    return f"{value:,.0f}"

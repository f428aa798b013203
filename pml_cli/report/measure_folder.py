"""The files of `pml measure`: measure.json and measure.csv, an entry for each adapter and text.

measure.json, format 1: `adapters`, an entry each as `pml measure --json` prints it. What is
measured again, the same weights on the same tokens of the same model, takes the place of its entry;
harm that was measured before stays, where it is not measured again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from pml_cli.data.generic_text import KINDS
from pml_cli.errors import UserError
from pml_cli.io import write_csv, write_json
from pml_cli.results.output_folder import check_output_folder
from pml_cli.validation import Number, read_json

FORMAT = 1

# What makes an entry of its own.
KEY = ("weights", "scale", "tokens", "model", "model_path", "dtype")

# What is measured on other text, and not with --no-harm.
HARM = ("harm", "harm_low", "harm_high", "kinds")


class EntryFields(TypedDict):
    """An entry of measure.json, as far as it is read again."""

    kinds: dict[str, dict[str, Number | str | None]]


class AdaptersFile(TypedDict):
    """measure.json."""

    format: int
    adapters: list[EntryFields]


def check(out: Path) -> None:
    """Check, before minutes of measuring, that an entry can be added to a folder.

    Raises:
        UserError: the folder cannot be written, or holds a measure.json that cannot be read.
    """
    check_output_folder(out)
    _entries(out / "measure.json")


def write(out: Path, entry: dict[str, Any]) -> list[str]:
    """Add an entry to the files.

    Args:
        out: an existing folder.
        entry: of one adapter on one text.

    Returns:
        The names of the files.

    Raises:
        UserError: a measure.json that cannot be read, or of another format.
    """
    import pandas as pd

    path = out / "measure.json"
    entries = []
    for old in _entries(path):
        if not _is_same(old, entry):
            entries.append(old)
        elif not entry["kinds"]:
            entry = entry | {name: old[name] for name in HARM if name in old}
    entries.append(entry)
    write_json(path, {"format": FORMAT, "adapters": entries})
    write_csv(out / "measure.csv", pd.DataFrame([_csv_row(one) for one in entries]))
    return ["measure.json", "measure.csv"]


def _is_same(old: dict[str, Any], entry: dict[str, Any]) -> bool:
    """Whether two entries are of one measurement; older ones do not say everything."""
    return all(old.get(name, entry[name]) == entry[name] for name in KEY)


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    remedy = "give another out="
    content = read_json(path, AdaptersFile, remedy)
    if content["format"] != FORMAT:
        raise UserError(f"{path}: format {content['format']}; {remedy}")
    entries: list[dict[str, Any]] = content["adapters"]
    return entries


def _csv_row(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry with the harm of each kind of text as a column."""
    row = {name: value for name, value in entry.items() if name != "kinds"}
    for kind in KINDS:
        row[f"harm_{kind}"] = entry["kinds"].get(kind, {}).get("harm")
    return row

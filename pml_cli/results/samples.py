"""samples.jsonl of a run folder: one row a sample, as `evaluation.samples` makes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

from annotated_types import Len

from pml_cli.errors import UserError
from pml_cli.results.fields import SampleFields
from pml_cli.results.folder import RunFolder
from pml_cli.validation import checked, parse_json, read_regular

# At least one row.
SampleRows = Annotated[list[SampleFields], Len(1)]

# What helps where the file is damaged.
REMEDY = "train the run again"

# Line ends to some readers, though JSON allows them inside of a text.
LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def write_samples(folder: RunFolder, rows: Iterable[dict[str, Any]]) -> None:
    """Write samples.jsonl of a run.

    Raises:
        ValueError: a row holds nan or infinity.
    """
    # Readable as it is, whatever the language.
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    text = "".join(lines).translate(LINE_ENDS)
    folder.write_text(folder.samples, text)


def read_samples(folder: RunFolder) -> list[dict[str, Any]] | None:
    """The rows of samples.jsonl; None where a run of an earlier version has none.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content, _ = read_regular(folder.samples)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder.samples}: cannot be read ({reason})") from error

    lines = [line for line in content.split(b"\n") if line]
    rows = [parse_json(folder.samples, line, REMEDY) for line in lines]
    checked_rows: list[dict[str, Any]] = checked(folder.samples, rows, SampleRows, REMEDY)
    return checked_rows

"""samples.jsonl of a run folder: one row a sample, as `evaluation.samples` makes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pml_cli.errors import UserError
from pml_cli.runs.folder import RunFolder

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
        text = folder.samples.read_text("utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.samples}: cannot be read ({error})") from error
    return rows

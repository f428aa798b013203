"""The rows of a file of facts: JSON lines, a JSON array, CSV, TSV or parquet, also in gzip.

Which format it is, its content says, and the ending of its name where the content leaves it open.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pml_cli.data.text_file import decoded_text, read_bytes
from pml_cli.errors import UserError, first_line
from pml_cli.format import counted
from pml_cli.validation import MAX_DEPTH, shallow, shown

GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"

# Between the cells of a line; the first that gives the header most cells.
DELIMITERS = (",", ";", "\t")
# A line of Excel's before the header, which says the delimiter.
EXCEL_LINE = re.compile(r"sep=([,;|\t])\s*", re.IGNORECASE)

# How a text ends, and no name of a column.
SENTENCE_ENDS = ("?", "!", ":", "\u3002", "\uff1f", "\u061f")
MOST_WORDS_OF_A_NAME = 4

# Columns of a header that a message shows.
MAX_COLUMNS = 6

BLANKS = re.compile(r"\s*")

# Names of the list of rows in a file of one object.
LIST_KEYS = ("data", "train", "rows", "examples", "samples", "facts", "items")


class Number(str):
    """A number as it is written in the file: 42, 1e3, 0.10."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a file."""

    where: str
    """Its place in the file: `line 3`."""

    fields: Mapping[str, Any]
    """Values by key, as JSON has them; numbers as `Number`."""

    delimiter: str = ""
    """Of a row of a CSV or TSV, what stands between its cells; its keys are those of the header."""

    def missing_header(self) -> str:
        """The line about a table that seems to begin with a fact; empty where it does not."""
        return _missing_header(list(self.fields), self.delimiter) if self.delimiter else ""


def read_rows(path: str) -> list[Row]:
    """Every row of a file, blank lines left out.

    Raises:
        UserError: the file or one of its rows cannot be read; names the line.
    """
    content = read_bytes(path)
    if content.startswith(GZIP):
        content = _unzipped(path, content)
    if content.startswith(PARQUET):
        return _parquet_rows(path, content)

    text = decoded_text(path, content)
    delimiter = _delimiter(path, text)
    rows = _json_rows(path, text) if delimiter is None else _table_rows(path, text, delimiter)
    if not rows:
        raise UserError(f"data.path={path}: no rows")
    return rows


def _unzipped(path: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        reason = first_line(error)
        raise UserError(f"data.path={path}: a gzip file that cannot be read ({reason})") from error


def _parquet_rows(path: str, content: bytes) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
        _check_distinct(path, "the table", table.column_names)
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # Dates and times beyond what Python holds overflow.
        reason = first_line(error)
        raise UserError(f"data.path={path}: parquet that cannot be read ({reason})") from error

    if not rows:
        raise UserError(f"data.path={path}: no rows")
    return [Row(where=f"row {number}", fields=row) for number, row in enumerate(rows, 1)]


def _check_distinct(path: str, where: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data.path={path}: {where} has two columns {shown(name)!r}")


# -- CSV and TSV


def _delimiter(path: str, text: str) -> str | None:
    """What stands between the cells of a table; None where the text is JSON."""
    endings = [ending.lower() for ending in PurePath(path).suffixes]
    if ".tsv" in endings:
        return "\t"
    if ".csv" not in endings:
        return None

    header = text.lstrip("\r\n").replace("\r", "\n").partition("\n")[0]
    if named := EXCEL_LINE.fullmatch(header):
        return named[1]
    return max(DELIMITERS, key=lambda delimiter: _cell_count(header, delimiter))


def _cell_count(header: str, delimiter: str) -> int:
    # A comma inside of quotes parts nothing.
    try:
        return len(next(csv.reader([header], delimiter=delimiter), []))
    # No CSV, or too long a cell: reading the table says which, with its line.
    except csv.Error:
        return 0


def _table_rows(path: str, text: str, delimiter: str) -> list[Row]:
    """The rows below the header of a table."""
    lines = _table_lines(path, text, delimiter)
    # Without a row that is not blank, none below it either.
    where, header = next(lines, ("", []))
    if EXCEL_LINE.fullmatch(delimiter.join(header)):
        where, header = next(lines, ("", []))
    names = [name.strip() for name in header]
    _check_distinct(path, where, names)

    rows = []
    for where, cells in lines:
        if len(cells) != len(names):
            raise UserError(
                f"data.path={path}: {where} has {counted(cells, 'cell')}, the header {len(names)} "
                f"(a cell that holds {delimiter!r} needs quotes around it)"
            )
        fields = dict(zip(names, cells, strict=True))
        rows.append(Row(where=where, fields=fields, delimiter=delimiter))
    if not rows and (reason := _missing_header(names, delimiter)):
        raise UserError(f"data.path={path}: {reason}")
    return rows


def _missing_header(names: list[str], delimiter: str) -> str:
    """The line about a header that is none; empty where its cells may be names of columns."""
    # A table of one column has no place for a question and its answer, which come first.
    if len(names) < 2 or not any(map(_is_sentence, names[:2])):
        return ""
    columns = ["question", "answer", *(f"column{number}" for number in range(3, len(names) + 1))]
    header = delimiter.join(columns[:MAX_COLUMNS]).replace("\t", "<tab>")
    more = "..." if len(columns) > MAX_COLUMNS else ""
    seen = ", ".join(shown(name) for name in names[:2])
    return (
        f"the header seems to be missing, the first line is a fact ({seen}); put the names of the "
        f"columns in front of it: {header}{more} (if these are names: data.prompt_key=, "
        "data.target_key=)"
    )


def _is_sentence(name: str) -> bool:
    """Whether a cell of the header is a text rather than the name of a column."""
    words = name.split()
    # `No.` is the name of a column.
    is_ended = name.endswith(SENTENCE_ENDS) or (name.endswith(".") and len(words) > 1)
    return is_ended or len(words) > MOST_WORDS_OF_A_NAME


def _table_lines(path: str, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """The place and the cells of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    # A setting of the whole process, too small for long texts.
    usual_limit = csv.field_size_limit(sys.maxsize)

    begin = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"line {begin}", cells
            # A cell in quotes may go over several lines.
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"data.path={path}: line {begin} is not CSV ({error})") from error
    finally:
        csv.field_size_limit(usual_limit)


# -- JSON


def _json_rows(path: str, text: str) -> list[Row]:
    is_array = text.lstrip().startswith("[")
    entries = _json_array(path, text) if is_array else _json_lines(path, text)

    rows = []
    for where, value in entries:
        if not isinstance(value, dict):
            raise UserError(f"data.path={path}: {where} is {_kind(value)}, not an object with keys")
        rows.append(Row(where=where, fields=value))
    return _entries_of_single(path, rows)


def _json_array(path: str, text: str) -> list[tuple[str, Any]]:
    try:
        values = _parse(text)
    except json.JSONDecodeError as error:
        reason = f"{_json_fault(error)} at line {error.lineno} column {error.colno}"
        raise UserError(f"data.path={path}: not a JSON array ({reason})") from error
    except ValueError as error:
        raise UserError(f"data.path={path}: not a JSON array ({first_line(error)})") from error

    return [(f"entry {number}", value) for number, value in enumerate(values, 1)]


def _json_lines(path: str, text: str) -> list[tuple[str, Any]]:
    entries = []
    # Not splitlines(), which also splits at line ends that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue

        try:
            entries.append((f"line {number}", _parse(line)))
        except ValueError as error:
            # An object over several lines fails in its first.
            spread = [] if entries else _json_values(path, text)
            if spread:
                return spread

            reason = first_line(error)
            if isinstance(error, json.JSONDecodeError):
                reason = f"{_json_fault(error)} at column {error.colno}"
            raise UserError(f"data.path={path}: line {number} is not JSON ({reason})") from error
    return entries


def _json_fault(error: json.JSONDecodeError) -> str:
    """What is wrong, to be followed by its place: some of Python's messages end with "at"."""
    return error.msg.rstrip(": ").removesuffix(" at")


def _json_values(path: str, text: str) -> list[tuple[str, Any]]:
    """Objects that follow each other, over any number of lines; empty where they do not.

    Raises:
        UserError: one that begins on a later line cannot be read.
    """
    entries: list[tuple[str, Any]] = []
    place = _next_value(text, 0)

    try:
        # Not by cutting off what is read: of thousands of objects that takes minutes.
        while place < len(text):
            value, end = DECODER.raw_decode(text, place)
            entries.append((f"entry {len(entries) + 1}", shallow(value)))
            place = _next_value(text, end)
    except (ValueError, RecursionError) as error:
        # Of one object a line, the line is what to name.
        if "\n" not in text[:place].strip():
            return []
        line = text.count("\n", 0, place) + 1
        reason = f"it begins at line {line}: {first_line(error)}"
        raise UserError(
            f"data.path={path}: entry {len(entries) + 1} is not JSON ({reason})"
        ) from error
    return entries


def _next_value(text: str, place: int) -> int:
    """Where the blanks at a place end."""
    blanks = BLANKS.match(text, place)
    return blanks.end() if blanks else place


def _entries_of_single(path: str, rows: list[Row]) -> list[Row]:
    """The rows, or those in a list that a single object holds: {"data": [...]}."""
    if len(rows) != 1:
        return rows

    lists = {key: value for key, value in rows[0].fields.items() if _is_list_of_rows(value)}
    key = next((name for name in LIST_KEYS if name in lists), None)
    if key is None:
        return rows
    if len(lists) > 1:
        names = ", ".join(repr(shown(name)) for name in lists)
        raise UserError(f"data.path={path}: several lists of rows ({names}); give one as a file")
    return [
        Row(where=f"entry {number} of {key!r}", fields=entry)
        for number, entry in enumerate(lists[key], 1)
    ]


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Number):
        return "a number"
    return "a list" if isinstance(value, list) else "a text"


def _parse(text: str) -> Any:
    """Values of JSON.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        return shallow(json.loads(text, **PARSING))
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        # Python would keep the last one, silently.
        if key in fields:
            raise ValueError(f"the key {shown(key)!r} twice in one object")
        fields[key] = value
    return fields


def _constant(text: str) -> Number | None:
    # Programs that write tables as JSON write NaN where there is no value.
    return None if text == "NaN" else Number(text)


# Numbers as they are written: an answer of 1e3 is not 1000.0, and may have any number of digits.
PARSING: dict[str, Any] = {
    "parse_int": Number,
    "parse_float": Number,
    "parse_constant": _constant,
    "object_pairs_hook": _distinct_keys,
}
DECODER = json.JSONDecoder(**PARSING)

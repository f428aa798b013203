"""Files that others may have written: read once, checked against a declared schema, named in one
line where they are wrong.

A schema is a dataclass or TypedDict whose annotations say type and range of every field that is
used; pydantic checks them. What is pml's own state (marks, caches, checkpoints) goes through the
same readers, and whoever calls them sets it aside.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml  # type: ignore[import-untyped, unused-ignore]
from annotated_types import Ge, Le
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from pml_cli.errors import UserError, first_line, printable

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_SHOWN = 40

# Far beyond what any file of ours needs, and far below where Python's stack ends.
MAX_DEPTH = 100

ALTERNATIVE = re.compile(r"(constrained-)?(int|float|str|bool)$|(list|dict)?\[")

# From pydantic's words to those of our other messages.
WORDING = {
    "Input should be": "must be",
    "a valid integer": "an integer",
    "a valid ": "a ",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    # Of a check of our own, which says all.
    "Value error, ": "",
}

# Values of a YAML file with its aliases written out: nine lines can stand for 10^9 of them.
MAX_NODES = 2_000_000

# Half of a character that takes two in UTF-16, and how JSON and YAML can spell it.
HALF = re.compile("[\ud800-\udfff]")
HALF_ESCAPE = re.compile(r"\\[uU](?:0000)?[dD][89a-fA-F]")

Number = Annotated[float, Field(allow_inf_nan=False)]
"""A finite number."""
Share = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(0), Le(2**53)]
Size = Annotated[int, Ge(1), Le(2**53)]
"""At least 1, as a count at least 0; pandas and numpy hold no more digits."""
Index = Annotated[int, Ge(0), Le(2**63 - 1)]
TEXT = r"^[^\x00-\x1f\x7f-\x9f]*$"
Text = Annotated[str, StringConstraints(pattern=TEXT)]
"""Without control characters, which could steer the terminal that shows it."""
LINES = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"
Lines = Annotated[str, StringConstraints(pattern=LINES)]
"""Text that may contain line ends and tabs, as a user's prompt does."""


def plain_number(text: str) -> float:
    """A number in ASCII digits; Python alone also takes 1_0, and digits of other scripts.

    Raises:
        ValueError: it is none.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return float(text)


def read_regular(path: Path) -> tuple[bytes, os.stat_result]:
    """The content of a file, and its status as of the reading.

    Opening it asks an NFS server anew. A pipe or a device is refused, where reading might never
    end.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        return file.read(), status


def read_json(path: Path, schema: Any, remedy: str) -> Any:
    """A JSON file that fits a schema, its values as they are.

    Args:
        path: the file.
        schema: what `fault_of` takes.
        remedy: what to do where it is wrong, a phrase.

    Raises:
        UserError: it cannot be read, or a field is missing or wrong.
    """
    return checked(path, load_json(path, remedy), schema, remedy)


def load_json(path: Path, remedy: str) -> Any:
    """A JSON file of any shape.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content, _ = read_regular(path)
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror or error}); {remedy}") from error
    return parse_json(path, content, remedy)


def parse_json(path: Path, content: bytes, remedy: str) -> Any:
    """The values of a JSON file, from its bytes.

    Raises:
        UserError: it is no JSON; names the file.
    """
    try:
        text = content.decode("utf-8")
        value = shallow(json.loads(text))
        _check_characters(text, value)
        return value
    except RecursionError as error:
        raise UserError(f"{path}: not readable as JSON (nested too deep); {remedy}") from error
    except ValueError as error:
        reason = first_line(error)
        raise UserError(f"{path}: not readable as JSON ({reason}); {remedy}") from error


def shallow(value: Any) -> Any:
    """A value of JSON, if nothing in it lies deeper than what goes through it by recursion can.

    Raises:
        RecursionError: it is nested deeper than MAX_DEPTH.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        nested: list[Any] = []
        for inner in level:
            if isinstance(inner, dict):
                nested += inner.values()
            elif isinstance(inner, list):
                nested += inner
        if not nested:
            return value
        level = [inner for inner in nested if isinstance(inner, dict | list)]
    raise RecursionError(f"nested deeper than {MAX_DEPTH} levels")


def _check_characters(text: str, value: Any) -> None:
    """Refuse unpaired surrogates (of a cut emoji): no table and no terminal can take them.

    Args:
        text: the source of the value, in which only an escape (`\\ud83d`) can stand for one.
        value: of JSON or YAML.

    Raises:
        ValueError: a text in the value holds one.
    """
    if not HALF_ESCAPE.search(text):
        return

    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += [*inner, *inner.values()]
        elif isinstance(inner, list | tuple | set):
            waiting += inner
        elif isinstance(inner, str) and (half := HALF.search(inner)):
            escape = f"\\u{ord(half.group()):04x}"
            raise ValueError(f"half a character, {escape}, which is no Unicode text")


def checked(path: Path, content: Any, schema: Any, remedy: str) -> Any:
    """The content of a file, where it fits a schema.

    Raises:
        UserError: a field is missing or wrong; names file and field.
    """
    fault = fault_of(content, schema)
    if fault:
        raise UserError(f"{path}: {fault}; {remedy}")
    return content


def fault_of(content: Any, schema: Any) -> str:
    """What is wrong with values by their schema, in one line; empty: nothing.

    Args:
        content: of a file, as JSON or YAML gives it.
        schema: anything that pydantic takes: a TypedDict, `list[int]`, `dict[str, Number]`.
    """
    try:
        _adapter(schema).validate_python(content, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        return _fault_line(details)
    return ""


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _fault_line(details: list[ErrorDetails]) -> str:
    """The first fault, and how many more there are."""
    first = details[0]
    # Of a value with alternatives pydantic names the alternative, too.
    steps = [str(step) for step in first["loc"] if not ALTERNATIVE.match(str(step))]
    where = ".".join(steps)
    reason = first["msg"]
    for theirs, ours in WORDING.items():
        reason = reason.replace(theirs, ours)
    if first["type"] == "string_pattern_mismatch":
        is_text = first["ctx"]["pattern"] in (TEXT, LINES)
        reason = "must have no control characters" if is_text else "is not allowed as a name"
    if first["type"] == "missing":
        return f"has no {where}" if where else "is empty"

    value = shown(first["input"])
    field = f"{where}={value}" if where else value
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{field}: {reason}{more}"


def shown(value: Any) -> str:
    """A value of a file, short and on one line."""
    if isinstance(value, dict | list):
        # Its repr may be as long as the file.
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 100:
        return "a number of too many digits"

    text = json.dumps(value) if isinstance(value, bool | None) else str(value)
    text = printable(text).replace("\n", "\\n")
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def read_yaml(path: Path) -> Any:
    """A YAML file of plain values.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is no YAML, not UTF-8, nested too deep, or holds itself. One line.
    """
    content, _ = read_regular(path)
    return parse_yaml(content.decode("utf-8"))


def parse_yaml(text: str) -> Any:
    """Plain values of YAML.

    Raises:
        ValueError: as `read_yaml`.
    """
    try:
        _check_nesting(yaml.parse(text, yaml.SafeLoader))
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and _node_count(node, {}) > MAX_NODES:
            raise ValueError("its aliases stand for too many values")
        value = yaml.safe_load(text)
        _check_characters(text, value)
        return value
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"line {line}: {error.problem or 'not readable'}") from error
    # What PyYAML raises for a tag whose value does not fit is not enumerable.
    except (yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(first_line(error)) from error


def _check_nesting(events: Iterable[Any]) -> None:
    """Refuse what is nested too deep, before anything recurses into it."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")


def _node_count(node: Any, counts: dict[int, int]) -> int:
    """Values that a YAML node stands for, every alias written out.

    Args:
        counts: those of the nodes that were counted already, by their id; 0: being counted.
    """
    if id(node) in counts:
        if not counts[id(node)]:
            raise ValueError("a value holds itself")
        return counts[id(node)]

    counts[id(node)] = 0
    inner: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    counts[id(node)] = 1 + sum(_node_count(part, counts) for part in inner)
    return counts[id(node)]

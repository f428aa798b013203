"""Changes to an input that keep its structure: trees of JSON or YAML, texts within them, bytes."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import yaml

# What stands in place of a value: other types, and the ends of ranges.
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**53 + 1, 2**63, 10**400, -(10**30)),
    *(0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "1", "null", "nan", "\0", "\x1b[31m", "\ud800", "é" * 300, "../..", "${rank}"),
    *([], [[]], {}, {"": None}, [None], ["x", 1], [0.5] * 40),
)

# What a line of YAML may end with.
YAML_ENDS = (" &a", " *a", " !!int x", " !!binary x", " !!timestamp x", ": :", " |", "\t", " {")

Changes = Callable[[bytes, random.Random], bytes]


def changed_tree(tree: Any, rng: random.Random) -> Any:
    """The same with one to four changes, at any depth.

    Half of the inputs get changes that may be right: else nearly all are refused at the first
    field, and what is behind the checks is never reached.
    """
    holder = [copy.deepcopy(tree)]
    change = rng.choice((_change, _change_gently))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        spots = list(_spots(holder))
        container, key = rng.choice(spots)
        change(container, key, spots, rng)
    return holder[0] if holder else None


def _spots(container: Any) -> list[tuple[Any, Any]]:
    """Every place of a value in lists and mappings, as (container, key)."""
    found: list[tuple[Any, Any]] = []
    waiting = [container]
    while waiting:
        inner = waiting.pop()
        pairs = inner.items() if isinstance(inner, dict) else enumerate(inner)
        for key, value in pairs:
            found.append((inner, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def _change_gently(
    container: Any, key: Any, spots: list[tuple[Any, Any]], rng: random.Random
) -> None:
    """Another value of the same type."""
    value = container[key]
    same_type = [
        other[other_key] for other, other_key in spots if type(other[other_key]) is type(value)
    ]
    if isinstance(value, bool):
        container[key] = not value
    elif isinstance(value, int) and rng.random() < 0.8:
        container[key] = rng.choice((value + 1, max(value - 1, 0), 2 * value, value // 2, 1))
    elif isinstance(value, float) and rng.random() < 0.8:
        container[key] = value * rng.choice((0.5, 0.99, 1.01, 2, 1e-3))
    elif value is None:
        container[key] = rng.choice((1, 2, 0.5, "x"))
    else:
        container[key] = copy.deepcopy(rng.choice(same_type))


def _change(container: Any, key: Any, spots: list[tuple[Any, Any]], rng: random.Random) -> None:
    value = container[key]
    other, other_key = rng.choice(spots)
    kind = rng.randrange(9)
    if kind == 0 and len(container) > 1:
        del container[key]
    elif kind == 1 and isinstance(container, list) and len(container) < 50:
        container.insert(key, copy.deepcopy(value))
    elif kind == 2:
        # Of the same file: right for another field.
        container[key] = copy.deepcopy(other[other_key])
    elif kind == 3 and isinstance(container, dict):
        container[rng.choice(("", "x", "format", str(key).upper()))] = container.pop(key)
    elif kind == 4:
        container[key] = {"x": value} if rng.random() < 0.5 else [value]
    elif kind == 5 and isinstance(value, int | float):
        container[key] = rng.choice((-value, value + 1, value * 1000, float(value), str(value)))
    elif kind == 6 and isinstance(value, str):
        cut = rng.randint(0, len(value))
        container[key] = (
            value[:cut] + rng.choice(("", "\n", "'", "${x}", "[", "\x1b")) + value[cut:]
        )
    else:
        container[key] = copy.deepcopy(rng.choice(STRANGE))


def json_tree(data: bytes, rng: random.Random) -> bytes:
    """JSON with another value, missing or doubled fields."""
    return json.dumps(changed_tree(json.loads(data), rng)).encode()


def json_lines(data: bytes, rng: random.Random) -> bytes:
    """As `json_tree`, of the lines of a file."""
    rows = [json.loads(line) for line in data.split(b"\n") if line.strip()]
    tree = changed_tree(rows, rng)
    rows = tree if isinstance(tree, list) else [tree]
    return b"\n".join(json.dumps(row).encode() for row in rows)


def yaml_tree(data: bytes, rng: random.Random) -> bytes:
    """YAML with another value, missing or doubled fields; as text with tags and aliases too."""
    text = yaml.safe_dump(changed_tree(yaml.safe_load(data), rng), allow_unicode=True)
    if rng.random() < 0.2:
        lines = text.split("\n")
        line = rng.randrange(len(lines))
        lines[line] += rng.choice(
            (" &a", " *a", " !!int x", " !!binary x", ": :", " |", "\t", " {")
        )
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another header, or other JSON in its metadata."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if "pml" in metadata and rng.random() < 0.7:
        metadata["pml"] = json.dumps(changed_tree(json.loads(metadata["pml"]), rng))
    else:
        header = changed_tree(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def some_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes that are other ones, missing or doubled."""
    content = bytearray(data or b"x")
    for _ in range(rng.choice((1, 1, 2, 8))):
        spot = rng.randrange(len(content))
        kind = rng.randrange(4)
        if kind == 0:
            content[spot] = rng.randrange(256)
        elif kind == 1:
            content[spot] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del content[spot : spot + rng.choice((1, 4, 64))]
        else:
            content[spot:spot] = content[spot : spot + rng.choice((1, 4, 64))]
        content = content or bytearray(b"x")
    return bytes(content)

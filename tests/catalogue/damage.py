"""Kinds of damage: to the bytes of a file, to what lies at its path, to the fields it holds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from catalogue.case import Change

DEPTH = 100_000
GONE = object()

# What stands in place of a file's content; no JSON object and no YAML mapping among them.
BYTES: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\n",
    "zeros": bytes(64),
    "binary": bytes(range(256)),
    "not UTF-8": b'{"a": "caf\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "an open brace": b"{",
    "a list": b"[]",
    "a list of numbers": b"[1, 2]",
    "null": b"null",
    "a number": b"5",
    "a text": b'"text"',
    "true": b"true",
    "nested lists": b"[" * DEPTH,
    "nested mappings": b'{"a":' * DEPTH,
    "a number of 5,000 digits": b"9" * 5000,
    "an HTML page": b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n",
    "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n",
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch CODE_WAS_RUN'\ntR.",
    "gzip": b"\x1f\x8b\x08\x00" + bytes(range(200)),
}

# What stands in place of a field's value.
VALUES: dict[str, Any] = {
    "gone": GONE,
    "null": None,
    "a word": "word",
    "an empty text": "",
    "a list": [1],
    "an empty list": [],
    "a mapping": {"a": 1},
    "true": True,
    "zero": 0,
    "negative": -3,
    "a half": 0.5,
    "1e308": 1e308,
    "400 digits": 10**400,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "an escape sequence": "\x1b[31mred",
}
# The kinds that any field of a file is tried with.
KINDS = (
    "gone",
    "null",
    "a word",
    "a list",
    "an empty list",
    "a mapping",
    "zero",
    "negative",
    "NaN",
    "400 digits",
    "true",
)


def put(name: str, content: bytes | str = b"") -> Change:
    """Write a file, whatever was there."""

    def change(folder: Path) -> None:
        path = folder / name
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def remove(pattern: str) -> Change:
    """Remove the first file or folder that matches."""
    return lambda folder: _remove(first(folder, pattern))


def first(folder: Path, pattern: str) -> Path:
    """The first path below a folder that matches a pattern; the path itself without one."""
    matches = sorted(folder.glob(pattern)) if "*" in pattern else [folder / pattern]
    assert matches, f"nothing matches {pattern}"
    return matches[0]


def rewrite(pattern: str, new: Callable[[bytes], bytes]) -> Change:
    """Replace the content of the first file that matches."""

    def change(folder: Path) -> None:
        path = first(folder, pattern)
        path.write_bytes(new(path.read_bytes()))

    return change


def edit(pattern: str, change_tree: Callable[[Any], object]) -> Change:
    """Change the content of the first JSON file that matches."""

    def new(old: bytes) -> bytes:
        tree = json.loads(old)
        change_tree(tree)
        return json.dumps(tree).encode()

    return rewrite(pattern, new)


def with_value(pattern: str, keys: tuple[str | int, ...], value: Any) -> Change:
    """Set one field of a JSON file, or take it away."""

    return edit(pattern, lambda tree: set_field(tree, keys, value))


def set_field(tree: Any, keys: Sequence[str | int], value: Any) -> None:
    """Set one field of a tree, or take it away."""
    *outer, last = keys
    for key in outer:
        tree = tree[key]

    if value is GONE:
        tree.pop(last, None)
    else:
        tree[last] = value


def damaged_field(pattern: str, *keys: str | int) -> Iterator[tuple[str, Change]]:
    """One field of a JSON file with every kind of wrong value, by name."""
    title = ".".join(map(str, keys))
    for kind in kinds_of(keys):
        yield f"{title} {kind}", with_value(pattern, keys, VALUES[kind])


def kinds_of(keys: Sequence[str | int]) -> Iterator[str]:
    """The kinds of wrong values that a field may have; an element of a list stays there."""
    for kind in KINDS:
        if kind != "gone" or isinstance(keys[-1], str):
            yield kind


def damaged_files(pattern: str, *, missing: bool = True) -> Iterator[tuple[str, Change]]:
    """Every kind of damage to a whole file, by name.

    Args:
        missing: whether the file being absent is one of them.
    """
    for name, content in BYTES.items():
        yield name, rewrite(pattern, lambda _, content=content: content)
    yield "truncated", rewrite(pattern, lambda old: old[: len(old) // 2])
    yield "a byte short", rewrite(pattern, lambda old: old.rstrip()[:-1])
    yield from damaged_paths(pattern, missing=missing)


def damaged_paths(pattern: str, *, missing: bool = True) -> Iterator[tuple[str, Change]]:
    """What may lie at a path in place of a file, by name."""
    kinds: Mapping[str, Callable[[Path], object]] = {
        "a folder": lambda path: path.mkdir(),
        "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a pipe": os.mkfifo,
    }

    for name, make in kinds.items():
        yield name, _in_place(pattern, make)

    if missing:
        yield "missing", remove(pattern)


def _in_place(pattern: str, make: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        path = first(folder, pattern)
        _remove(path)
        make(path)

    return change


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

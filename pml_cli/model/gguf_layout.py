"""Where a GGUF file keeps its header and its tensors. Without torch and without the package gguf.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"GGUF"

# Tensors begin at multiples of it where the file does not say.
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

# Types of metadata values: the number of the type, and its bytes.
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UINT32 = 4
STRING = 8
ARRAY = 9


@dataclass(frozen=True, kw_only=True)
class GgufLayout:
    """Offsets in a GGUF file, in bytes."""

    data_start: int
    """Where the header (metadata, names and shapes of the tensors) ends and the tensors begin."""

    tensors: list[tuple[int, int]]
    """First byte and end of each tensor, relative to `data_start`, in the order of the file."""

    tensor_names: list[str]
    """Names of the tensors, in the order of the header."""

    texts: dict[str, str]
    """The metadata that are texts, by key."""


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_layout(path: Path) -> GgufLayout:
    """Read the header of a GGUF file.

    Raises:
        ValueError: the header is damaged, or ends before it should.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Header(content).layout()
        except (struct.error, KeyError, OverflowError) as error:
            raise ValueError(f"damaged GGUF header ({error})") from error


class _Header:
    """Reads the values of a header one after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.offset = len(MAGIC)
        self.alignment = DEFAULT_ALIGNMENT
        self.texts: dict[str, str] = {}

    def layout(self) -> GgufLayout:
        """Where the tensors lie."""
        _version, tensor_count, key_count = self._numbers("<IQQ")
        for _ in range(key_count):
            self._skip_entry()
        offsets = [self._tensor() for _ in range(tensor_count)]
        starts = [start for _name, start in offsets]
        data_start = -(-self.offset // self.alignment) * self.alignment

        # A tensor ends where the next begins, or with the file; the padding between them is zero.
        ordered = sorted(starts)
        ends = [*ordered[1:], len(self.content) - data_start]
        return GgufLayout(
            data_start=data_start,
            tensors=list(zip(ordered, ends, strict=True)),
            tensor_names=[name for name, _start in offsets],
            texts=self.texts,
        )

    def _numbers(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(layout, self.content, self.offset)
        self.offset += struct.calcsize(layout)
        return values

    def _number(self, layout: str) -> int:
        return self._numbers(layout)[0]

    def _string(self) -> str:
        length = self._number("<Q")
        first = self.offset
        self.offset += length
        return self.content[first : self.offset].decode("utf-8", "replace")

    def _skip_entry(self) -> None:
        """Skip a key and its value; texts and the alignment are kept."""
        key = self._string()
        kind = self._number("<I")
        if kind == STRING:
            self.texts[key] = self._string()
            return
        if key == ALIGNMENT_KEY and kind == UINT32:
            # 0 would be no alignment at all.
            self.alignment = self._number("<I") or DEFAULT_ALIGNMENT
            return
        self._skip_value(kind)

    def _skip_value(self, kind: int) -> None:
        if kind == STRING:
            # Not `_string`, which would copy it.
            length = self._number("<Q")
            self.offset += length
            return
        if kind != ARRAY:
            self.offset += SCALAR_BYTES[kind]
            return

        element_kind, count = self._numbers("<IQ")
        if element_kind in SCALAR_BYTES:
            self.offset += SCALAR_BYTES[element_kind] * count
            return
        for _ in range(count):
            self._skip_value(element_kind)

    def _tensor(self) -> tuple[str, int]:
        """Name and offset of the next tensor."""
        name = self._string()
        dimensions = self._number("<I")
        # Shape, then type and offset.
        self._numbers(f"<{dimensions}Q")
        _kind, offset = self._numbers("<IQ")
        return name, offset

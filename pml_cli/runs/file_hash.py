"""A hash of a safetensors file that is quick however large the file is: without torch, for the id of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

WHOLE = 2**24  # bytes; what is not larger is read whole
PIECE = 2**12  # bytes
PIECES = 4  # of each tensor; fewer where a file has more than
MANY = 250  # tensors


def sampled_hash(path: Path) -> str:
    """The size of a file, its header, and up to four pieces of 4 KB of each tensor; a small file whole.

    Training moves nearly all weights of a tensor, so models that were trained differ here. A file of more than 16 MB in
    which single weights were changed by hand may pass for the same one.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
            return digest.hexdigest()
        start = file.read(8)
        header = file.read(min(int.from_bytes(start, "little"), WHOLE))
        digest.update(start + header)
        for place in _places(header, len(start) + len(header), size):
            file.seek(place)
            digest.update(file.read(PIECE))
    return digest.hexdigest()


def _places(header: bytes, begin: int, size: int) -> Iterator[int]:
    """Where to read: some pieces of each tensor, at even distances."""
    try:
        fields = json.loads(header).items()
        spans = sorted(field["data_offsets"] for name, field in fields if name != "__metadata__")
    except (ValueError, AttributeError, LookupError, TypeError):
        spans = [[0, size - begin]]  # a damaged file: loading it will say so
    pieces = min(PIECES, max(1, PIECES * MANY // len(spans))) if spans else 0
    for first, end in spans:
        room = max(0, end - first - PIECE)
        yield from sorted(
            {begin + first + room * (2 * i + 1) // (2 * pieces) for i in range(pieces)}
        )

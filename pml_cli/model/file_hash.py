"""A hash of a safetensors or GGUF file, quick however large the file is, for the id of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pml_cli.errors import UserError
from pml_cli.io import listed
from pml_cli.model.gguf_layout import is_gguf, read_layout
from pml_cli.validation import read_json

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SUFFIX = ".safetensors"
INDEX_FILE = "model.safetensors.index.json"

# [first, end) bytes of each tensor.
Spans = Sequence[Sequence[int]]

# Files up to this size are read whole.
MAX_WHOLE_BYTES = 2**24

# Length of a sample, and samples of each tensor.
SAMPLE_BYTES = 2**12
SAMPLES_PER_TENSOR = 4

# Of files with more tensors than this, each tensor has fewer samples.
FULLY_SAMPLED_TENSORS = 250


def weight_files(folder: Path) -> list[Path]:
    """The weights of a model's folder: the safetensors files that transformers reads, by name.

    Another file that lies beside them, such as an adapter, the weights in another format or what
    macOS leaves (._model.safetensors), is none.
    """
    # A config.json may name the file itself.
    named = _json_field(folder / "config.json", "transformers_weights")
    weights = folder / (named if isinstance(named, str) else WEIGHTS_FILE)
    if weights.suffix == WEIGHTS_SUFFIX and weights.is_file():
        return [weights]

    index = weights if isinstance(named, str) else folder / INDEX_FILE
    weight_map = _json_field(index, "weight_map")
    if isinstance(weight_map, dict) and weight_map:
        shards = [folder / name for name in sorted({*map(str, weight_map.values())})]
        # Loading reports a shard that is missing.
        return [shard for shard in shards if shard.is_file()]
    files = listed(folder, f"*{WEIGHTS_SUFFIX}")
    # Reading a pipe might never end.
    return [file for file in files if file.is_file() and file.name[0] != "."]


def _json_field(path: Path, name: str) -> Any:
    """A field of a JSON file; None where the file lacks it, is damaged or is missing."""
    try:
        return read_json(path, dict[str, Any], "").get(name)
    except UserError:
        return None


def sampled_hash(path: Path) -> str:
    """Hash the size of a file, its header, and up to four samples of 4 KB of each tensor.

    Training moves nearly all weights of a tensor, so models that were trained apart differ here. In
    a file of more than 16 MB, a few weights changed by hand may go unnoticed.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= MAX_WHOLE_BYTES:
            digest.update(file.read())
            return digest.hexdigest()

        data_start, spans = _gguf_spans(path) if is_gguf(path) else _safetensors_spans(path)
        digest.update(file.read(data_start))
        for offset in _sample_offsets(spans, data_start):
            file.seek(offset)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def tensors_hash(path: Path) -> str:
    """Hash the tensors of a safetensors file: names, shapes and values.

    The bytes of the file cannot be hashed: safetensors writes its metadata in arbitrary order.
    """
    content = path.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    try:
        fields = json.loads(content[8:data_start])
        fields.pop("__metadata__", None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        # Damaged: loading it reports the damage.
        return hashlib.sha256(content).hexdigest()

    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    digest.update(content[data_start:])
    return digest.hexdigest()


def _gguf_spans(path: Path) -> tuple[int, Spans]:
    """Bytes of the header, and [first, end) bytes of each tensor, relative to the first one."""
    try:
        layout = read_layout(path)
        return layout.data_start, layout.tensors
    except ValueError:
        # A damaged file is sampled as one tensor; loading it reports the damage.
        return MAX_WHOLE_BYTES, [(0, path.stat().st_size - MAX_WHOLE_BYTES)]


def _safetensors_spans(path: Path) -> tuple[int, Spans]:
    """Spans of the tensors of a safetensors file, as `_gguf_spans` gives them."""
    with path.open("rb") as file:
        # A safetensors file begins with the length of its header, in eight bytes.
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), MAX_WHOLE_BYTES))
    data_start = len(length) + len(header)
    return data_start, _header_spans(header, path.stat().st_size - data_start)


def _sample_offsets(spans: Spans, data_start: int) -> Iterator[int]:
    """Where to read: evenly spaced samples of each tensor.

    Args:
        spans: [first, end) bytes of each tensor, relative to the first one.
        data_start: offset of the first tensor in the file.
    """
    if not spans:
        return

    budget = SAMPLES_PER_TENSOR * FULLY_SAMPLED_TENSORS
    samples = min(SAMPLES_PER_TENSOR, max(1, budget // len(spans)))
    for first, end in spans:
        room = max(0, end - first - SAMPLE_BYTES)
        # Small tensors have fewer distinct offsets.
        offsets = {room * (2 * i + 1) // (2 * samples) for i in range(samples)}
        for offset in sorted(offsets):
            yield data_start + first + offset


def _header_spans(header: bytes, data_bytes: int) -> Spans:
    """[first, end) bytes of each tensor, by the JSON header of a safetensors file."""
    try:
        fields = json.loads(header).items()
        return sorted(field["data_offsets"] for name, field in fields if name != "__metadata__")
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        # A damaged file is sampled as one tensor; loading it reports the damage.
        return [[0, data_bytes]]

"""What a checkpoint says of itself: which cells it holds, at which step. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typing_extensions import NotRequired, TypedDict

from pml_cli.config.schema import FORMAT
from pml_cli.errors import UserError
from pml_cli.io import listed
from pml_cli.results.run_folders import run_key
from pml_cli.validation import Count, Number, checked, parse_json

# Where the checkpoints of a results folder are.
FOLDER = (".pml", "checkpoints")


class HeaderFields(TypedDict):
    """The metadata of a checkpoint as it lies in the file."""

    format: int
    step: Count
    pack: list[str]
    cells: list[str]
    hashes: NotRequired[dict[str, str]]
    draws: list[Count]
    columns: list[str]
    seconds: Number
    digest: NotRequired[str]


# Those of the file that a `CheckpointHeader` has.
HEADER_FIELDS = ("step", "pack", "cells", "hashes", "draws", "columns", "seconds", "digest")


@dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """The metadata of a checkpoint; the state itself is read by `Checkpoints.load`."""

    path: Path
    step: int
    pack: list[str]
    """Keys (`run_key`) of all cells that the pack began with, in order."""
    cells: list[str]
    """Keys of the cells still in training, in order."""
    hashes: dict[str, str]
    """Hashes of the tokens that the cells learn, by key; empty in files of earlier versions."""
    draws: list[int]
    """Minibatches that each of `cells` has drawn."""
    columns: list[str]
    """Names of the columns of the training curve."""
    seconds: float
    """Training time so far."""
    digest: str
    """Digest of the tensors, from `_digest`; empty in files of earlier versions."""

    def holds(self, cell: str, tokens: str) -> bool:
        """Whether a cell is still in training here, and learns these tokens.

        Args:
            cell: its id.
            tokens: the hash of its tokens; empty: any.
        """
        key = run_key(cell)
        stored_hash = self.hashes.get(key) or tokens
        return key in self.cells and tokens in ("", stored_hash)


def checkpoint_files(out: Path) -> list[Path]:
    """The checkpoints of a results folder, by name: in the same order in every process."""
    return listed(out.joinpath(*FOLDER), "*.safetensors")


def read_header(path: Path) -> CheckpointHeader | None:
    """The metadata of a checkpoint; None: damaged, or of another format."""
    # Imported only where there is a checkpoint: it takes numpy with it.
    from safetensors import SafetensorError, safe_open

    # A pipe among them would be read for ever.
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        content = parse_json(path, metadata.get("pml", "").encode(), "")
        header = checked(path, content, HeaderFields, "")
    except (OSError, SafetensorError, UserError):
        return None

    cells, pack = header["cells"], header["pack"]
    is_ours = header["format"] == FORMAT
    if not is_ours or not set(cells) <= set(pack) or len(header["draws"]) != len(cells):
        return None
    fields = {"hashes": {}, "digest": ""} | {
        name: header[name] for name in HEADER_FIELDS if name in header
    }
    # Earlier versions named the cells by their whole ids.
    for name in ("pack", "cells"):
        fields[name] = [run_key(cell) for cell in header[name]]
    return CheckpointHeader(path=path, **fields)

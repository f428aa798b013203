"""Files that are complete or absent."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write aside and rename, so that a reader sees the whole file or none (also after a kill)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full and the like; safetensors itself tells that as an error of its own, like any other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = (
        path.stat().st_mode
    )  # safetensors 0.8 replaces it by a file that its owner alone can read
    try:
        save_file(tensors, path, metadata=metadata)
        path.chmod(mode)
    except SafetensorError as error:
        if (told := re.search(r"(?:os error|code:) (\d+)", str(error))) is None:
            raise
        number = int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")

"""Files that are complete or absent, and plain values for JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


# What a cell of a spreadsheet begins with that is computed.
FORMULA_STARTS = ("=", "+", "-", "@", "\t")


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file and rename it, so that a reader sees the whole file or none.

    This also holds where the process is killed. Missing parent folders are made.

    Args:
        write: writes the content to the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)

    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text, "utf-8"))


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write a JSON file atomically.

    Raises:
        ValueError: the content holds nan or infinity (see `jsonable`).
    """
    write_text(path, json_text(content, indent))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file atomically; the index is left out.

    Texts that a spreadsheet would run as a formula get a ' in front.
    """
    safe = table.copy(deep=False)
    for name in table:
        values = list(table[name])
        # Other columns stay as they are, with their types.
        if any(map(_is_formula, values)):
            safe[name] = [f"'{value}" if _is_formula(value) else value for value in values]
    atomic_write(path, lambda temporary: safe.to_csv(temporary, index=False))


def _is_formula(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(FORMULA_STARTS)


def table_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON; what is missing is null."""
    with_null = table.astype(object).where(table.notna(), None)
    rows: list[dict[str, Any]] = with_null.to_dict("records")  # type: ignore[assignment]
    return rows


def json_text(content: Any, indent: int | None = 1) -> str:
    """JSON that every reader takes, with a newline at its end.

    Raises:
        ValueError: the content holds nan or infinity (see `jsonable`).
    """
    return json.dumps(content, indent=indent, allow_nan=False) + "\n"


def finite_or_none(value: float) -> float | None:
    """The number, or None (null in JSON) for nan and infinity."""
    return float(value) if math.isfinite(value) else None


def jsonable(value: Any) -> Any:
    """Plain values for JSON, at full precision; nan and infinity become None.

    Takes dataclasses (their fields), mappings, lists, tuples, numpy arrays and scalars, and paths.
    Keys of mappings become strings.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: jsonable(getattr(value, name)) for name in names}

    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]

    # A numpy array or scalar, recognized without importing numpy.
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())

    if isinstance(value, float):
        return finite_or_none(value)
    if isinstance(value, Path):
        return str(value)
    return value


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the file cannot be written, such as on a full disk. safetensors itself raises the
            same error for every cause.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # safetensors 0.8 replaces the file by one that its owner alone can read.
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=metadata)
        path.chmod(mode)
    except SafetensorError as error:
        match = re.search(r"(?:os error|code:) (\d+)", str(error))
        if match is None:
            raise
        number = int(match[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def cache_folder() -> Path:
    """The folder of pml's caches: PML_CACHE, else `pml` in XDG_CACHE_HOME, else ~/.cache/pml."""
    folder = os.environ.get("PML_CACHE")
    if not folder:
        folder = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pml")
    return expand_home(folder)


def expand_home(path: str) -> Path:
    """A path whose `~` is the user's home.

    It stays as it is where there is no such user, or the user of a container has no home;
    Path.expanduser would raise an error.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def temporary_path(path: Path) -> Path:
    """A hidden path beside `path`, for content that is not complete."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")

"""Files that are complete or absent, and plain values for JSON."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pml_cli.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


# What a cell of a spreadsheet begins with that is computed.
FORMULA_STARTS = ("=", "+", "-", "@", "\t")

# The end of a name that `temporary_path` gives.
LEFTOVER = re.compile(r"\.[0-9a-f]{8}$")

# What Python puts for the bytes of a name that are no UTF-8.
NO_UTF8 = re.compile("[\ud800-\udfff]")


def atomic_write(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Write a temporary file and rename it, so that a reader sees the whole file or none.

    This also holds where the process is killed. Missing parent folders are made.

    Args:
        write: writes the content to the path that it is given.
        durable: whether it also holds where the power goes, which takes milliseconds.

    Raises:
        OSError: the disk refuses; it names `path`, or the folder that cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)

    try:
        write(temporary)
        if durable:
            flush_to_disk([temporary])
        temporary.replace(path)
        if durable:
            flush_to_disk([path.parent])
    except OSError as error:
        raise named_for(path, error) from error
    finally:
        # Where even that is refused, the first error says more.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def named_for(path: Path, error: OSError) -> OSError:
    """The error with the name of the target file in place of that of the temporary file."""
    if error.errno is None:
        return error
    return OSError(error.errno, os.strerror(error.errno), str(path))


def refused_path(error: OSError) -> str | None:
    """The path that a file system has refused; of a link or a rename the new one."""
    path = error.filename if error.filename2 is None else error.filename2
    return None if path is None else os.fsdecode(path)


def refused_in_rust(error: Exception, path: Path) -> OSError | None:
    """What a file system has refused to a library in Rust, which raises another error; else None.

    Args:
        error: of safetensors or tokenizers.
        path: what was to be written.
    """
    match = re.search(r"(?:os error|code:) (\d+)", str(error))
    if match is None:
        return None
    number = int(match[1])
    return OSError(number, os.strerror(number), str(path))


def flush_to_disk(paths: Iterable[Path]) -> None:
    """Wait until files, or the names in folders, are on the disk and outlive a loss of power."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a UTF-8 text file atomically."""
    atomic_write(path, lambda temporary: temporary.write_text(text, "utf-8"), durable=durable)


def write_json(path: Path, content: Any, indent: int | None = 1, *, durable: bool = False) -> None:
    """Write a JSON file atomically.

    Raises:
        ValueError: the content holds nan or infinity (see `jsonable`).
    """
    write_text(path, json_text(content, indent), durable=durable)


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

    # safetensors 0.8 writes a file of any name beside it, which a killed process would leave, and
    # which its owner alone can read.
    folder = temporary_path(path)
    try:
        folder.mkdir()
        path.touch()
        save_file(tensors, folder / path.name, metadata=metadata)
        (folder / path.name).chmod(path.stat().st_mode)
        (folder / path.name).replace(path)
    except SafetensorError as error:
        refusal = refused_in_rust(error, path)
        if refusal is None:
            raise
        raise refusal from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def file_fault(path: Path) -> str:
    """Why a path is no file that can be read; empty where it is one."""
    try:
        if not path.is_file():
            if path.is_dir():
                return "a folder, not a file"
            is_there = path.exists()
            return "must be a regular file" if is_there else "no such file"
    # A text in place of its path is too long a name, and some folders may not be entered.
    except OSError as error:
        return error.strerror or "no such file"
    return "its name is no UTF-8; rename it" if NO_UTF8.search(str(path)) else ""


def temporary_path(path: Path) -> Path:
    """A hidden path beside `path`, for content that is not complete."""
    # It may be such a path itself; one dot is enough for `remove_leftovers`.
    name = path.name.removeprefix(".")
    return path.with_name(f".{name}.{uuid.uuid4().hex[:8]}")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of writing a file or folder that this one alone writes."""
    with suppress(OSError):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
            if LEFTOVER.search(leftover.name):
                remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link but not what it leads to."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder under names of a pattern, in their order; nothing where it is absent.

    Path.glob takes a folder that may not be listed for an empty one.

    Raises:
        OSError: it cannot be listed; the error names it.
    """
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in paths if fnmatch.fnmatch(path.name, pattern)]


def all_files(folder: Path) -> list[Path]:
    """The files in a folder and below it, in order; what links lead to is not looked at.

    Raises:
        OSError: a folder cannot be listed, which Path.rglob passes over; the error names it.
    """

    def refuse(error: OSError) -> None:
        raise error

    tree = os.walk(folder, onerror=refuse)
    return sorted(Path(parent, name) for parent, _, names in tree for name in names)


def own_folder(root: Path, *names: str) -> Path:
    """Make a folder below one that the user has named; see `without_links`."""
    folder = without_links(root, *names)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def without_links(root: Path, *names: str) -> Path:
    """A folder below one that the user has named, with no link on the way.

    Args:
        root: of the user; it may be a link.
        names: of the folder, and of those between.

    Raises:
        UserError: one of them is a link, which could lead anywhere.
    """
    folder = root
    for name in names:
        folder = folder / name
        if folder.is_symlink():
            raise UserError(f"{folder}: a link, where pml writes files of its own; remove it")
    return folder

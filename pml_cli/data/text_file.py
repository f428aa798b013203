"""UTF-8 text files that a user names, with their faults."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pml_cli.errors import UserError


@lru_cache(maxsize=16)
def read_text(path: str) -> str:
    """The text of `data.path`, without a byte order mark and with Unix line ends.

    Raises:
        UserError: the file is missing, unreadable, empty, binary or not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"data.path={path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data.path={path}: not UTF-8 text (byte {error.start})") from error

    if not text.strip():
        raise UserError(f"data.path={path}: empty file")
    # Zero bytes are valid UTF-8, so a binary file may decode.
    if "\0" in text:
        raise UserError(f"data.path={path}: a binary file (with zero bytes); must be UTF-8 text")
    return text.replace("\r\n", "\n")

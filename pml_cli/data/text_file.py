"""UTF-8 text files that a user names, with their faults."""

from __future__ import annotations

import codecs
from pathlib import Path

from pml_cli.config.cache_key import file_cache
from pml_cli.errors import UserError

UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# How a zip archive begins, and with it a spreadsheet of Excel.
ZIP = b"PK\x03\x04"


@file_cache(16)
def read_text(path: str) -> str:
    """The text of `data.path`, without a byte order mark and with Unix line ends.

    Raises:
        UserError: the file is missing, unreadable, empty, binary or not UTF-8.
    """
    return decoded_text(path, read_bytes(path))


def read_bytes(path: str) -> bytes:
    """The content of `data.path`.

    Raises:
        UserError: the file is missing or unreadable.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"data.path={path}: {error.strerror or error}") from error


def decoded_text(path: str, content: bytes) -> str:
    """UTF-8 content as text, without a byte order mark and with Unix line ends.

    Args:
        path: of the file, for messages.
        content: its bytes.

    Raises:
        UserError: it is empty, binary or not UTF-8.
    """
    text = utf8_text(f"data.path={path}", content)
    if not text.strip():
        raise UserError(f"data.path={path}: empty file")
    return text


def utf8_text(name: str, content: bytes) -> str:
    """UTF-8 content as text, without a byte order mark and with Unix line ends.

    Args:
        name: of what it was read from, for messages.
        content: its bytes.

    Raises:
        UserError: it is binary or not UTF-8.
    """
    if content.startswith(ZIP):
        raise UserError(f"{name}: a binary file (zip or Excel); must be UTF-8 text")
    if content.startswith(UTF_16_MARKS):
        raise UserError(f"{name}: UTF-16, not UTF-8 text; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text (byte {error.start})") from error

    # Zero bytes are valid UTF-8, so a binary file may decode.
    if "\0" in text:
        raise UserError(f"{name}: a binary file (with zero bytes); must be UTF-8 text")
    return text.replace("\r\n", "\n")

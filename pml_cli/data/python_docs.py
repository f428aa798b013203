"""Real English that every Python carries: the topics of `pydoc_data`, split by hash.

About a tenth of the topics is held out from the pretraining of the embedded base model
(`benchmarks/pretrain_tiny.py`). `data=text` reads only those, so that the base model has never seen
what an adapter is to remember.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

# The first salt from 30 on with which the held-out topics are a tenth of the text.
HELD_OUT_SALT = "pml-31"
HELD_OUT_MODULUS = 10

# Indentation, in spaces, from which on a paragraph is code or a table.
MAX_TEXT_INDENT = 3

# Beginnings of paragraphs that are not running text: interpreter sessions, rules, tables.
NOT_TEXT = re.compile(r"\s*(>>>|[-=*~^\"]{4,}|\|)")

# The line below a heading.
UNDERLINE = re.compile(r"[-=*~^\"]{3,}")


def is_held_out(topic: str) -> bool:
    """Whether a topic of `pydoc_data`, by its name, is kept out of pretraining."""
    digest = hashlib.sha256(f"{HELD_OUT_SALT}:{topic}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_MODULUS == 0


def python_topics() -> dict[str, str]:
    """Every topic of `pydoc_data.topics` by name, each paragraph on one line.

    Raises:
        ModuleNotFoundError: this Python was installed without its documentation.
    """
    from pydoc_data.topics import topics

    return {name: unwrap(topics[name]) for name in sorted(topics)}


def held_out_text() -> str:
    """The held-out topics, one after the other: the default text of `data=text`."""
    topics = python_topics()
    return "\n\n".join(topics[name] for name in topics if is_held_out(name))


@lru_cache(maxsize=1)
def documentation_hash() -> str:
    """A hash of `held_out_text`; empty where this Python has none."""
    try:
        return hashlib.sha256(held_out_text().encode()).hexdigest()
    except ModuleNotFoundError:
        # Opening the text reports it.
        return ""


def unwrap(text: str) -> str:
    """Join the wrapped lines of paragraphs; indented blocks (code, tables) stay as they are."""
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(_unwrap_paragraph(paragraph) for paragraph in paragraphs)


def _unwrap_paragraph(paragraph: str) -> str:
    lines = paragraph.rstrip().split("\n")
    if _is_running_text(paragraph, lines):
        return " ".join(line.strip() for line in lines)
    return "\n".join(lines)


def _is_running_text(paragraph: str, lines: list[str]) -> bool:
    indents = {_indent(line) for line in lines}
    if len(indents) > 1 or indents.pop() > MAX_TEXT_INDENT:
        return False

    is_heading = len(lines) > 1 and UNDERLINE.fullmatch(lines[1].strip())
    return not is_heading and not NOT_TEXT.match(paragraph)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())

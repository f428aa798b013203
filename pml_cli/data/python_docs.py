"""Real English that every Python carries: the topics of `pydoc_data`, split by hash.

About a tenth of the topics is held out from the pretraining of the embedded base model (`benchmarks/pretrain_tiny.py`).
`data=text` reads only those, so that what an adapter is asked to remember was never seen by the base.
"""

from __future__ import annotations

import hashlib
import re

HELD_OUT_SALT = "pml-31"  # the first salt from 30 on whose share of the text is a tenth
HELD_OUT_MODULUS = 10


def is_held_out(topic: str) -> bool:
    """Whether a `pydoc_data` topic, by its name, is kept out of pretraining."""
    digest = hashlib.sha256(f"{HELD_OUT_SALT}:{topic}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_MODULUS == 0


def python_topics() -> dict[str, str]:
    """Every topic of `pydoc_data.topics`, unwrapped into paragraphs on one line each.

    Raises:
        ModuleNotFoundError: this Python was installed without its documentation.
    """
    from pydoc_data.topics import topics

    return {name: unwrap(text) for name, text in sorted(topics.items())}


def held_out_text() -> str:
    """The held-out topics, one after the other: the default source of `data=text`."""
    return "\n\n".join(text for name, text in python_topics().items() if is_held_out(name))


def unwrap(text: str) -> str:
    """Join the wrapped lines of plain paragraphs; leave indented blocks (code, tables) as they are."""
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(_unwrap_paragraph(paragraph) for paragraph in paragraphs)


def _unwrap_paragraph(paragraph: str) -> str:
    lines = paragraph.rstrip().split("\n")
    indents = {len(line) - len(line.lstrip()) for line in lines}
    plain = len(indents) == 1 and not re.match(r"\s*(>>>|[-=*~^\"]{4,}|\|)", paragraph)
    heading = len(lines) > 1 and re.fullmatch(r"[-=*~^\"]{3,}", lines[1].strip())
    if not plain or heading or indents.pop() > 3:
        return "\n".join(lines)
    return " ".join(line.strip() for line in lines)

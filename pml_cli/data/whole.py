"""The file that `pml memorize` learns: all rows, with prompts by the model's chat template."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from pml_cli.config.schema import ALL_TOKENS, FactsData, Run
from pml_cli.data.fact_keys import CHAT_KEYS, PROMPT_KEYS, TARGET_KEYS, TEXT_KEYS
from pml_cli.data.facts_file import read_rows
from pml_cli.data.opened import source_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.row_values import text_of
from pml_cli.data.text_file import read_text
from pml_cli.io import write_text
from pml_cli.model.dims import model_dims
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.model.tokenizer_backend import has_tokenizer
from pml_cli.validation import read_regular

# What a row with a text may call it, and names of keys that make a fact of it.
NAME_KEYS = ("title", "name", "heading", "file", "id")
FACT_KEYS = {*PROMPT_KEYS, *TARGET_KEYS, *CHAT_KEYS}

# The file that several texts are written to, in the results folder: `texts.jsonl`.
TEXTS_FILE = "texts"

# More facts than these are learned in minibatches, where the command line leaves it open.
MOST_FACTS_IN_A_STEP = 30

# Settings of prompts without a chat template.
PLAIN_PROMPT = ("data.chat", "data.separator", "data.begin")


def named_texts(files: Sequence[Path], run: Run) -> list[tuple[str, str]]:
    """Several texts with their names: files of text, or the rows of one file that hold texts.

    Args:
        files: as they were given.
        run: on them.

    Returns:
        Nothing where they are one text, or facts.

    Raises:
        UserError: a file that cannot be read.
    """
    if len(files) > 1:
        names = distinct_names(files)
        return [(name, read_text(str(file))) for name, file in zip(names, files, strict=True)]
    path = getattr(run.data, "path", None)
    if not files or run.data.source != "jsonl" or path is None:
        return []

    texts = []
    for number, row in enumerate(read_rows(path), 1):
        keys = {key.strip().lower(): key for key in row.fields}
        text_key = next((keys[name] for name in TEXT_KEYS if name in keys), None)
        text = row.fields.get(text_key or "")
        if keys.keys() & FACT_KEYS or not isinstance(text, str) or not text.strip():
            return []
        name_key = next((keys[name] for name in NAME_KEYS if name in keys), "")
        name = str(row.fields.get(name_key) or f"Text {number}")
        # Half of a cut emoji can be in neither.
        for key, value in ((name_key, name), (text_key or "", text)):
            text_of(row, key, value, None)
        texts.append((name, text))
    return texts


def distinct_names(files: Sequence[Path]) -> list[str]:
    """The names of files, with as many of their folders as tell them apart."""
    paths = [file.resolve().parts for file in files]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def texts_file(texts: Sequence[tuple[str, str]], folder: Path) -> Path:
    """Several texts as a file of long texts, each behind its name.

    Runs name the file by its path, so a file that holds other texts stays as it is.
    """
    rows = [{"question": name, "matching": text} for name, text in texts]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = folder / f"{TEXTS_FILE}.jsonl"
    if path.exists() and not _holds(path, content.encode()):
        digest = hashlib.sha256(content.encode()).hexdigest()
        path = folder / f"{TEXTS_FILE}-{digest[:8]}.jsonl"
    write_text(path, content)
    return path


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content; a pipe or a device has none."""
    try:
        return read_regular(path)[0] == content
    except OSError:
        return False


def with_chat(run: Run, given: Collection[str]) -> Run:
    """A run on facts whose prompts go through the chat template, where the tokenizer has one.

    Whoever has a model with a template asks it through the template.

    Args:
        run: as it was asked for.
        given: the keys of the command line; one about prompts leaves the run as it is.
    """
    is_plain = not isinstance(run.data, FactsData) or any(key in given for key in PLAIN_PROMPT)
    if is_plain or not has_tokenizer(run.model):
        return run
    if not open_tokenizer(run.model).has_template:
        return run
    return dataclasses.replace(run, data=dataclasses.replace(run.data, chat=True))


def holds_many_facts(run: Run) -> bool:
    """Whether a run learns more facts than are seen in every step.

    Raises:
        UserError: the data cannot be read.
    """
    if not isinstance(run.data, FactsData):
        return False
    resolved = resolved_run(run)
    return len(source_of(resolved).take(resolved.seqlen)) > MOST_FACTS_IN_A_STEP


def within_context(run: Run) -> tuple[Run, int]:
    """A run on one text that was to be learned whole, with what the model's context holds of it.

    Returns:
        The run, and the tokens that are left out at its end; 0: none.

    Raises:
        UserError: the data cannot be read.
    """
    if run.seqlen != ALL_TOKENS or isinstance(run.data, FactsData):
        return run, 0

    # Of one token, to see what stands in front of it.
    shortest = resolved_run(dataclasses.replace(run, seqlen=1))
    source = source_of(shortest)
    if source.max_tokens is None:
        return run, 0
    room = model_dims(run.model).context - len(source.take(1)[0].prompt)
    if source.max_tokens <= room:
        return run, 0
    return dataclasses.replace(run, seqlen=room), source.max_tokens - room

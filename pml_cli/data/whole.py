"""What `pml memorize` learns: a file of facts or texts as a whole, asked as its model is asked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from pml_cli.config.schema import ALL_TOKENS, FactsData, Run
from pml_cli.data.opened import source_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.text_file import read_text
from pml_cli.io import write_text
from pml_cli.model.dims import model_dims
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.model.tokenizer_backend import has_tokenizer

# The file that several texts are written to, in the results folder.
TEXTS_FILE = "texts.jsonl"

# Settings of prompts without a chat template.
PLAIN_PROMPT = ("data.chat", "data.separator", "data.begin")


def texts_file(files: Sequence[Path], folder: Path) -> Path:
    """Several texts as a file of long texts, each behind the name of its file.

    Raises:
        UserError: a file that cannot be read.
    """
    rows = [{"question": file.name, "matching": read_text(str(file))} for file in files]
    path = folder / TEXTS_FILE
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


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

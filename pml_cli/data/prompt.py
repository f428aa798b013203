"""The prompt of a sample, as text and as token ids."""

from __future__ import annotations

from typing import NamedTuple

from pml_cli.config.schema import Data, FactsData
from pml_cli.errors import UserError
from pml_cli.model.chat_template import Turns
from pml_cli.model.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """A prompt."""

    text: str
    """With the special tokens: without any that a tokenizer adds by itself, it gives the ids."""

    ids: tuple[int, ...]


def prompt_of(tokenizer: Tokenizer, data: Data, turns: Turns) -> Prompt:
    """The prompt of a sample.

    Args:
        tokenizer: of the model.
        data: whether and how the chat template is applied; of facts, begin and separator.
        turns: the prompt as the source gives it.

    Raises:
        UserError: the chat template refuses, or is needed for these turns.
    """
    if data.chat:
        text = tokenizer.chat_text(turns, data)
        chat_ids = tuple(tokenizer.encode(text))
        if not chat_ids:
            reason = "the chat template makes an empty prompt of it; give a prompt"
            raise UserError(f"data.chat=true: {reason}")
        return Prompt(text, chat_ids)

    if len(turns) != 1:
        roles = ", ".join(role for role, _ in turns)
        raise UserError(
            f"data.chat=false: a prompt of several turns ({roles}) needs data.chat=true"
        )
    text = turns[0][1]
    begin = True
    if isinstance(data, FactsData):
        text += data.separator or ""
        begin = data.begin is not False

    ids = tuple(tokenizer.prompt(text, begin=begin))
    begin_text = tokenizer.decode(tokenizer.begin) if begin else ""
    return Prompt(begin_text + text, ids)


def stream_prompt(tokenizer: Tokenizer, data: Data, prompt: str | None) -> tuple[int, ...]:
    """The prompt ids of running text or random tokens.

    Args:
        tokenizer: of the model.
        data: whether and how the chat template is applied.
        prompt: the text of the prompt; None: none.
    """
    return prompt_of(tokenizer, data, (("user", prompt or ""),)).ids

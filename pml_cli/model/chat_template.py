"""Chat templates: the prompt that one makes, and the token that ends its answer.

Templates are programs inside a tokenizer's files. They may refuse a system turn (Gemma), write one
of their own (SmolLM2), open the answer for thinking (Qwen3), or read the clock (Llama 3.x).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from pml_cli.config.schema import Data
from pml_cli.errors import UserError, first_line

Turns = tuple[tuple[str, str], ...]
"""(role, content) of each turn of a conversation; the roles are system, user and assistant."""

# Stands for the answer; no template looks for it.
MARKER = "pmlanswer"

# Conversations to try a template with.
QUESTION = (("user", "pmlquestion"),)
OTHER_QUESTION = (("user", "pmlother"),)

# What a template asks of the clock with strftime_now(format): %d, or %-d without a leading zero.
DATE_CODE = re.compile("%[-_0^#]?[EO]?[A-Za-z]")

# By which a template reads the clock.
CLOCK = "strftime_now"

# Names that templates read for the same: Qwen3 and SmolLM3, then Granite and DeepSeek.
THINKING_NAMES = ("enable_thinking", "thinking")


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, model_name: str, special: Collection[int]) -> None:
        """
        Args:
            tokenizer: of transformers, with a template.
            model_name: for messages.
            special: ids of the tokenizer's special tokens.
        """
        self._tokenizer = tokenizer
        self._text: str = tokenizer.get_chat_template()
        self._name = f"the chat template of model={model_name}"
        self._special = special
        # A check of a setting is the same for thousands of prompts.
        self._checked = lru_cache(maxsize=16)(self._check_settings)

    def prompt(self, turns: Turns, data: Data) -> str:
        """The prompt as text, to where the answer begins.

        Raises:
            UserError: the template refuses the turns or a setting, or ignores a setting.
        """
        self.check(data)
        return self._tried(_messages(turns, data.system), data.thinking, data.date)

    def _tried(self, messages: Sequence[dict[str, str]], thinking: bool | None, date: str) -> str:
        """What the template makes of messages; any failure is one line."""
        try:
            return self._render(messages, thinking, date)
        # jinja2's errors, and those of a program that meets data it was not made for.
        except Exception as error:
            reason = f"{self._name} refuses ({first_line(error)})"
            raise UserError(f"data.chat=true: {reason}") from error

    def check(self, data: Data) -> None:
        """Raise where the template cannot have a setting, or does not heed it.

        Raises:
            UserError: names the setting.
        """
        self._checked(data.system, data.thinking, data.date)

    def _check_settings(self, system: str | None, thinking: bool | None, date: str) -> None:
        if system is not None:
            self._check_system(system, thinking, date)

        messages = _messages(QUESTION, system)
        rendered = self._tried(messages, thinking, date)
        # Some templates of multimodal models read the parts of a message alone, and skip a text.
        if rendered == self._tried(_messages(OTHER_QUESTION, system), thinking, date):
            raise UserError(
                f"data.chat=true: {self._name} ignores the user message; set data.chat=false and "
                "data.separator=TEXT"
            )

        if thinking is not None and rendered == self._tried(messages, not thinking, date):
            setting = f"data.thinking={str(thinking).lower()}"
            raise UserError(f"{setting}: {self._name} has no thinking mode; leave it null")

    def _check_system(self, system: str, thinking: bool | None, date: str) -> None:
        rendered = self._with_system(system, thinking, date)
        # Its text may be changed, as to capitals; that of another one then is too.
        is_heeded = rendered != self._with_system(f"{system} {MARKER}", thinking, date)
        if system.strip() and not is_heeded:
            raise UserError(f"data.system={system!r}: {self._name} ignores system messages")

    def _with_system(self, system: str, thinking: bool | None, date: str) -> str:
        try:
            return self._render(_messages(QUESTION, system), thinking, date)
        except Exception as error:
            reason = f"{self._name} refuses a system turn ({first_line(error)})"
            message = f"data.system={system!r}: {reason}; leave it null"
            raise UserError(message) from error

    def reads_date(self, data: Data) -> bool:
        """Whether the date is in the prompt."""
        question = _messages(QUESTION, data.system)
        # Other years, months, days and weekdays.
        dates = ("2001-02-03", "2014-11-22")
        return len({self._tried(question, data.thinking, date) for date in dates}) > 1

    def end(self) -> str | None:
        """The first special token after an answer; None where the template writes none."""
        answer = [*_messages(QUESTION, None), {"role": "assistant", "content": MARKER}]
        try:
            rendered = self._render(answer, None, "2001-02-03", add_generation_prompt=False)
        except Exception as error:
            reason = f"{self._name} refuses an answer ({first_line(error)})"
            raise UserError(f"data.end=auto: {reason}; give data.end=TEXT") from error

        tail = rendered.rpartition(MARKER)[2]
        tokens = self._tokenizer.convert_ids_to_tokens(sorted(self._special))
        longest_first = sorted(map(re.escape, tokens), key=len, reverse=True)
        match = re.search("|".join(longest_first), tail)
        return match.group() if match and match.group() else None

    def _render(
        self,
        messages: Sequence[dict[str, str]],
        thinking: bool | None,
        date: str,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        options = {} if thinking is None else dict.fromkeys(THINKING_NAMES, thinking)

        rendered = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=_with_date(self._text, date),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **options,
        )
        return str(rendered)


# One for each date, however many prompts.
@lru_cache(maxsize=64)
def _with_date(template: str, date: str) -> str:
    """A template that sees a date where it reads the clock.

    transformers passes no functions to a template, so that a macro stands for its strftime_now.
    """
    if CLOCK not in template:
        return template

    day = datetime.datetime.fromisoformat(date)
    # Those of the whole template, as a format may be put together from several texts.
    codes = sorted(set(DATE_CODE.findall(template)))
    replacements = "".join(f" | replace('{code}', '{day:{code}}')" for code in codes)
    macro = f"{{% macro {CLOCK}(format) %}}{{{{ format{replacements} }}}}{{% endmacro %}}"
    # A line feed after a block is dropped, which the template's first must not be.
    return f"{macro}{{{{ '' }}}}{template}"


def _messages(turns: Turns, system: str | None) -> list[dict[str, str]]:
    """Turns as transformers takes them."""
    return [{"role": role, "content": content} for role, content in with_system(turns, system)]


def with_system(turns: Turns, system: str | None) -> Turns:
    """Turns in which a system turn that is given takes the place of theirs.

    Args:
        turns: of the data.
        system: `data.system`; None: theirs stays.
    """
    if system is None:
        return turns
    without_system = [turn for turn in turns if turn[0] != "system"]
    return (("system", system), *without_system)

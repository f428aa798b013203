"""From the rows of a file to facts: which keys hold prompt and target, and what they may hold."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pml_cli.data.facts_file import Number, Row
from pml_cli.data.question_keys import neighbours_of, variants_of
from pml_cli.data.row_values import PRINTABLE, key_list, override, printable, text_of, written_key
from pml_cli.data.source import Neighbour
from pml_cli.errors import UserError, did_you_mean

# Names of the prompt and of the target, those that count first in front. `matching` is the paper's
# name of a long text, `src` and `target_new` are those of collections of edits (zsRE).
PROMPT_KEYS = ("question", "query", "prompt", "instruction", "input", "src")
TARGET_KEYS = (
    "matching",
    "target",
    "answer",
    "answers",
    "completion",
    "response",
    "output",
    "target_new",
)
LONG_TEXT = "matching"

# What a prompt goes on with, where it is not empty, by the name of the prompt.
CONTEXT_KEYS = {"instruction": ("input", "context")}
SYSTEM_KEYS = ("system", "system_prompt")

# What a question is often asked about; where it is not used, that is said.
BESIDE_KEYS = (
    "context",
    "input",
    "passage",
    "document",
    "schema",
    *SYSTEM_KEYS,
    "tools",
)

# Lists of turns, of which the last answer is the target.
CHAT_KEYS = ("messages", "conversations", "conversation")

# Running text: no fact.
TEXT_KEYS = ("text", "content", "document")

# Names that some files have for the roles of chat templates.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
ANSWERING = "assistant"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact of a file."""

    where: str
    """Its place in the file: `line 3`."""

    turns: tuple[tuple[str, str], ...]
    """(role, content) of the prompt; of a plain question ("user", question) alone."""

    target: str

    variants: tuple[str, ...] = ()
    """The last turn in other words."""

    neighbours: tuple[Neighbour, ...] = ()
    """Questions whose answers must not change."""

    @property
    def is_question(self) -> bool:
        """Whether its prompt is one question, which can do without a chat template."""
        return [role for role, _ in self.turns] == ["user"]

    @property
    def is_parted(self) -> bool:
        """Whether white space stands between its question and its target."""
        question = self.turns[-1][1]
        return question[-1:].isspace() or self.target[0].isspace()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of a file."""

    facts: list[Fact]

    keys: str
    """The keys that they were taken from: `question/answer`."""

    is_long: bool
    """Whether they are long texts, of which the last one may be cut."""

    notes: list[str]
    """What was decided about values that are no plain text, a line each."""


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Where the facts of a file lie; a conversation has no target of its own."""

    prompt: str
    target: str = ""
    context: tuple[str, ...] = ()
    """Names of what the prompt goes on with, in rows that have it."""
    system: tuple[str, ...] = ()
    """Names of a system turn, likewise."""

    def __str__(self) -> str:
        return f"{self.prompt}/{self.target}" if self.target else self.prompt


def facts_of(
    rows: Sequence[Row], prompt_key: str | None = None, target_key: str | None = None
) -> Facts:
    """The facts of rows, by known names of keys or by those given.

    Args:
        rows: from `read_rows`.
        prompt_key: `data.prompt_key`; None: by name.
        target_key: `data.target_key`; None: by name.

    Raises:
        UserError: no such keys, rows of different kinds, a value that is no text or empty; without
            the name of the file.
    """
    finder = _KeyFinder(prompt_key, target_key)
    keys = finder.find(rows[0])
    counts: Counter[str] = Counter()

    facts = []
    for row in rows:
        if not finder.has(row, keys):
            other_keys = finder.find(row)
            raise UserError(
                f"{row.where} has {other_keys}, {rows[0].where} {keys}: all rows need the same keys"
            )
        fact = _fact(row, keys, counts)
        facts.append(_with_questions(row, keys, fact, counts))

    notes = [f"{text} ({count} of {len(facts)})" for text, count in counts.items()]
    return Facts(facts=facts, keys=str(keys), is_long=keys.target == LONG_TEXT, notes=notes)


class _KeyFinder:
    """Finds the keys of a row: given ones, or known names."""

    def __init__(self, prompt_key: str | None, target_key: str | None) -> None:
        self._prompt_key = prompt_key
        self._target_key = target_key

    def has(self, row: Row, keys: _Keys) -> bool:
        """Whether a row has the keys of the rows before."""
        names = [keys.prompt, keys.target] if keys.target else [keys.prompt]
        return all(_lookup(row.fields, name) is not _ABSENT for name in names)

    def find(self, row: Row) -> _Keys:
        """The keys of prompt and target in a row.

        Raises:
            UserError: names the keys that there are, and the setting to give.
        """
        for setting in ("prompt_key", "target_key"):
            key = getattr(self, f"_{setting}")
            if key is not None and _lookup(row.fields, key) is _ABSENT:
                _check_header(row)
                names = map(printable, _paths(row.fields))
                near = did_you_mean(key, names).replace("allowed:", "keys found:")
                raise UserError(f"{row.where} has no {key!r} (data.{setting}); {near}")

        prompt = self._prompt_key or self._known(row, PROMPT_KEYS)
        target = self._target_key or self._known(row, TARGET_KEYS)
        if prompt and target:
            return self._pair(row, prompt, target)
        chat = self._conversation(row)
        if chat:
            return _Keys(prompt=chat, system=self._system_names)
        _check_header(row)
        raise UserError(f"{row.where} {self._what_is_missing(row, prompt, target)}")

    def _known(self, row: Row, names: Sequence[str]) -> str | None:
        """The first of some names that the row has, as the row writes it.

        Raises:
            UserError: it is written in two ways there.
        """
        key = written_key(row.fields, names, taken=(self._prompt_key, self._target_key))
        spellings = [name for name in row.fields if key and _plain(name) == _plain(key)]
        if len(spellings) > 1:
            ways = " and ".join(map(printable, spellings))
            raise UserError(f"{row.where} has {ways}; name one: data.prompt_key, data.target_key")
        return key

    def _pair(self, row: Row, prompt: str, target: str) -> _Keys:
        # Whoever names the prompt means that value alone.
        is_named = self._prompt_key is not None
        context = () if is_named else CONTEXT_KEYS.get(prompt.strip().lower(), ())
        return _Keys(prompt=prompt, target=target, context=context, system=self._system_names)

    @property
    def _system_names(self) -> tuple[str, ...]:
        """Names of a system turn beside the prompt."""
        return SYSTEM_KEYS if self._prompt_key is None else ()

    def _conversation(self, row: Row) -> str | None:
        """The key of a list of turns."""
        if self._target_key is not None:
            return None
        key = self._prompt_key or self._known(row, CHAT_KEYS)
        return key if key and _is_conversation(_lookup(row.fields, key)) else None

    def _what_is_missing(self, row: Row, prompt: str | None, target: str | None) -> str:
        """What a row lacks, the keys that it has, and the settings that would name the right."""
        paths = _paths(row.fields)
        keys_found = f"keys found: {key_list(paths) or 'none'}"
        # Texts, where there are any: numbers and lists are rarely meant.
        unused = [path for path in paths if path not in (prompt, target)]
        candidates = [path for path in unused if type(_lookup(row.fields, path)) is str] or unused

        if prompt is None and target is None:
            chat = self._known(row, CHAT_KEYS)
            if chat is not None:
                return f"has {printable(chat)} that are not a list of {{role, content}} objects"
            if {key.strip().lower() for key in row.fields} & set(TEXT_KEYS):
                return (
                    f"is running text, not a prompt and target ({keys_found}); "
                    "use data=text or data=hf"
                )
            first, second = candidates if len(candidates) == 2 else ("KEY", "KEY")
            flags = f"{override('prompt_key', first)} {override('target_key', second)}"
            return f"has no prompt and target by a known name; {keys_found}; give {flags}"

        present, missing = ("target", "prompt") if prompt is None else ("prompt", "target")
        flag = override(f"{missing}_key", candidates[0] if candidates else "KEY")
        present_key = f"a {present} ({printable(prompt or target)})"
        return f"has {present_key} and no {missing} by a known name; {keys_found}; give {flag}"


def _check_header(row: Row) -> None:
    """Refuse a table that begins with a fact: as the names of columns it would not be learned.

    Raises:
        UserError: shows the header that seems to be missing.
    """
    reason = row.missing_header()
    if reason:
        raise UserError(reason)


def _fact(row: Row, keys: _Keys, counts: Counter[str]) -> Fact:
    """The fact of a row; what was decided about its values is counted."""
    prompt = _lookup(row.fields, keys.prompt)
    _count_unused(row, keys, counts)
    if not keys.target:
        return _conversation_fact(row, keys, prompt, counts)

    target = _target_text(row, keys.target, counts)
    if _is_conversation(prompt):
        return Fact(where=row.where, turns=tuple(_turns(row, keys.prompt, prompt)), target=target)

    question = text_of(row, keys.prompt, prompt)
    if not question.strip():
        counts[f"{printable(keys.prompt)} is empty"] += 1
    context = _optional_text(row, keys, keys.context)
    if context:
        question = f"{question}\n{context}"
    turns = _with_system(row, keys, [("user", question)])
    return Fact(where=row.where, turns=tuple(turns), target=target)


def _count_unused(row: Row, keys: _Keys, counts: Counter[str]) -> None:
    """Count what stands beside a fact, may decide its answer, and is not learned with it."""
    used = {_plain(keys.prompt), _plain(keys.target)}
    is_conversation = _is_conversation(_lookup(row.fields, keys.prompt))
    if not is_conversation:
        used.update(keys.system, keys.context)
    # One whose last turn is the target; see `_conversation_fact`.
    elif not keys.target:
        used.update(keys.system)

    for key, value in row.fields.items():
        is_known = _plain(key) in BESIDE_KEYS and _plain(key) not in used
        if is_known and value not in (None, "", [], {}):
            counts[f"{printable(key)} is not used"] += 1


def _plain(key: str) -> str:
    return key.strip().lower()


def _with_questions(row: Row, keys: _Keys, fact: Fact, counts: Counter[str]) -> Fact:
    """A fact with the questions of its row that are asked of a trained adapter."""
    taken = (keys.prompt, keys.target)
    variants = variants_of(row, taken)
    neighbours = neighbours_of(row, taken)
    if variants:
        counts["paraphrases: never trained, `pml memorize` asks them"] += 1
        context = _optional_text(row, keys, keys.context)
        if context:
            variants = tuple(f"{variant}\n{context}" for variant in variants)
    if neighbours:
        counts["neighbours: never trained, `pml memorize` asks whether their answers stay"] += 1
    return dataclasses.replace(fact, variants=variants, neighbours=neighbours)


def _with_system(
    row: Row, keys: _Keys, turns: Sequence[tuple[str, str]]
) -> Sequence[tuple[str, str]]:
    """The turns behind the system turn that stands beside them, if there is one."""
    system = _optional_text(row, keys, keys.system)
    if system and turns[0][0] != "system":
        return [("system", system), *turns]
    return turns


def _optional_text(row: Row, keys: _Keys, names: Sequence[str]) -> str:
    """The text of the first of some names that the row has; empty where it has none, or null."""
    key = written_key(row.fields, names, taken=(keys.prompt, keys.target))
    value = None if key is None else row.fields[key]
    text = "" if key is None or value is None else text_of(row, key, value)
    return text if text.strip() else ""


def _target_text(row: Row, key: str, counts: Counter[str]) -> str:
    value = _lookup(row.fields, key)
    # TRL writes an answer as a list of one turn.
    if _is_conversation(value):
        value = _turns(row, key, value)[-1][1]
    if isinstance(value, list):
        if not value:
            raise UserError(f"{row.where}: {printable(key)} is an empty list")
        counts[f"{printable(key)} is a list: its first entry is the target"] += 1
        value = value[0]
        key = f"{key}.0"

    if isinstance(value, (Number, *PRINTABLE)):
        counts[f"{printable(key)} is no text: the target is what the file shows"] += 1
    text = text_of(row, key, value, "target_key")
    if not text:
        raise UserError(f"{row.where}: {printable(key)} is empty")
    return text


def _conversation_fact(row: Row, keys: _Keys, value: Any, counts: Counter[str]) -> Fact:
    key = keys.prompt
    if not _is_conversation(value):
        raise UserError(f"{row.where}: {printable(key)} is not a list of {{role, content}} objects")
    turns = _turns(row, key, value)
    answers = [index for index, (role, _) in enumerate(turns) if role == ANSWERING]
    if not answers:
        roles = ", ".join(role for role, _ in turns)
        raise UserError(f"{row.where}: {printable(key)} has no turn of an assistant ({roles})")

    last = answers[-1]
    if last == 0:
        raise UserError(f"{row.where}: {printable(key)} has no turn before the assistant's")
    if last < len(turns) - 1:
        counts[f"{printable(key)} goes on after its last answer: those turns are left out"] += 1
    target = turns[last][1]
    if not target:
        raise UserError(f"{row.where}: the last answer of {printable(key)} is empty")
    prompt = _with_system(row, keys, turns[:last])
    return Fact(where=row.where, turns=tuple(prompt), target=target)


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of turns, of OpenAI's keys or ShareGPT's."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)


def _turns(row: Row, key: str, value: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(role, content) of every turn."""
    turns = []
    for number, turn in enumerate(value, 1):
        label = f"{printable(key)}, turn {number}"
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str):
            raise UserError(f"{row.where}: {label} has no role")
        # A chat template would write them into the prompt.
        if turn.get("tool_calls"):
            raise UserError(f"{row.where}: {label} has tool_calls, which pml does not support")

        content = turn.get("content", turn.get("value"))
        role = role.lower()
        turns.append((ROLES.get(role, role), _content_text(row, label, content)))
    return turns


def _content_text(row: Row, place: str, content: Any) -> str:
    """The text of a turn; of one in parts, OpenAI's form for texts and images, theirs."""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict) and part.get("text") is None:
            kind = printable(part.get("type", "an object"))
            raise UserError(f"{row.where}: {place} has a part that is not text ({kind})")
        texts.append(text_of(row, place, part["text"] if isinstance(part, dict) else part))
    return "".join(texts)


def _paths(fields: Mapping[str, Any]) -> list[str]:
    """The keys of a row, those of objects inside as paths: `answer.text`."""
    paths = []
    for key, value in fields.items():
        inner = _paths(value) if isinstance(value, Mapping) and value else []
        paths += [f"{key}.{path}" for path in inner] or [key]
    return paths


_ABSENT = object()
DIGITS = re.compile("[0-9]+")


def _lookup(fields: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or of a path such as `answers.text` and `answers.0`; else `_ABSENT`."""
    if key in fields:
        return fields[key]

    value: Any = fields
    for name in key.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and DIGITS.fullmatch(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return _ABSENT
    return value

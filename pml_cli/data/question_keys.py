"""Questions that a row holds beside its fact: paraphrases, and neighbours of other answers.

They are asked of a trained adapter, and never trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pml_cli.data.facts_file import PARSING, Row
from pml_cli.data.row_values import key_list, printable, text_of, written_key
from pml_cli.data.source import Neighbour
from pml_cli.errors import UserError
from pml_cli.validation import shallow

# Names of paraphrases; the last ones are those of collections of edits (zsRE, CounterFact).
VARIANT_KEYS = (
    "variants",
    "paraphrases",
    "paraphrase",
    "rephrased",
    "rephrase",
    "rephrases",
    "rephrase_prompt",
    "rephrase_prompts",
    "paraphrase_prompts",
)

# Names of questions whose answers must not change, likewise.
NEIGHBOUR_KEYS = ("neighbours", "neighbors", "neighborhood_prompts")

# Where a text may be the name of a place.
NESTED_NEIGHBOUR_KEYS = ("locality",)

# A question of zsRE's rows, with its answer beside it: else `loc` may be the name of a place.
ZSRE_QUESTION = "loc"
ZSRE_ANSWER = "loc_ans"
ZSRE_PREFIX = "nq question: "

# Of one question, where it is an object.
QUESTION_KEYS = ("question", "query", "prompt", "src")
ANSWER_KEYS = ("answer", "answers", "target", "ground_truth", "completion", "response")

Taken = Sequence[str | None]
"""Keys of the fact itself."""


def variants_of(row: Row, taken: Taken) -> tuple[str, ...]:
    """The paraphrases of a row's question; none where it has no such key, or null.

    Raises:
        UserError: an entry that is no text, or empty.
    """
    key = written_key(row.fields, VARIANT_KEYS, taken)
    if key is None:
        return ()
    questions = _questions(row, key, row.fields[key])
    return tuple(dict.fromkeys(question for question, _ in questions))


def neighbours_of(row: Row, taken: Taken) -> tuple[Neighbour, ...]:
    """The questions of a row whose answers must not change, as `variants_of`.

    Raises:
        UserError: an entry that is no question, nor a question with its answer.
    """
    key = written_key(row.fields, NEIGHBOUR_KEYS, taken)
    if key is None:
        key = written_key(row.fields, NESTED_NEIGHBOUR_KEYS, taken)
        if key is not None and not isinstance(_parsed(row.fields[key]), (list, Mapping)):
            key = None
    if key is not None:
        return tuple(dict.fromkeys(_questions(row, key, row.fields[key])))
    return _zsre_neighbours(row, taken)


def _zsre_neighbours(row: Row, taken: Taken) -> tuple[Neighbour, ...]:
    question = written_key(row.fields, [ZSRE_QUESTION], taken)
    answer = written_key(row.fields, [ZSRE_ANSWER], taken)
    if question is None or answer is None or not row.fields[question]:
        return ()
    text = text_of(row, question, row.fields[question], None).removeprefix(ZSRE_PREFIX)
    return (Neighbour(text, _answer(row, answer, row.fields[answer])),)


def _questions(row: Row, key: str, value: Any) -> Iterator[Neighbour]:
    """The questions of a value: a text, a list, an object, or a JSON list in a table's cell."""
    value = _parsed(value)
    if value is None or value == "":
        return

    if isinstance(value, Mapping):
        yield from _of_object(row, key, value)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _of_entry(row, f"{key}.{number}", entry)
    else:
        yield Neighbour(_question(row, key, value))


def _parsed(value: Any) -> Any:
    """A value; of a table's cell that holds a JSON list or object, what it holds."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text.startswith(("[", "{")):
        return text
    try:
        return shallow(json.loads(text, **PARSING))
    # A question may begin so, too.
    except (ValueError, RecursionError):
        return text


def _of_entry(row: Row, key: str, entry: Any) -> Iterator[Neighbour]:
    """One entry of a list: a question, [question, answer], or an object."""
    if isinstance(entry, Mapping):
        yield from _of_object(row, key, entry)
    elif not isinstance(entry, list):
        yield Neighbour(_question(row, key, entry))
    elif len(entry) == 2:
        question, answer = entry
        yield Neighbour(_question(row, f"{key}.0", question), _answer(row, f"{key}.1", answer))
    else:
        reason = f"is a list of {len(entry)}, not a question or [question, answer]"
        raise UserError(f"{row.where}: {printable(key)} {reason}")


def _of_object(row: Row, key: str, value: Mapping[str, Any]) -> Iterator[Neighbour]:
    """A question with its answer, or such objects by the name of their kind (EasyEdit)."""
    question_key = written_key(value, QUESTION_KEYS, ())
    if question_key is None:
        kinds = [inner for inner in value.values() if isinstance(inner, (list, Mapping))]
        if not kinds:
            names = key_list(value) or "no keys"
            raise UserError(
                f"{row.where}: {printable(key)} is an object without a question ({names})"
            )
        for name, inner in value.items():
            yield from _questions(row, f"{key}.{name}", inner)
        return

    answer_key = written_key(value, ANSWER_KEYS, (question_key,))
    answer = None
    if answer_key is not None:
        answer = _answer(row, f"{key}.{answer_key}", value[answer_key])
    yield Neighbour(_question(row, f"{key}.{question_key}", value[question_key]), answer)


def _question(row: Row, key: str, value: Any) -> str:
    text = text_of(row, key, value, None)
    if not text.strip():
        raise UserError(f"{row.where}: {printable(key)} is empty")
    return text


def _answer(row: Row, key: str, value: Any) -> str | None:
    """The answer of a question; of several the first, None where there is none."""
    while isinstance(value, list):
        value = value[0] if value else None
    return None if value is None else text_of(row, key, value, None)

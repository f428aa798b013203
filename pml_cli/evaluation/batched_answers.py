"""Questions to the script of an adapter's README.md, several in one call of `generate`.

The source of this file runs behind the script, in its process, without pml: it imports nothing but
the standard library and torch. The script's own `answer` asks and reads; only its
`model.generate` is answered from batches, of prompts of one length, so that nothing is padded.

Rounding may differ in a batch. So some answers of batches are compared with those of one at a
time, and where one differs there are no batches any more; what is not the target in a batch is
asked again alone.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

# Stands before every answer: the script itself prints one, of any number of lines.
SEPARATOR = "\x1e"

# Questions of a batch, and its tokens, at most.
MAX_QUESTIONS = 16
MAX_TOKENS = 4096

# Batches of which one question is asked alone, too.
COMPARED = 4


class _AskedError(Exception):
    """Ends the script's `answer` once its prompt is known."""


class BatchedModel:
    """Stands in for the model of the script.

    Attributes:
        model: the script's.
        known: what `generate` gives; None: it ends `answer`.
        prompt: of the last call of `generate`.
    """

    def __init__(self, model: Any) -> None:
        """
        Args:
            model: the script's.
        """
        self.model = model
        self.known: Any = None
        self.prompt: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def generate(self, **prompt: Any) -> Any:
        """`generate` of transformers for one prompt."""
        self.prompt = prompt
        if self.known is None:
            raise _AskedError
        return self.known

    def together(self, prompts: Sequence[dict[str, Any]]) -> list[Any]:
        """What `generate` gives for each of some prompts of one length."""
        import torch

        names = prompts[0].keys()
        batch = {name: torch.cat([prompt[name] for prompt in prompts]) for name in names}
        rows = self.model.generate(**batch)
        first = batch["input_ids"].shape[1]
        return [self._without_filling(row, first)[None] for row in rows]

    def _without_filling(self, row: Any, first: int) -> Any:
        """One row of a batch up to the end of its answer, which begins at `first`."""
        end = self.model.generation_config.eos_token_id
        if end is None:
            return row
        ends = (row[first:] == end).nonzero()
        return row[: first + int(ends[0]) + 1] if len(ends) else row


class Asker:
    """Asks a script's questions.

    Attributes:
        trusted: whether no answer of a batch has differed from that of its question alone.
    """

    def __init__(self, script: dict[str, Any], rows: Sequence[Sequence[Any]]) -> None:
        """
        Args:
            script: its variables, `model` and `answer` among them.
            rows: each a question, its target, and whether an answer must end with it.
        """
        self.trusted = True
        self._script = script
        self._rows = rows
        self._model = BatchedModel(script.get("model"))

    def answers(self) -> Iterator[tuple[int, Any]]:
        """The index of each question, in the order in which they are asked, and its answer."""
        for number, indices in enumerate(self._batches()):
            if len(indices) == 1 or not self.trusted:
                yield from ((index, self._alone(index)) for index in indices)
                continue

            answers = self._together(indices)
            if number < COMPARED:
                self.trusted = answers[0] == self._alone(indices[0])
            for index, answer in zip(indices, answers, strict=True):
                is_whole = self.trusted and self._is_whole(index, answer)
                yield index, answer if is_whole else self._alone(index)

    def _batches(self) -> Iterator[list[int]]:
        """Indices of the questions that are asked together, the most of a kind first."""
        by_kind: dict[tuple[Any, ...], list[int]] = {}
        for index in range(len(self._rows)):
            by_kind.setdefault(self._kind(index), []).append(index)

        for (length, *_), indices in sorted(by_kind.items(), key=lambda item: -len(item[1])):
            size = 1
            if length is not None:
                tokens = length + self._model.generation_config.max_new_tokens
                size = max(1, min(MAX_QUESTIONS, MAX_TOKENS // tokens))
            for start in range(0, len(indices), size):
                yield indices[start : start + size]

    def _kind(self, index: int) -> tuple[Any, ...]:
        """What prompts of a batch have in common: length and names; no length: asked alone."""
        if self._model.model is None:
            return (None,)
        prompt = self._prompt(index)
        # Such as the texts that end an answer.
        if not all(hasattr(value, "shape") for value in prompt.values()):
            return (None,)
        return (prompt["input_ids"].shape[1], *sorted(prompt))

    def _prompt(self, index: int) -> dict[str, Any]:
        """What the script gives to `generate`."""
        self._script["model"] = self._model
        self._model.known = None
        try:
            self._script["answer"](self._rows[index][0])
        except _AskedError:
            return self._model.prompt
        raise ValueError("the script generates nothing")

    def _together(self, indices: Sequence[int]) -> list[Any]:
        outputs = self._model.together([self._prompt(index) for index in indices])
        answers = []
        for index, output in zip(indices, outputs, strict=True):
            self._model.known = output
            answers.append(self._script["answer"](self._rows[index][0]))
        return answers

    def _alone(self, index: int) -> Any:
        self._script["model"] = self._model.model
        return self._script["answer"](self._rows[index][0])

    def _is_whole(self, index: int, answer: Any) -> bool:
        _, target, must_end = self._rows[index]
        return bool(answer == target if must_end else answer[: len(target)] == target)


def print_answers(script: dict[str, Any]) -> None:
    """Read the rows of `Asker` from the lines of standard input, and print the answers."""
    rows = [json.loads(line) for line in sys.stdin]
    for indexed in Asker(script, rows).answers():
        sys.stdout.write(f"{SEPARATOR}{json.dumps(indexed)}\n")
        # What was answered before the process is stopped counts.
        sys.stdout.flush()

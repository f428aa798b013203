"""data=jsonl: the user's samples, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pml_cli.config.registry import register
from pml_cli.config.schema import FactsData, Model
from pml_cli.config.setting import setting
from pml_cli.errors import UserError

if TYPE_CHECKING:
    from pml_cli.data.source import Sample, Source
    from pml_cli.model.tokenizer import Tokenizer

# Names of prompt and target: of long texts, of short facts.
FIELDS = (("question", "matching"), ("query", "target"))

# Random stream of the order in which a seed takes the lines.
ORDER_STREAM = 8


@register("data", "jsonl")
@dataclass(kw_only=True)
class JsonlData(FactsData):
    """A JSON-lines file with question/matching (long texts) or query/target (short facts)."""

    # A clean seam: no tokenizer merges a line feed with what follows it in an answer.
    default_separator: ClassVar[str] = "\n"

    source: str = "jsonl"
    path: str = setting(
        "",
        help="JSON-lines file",
        required=True,
        allowed="given with data=jsonl",
        path="existing file",
    )

    def open(self, model: Model) -> Source:
        """Open the file in its own order, or in one drawn by the seed where that is not 0.

        Raises:
            UserError: the file cannot be read, or a line is malformed (with its number).
        """
        import numpy as np

        from pml_cli.data.facts import facts_source
        from pml_cli.model.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(model)
        pairs, is_long = _read_pairs(self.path)
        # Seed 0 keeps the order of the file.
        if self.seed:
            random = np.random.default_rng([self.seed, ORDER_STREAM])
            pairs = [pairs[i] for i in random.permutation(len(pairs))]

        if is_long:
            return _long_texts(tokenizer, self, pairs)
        return facts_source(tokenizer, self, pairs)


def _read_pairs(path: str) -> tuple[list[tuple[str, str]], bool]:
    """The (prompt, target) pairs of a file, and whether they are long texts."""
    from pml_cli.data.text_file import read_text

    pairs = []
    target_fields = set()
    # Not splitlines(), which also splits at line ends that JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            prompt, target, field = _parse_line(path, number, line)
            pairs.append((prompt, target))
            target_fields.add(field)

    if len(target_fields) > 1:
        raise UserError(f"data.path={path}: mixes question/matching and query/target lines")
    return pairs, target_fields == {"matching"}


def _parse_line(path: str, number: int, line: str) -> tuple[str, str, str]:
    """Prompt, target, and the name of the target's field."""
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise UserError(f"data.path={path}: line {number} is not JSON ({reason})") from error
    except ValueError as error:
        raise UserError(f"data.path={path}: line {number} is not JSON ({error})") from error

    for prompt_field, target_field in FIELDS:
        if not isinstance(row, dict):
            break
        prompt, target = row.get(prompt_field), row.get(target_field)
        if isinstance(prompt, str) and isinstance(target, str):
            if not target:
                raise UserError(f"data.path={path}: line {number}: {target_field!r} is empty")
            return prompt, target, target_field
    raise UserError(
        f"data.path={path}: line {number} has neither question/matching nor query/target as text"
    )


def _long_texts(tokenizer: Tokenizer, data: JsonlData, pairs: Sequence[tuple[str, str]]) -> Source:
    """Long texts, one after the other; the last one is cut to the length."""
    from pml_cli.data.facts import cut_sample, encode_fact
    from pml_cli.data.source import Source

    samples = [encode_fact(tokenizer, data, prompt, target) for prompt, target in pairs]

    def cut(seqlen: int) -> list[Sample]:
        chosen: list[Sample] = []
        remaining = seqlen
        for sample in samples:
            if remaining <= 0:
                break
            chosen.append(cut_sample(sample, remaining))
            remaining -= len(sample.target)
        return chosen

    total = sum(len(sample.target) for sample in samples)
    return Source(cut=cut, max_tokens=total)

"""A source of one long text, read from a paragraph on and round to its beginning."""

from __future__ import annotations

import difflib
import re

import numpy as np
from numpy.typing import NDArray

from pml_cli.data.source import Sample, Source
from pml_cli.errors import UserError
from pml_cli.model.tokenizer import Tokenizer

# Where a text may begin, best first: paragraphs, lines, sentences, words.
SEPARATORS = ("\n\n", "\n", ". ", " ")

# A text with fewer of one kind is split at the next kind.
MIN_SEPARATORS = 4

# Lines in which a phrase that is not in the text is looked for.
MAX_LINES = 20_000

# Random stream of the paragraph at which a seed begins.
START_STREAM = 4

# Seeds up to this one begin apart from each other: far more than anyone repeats.
MOST_APART = 200


def running_text_source(
    tokenizer: Tokenizer, text: str, *, prompt: tuple[int, ...], seed: int
) -> Source:
    """Open a text as one target sequence.

    Held-out samples are taken from the middle of the text on.

    Args:
        tokenizer: of the model.
        text: the whole text.
        prompt: token ids before the target.
        seed: draws the paragraph at which the target begins; 0: the first.

    Raises:
        UserError: the text has no tokens.
    """
    target = tuple(tokenizer.encode(_rotated(text, seed)))
    if not target:
        raise UserError("data: the source holds no text")
    middle = len(target) // 2

    def cut(seqlen: int) -> list[Sample]:
        return [Sample(prompt=prompt, target=target[:seqlen])]

    def held_out(seqlen: int) -> list[Sample]:
        # A longer one would share tokens with the target.
        if seqlen > middle:
            return []
        return [Sample(prompt=prompt, target=target[middle : middle + seqlen])]

    return Source(cut=cut, max_tokens=len(target), held_out=held_out)


def from_phrase(text: str, phrase: str) -> str:
    """The text from the first place on at which a phrase stands; lines may break between its words.

    Args:
        text: the whole text.
        phrase: words of it; without any, the text is left whole.

    Raises:
        UserError: they are not in the text.
    """
    escaped_words = [re.escape(word) for word in phrase.split()]
    if not escaped_words:
        return text
    pattern = r"\s+".join(escaped_words)
    match = re.search(pattern, text)
    if match is not None:
        return text[match.start() :]

    other_case = re.search(pattern, text, re.IGNORECASE)
    near = other_case[0] if other_case else _nearest_line(text, phrase)
    hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(f"data.start={phrase!r}: not in this text{hint}")


def _nearest_line(text: str, phrase: str) -> str:
    """The beginning of the line that is most like a phrase; empty where none is."""
    lines = text.split("\n", MAX_LINES)[:MAX_LINES]
    beginnings = {line.strip()[: len(phrase)] for line in lines}
    return next(iter(difflib.get_close_matches(phrase, beginnings, n=1)), "")


def _rotated(text: str, seed: int) -> str:
    """The text from the paragraph of a seed to its end, then from its beginning."""
    if seed == 0:
        return text

    separator = " "
    for candidate in SEPARATORS:
        if text.count(candidate) >= MIN_SEPARATORS:
            separator = candidate
            break

    paragraphs = text.split(separator)
    lengths = [len(paragraph) + len(separator) for paragraph in paragraphs]
    start = _start(np.array(lengths), seed)
    return separator.join(paragraphs[start:] + paragraphs[:start])


def _start(lengths: NDArray[np.intp], seed: int) -> int:
    """The paragraph at which a seed begins, away from those of the seeds below it.

    Two texts that begin near each other share most of their tokens, and would count as independent
    repeats. So a seed that is drawn nearer to one before it than a third of an equal share of the
    text is drawn again, among the paragraphs that are not. Where there is none, it stays.

    Args:
        lengths: (P,) characters of each paragraph.
    """
    ends = np.cumsum(lengths)
    begins = ends - lengths
    total = ends[-1]

    starts = [0]
    for earlier in range(1, min(seed, MOST_APART) + 1):
        random = np.random.default_rng([earlier, START_STREAM])
        start = int(random.integers(len(lengths)))

        distance = np.abs(begins[:, None] - begins[starts])
        # The text goes on at its beginning.
        distance = np.minimum(distance, total - distance)
        apart = distance.min(axis=1) >= total / (3 * (earlier + 1))
        if apart.any() and not apart[start]:
            start = int(random.choice(np.flatnonzero(apart)))
        starts.append(start)

    if seed <= MOST_APART:
        return starts[seed]
    return int(np.random.default_rng([seed, START_STREAM]).integers(len(lengths)))

"""Generic text that ships with pml: on it `loss.keep` holds an adapter down, and harm is measured.

Four kinds of text, each in two parts of different authors and subjects: `keep` is what a penalty
may read, `held_out` what forgetting is measured on. Without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from pml_cli.config.cache_key import CacheKey, file_cache
from pml_cli.config.schema import Data, Model, Run
from pml_cli.data.opened import samples_of
from pml_cli.data.source import Sample
from pml_cli.data.windows import WINDOW, Pool, string_pool, text_pool, trained_targets
from pml_cli.errors import UserError
from pml_cli.model.chat_template import Turns
from pml_cli.model.tokenizer import Tokenizer

T = TypeVar("T")

FOLDER = Path(__file__).parent / "generic"

KINDS = ("prose", "docs", "code", "chat")
PARTS = ("keep", "held_out")

# Of `WINDOW` tokens each: some eight thousand inputs, several times the width of a small model.
MAX_WINDOWS = 32

# Of the beginnings that a model continues for its own text: how many a kind, and tokens of each.
BEGINNINGS = 3
BEGINNING = 16

# What begins a question and its answer in the files of `chat`.
QUESTION = "Q: "
ANSWER = "A: "

Dialogue: TypeAlias = list[tuple[str, str]]
"""Questions, each with its answer."""


@lru_cache(maxsize=64)
def generic_text(kind: str, part: str) -> str:
    """A text that ships with pml.

    Args:
        kind: one of KINDS.
        part: one of PARTS.
    """
    return (FOLDER / f"{kind}.{part}.txt").read_text("utf-8")


def dialogues(part: str) -> list[Dialogue]:
    """The dialogues of kind `chat`.

    Args:
        part: one of PARTS.
    """
    found = []
    for block in generic_text("chat", part).strip().split("\n\n"):
        lines = block.split("\n")
        questions = [line.removeprefix(QUESTION) for line in lines[::2]]
        answers = [line.removeprefix(ANSWER) for line in lines[1::2]]
        found.append(list(zip(questions, answers, strict=True)))
    return found


@lru_cache(maxsize=1)
def keep_hash() -> str:
    """A hash of all that ships for `loss.keep`, which counts for the run id."""
    texts = [generic_text(kind, "keep") for kind in KINDS]
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def generic_pool(model: Model, kind: str, part: str) -> Pool:
    """The windows of one kind of generic text.

    Args:
        model: whose tokenizer reads it; dialogues are written in its chat template, if it has one.
        kind: one of KINDS.
        part: "keep", which a penalty may read, or "held_out", for measuring alone.
    """
    return _generic_pool(CacheKey(model), kind, part)


@file_cache(64)
def _generic_pool(model: CacheKey, kind: str, part: str) -> Pool:
    def text(tokenizer: Tokenizer) -> str:
        return _chat_text(tokenizer, part) if kind == "chat" else generic_text(kind, part)

    return string_pool(model.value, text)


def beginnings(model: Model) -> list[Sample]:
    """Short prompts from every kind of text, part `held_out`; none without a tokenizer."""
    prompts = []
    for kind in KINDS:
        for window in _spread(generic_pool(model, kind, "held_out").windows, BEGINNINGS):
            ids = (*window.prompt, *window.target[:BEGINNING])
            prompts.append(Sample(prompt=ids, target=()))
    return prompts


def _chat_text(tokenizer: Tokenizer, part: str) -> str:
    """The dialogues in the chat template; as they are where there is none, or it refuses."""
    if not tokenizer.has_template:
        return generic_text("chat", part)
    try:
        return "".join(_in_template(tokenizer, dialogue) for dialogue in dialogues(part))
    except UserError:
        return generic_text("chat", part)


def _in_template(tokenizer: Tokenizer, dialogue: Dialogue) -> str:
    """One dialogue in the chat template, with the end of its last answer."""
    turns: Turns = ()
    for question, answer in dialogue:
        turns = (*turns, ("user", question), ("assistant", answer))
    *before, (_, last_answer) = turns

    data = Data(chat=True)
    end = tokenizer.end_text(data.chat)
    return tokenizer.chat_text(tuple(before), data) + last_answer + end + "\n"


def generic_windows(run: Run) -> tuple[Sample, ...]:
    """Windows of `loss.keep_text` that share nothing with what a run learns.

    None where its loss keeps nothing.

    By default those of part `keep` of every kind, one of each kind after the other. Of a file every
    second window, so that the others are left to measure forgetting.

    Raises:
        UserError: the text cannot be read, or has no such window.
    """
    if not run.loss.keeps:
        return ()

    option = f"loss.keep={run.loss.keep:g}"
    if not run.loss.keep:
        option = f"loss.keep_harm={run.loss.keep_harm:g}"
    text = _text(CacheKey(run.model), run.loss.keep_text)
    if text.reason:
        raise UserError(f"{option}: {text.reason}, which generic text needs")
    windows = _unshared(CacheKey(run.model), CacheKey(run.data), run.seqlen, run.loss.keep_text)
    if not windows:
        reason = "the generic text has no window beside what the run learns"
        raise UserError(f"{option}: {reason}; give another loss.keep_text=FILE")
    return windows


@file_cache(16)
def _text(model: CacheKey, path: str | None) -> Pool:
    """At most `MAX_WINDOWS` of generic text, spread evenly over it."""
    if path is not None:
        pool = text_pool(model.value, path, option="loss.keep_text")
        windows = mixed([pool.windows[::2]])
        return Pool(windows=windows, hash=pool.hash, reason=pool.reason)

    pools = [generic_pool(model.value, kind, "keep") for kind in KINDS]
    windows = mixed([pool.windows for pool in pools])
    return Pool(windows=windows, hash=keep_hash(), reason=pools[0].reason)


def mixed(texts: Sequence[Sequence[T]]) -> tuple[T, ...]:
    """At most `MAX_WINDOWS` windows: as many of each text, one of each in turn.

    Args:
        texts: the windows of each.
    """
    most = MAX_WINDOWS // len(texts)
    by_text = [_spread(windows, most) for windows in texts]
    in_turn = chain.from_iterable(zip_longest(*by_text))
    return tuple(window for window in in_turn if window is not None)


def _spread(windows: Sequence[T], most: int) -> list[T]:
    """At most so many windows, spread evenly over all of them."""
    count = min(len(windows), most)
    if count == 0:
        return []
    positions = np.linspace(0, len(windows) - 1, count).round()
    return [windows[int(i)] for i in positions]


# Cells that differ in rank, loss or seed share their samples.
@file_cache(1024)
def _unshared(model: CacheKey, data: CacheKey, seqlen: int, path: str | None) -> tuple[Sample, ...]:
    run = Run(model=model.value, data=data.value, seqlen=seqlen)
    targets = trained_targets(run, samples_of(run))
    windows = _text(model, path).windows_without(targets, MAX_WINDOWS * WINDOW)
    # Position 0 is left out, so that a single token is no input.
    return tuple(window for window in windows if len(window.target) > 1)

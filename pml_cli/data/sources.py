"""What is to be remembered: prompts and target tokens from each source.

A source is opened once and cut to any length: a longer target always begins with the shorter one, so lengths are prefixes of
one sequence and one pass over the longest serves them all. Only target tokens are scored; the prompt only conditions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pml_cli.config.schema import (
    Data,
    HfData,
    JsonlData,
    MixedData,
    Model,
    PhonebookData,
    RandomData,
    RuleData,
    TextData,
)
from pml_cli.data import python_docs, synthetic_facts
from pml_cli.errors import UserError, first_line
from pml_cli.model.dims import model_dims
from pml_cli.model.files import locate
from pml_cli.model.tokenizer import Tokenizer, open_tokenizer

UNSEEN = 64  # facts of a control, at most


@dataclass(frozen=True)
class Sample:
    """One prompt and the target that must follow it, as token ids."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """An opened source. `cut` makes the samples of a given number of target tokens."""

    limit: int | None  # most target tokens it can give; None: no end
    least: int  # fewest target tokens it can give (whole samples)
    cut: Callable[[int], list[Sample]]
    nats: float | None = None  # entropy of a target token, where the source's distribution is known
    test: list[Sample] = field(
        default_factory=list
    )  # samples of the same rule that are never trained on
    unseen: Callable[[int], list[Sample]] = (
        lambda _: []
    )  # as cut, of the same source, sharing nothing with it; [] for none

    def take(self, seqlen: int) -> list[Sample]:
        """Samples with `seqlen` target tokens in all; fewer where whole samples do not fill it.

        Raises:
            UserError: the source is shorter than that, or its first sample longer.
        """
        if self.limit is not None and seqlen > self.limit:
            raise UserError(f"seqlen={seqlen}: this source has only {self.limit} target tokens")
        if seqlen < self.least:
            raise UserError(
                f"seqlen={seqlen}: the first sample alone has {self.least} target tokens"
            )
        return self.cut(seqlen)


def open_source(model: Model, data: Data) -> Source:
    """Open what `data` names, for the vocabulary of `model`.

    Raises:
        UserError: a file that is missing, empty, not UTF-8 or malformed (with the line), or a model without tokenizer.
    """
    if isinstance(data, RandomData):
        return _random(model, data)
    tokenizer = open_tokenizer(model)
    if isinstance(data, MixedData):  # before TextData: it is one
        return _mixed(tokenizer, data)
    if isinstance(data, TextData):
        return _stream(tokenizer, _text(data), data.prompt, data.chat, data.seed)
    if isinstance(data, PhonebookData):
        return _facts(tokenizer, synthetic_facts.phonebook(data.seed, data.digits), data.chat)
    if isinstance(data, RuleData):
        learn, unseen = synthetic_facts.rule(data.seed, data.maximum, data.test_samples)
        return _facts(tokenizer, learn, data.chat, unseen)
    if isinstance(data, JsonlData):
        return _jsonl(tokenizer, data)
    if isinstance(data, HfData):
        return _stream(tokenizer, _dataset_text(data), data.prompt, data.chat, data.seed)
    raise UserError(f"data={data.source}: no such source")


def check_length(model: Model, data: Data, source: Source, seqlen: int) -> None:
    """Refuse a length that the source or the model's context cannot hold, without building the samples of every length."""
    if source.limit is not None and seqlen > source.limit:
        raise UserError(
            f"seqlen={seqlen}: data={data.source} has only {source.limit} target tokens for model={model.name}"
        )
    context = model_dims(model).context
    if source.limit is None and seqlen > context:  # before ten million random tokens are drawn
        raise UserError(f"seqlen={seqlen}: model={model.name} reads at most {context} tokens")
    longest = max(len(s.prompt) + len(s.target) for s in source.take(seqlen))
    if longest > context:
        raise UserError(
            f"seqlen={seqlen}: with its prompt {longest} tokens, model={model.name} reads at most {context}"
        )


def _random(model: Model, data: RandomData) -> Source:
    bare = model.weights == "random" and model.architecture and not Path(model.path).is_dir()
    if not bare and locate(model, "tokenizer.json"):
        tokenizer = open_tokenizer(model)
        words = np.array(sorted(set(range(tokenizer.size)) - tokenizer.special))
        prompt = tuple(tokenizer.prompt(data.prompt, data.chat))
    elif data.prompt or data.chat:
        raise UserError(
            f"data.prompt={data.prompt!r}, data.chat={data.chat}: model={model.name} has no tokenizer"
        )
    else:  # token 0 stands for begin-of-text
        words, prompt = np.arange(1, model_dims(model).vocabulary), (0,)

    def drawn(seqlen: int, stream: int) -> list[Sample]:
        ids = words[np.random.default_rng([data.seed, stream]).integers(len(words), size=seqlen)]
        return [Sample(prompt, tuple(ids.tolist()))]

    return Source(
        None, 1, lambda n: drawn(n, 1), nats=math.log(len(words)), unseen=lambda n: drawn(n, 5)
    )


def _mixed(tokenizer: Tokenizer, data: MixedData) -> Source:
    text = _stream(tokenizer, _text(data), data.prompt, data.chat, data.seed)
    words = np.array(sorted(set(range(tokenizer.size)) - tokenizer.special))

    def mix(samples: list[Sample], streams: tuple[int, int]) -> list[Sample]:
        which, what = (np.random.default_rng([data.seed, stream]) for stream in streams)
        out = []
        for sample in samples:
            replaced = which.random(len(sample.target)) < data.random_share
            drawn = words[what.integers(len(words), size=len(sample.target))]
            out.append(
                Sample(sample.prompt, tuple(np.where(replaced, drawn, sample.target).tolist()))
            )
        return out

    nats = math.log(len(words)) if data.random_share == 1 else None
    return Source(
        text.limit,
        1,
        lambda n: mix(text.cut(n), (2, 3)),
        nats,
        unseen=lambda n: mix(text.unseen(n), (6, 7)),
    )


def _stream(tokenizer: Tokenizer, text: str, prompt: str, chat: bool, seed: int) -> Source:
    """Running text from a paragraph (or line) drawn by the seed on, then round to its beginning; seed 0: the first."""
    break_ = next(
        (b for b in ("\n\n", "\n", ". ", " ") if text.count(b) >= 4), " "
    )  # where a text may begin
    parts = text.split(break_)
    start = 0 if seed == 0 else int(np.random.default_rng([seed, 4]).integers(len(parts)))
    target = tuple(tokenizer.encode(break_.join(parts[start:] + parts[:start])))
    if not target:
        raise UserError("data: the source holds no text")
    before, half = tuple(tokenizer.prompt(prompt, chat)), len(target) // 2

    def unseen(seqlen: int) -> list[Sample]:
        """From the middle of the text on."""
        return [Sample(before, target[half : half + seqlen])] if seqlen <= half else []

    return Source(len(target), 1, lambda seqlen: [Sample(before, target[:seqlen])], unseen=unseen)


def _facts(
    tokenizer: Tokenizer,
    rows: list[tuple[str, str]],
    chat: bool,
    unseen: list[tuple[str, str]] | None = None,
) -> Source:
    """Short facts, each whole: as many as fit into seqlen target tokens."""
    samples = [_sample(tokenizer, query, target, chat) for query, target in rows]
    ends = np.cumsum([len(s.target) for s in samples])

    def cut(seqlen: int) -> list[Sample]:
        return samples[: int(np.searchsorted(ends, seqlen, side="right"))]

    test = [_sample(tokenizer, q, t, chat) for q, t in unseen or []]

    def others(seqlen: int) -> list[Sample]:
        known = set(cut(seqlen))
        return [sample for sample in test or samples[len(known) :] if sample not in known][:UNSEEN]

    return Source(int(ends[-1]), int(ends[0]), cut, test=test, unseen=others)


def _sample(tokenizer: Tokenizer, query: str, target: str, chat: bool) -> Sample:
    return Sample(tuple(tokenizer.prompt(query, chat)), tuple(tokenizer.encode(target)))


def _texts(tokenizer: Tokenizer, rows: list[tuple[str, str]], chat: bool) -> Source:
    """Long texts, one after the other; the last one is cut to the length."""
    samples = [_sample(tokenizer, question, matching, chat) for question, matching in rows]

    def cut(seqlen: int) -> list[Sample]:
        chosen, left = [], seqlen
        for sample in samples:
            if left > 0:
                chosen.append(Sample(sample.prompt, sample.target[:left]))
                left -= len(sample.target)
        return chosen

    return Source(sum(len(s.target) for s in samples), 1, cut)


def _jsonl(tokenizer: Tokenizer, data: JsonlData) -> Source:
    rows = [
        _row(data.path, n, line)
        for n, line in enumerate(_read(data.path).split("\n"), 1)
        if line.strip()
    ]
    kinds = {kind for kind, _, _ in rows}
    if len(kinds) > 1:
        raise UserError(f"data.path={data.path}: mixes question/matching and query/target lines")
    pairs = [(prompt, target) for _, prompt, target in rows]
    if data.seed:  # 0 keeps the order of the file
        pairs = [pairs[i] for i in np.random.default_rng([data.seed, 8]).permutation(len(pairs))]
    return (_texts if "matching" in kinds else _facts)(tokenizer, pairs, data.chat)


def _row(path: str, number: int, line: str) -> tuple[str, str, str]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        where = (
            f"{error.msg} at column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else str(error)
        )
        raise UserError(f"data.path={path}: line {number} is not JSON ({where})") from error
    for prompt, target in (("question", "matching"), ("query", "target")):
        if (
            isinstance(row, dict)
            and isinstance(row.get(prompt), str)
            and isinstance(row.get(target), str)
        ):
            if not row[target]:
                raise UserError(f"data.path={path}: line {number}: {target!r} is empty")
            return target, row[prompt], row[target]
    raise UserError(
        f"data.path={path}: line {number} has neither question/matching nor query/target as text"
    )


def _text(data: TextData) -> str:
    if data.path is not None:
        return _read(data.path)
    try:
        return python_docs.held_out_text()
    except ModuleNotFoundError as error:
        raise UserError(
            "data=text: this Python was installed without pydoc_data; give data.path=FILE"
        ) from error


@lru_cache(maxsize=16)
def _read(path: str) -> str:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"data.path={path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"data.path={path}: not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise UserError(f"data.path={path}: empty file")
    if "\0" in text:
        raise UserError(
            f"data.path={path}: a binary file (it holds zero bytes), UTF-8 text is needed"
        )
    return text.replace("\r\n", "\n")


def _dataset_text(data: HfData) -> str:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError("data=hf: needs the datasets library: pip install 'pml-cli[hf]'") from error
    try:
        table = datasets.load_dataset(data.path, data.name, split=data.split)
    except Exception as error:  # many types; the first line says what is wrong
        first = first_line(error)
        raise UserError(f"data.path={data.path}: {first}") from error
    if data.column not in table.column_names:
        raise UserError(
            f"data.column={data.column}: this dataset has {', '.join(table.column_names)}"
        )
    return "\n\n".join(str(text) for text in table[data.column] if text)

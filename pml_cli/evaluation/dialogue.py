"""How a script in plain transformers asks for the samples of a run, and where the answer ends.

Which call gives a prompt's very token ids is tried out on the tokenizer: the chat template, a text
around the question, or the ids themselves.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pml_cli.config.cache_key import CacheKey, file_cache
from pml_cli.config.schema import Data, FactsData, Model, Run
from pml_cli.data.opened import samples_of
from pml_cli.data.source import Sample
from pml_cli.model.chat_template import CLOCK, THINKING_NAMES, Turns, with_system
from pml_cli.model.dims import model_dims
from pml_cli.model.tokenizer_backend import read_tokenizer

# Samples whose prompts are tried, and places of the question in its prompt.
MAX_TRIED = 64
MAX_PLACES = 8

# Of models with two kinds of segments, as BERT; some tokenizers of others give them, too.
TOKEN_TYPES = "token_type_ids"

# Tokens beyond the longest target, for questions that were not trained on.
SPARE_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """A prompt that the chat template makes."""

    earlier: Turns
    """(role, content) of the turns before the question."""

    options: dict[str, bool]
    """Further arguments of the template."""

    def ids(self, tokenizer: Any, question: str) -> list[int]:
        """Token ids of the prompt."""
        messages = [{"role": role, "content": content} for role, content in self.earlier]
        messages.append({"role": "user", "content": question})
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, **self.options
        )
        return list(encoded["input_ids"])

    def code(self) -> list[str]:
        """The lines that make `prompt` of `question`."""
        messages = [f'{{"role": {role!r}, "content": {text!r}}}' for role, text in self.earlier]
        messages.append('{"role": "user", "content": question}')
        options = "".join(f", {name}={value}" for name, value in self.options.items())

        return [
            f"messages = [{', '.join(messages)}]",
            "prompt = tokenizer.apply_chat_template(",
            f"    messages, add_generation_prompt=True{options},",
            '    return_dict=True, return_tensors="pt",',
            ")",
        ]


@dataclass(frozen=True, kw_only=True)
class TextPrompt:
    """A prompt that is a text with the question in it."""

    prefix: str
    suffix: str

    adds_special: bool
    """Whether the tokenizer adds its special tokens; else they are in the text."""

    strips: bool = False
    """Whether white space around the question is left out, as many chat templates do."""

    def ids(self, tokenizer: Any, question: str) -> list[int]:
        """Token ids of the prompt."""
        asked = question.strip() if self.strips else question
        text = f"{self.prefix}{asked}{self.suffix}"
        encoded = tokenizer(text, add_special_tokens=self.adds_special)
        return list(encoded["input_ids"])

    def code(self) -> list[str]:
        """The line that makes `prompt` of `question`."""
        terms = [repr(self.prefix)] if self.prefix else []
        terms.append("question.strip()" if self.strips else "question")
        if self.suffix:
            terms.append(repr(self.suffix))
        special = "" if self.adds_special else ", add_special_tokens=False"
        return [f'prompt = tokenizer({" + ".join(terms)}{special}, return_tensors="pt")']


@dataclass(frozen=True, kw_only=True)
class IdsPrompt:
    """The ids of one prompt, which no text gives."""

    prompt: tuple[int, ...]

    def code(self) -> list[str]:
        """The line that makes `prompt`."""
        return [f'prompt = {{"input_ids": torch.tensor([{list(self.prompt)}])}}']


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """How a script asks, when the answer ends, and how it is printed."""

    question: str | None
    """The question of the first sample; None: its prompt is given as ids."""

    prompt: ChatPrompt | TextPrompt | IdsPrompt
    """What makes a prompt of the question."""

    end: tuple[int, ...]
    """Ids of the end; empty: the answer ends with `max_new_tokens`."""

    end_text: str
    """The text of the end."""

    max_new_tokens: int
    """The most tokens of an answer."""

    cut_tokens: int
    """Tokens of the last target where its end was cut off, though others have one; else 0."""

    reads_text: bool
    """Whether answers are text; else the model has no tokenizer."""

    has_token_types: bool
    """Whether the tokenizer gives token types by itself, which `generate` refuses or adds."""

    skips_special: bool
    """Whether leaving out special tokens takes the end off an answer, and nothing else."""


def dialogue_of(run: Run) -> Dialogue:
    """How the samples of a resolved run are asked for."""
    return _dialogue(CacheKey(run.model), CacheKey(run.data), run.seqlen)


# The cells of a sweep share their samples.
@file_cache(256)
def _dialogue(model: CacheKey, data: CacheKey, seqlen: int) -> Dialogue:
    run = Run(model=model.value, data=data.value, seqlen=seqlen)
    samples = samples_of(run)
    tokenizer = _tokenizer(model)
    first = samples[0]

    end: tuple[int, ...] = next((s.target[-s.end :] for s in samples if s.end), ())
    question = None
    prompt: ChatPrompt | TextPrompt | IdsPrompt = IdsPrompt(prompt=first.prompt)
    if tokenizer is not None:
        best = _best_prompt(tokenizer, run.data, samples[:MAX_TRIED])
        if best is not None:
            prompt = best
            question = question_of(run.data, first)

    return Dialogue(
        question=question,
        prompt=prompt,
        end=end,
        end_text="" if tokenizer is None else tokenizer.decode(list(end)),
        max_new_tokens=_max_new_tokens(run.model, samples, has_end=bool(end)),
        cut_tokens=len(samples[-1].target) if end and not samples[-1].end else 0,
        reads_text=tokenizer is not None,
        has_token_types=TOKEN_TYPES in getattr(tokenizer, "model_input_names", ()),
        skips_special=tokenizer is not None and _skips_special(tokenizer, samples[:MAX_TRIED]),
    )


@file_cache(4)
def _tokenizer(model: CacheKey) -> Any:
    """The tokenizer as a script reads it; None where there is none."""
    try:
        return read_tokenizer(model.value)
    # A model without a tokenizer learns random ids; what is wrong with one is reported earlier.
    except Exception:
        return None


def question_of(data: Data, sample: Sample) -> str:
    """What is asked for a sample: the last turn of facts, the prompt of running text."""
    if sample.turns:
        return sample.turns[-1][1]
    prompt: str | None = getattr(data, "prompt", None)
    return prompt or ""


def _best_prompt(
    tokenizer: Any, data: Data, samples: Sequence[Sample]
) -> ChatPrompt | TextPrompt | None:
    """The call that gives the ids of the first prompt and of most others; None: there is none."""
    best = None
    best_count = 0
    for candidate in _candidates(tokenizer, data, samples):
        gives = [_gives(candidate, tokenizer, data, sample) for sample in samples]

        if gives[0] and sum(gives) > best_count:
            best = candidate
            best_count = sum(gives)
    return best


def _gives(candidate: ChatPrompt | TextPrompt, tokenizer: Any, data: Data, sample: Sample) -> bool:
    """Whether a call gives the ids of a sample's prompt."""
    try:
        ids = candidate.ids(tokenizer, question_of(data, sample))
    # Templates are programs, and may refuse what others take.
    except Exception:
        return False
    return ids == list(sample.prompt)


def _candidates(
    tokenizer: Any, data: Data, samples: Sequence[Sample]
) -> Iterator[ChatPrompt | TextPrompt]:
    first = samples[0]
    if data.chat and CLOCK not in tokenizer.get_chat_template():
        options = {} if data.thinking is None else dict.fromkeys(THINKING_NAMES, data.thinking)
        turns = first.turns or (("user", question_of(data, first)),)
        earlier = with_system(turns[:-1], data.system)
        yield ChatPrompt(earlier=earlier, options=options)

    # As facts are made; what is found in decoded prompts below fails where they do not come back.
    if isinstance(data, FactsData) and not data.chat:
        yield TextPrompt(prefix="", suffix=data.separator or "", adds_special=True)

    # The longer the question, the fewer places in the prompt look like it.
    sample = max(samples, key=lambda sample: len(question_of(data, sample)))
    question = question_of(data, sample)
    for adds_special, strips in itertools.product((True, False), (False, True)):
        text = tokenizer.decode(list(sample.prompt), skip_special_tokens=adds_special)
        asked = question.strip() if strips else question
        starts = [match.start() for match in re.finditer(re.escape(asked), text)]
        for start in reversed(starts[-MAX_PLACES:]):
            yield TextPrompt(
                prefix=text[:start],
                suffix=text[start + len(asked) :],
                adds_special=adds_special,
                strips=strips,
            )


def _max_new_tokens(model: Model, samples: Sequence[Sample], *, has_end: bool) -> int:
    longest_target = max(len(sample.target) for sample in samples)
    # Without an end nothing says where to stop.
    if not has_end:
        return longest_target
    longest_prompt = max(len(sample.prompt) for sample in samples)
    room = model_dims(model).context - longest_prompt
    # The longest prompt need not be that of the longest target, which must never be cut off.
    return max(longest_target, min(longest_target + SPARE_TOKENS, room))


def _skips_special(tokenizer: Any, samples: Sequence[Sample]) -> bool:
    for sample in samples:
        ids = list(sample.target)
        answer = ids[: len(ids) - sample.end]
        if tokenizer.decode(ids, skip_special_tokens=True) != tokenizer.decode(answer):
            return False
    return True

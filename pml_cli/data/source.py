"""What every data source gives: samples of any number of target tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pml_cli.config.schema import Data, Model
from pml_cli.errors import UserError
from pml_cli.format import counted
from pml_cli.model.chat_template import Turns
from pml_cli.model.dims import model_dims


class Neighbour(NamedTuple):
    """A question whose answer must not change."""

    question: str
    answer: str | None = None
    """What is right, where the file says it."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt and the target that must follow it, as token ids.

    Samples of equal ids are equal.
    """

    prompt: tuple[int, ...]

    target: tuple[int, ...]
    """With the end token, where it has one."""

    end: int = field(default=0, compare=False)
    """How many of the target's last ids are the end; 0: it has none, or it was cut off."""

    turns: Turns = field(default=(), compare=False)
    """The prompt as the source gave it; empty for running text and random tokens."""

    target_text: str = field(default="", compare=False)
    """The whole target as the source gave it, without the end; of facts alone."""

    where: str = field(default="", compare=False)
    """Its place in a file, `data.path=facts.jsonl: line 3`; empty: not of a file of facts."""

    variants: tuple[str, ...] = field(default=(), compare=False)
    """The last turn of its prompt in other words: asked of a trained adapter, never trained."""

    neighbours: tuple[Neighbour, ...] = field(default=(), compare=False)
    """Questions that a trained adapter must answer as the model without it."""

    @property
    def tokens(self) -> int:
        """Tokens of prompt and target."""
        return len(self.prompt) + len(self.target)


def no_samples(seqlen: int) -> list[Sample]:
    """The held-out samples of a source that has none."""
    return []


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened source."""

    cut: Callable[[int], list[Sample]]
    """Samples with a given number of target tokens; see `take` for the checked call."""

    max_tokens: int | None
    """The most target tokens it can give; None: no limit."""

    min_tokens: int = 1
    """The fewest target tokens it can give: those of its first sample, where samples stay whole."""

    sample_ends: Sequence[int] = ()
    """Target tokens up to the end of each sample; empty where the target is one."""

    keys: str = ""
    """Names of prompts and targets in a file, as `question/answer`; empty for other sources."""

    notes: Sequence[str] = ()
    """What was decided about the values of a file, for its user, a line each."""

    entropy: float | None = None
    """Nats per target token, where the distribution of the source is known."""

    test_samples: list[Sample] = field(default_factory=list)
    """Samples of the same rule that are never trained on."""

    held_out: Callable[[int], list[Sample]] = no_samples
    """Samples with so many target tokens that share nothing with those of `cut`; may be empty."""

    def take(self, seqlen: int) -> list[Sample]:
        """Samples with `seqlen` target tokens in all; fewer where whole samples do not fill it.

        Raises:
            UserError: the source is shorter than that, or its first sample longer.
        """
        if self.max_tokens is not None and seqlen > self.max_tokens:
            raise UserError(
                f"seqlen={seqlen}: this source has only {counted(self.max_tokens, 'target token')}"
            )
        if seqlen < self.min_tokens:
            total = "" if self.max_tokens is None else f" ({counted(self.max_tokens, 'token')})"
            raise UserError(
                f"seqlen={seqlen}: the first sample alone has "
                f"{counted(self.min_tokens, 'target token')}; "
                f"seqlen=all takes {counted(self.sample_ends, 'sample')}{total}"
            )
        return self.cut(seqlen)


def check_length(model: Model, data: Data, source: Source, seqlen: int) -> None:
    """Refuse a number of target tokens that the source or the model's context cannot hold.

    Raises:
        UserError: names the limit.
    """
    if source.max_tokens is not None and seqlen > source.max_tokens:
        raise UserError(
            f"seqlen={seqlen}: data={data.source} has only "
            f"{counted(source.max_tokens, 'target token')} for model={model.name}; "
            "seqlen=all takes them all"
        )

    # An endless source would draw all of these tokens before they are counted.
    context = model_dims(model).context
    if source.max_tokens is None and seqlen > context:
        raise UserError(f"seqlen={seqlen}: model={model.name} has a context of {context} tokens")

    too_long = [sample for sample in source.take(seqlen) if sample.tokens > context]
    if too_long:
        first = too_long[0]
        place = first.where or f"seqlen={seqlen}"
        more = "" if len(too_long) == 1 else f" (the first of {len(too_long)})"
        raise UserError(
            f"{place}: prompt and target need {first.tokens} tokens, "
            f"but model={model.name} has a context of {context}{more}"
        )

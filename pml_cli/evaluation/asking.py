"""`pml ask`: the prompts of a finished run, and what its adapter answers, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pml_cli.config.schema import FactsData, Run
from pml_cli.data.opened import samples_of
from pml_cli.data.prompt import prompt_of
from pml_cli.errors import UserError
from pml_cli.model.dims import model_dims
from pml_cli.model.tokenizer import Tokenizer
from pml_cli.results.folder import RunFolder
from pml_cli.results.samples import read_samples

if TYPE_CHECKING:
    from pml_cli.model.adapter_bank import AdapterBank
    from pml_cli.model.split_model import SplitModel

# Tokens of an answer that does not end, at least.
MIN_TOKENS = 64

Turns: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One sample that a run was trained on."""

    turns: Turns
    """(role, content) of its prompt; none for a stream, and in runs of earlier versions."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]
    """With the end token, where it has one."""

    text: str
    """Text of the target, without its end token."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of an adapter."""

    text: str | None
    """The question as the user gave it; None: the prompt of the run is continued."""

    prompt: tuple[int, ...]
    trained: Trained | None
    """The sample with this question, if the run was trained on it."""


@dataclass(frozen=True, kw_only=True)
class AnswerToken:
    """One token of an answer."""

    id: int
    text: str
    p: float
    """Its probability, the largest of all tokens."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model writes after a prompt."""

    text: str
    """Without the end token."""

    tokens: list[AnswerToken]
    """With the end token, where it came."""

    ended: bool
    """Whether the end token came; else the answer was cut off."""


def trained_samples(folder: RunFolder, run: Run, tokenizer: Tokenizer) -> list[Trained]:
    """The samples of a finished run: of its samples.jsonl, else of its data.

    Args:
        folder: of the run.
        run: as it was read back.
        tokenizer: of its model.

    Raises:
        UserError: a run of an earlier version whose data cannot be read.
    """
    rows = read_samples(folder)
    if rows is not None:
        return [_trained(row) for row in rows]

    samples = []
    for sample in samples_of(run):
        text = tokenizer.decode(sample.target[: len(sample.target) - sample.end])
        samples.append(
            Trained(turns=sample.turns, prompt=sample.prompt, target=sample.target, text=text)
        )
    return samples


def _trained(row: dict[str, Any]) -> Trained:
    turns = tuple((role, content) for role, content in row["turns"])
    return Trained(
        turns=turns,
        prompt=tuple(row["prompt_ids"]),
        target=tuple(row["target_ids"]),
        text=row["target"] or "",
    )


class Interview:
    """How questions are put to the adapter of a run: as in its training.

    Attributes:
        samples: what the run was trained on.
        end: ids that end an answer; none where nothing does.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, samples: Sequence[Trained]) -> None:
        """See the class for the arguments."""
        self._run = run
        self._tokenizer = tokenizer
        self.samples = list(samples)
        self.end = self._end()

    @property
    def has_questions(self) -> bool:
        """Whether the samples answer questions; else they continue one prompt."""
        return isinstance(self._run.data, FactsData)

    def _end(self) -> tuple[int, ...]:
        data = self._run.data
        if isinstance(data, FactsData) and data.end not in ("auto", "none"):
            return tuple(self._tokenizer.end_ids(data.end))
        # Nothing was trained to end the answer, but the model may end it all the same.
        try:
            text = self._tokenizer.end_text(data.chat)
        except UserError:
            return ()
        return tuple(self._tokenizer.end_ids(text))

    def text(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        return self._tokenizer.decode(ids)

    def question(self, text: str) -> Question:
        """A question as the run was asked it in training; a new one as one like it.

        Raises:
            UserError: the chat template or the tokenizer refuses it.
        """
        trained = self._trained_on(text)
        if trained is not None:
            return Question(text=text, prompt=trained.prompt, trained=trained)

        turns = (*self._shared_system(), ("user", text))
        prompt = prompt_of(self._tokenizer, self._run.data, turns)
        return Question(text=text, prompt=prompt.ids, trained=None)

    def questions(self, text: str) -> list[Question]:
        """Prompts for a question; where samples ask it after different turns, one per distinct
        prompt.

        Raises:
            UserError: the chat template or the tokenizer refuses it.
        """
        first = self.question(text)
        if first.trained is None:
            return [first]
        turn = first.trained.turns[-1]
        by_prompt = {sample.prompt: sample for sample in self.samples if turn in sample.turns[-1:]}
        return [
            Question(text=text, prompt=sample.prompt, trained=sample)
            for sample in by_prompt.values()
        ]

    def paraphrase(self, turns: Turns, text: str) -> tuple[int, ...] | None:
        """The prompt of a sample with its last turn in other words; None where that is trained.

        Args:
            turns: of the sample's prompt.
            text: takes the place of the last turn.

        Raises:
            UserError: the chat template or the tokenizer refuses it.
        """
        if self._trained_on(text) is not None:
            return None
        role = turns[-1][0]
        prompt = prompt_of(self._tokenizer, self._run.data, (*turns[:-1], (role, text)))
        return prompt.ids

    def _trained_on(self, text: str) -> Trained | None:
        """The sample with this question; blanks around it, as of pasting, make no other one."""
        answers = [sample for sample in self.samples if sample.turns]
        for sample in answers:
            if sample.turns[-1][1] == text:
                return sample
        for sample in answers:
            if sample.turns[-1][1].strip() == text.strip():
                return sample
        return None

    def _shared_system(self) -> Turns:
        """The system turn that all samples begin with, if they do."""
        first_turns = {sample.turns[:1] for sample in self.samples}
        if len(first_turns) != 1:
            return ()
        (turns,) = first_turns
        return turns if turns and turns[0][0] == "system" else ()

    def continuation(self) -> Question:
        """The prompt of the run, for data without questions."""
        first = self.samples[0]
        return Question(text=None, prompt=first.prompt, trained=first)

    def has_changed(self) -> bool:
        """Whether the tokenizer gives another prompt than in the training."""
        for sample in self.samples:
            if sample.turns:
                data = self._run.data
                prompt = prompt_of(self._tokenizer, data, sample.turns)
                return prompt.ids != sample.prompt
        return False

    def token_limit(self, question: Question, max_tokens: int | None) -> int:
        """Tokens after which an answer is cut off.

        Args:
            question: what is asked.
            max_tokens: as the user gave it; None: what its target has, and of questions twice the
                longest target, MIN_TOKENS at least.

        Raises:
            UserError: the prompt has no token, or leaves no room in the model's context.
        """
        if not question.prompt:
            raise UserError("the prompt of this run has no token, so there is nothing to continue")
        room = model_dims(self._run.model).context - len(question.prompt)
        if room < 1:
            raise UserError(f"the prompt fills the context of model={self._run.model.name}")

        if max_tokens is not None:
            return min(max_tokens, room)
        if question.text is None:
            return min(len(self.samples[0].target), room)

        longest = max(len(sample.target) for sample in self.samples)
        return min(max(2 * longest, MIN_TOKENS), room)

    def answer(
        self,
        base: SplitModel,
        bank: AdapterBank | None,
        question: Question,
        limit: int,
    ) -> Answer:
        """Answer greedily, one token a step with a KV cache.

        Args:
            base: the model.
            bank: the adapter, a bank of one; None: the model alone.
            question: what is asked.
            limit: tokens of the answer at most.
        """
        ids, probabilities = greedy(base, bank, question.prompt, end=self.end, limit=limit)
        ended = bool(self.end) and tuple(ids[-len(self.end) :]) == self.end

        tokens = []
        context_ids = list(question.prompt)
        for token_id, p in zip(ids, probabilities, strict=True):
            text = self._tokenizer.added_text(token_id, context_ids)
            tokens.append(AnswerToken(id=token_id, text=text, p=p))
            context_ids.append(token_id)

        kept_ids = ids[: len(ids) - len(self.end)] if ended else ids
        return Answer(text=self.text(kept_ids), tokens=tokens, ended=ended)


def greedy(
    base: SplitModel,
    bank: AdapterBank | None,
    prompt: Sequence[int],
    *,
    end: tuple[int, ...],
    limit: int,
) -> tuple[list[int], list[float]]:
    """Greedy decoding of one prompt, as `generate` of transformers has it.

    Args:
        base: the model.
        bank: a bank of one adapter; None: the model alone.
        prompt: token ids.
        end: ids after which nothing is decoded; () for none.
        limit: tokens at most.

    Returns:
        Token ids, those of the end included, and the probability of each.
    """
    import torch

    ids: list[int] = []
    probabilities: list[float] = []
    cache = base.new_cache()
    inputs = torch.tensor([prompt], device=base.device)
    with torch.no_grad():
        while len(ids) < limit and not (end and tuple(ids[-len(end) :]) == end):
            hidden = base.full(inputs, bank, cache).last_hidden_state[:, -1]
            logits = base.logits(hidden)[0].double()
            token = int(logits.argmax())
            ids.append(token)
            probabilities.append(float(logits.softmax(-1)[token]))
            # Without a cache every token is computed again in each step.
            input_ids = [*prompt, *ids] if cache is None else [token]
            inputs = torch.tensor([input_ids], device=base.device)
    return ids, probabilities

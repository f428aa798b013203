"""Questions that were not trained: paraphrases of the facts, and those of other answers.

Each is asked of the adapter and of the model without it, in the same arithmetic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pml_cli.config.schema import Run
from pml_cli.data.source import Neighbour, Sample
from pml_cli.evaluation.answers import token_f1
from pml_cli.evaluation.asking import Interview, Trained
from pml_cli.evaluation.decoding import Ids, continuations, decode_within_memory
from pml_cli.evaluation.proof import (
    NEIGHBOUR_TOKENS,
    NeighboursProof,
    VariantsProof,
    generic_questions,
)
from pml_cli.model.adapter_bank import AdapterBank, stack
from pml_cli.model.dims import model_dims
from pml_cli.model.split_model import SplitModel
from pml_cli.model.tokenizer import Tokenizer
from pml_cli.stats import Proportion, clustered_proportion
from pml_cli.training.scoring import PackInputs, score_cells, zero_adapters


@dataclass(frozen=True, kw_only=True)
class Paraphrase:
    """A paraphrase as it is asked."""

    fact: int
    """Index of the sample."""

    sample: Sample
    """The sample under this prompt."""


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """Paraphrases as a model answers them."""

    exact: list[bool]
    """Whether the target is written, including its end token, for each paraphrase."""

    f1: float
    """Mean token F1."""


class OtherQuestions:
    """Asks an adapter and its base what was not trained.

    Attributes:
        samples: what the adapter was trained on, with their paraphrases and neighbours.
    """

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        samples: Sequence[Sample],
        targets: Sequence[str],
    ) -> None:
        """
        Args:
            run: resolved.
            tokenizer: of its model.
            samples: what the run was trained on.
            targets: their texts, without the ends.
        """
        self.samples = samples
        self._tokenizer = tokenizer
        self._targets = targets
        self._context = model_dims(run.model).context

        trained = []
        for sample, text in zip(samples, targets, strict=True):
            of_sample = Trained(
                turns=sample.turns,
                prompt=sample.prompt,
                target=sample.target,
                text=text,
            )
            trained.append(of_sample)
        self._interview = Interview(run, tokenizer, trained)

    # -- paraphrases

    def paraphrases(self) -> list[Paraphrase]:
        """Paraphrases that are asked; one that was trained as a question would show nothing."""
        asked = []
        for index, sample in enumerate(self.samples):
            for variant in sample.variants:
                prompt = self._interview.paraphrase(sample.turns, variant)
                if prompt is None or not self._has_room(prompt, len(sample.target)):
                    continue

                under_prompt = dataclasses.replace(sample, prompt=prompt)
                asked.append(Paraphrase(fact=index, sample=under_prompt))
        return asked

    def ask_paraphrases(
        self, base: SplitModel, bank: AdapterBank
    ) -> tuple[VariantsProof | None, dict[int, list[bool]]]:
        """Ask the paraphrases.

        Args:
            base: the model.
            bank: the adapter, a bank of one.

        Returns:
            The scores, None where there are no paraphrases; and by the index of a fact whether
            each of its paraphrases is answered exactly.
        """
        asked = self.paraphrases()
        if not asked:
            return None, {}

        adapted, plain = self._answers(base, bank, asked)
        facts = [paraphrase.fact for paraphrase in asked]
        by_fact: dict[int, list[bool]] = {}
        for fact, exact in zip(facts, adapted.exact, strict=True):
            by_fact.setdefault(fact, []).append(exact)

        proof = VariantsProof(
            facts=len(by_fact),
            exact=_share(adapted.exact, facts),
            f1=adapted.f1,
            base_exact=_share(plain.exact, facts),
            base_f1=plain.f1,
        )
        return proof, by_fact

    def _answers(
        self, base: SplitModel, bank: AdapterBank, asked: Sequence[Paraphrase]
    ) -> list[_Scored]:
        """How the adapter and the base answer paraphrases.

        An answer is cut after as many tokens as the target has: the base model, which knows of no
        end, would write on, and F1 counts each further word against it.
        """
        both = _with_base(bank)
        samples = [paraphrase.sample for paraphrase in asked]
        cells = [samples] * len(both)

        scores = score_cells(base, both, PackInputs(base, both, cells))
        scored = []
        for decoded in decode_within_memory(base, both, cells, scores):
            scored.append(self._scored(asked, decoded))
        return scored

    def _scored(self, asked: Sequence[Paraphrase], decoded: Sequence[Sequence[int]]) -> _Scored:
        """Answers to paraphrases against the targets of their facts."""
        exact = []
        f1 = []
        for paraphrase, ids in zip(asked, decoded, strict=True):
            sample = paraphrase.sample
            end = sample.target[len(sample.target) - sample.end :]
            text = self._text(ids, end)

            exact.append(tuple(ids) == sample.target)
            f1.append(token_f1(text, self._targets[paraphrase.fact]))
        return _Scored(exact=exact, f1=float(np.mean(f1)))

    # -- neighbours

    def ask_neighbours(self, base: SplitModel, bank: AdapterBank) -> NeighboursProof | None:
        """Ask questions whose answers must not change; None where none has room.

        Args:
            base: the model.
            bank: the adapter, a bank of one.
        """
        named = list(self._named_neighbours())
        generic = [Neighbour(question) for question in generic_questions()]
        asked = self._distinct(named or generic)
        if not asked:
            return None

        both = _with_base(bank)
        end = self._interview.end
        decoded = continuations(base, both, list(asked), end=end, limit=NEIGHBOUR_TOKENS)
        texts, base_texts = ([self._text(ids, end) for ids in of_cell] for of_cell in decoded)
        unchanged = [ids == base_ids for ids, base_ids in zip(*decoded, strict=True)]

        answers = list(asked.values())
        return NeighboursProof(
            source="file" if named else "generic",
            tokens=NEIGHBOUR_TOKENS,
            unchanged=_share(unchanged, range(len(unchanged))),
            f1=_mean_f1(texts, base_texts) or 0.0,
            answer_f1=_mean_f1(texts, answers),
            base_answer_f1=_mean_f1(base_texts, answers),
        )

    def _named_neighbours(self) -> Iterator[Neighbour]:
        """The questions that the facts name."""
        for sample in self.samples:
            yield from sample.neighbours

    def _distinct(self, neighbours: Sequence[Neighbour]) -> dict[Ids, str | None]:
        """The answers, where they are known, by the prompts of questions not trained."""
        answers: dict[Ids, str | None] = {}
        for text, answer in neighbours:
            question = self._interview.question(text)
            if question.trained is None and self._has_room(question.prompt, NEIGHBOUR_TOKENS):
                # An answer that one row gives stays, where another has the question alone.
                answers[question.prompt] = answers.get(question.prompt) or answer
        return answers

    def _has_room(self, prompt: Ids, tokens: int) -> bool:
        """Whether an answer fits into the model's context."""
        return len(prompt) + tokens <= self._context

    def _text(self, ids: Sequence[int], end: Ids) -> str:
        """Text of an answer, without its end."""
        has_ended = bool(end) and tuple(ids[-len(end) :]) == end
        return self._tokenizer.decode(ids[: len(ids) - len(end)] if has_ended else ids)


def _with_base(bank: AdapterBank) -> AdapterBank:
    """An adapter, and one that adds nothing."""
    return stack([bank, zero_adapters(bank, [0])])


def _mean_f1(texts: Sequence[str], answers: Sequence[str | None]) -> float | None:
    """Mean token F1 of texts against the answers that are known; None where none is."""
    scores = []
    for text, answer in zip(texts, answers, strict=True):
        if answer is not None:
            scores.append(token_f1(text, answer))
    return float(np.mean(scores)) if scores else None


def _share(outcomes: Sequence[bool], owners: Sequence[int]) -> Proportion:
    """The share of outcomes that are true, with its interval over their owners."""
    trials = np.bincount(owners)
    successes = np.bincount(owners, weights=np.asarray(outcomes, float))
    return clustered_proportion(successes, trials)

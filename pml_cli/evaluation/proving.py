"""What `proof.prove` measures of one finished run, on its model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pml_cli.config.schema import Run
from pml_cli.data.source import Sample
from pml_cli.evaluation.adapters import check_weights, load_adapter
from pml_cli.evaluation.answers import token_f1
from pml_cli.evaluation.asking import Interview, Trained
from pml_cli.evaluation.conditions import BF16, BY_NAME, TRAINED
from pml_cli.evaluation.decoding import Ids, continuations, decode_within_memory
from pml_cli.evaluation.dialogue import question_of
from pml_cli.evaluation.finished_runs import read_environment
from pml_cli.evaluation.proof import (
    MEASURED,
    NEIGHBOUR_TOKENS,
    ConditionProof,
    FactProof,
    NeighboursProof,
    Proof,
    VariantsProof,
    generic_questions,
)
from pml_cli.evaluation.robustness import (
    reason_not_measurable,
    scores_by_condition,
)
from pml_cli.evaluation.samples import sample_rows
from pml_cli.evaluation.script_check import check_script
from pml_cli.evaluation.subject import EvalRun
from pml_cli.model.adapter_bank import AdapterBank, stack
from pml_cli.model.dims import model_dims
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.model.tokenizer import Tokenizer, open_tokenizer
from pml_cli.model.tokenizer_backend import has_tokenizer
from pml_cli.runs.folder import RunFolder
from pml_cli.stats import Proportion, clustered_proportion
from pml_cli.training.scores import Scores
from pml_cli.training.scoring import PackInputs, score_cells, zero_adapters

# Conditions of deployment that a proof covers.
CONDITIONS = (TRAINED, "merged", BF16, "adapter_int8", "base_int8")

LN10 = math.log(10)


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """Paraphrases of the facts, as a model answers them."""

    exact: list[bool]
    """Of each paraphrase, whether the target is written, its end included."""
    f1: float
    """Mean token F1."""


class Prover:
    """Measures one finished run.

    Attributes:
        samples: what it was trained on, with their paraphrases and neighbours.
        tokenizer: of its model; None where that has none.
    """

    def __init__(self, folder: RunFolder, run: Run, samples: Sequence[Sample]) -> None:
        """
        Args:
            folder: of the run.
            run: as it was read back.
            samples: what it was trained on.
        """
        self.folder = folder
        self.run = run
        self.samples = list(samples)
        self.tokenizer: Tokenizer | None = None
        if has_tokenizer(run.model):
            self.tokenizer = open_tokenizer(run.model)
        self.targets = [self._target_text(sample) for sample in self.samples]

    def prove(
        self, *, device: str, script_seconds: float, on_stage: Callable[[str], None]
    ) -> Proof:
        """Measure everything; `proof.prove` says what the arguments are.

        Raises:
            UserError: the model cannot be loaded, or is not the one of the training.
        """
        # First, while no other copy of the model is in memory.
        on_stage("the script of its README")
        script = check_script(self.folder, self.run, self.samples, self.targets, script_seconds)

        on_stage("merged, rounded, in bfloat16")
        base, bank = self._load(device)
        scores = self._scores(base, bank)
        trained = scores[TRAINED]

        on_stage("paraphrases, and questions whose answers must not change")
        is_streamed = base.stream is not None
        decoded = decode_within_memory(
            base, bank, [self.samples], [trained], beyond=not is_streamed
        )[0]
        variants: VariantsProof | None = None
        neighbours: NeighboursProof | None = None
        exact_variants: dict[int, list[bool]] = {}
        # A streamed model would be read once a token.
        if self.tokenizer is not None and not is_streamed:
            interview = self._interview(self.tokenizer)
            # The base in the same arithmetic.
            both = stack([bank, zero_adapters(bank, [0])])
            variants, exact_variants = self._variants(base, both, interview)
            neighbours = self._neighbours(base, both, interview)

        facts = self._facts(trained, decoded, exact_variants)
        chances = [fact.log10_p for fact in facts]
        return Proof(
            run=self.folder.id,
            whole=sum(fact.whole for fact in facts),
            facts=facts,
            script=script,
            conditions=self._conditions(base, bank, scores),
            variants=variants,
            neighbours=neighbours,
            least_log10_p=min(chances),
            median_log10_p=float(np.median(chances)),
        )

    def _load(self, device: str) -> tuple[SplitModel, AdapterBank]:
        subject = EvalRun(
            id=self.folder.id,
            run=self.run,
            samples=self.samples,
            adapter=self.folder.adapter,
            weights=read_environment(self.folder)["base_weights"],
            texts={},
        )
        base = load_model(dataclasses.replace(self.run.model, device=device))
        check_weights(base, [subject])
        return base, load_adapter(base, subject)

    # -- the facts

    def _scores(self, base: SplitModel, bank: AdapterBank) -> dict[str, Scores]:
        """Scores of the facts under every condition that can be measured."""
        base_bf16 = base
        if base.dtype != torch.bfloat16:
            base_bf16 = load_model(dataclasses.replace(base.settings, dtype="bfloat16"))

        cells = [self.samples]
        conditions = [BY_NAME[name] for name in CONDITIONS]
        inputs_bf16 = PackInputs(base_bf16, bank, cells)
        scores = scores_by_condition(
            base, base_bf16, bank, cells, inputs_bf16, conditions=conditions
        )
        return {name: of_cells[0] for name, of_cells in scores.items()}

    def _conditions(
        self, base: SplitModel, bank: AdapterBank, scores: Mapping[str, Scores]
    ) -> dict[str, ConditionProof]:
        conditions = {}
        for name in CONDITIONS:
            reason = reason_not_measurable(base, bank, BY_NAME[name])
            whole = None
            least_margin = None
            if name in scores:
                whole = len(self.samples) - len(
                    np.unique(scores[name].sample[~scores[name].correct])
                )
                least_margin = float(scores[name].margin.min())
            conditions[name] = ConditionProof(
                status=reason or MEASURED, whole=whole, least_margin=least_margin
            )
        return conditions

    def _facts(
        self,
        trained: Scores,
        decoded: Sequence[Sequence[int]],
        exact_variants: Mapping[int, Sequence[bool]],
    ) -> list[FactProof]:
        """A row for every fact.

        Args:
            trained: scores of all of them.
            decoded: token ids of each as its adapter writes it.
            exact_variants: by index, whether each of its paraphrases is answered exactly.
        """
        rows = sample_rows(self.run.model, self.samples, trained, decoded)
        facts = []
        for index, (sample, row) in enumerate(zip(self.samples, rows, strict=True)):
            of_sample = trained.sample == index
            wrong = row["first_error"] or {"position": None, "expected": None, "got": None}
            exact = exact_variants.get(index, [])
            written = row["decoded"]
            fact = FactProof(
                question=question_of(self.run.data, sample),
                answer=self.targets[index],
                whole=row["whole"],
                written=_id_text(row["decoded_ids"]) if written is None else written,
                position=wrong["position"],
                expected=wrong["expected"],
                got=wrong["got"],
                least_margin=float(trained.margin[of_sample].min()),
                log10_p=float(-trained.nll[of_sample].sum() / LN10),
                variants=len(exact),
                variants_exact=sum(exact),
            )
            facts.append(fact)
        return facts

    def _target_text(self, sample: Sample) -> str:
        """The text of a target, without its end."""
        if sample.target_text:
            return sample.target_text
        ids = sample.target[: len(sample.target) - sample.end]
        return _id_text(ids) if self.tokenizer is None else self.tokenizer.decode(ids)

    # -- other questions

    def _interview(self, tokenizer: Tokenizer) -> Interview:
        trained = []
        for sample, text in zip(self.samples, self.targets, strict=True):
            of_sample = Trained(
                turns=sample.turns, prompt=sample.prompt, target=sample.target, text=text
            )
            trained.append(of_sample)
        return Interview(self.run, tokenizer, trained)

    def _variants(
        self, base: SplitModel, both: AdapterBank, interview: Interview
    ) -> tuple[VariantsProof | None, dict[int, list[bool]]]:
        """Ask the paraphrases of the adapter and of the base.

        Args:
            base: the model.
            both: the adapter, and one that adds nothing.
            interview: how the run was asked.

        Returns:
            The scores, and by the index of a fact whether each paraphrase is answered exactly.
        """
        owners: list[int] = []
        asked: list[Sample] = []
        for index, sample in enumerate(self.samples):
            for variant in sample.variants:
                prompt = interview.paraphrase(sample.turns, variant)
                # One that is a question of the training tells nothing.
                if prompt is not None and self._has_room(prompt, len(sample.target)):
                    owners.append(index)
                    asked.append(dataclasses.replace(sample, prompt=prompt))
        if not asked:
            return None, {}

        adapted, plain = self._paraphrase_answers(base, both, asked)
        by_fact: dict[int, list[bool]] = {}
        for owner, exact in zip(owners, adapted.exact, strict=True):
            by_fact.setdefault(owner, []).append(exact)
        proof = VariantsProof(
            facts=len(by_fact),
            exact=_share(adapted.exact, owners),
            f1=adapted.f1,
            base_exact=_share(plain.exact, owners),
            base_f1=plain.f1,
        )
        return proof, by_fact

    def _paraphrase_answers(
        self, base: SplitModel, both: AdapterBank, asked: Sequence[Sample]
    ) -> list[_Answers]:
        """How each adapter answers paraphrases, whose targets are those of their facts.

        An answer is cut after as many tokens as the target has: the base model, which knows of no
        end, would write on, and F1 counts each further word against it.
        """
        cells = [asked] * len(both)
        scores = score_cells(base, both, PackInputs(base, both, cells))
        answers = []
        for decoded in decode_within_memory(base, both, cells, scores):
            answers.append(self._scored(asked, decoded))
        return answers

    def _scored(self, asked: Sequence[Sample], decoded: Sequence[Sequence[int]]) -> _Answers:
        """Answers to paraphrases against the targets of their facts."""
        assert self.tokenizer is not None
        exact = []
        f1 = []
        for sample, ids in zip(asked, decoded, strict=True):
            exact.append(tuple(ids) == sample.target)
            end = sample.target[len(sample.target) - sample.end :]
            text = self.tokenizer.decode(_without_end(ids, end))
            f1.append(token_f1(text, self._target_text(sample)))
        return _Answers(exact=exact, f1=float(np.mean(f1)))

    def _neighbours(
        self, base: SplitModel, both: AdapterBank, interview: Interview
    ) -> NeighboursProof | None:
        """Ask other questions of the adapter and of the base; None: no question has room."""
        assert self.tokenizer is not None
        named = [neighbour.question for sample in self.samples for neighbour in sample.neighbours]
        source = "file" if named else "generic"

        prompts: dict[Ids, None] = {}
        for text in named or generic_questions():
            question = interview.question(text)
            if question.trained is None and self._has_room(question.prompt, NEIGHBOUR_TOKENS):
                prompts[question.prompt] = None
        if not prompts:
            return None

        end = interview.end
        adapted, plain = continuations(base, both, list(prompts), end=end, limit=NEIGHBOUR_TOKENS)
        unchanged = []
        f1 = []
        for ids, base_ids in zip(adapted, plain, strict=True):
            unchanged.append(ids == base_ids)
            text = self.tokenizer.decode(_without_end(ids, end))
            base_text = self.tokenizer.decode(_without_end(base_ids, end))
            f1.append(token_f1(text, base_text))
        return NeighboursProof(
            source=source,
            tokens=NEIGHBOUR_TOKENS,
            unchanged=_share(unchanged, range(len(unchanged))),
            f1=float(np.mean(f1)),
        )

    def _has_room(self, prompt: Ids, tokens: int) -> bool:
        """Whether an answer fits into the model's context."""
        return len(prompt) + tokens <= model_dims(self.run.model).context


def _share(outcomes: Sequence[bool], owners: Sequence[int]) -> Proportion:
    """The share of outcomes that are true, with its interval over their owners."""
    trials = np.bincount(owners)
    successes = np.bincount(owners, weights=np.asarray(outcomes, float))
    return clustered_proportion(successes, trials)


def _without_end(ids: Sequence[int], end: Ids) -> Sequence[int]:
    has_ended = bool(end) and tuple(ids[-len(end) :]) == end
    return ids[: len(ids) - len(end)] if has_ended else ids


def _id_text(ids: Sequence[int] | None) -> str:
    """Ids as text, of a model without a tokenizer."""
    return " ".join(map(str, ids or ()))

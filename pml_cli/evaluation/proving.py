"""What `proof.prove` measures of one finished run, on its model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from pml_cli.config.schema import Run
from pml_cli.data.source import Sample
from pml_cli.evaluation.adapters import check_weights, load_adapter
from pml_cli.evaluation.conditions import BF16, BY_NAME, TRAINED
from pml_cli.evaluation.decoding import decode_within_memory
from pml_cli.evaluation.dialogue import question_of
from pml_cli.evaluation.finished_runs import read_environment
from pml_cli.evaluation.other_questions import OtherQuestions
from pml_cli.evaluation.proof import MEASURED, ConditionProof, FactProof, Proof
from pml_cli.evaluation.robustness import reason_not_measurable, scores_by_condition
from pml_cli.evaluation.samples import sample_rows
from pml_cli.evaluation.script_check import check_script
from pml_cli.evaluation.subject import EvalRun
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel
from pml_cli.model.tokenizer import Tokenizer, open_tokenizer
from pml_cli.model.tokenizer_backend import has_tokenizer
from pml_cli.results.folder import RunFolder
from pml_cli.training.scores import Scores
from pml_cli.training.scoring import PackInputs

# Conditions of deployment that a proof covers.
CONDITIONS = (TRAINED, "merged", BF16, "adapter_int8", "base_int8")

LN10 = math.log(10)

# Of samples.jsonl, where no token is wrong.
NO_ERROR = {"position": None, "expected": None, "got": None}


class Prover:
    """Measures one finished run.

    Attributes:
        folder: of the run.
        run: as it was read back.
        samples: what it was trained on, with their paraphrases and neighbours.
        targets: their texts, without the ends.
    """

    def __init__(self, folder: RunFolder, run: Run, samples: Sequence[Sample]) -> None:
        """See the class for the arguments."""
        self.folder = folder
        self.run = run
        self.samples = list(samples)

        # Random tokens need none.
        self._tokenizer: Tokenizer | None = None
        if has_tokenizer(run.model):
            self._tokenizer = open_tokenizer(run.model)
        self.targets = [self._target_text(sample) for sample in self.samples]

    def _target_text(self, sample: Sample) -> str:
        if sample.target_text:
            return sample.target_text
        ids = sample.target[: len(sample.target) - sample.end]
        return _id_text(ids) if self._tokenizer is None else self._tokenizer.decode(ids)

    def prove(
        self,
        *,
        device: str,
        script_seconds: float,
        on_stage: Callable[[str], None],
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

        on_stage("paraphrases, and questions whose answers must not change")
        variants = None
        neighbours = None
        exact_variants: dict[int, list[bool]] = {}
        # A streamed model would be read once a token.
        if self._tokenizer is not None and base.stream is None:
            others = OtherQuestions(self.run, self._tokenizer, self.samples, self.targets)
            variants, exact_variants = others.ask_paraphrases(base, bank)
            neighbours = others.ask_neighbours(base, bank)

        decoded = self._decoded(base, bank, scores[TRAINED])
        facts = self._facts(scores[TRAINED], decoded, exact_variants)
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
        """The model, and the adapter as a bank of one."""
        subject = EvalRun(
            id=self.folder.id,
            run=self.run,
            samples=self.samples,
            adapter=self.folder.adapter,
            weights=read_environment(self.folder)["base_weights"],
            texts={},
        )
        base = load_model(dataclasses.replace(self.run.model, device=device, compile=False))
        check_weights(base, [subject])
        return base, load_adapter(base, subject)

    def _scores(self, base: SplitModel, bank: AdapterBank) -> dict[str, Scores]:
        """Scores of the facts under every condition that can be measured."""
        base_bf16 = base
        if base.dtype != torch.bfloat16:
            base_bf16 = load_model(dataclasses.replace(base.settings, dtype="bfloat16"))

        cells = [self.samples]
        by_condition = scores_by_condition(
            base,
            base_bf16,
            bank,
            cells,
            PackInputs(base_bf16, bank, cells),
            conditions=[BY_NAME[name] for name in CONDITIONS],
        )
        return {name: of_cells[0] for name, of_cells in by_condition.items()}

    def _decoded(self, base: SplitModel, bank: AdapterBank, trained: Scores) -> list[list[int]]:
        """Token ids of every fact as the adapter writes it."""
        beyond = base.stream is None
        cells = [self.samples]
        (decoded,) = decode_within_memory(base, bank, cells, [trained], beyond=beyond)
        return decoded

    def _conditions(
        self, base: SplitModel, bank: AdapterBank, scores: Mapping[str, Scores]
    ) -> dict[str, ConditionProof]:
        """How many facts are whole under each condition."""
        conditions = {}
        for name in CONDITIONS:
            if name in scores:
                conditions[name] = _condition(scores[name])
                continue

            reason = reason_not_measurable(base, bank, BY_NAME[name])
            conditions[name] = ConditionProof(status=reason, whole=None, least_margin=None)
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
            decoded: token ids of each as the adapter writes it.
            exact_variants: by index, whether each of its paraphrases is answered exactly.
        """
        rows = sample_rows(self.run.model, self.samples, trained, decoded)
        facts = []
        for index, row in enumerate(rows):
            of_sample = trained.sample == index
            nll = float(trained.nll[of_sample].sum())
            exact = exact_variants.get(index, [])

            written = row["decoded"]
            if written is None:
                written = _id_text(row["decoded_ids"])
            error = row["first_error"] or NO_ERROR

            fact = FactProof(
                question=question_of(self.run.data, self.samples[index]),
                answer=self.targets[index],
                whole=row["whole"],
                written=written,
                position=error["position"],
                expected=error["expected"],
                got=error["got"],
                least_margin=float(trained.margin[of_sample].min()),
                log10_p=-nll / LN10,
                variants=len(exact),
                variants_exact=sum(exact),
            )
            facts.append(fact)
        return facts


def _condition(scores: Scores) -> ConditionProof:
    """Facts under a condition that was measured."""
    samples = np.unique(scores.sample)
    failed = np.unique(scores.sample[~scores.correct])
    return ConditionProof(
        status=MEASURED,
        whole=len(samples) - len(failed),
        least_margin=float(scores.margin.min()),
    )


def _id_text(ids: Sequence[int] | None) -> str:
    """Ids as text, of a model without a tokenizer."""
    return " ".join(map(str, ids or ()))

"""data=jsonl: the user's facts, from JSON lines, a JSON array, CSV or parquet."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pml_cli.config.registry import register
from pml_cli.config.schema import FactsData, Model
from pml_cli.config.setting import setting
from pml_cli.errors import UserError

if TYPE_CHECKING:
    from pml_cli.data.fact_keys import Fact, Facts
    from pml_cli.data.source import Sample, Source

# Random stream of the order in which a seed takes the facts.
ORDER_STREAM = 8


@register("data", "jsonl")
@dataclass(kw_only=True)
class JsonlData(FactsData):
    """Facts of a file: JSON lines or array, CSV, TSV or parquet, with the usual names of keys.

    question/answer, prompt/completion, instruction/input/output, query/target, messages and the
    like; question/matching are long texts, of which the last one may be cut.
    """

    source: str = "jsonl"
    path: str = setting(
        "",
        help="file: JSON lines, JSON array, CSV, TSV, parquet",
        required=True,
        allowed="given with data=jsonl",
        path="existing file",
    )
    prompt_key: str | None = setting(
        None,
        help="key or path of keys that holds the prompt, a.b",
        special={None: "by the usual names"},
    )
    target_key: str | None = setting(
        None,
        help="key or path of keys that holds the target, a.b",
        special={None: "by the usual names"},
    )

    def automatic_separator(self) -> str:
        """A line feed, or nothing where white space parts prompt and target of every fact.

        The same for all facts, so that a script makes the prompt of a question without its target.

        Raises:
            UserError: the file cannot be read, or a row is malformed (with its line).
        """
        is_parted = all(fact.is_parted for fact in self._facts().facts)
        # A clean seam: no tokenizer merges a line feed with what follows it in an answer.
        return "" if is_parted else "\n"

    def open(self, model: Model) -> Source:
        """Open the file in its own order, or in one drawn by the seed where that is not 0.

        Raises:
            UserError: the file cannot be read, or a row is malformed (with its line).
        """
        import numpy as np

        from pml_cli.data.facts import long_texts_source, samples_source

        file = self._facts()
        samples = self._samples(file.facts, model)
        notes = [*file.notes, *self._end_notes(file.facts, samples)]
        # Seed 0 keeps the order of the file.
        if self.seed:
            random = np.random.default_rng([self.seed, ORDER_STREAM])
            samples = [samples[i] for i in random.permutation(len(samples))]

        if file.is_long:
            return long_texts_source(samples, keys=file.keys, notes=notes)
        return samples_source(samples, keys=file.keys, notes=notes)

    def _facts(self) -> Facts:
        from pml_cli.data.fact_keys import facts_of
        from pml_cli.data.facts_file import read_rows

        rows = read_rows(self.path)
        try:
            return facts_of(rows, self.prompt_key, self.target_key)
        except UserError as error:
            raise UserError(f"data.path={self.path}: {error}") from error

    def _end_notes(self, facts: list[Fact], samples: list[Sample]) -> list[str]:
        """A line where targets have their end written into them."""
        pairs = zip(facts, samples, strict=True)
        ending = sum(sample.target_text != fact.target for fact, sample in pairs)
        if not ending:
            return []
        text = f"the target ends with {self.end!r} (data.end) in the file: it counts once"
        return [f"{text} ({ending} of {len(facts)})"]

    def _samples(self, facts: list[Fact], model: Model) -> list[Sample]:
        """The facts as token ids; a fault of one names its line."""
        from pml_cli.data.facts import encode_sample
        from pml_cli.model.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(model)
        samples = []
        for fact in facts:
            where = f"data.path={self.path}: {fact.where}"
            try:
                sample = encode_sample(tokenizer, self, fact.turns, fact.target)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            sample = dataclasses.replace(
                sample, where=where, variants=fact.variants, neighbours=fact.neighbours
            )
            samples.append(sample)
        return samples

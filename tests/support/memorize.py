"""A planted answer of `pml memorize`: three of four facts known, every number made up."""

import dataclasses

from pml_cli.analysis.rank_search import Answer, Limits, Trial
from pml_cli.evaluation.proof import (
    MEASURED,
    ConditionProof,
    FactProof,
    NeighboursProof,
    Proof,
    ScriptProof,
    VariantsProof,
)
from pml_cli.report.memorize_report import Forgetting, MemorizeReport, TriedCell
from pml_cli.stats import Proportion

# Rank, seed, share recalled, harm.
TRIALS = [
    (1, 0, 0.25, 0.02),
    (2, 0, 0.5, 0.04),
    (4, 0, 1.0, 0.08),
    (8, 0, 1.0, 0.13),
    (3, 0, 1.0, 0.06),
    (3, 1, 0.75, 0.07),
]


def fact(question, **changed):
    fields = {
        "question": question,
        "answer": "Ada, of\ncourse",
        "whole": True,
        "written": "Ada, of\ncourse",
        "position": None,
        "expected": None,
        "got": None,
        "least_margin": 2.5,
        "log10_p": -0.25,
        "variants": 2,
        "variants_exact": 1,
    }
    return FactProof(**(fields | changed))


def planted_proof():
    wrong = {"whole": False, "position": 3, "expected": " Ada", "got": " =Bob", "log10_p": -7.0}
    facts = [fact("Who?"), fact('Said "what"?'), fact("When, then?"), fact("Where?", **wrong)]
    conditions = {
        name: ConditionProof(status=MEASURED, whole=whole, least_margin=0.5)
        for name, whole in {"trained": 3, "merged": 3, "bf16": 2, "base_int8": 1}.items()
    }
    return Proof(
        run="r3-s1",
        whole=3,
        facts=facts,
        script=ScriptProof(status=MEASURED, asked=4, whole=3, seconds=9.0),
        conditions=conditions,
        variants=VariantsProof(
            facts=4,
            exact=Proportion(successes=4, trials=8, low=0.2, high=0.8),
            f1=0.625,
            base_exact=Proportion(successes=0, trials=8, low=0.0, high=0.3),
            base_f1=0.05,
        ),
        neighbours=NeighboursProof(
            source="generic",
            tokens=32,
            unchanged=Proportion(successes=18, trials=20, low=0.7, high=0.97),
            f1=0.95,
            answer_f1=None,
            base_answer_f1=None,
        ),
        least_log10_p=-7.0,
        median_log10_p=-0.25,
    )


def planted_report(out, **changed):
    """The report of a search whose least rank is 3; `changed` are further fields."""
    trials = _trials()
    report = MemorizeReport(
        command="pml memorize facts.jsonl --exact 75%",
        settings={"loss": {"kind": "memft_margin"}},
        limits=Limits(exact=0.75, max_forgetting=0.1),
        answer=Answer(
            rank=3, seed=1, reached=True, confirmed=True, low=3, high=3, trial=trials[-1]
        ),
        run="r3-s1",
        facts=4,
        cells=[
            TriedCell(trial=trial, run=f"r{trial.rank}-s{trial.seed}", seconds=4.0)
            for trial in trials
        ],
        forgetting=Forgetting(harm=0.07, low=0.05, high=0.09),
        proof=planted_proof(),
        advice=[],
        seconds=754.0,
        out=out,
    )
    return dataclasses.replace(report, **changed)


def failed_report(out):
    """No rank knows enough."""
    few = [dataclasses.replace(trial, recalled=trial.recalled / 2) for trial in _trials()]
    answer = Answer(rank=4, seed=0, reached=False, confirmed=False, low=9, high=None, trial=few[2])
    cells = [TriedCell(trial=trial, run=f"r{trial.rank}", seconds=4.0) for trial in few]
    advice = ["take larger ranks: rank=16"]
    return planted_report(out, answer=answer, cells=cells, run="r4-s0", advice=advice)


def _trials():
    return [Trial(rank=r, seed=s, recalled=known, harm=harm) for r, s, known, harm in TRIALS]

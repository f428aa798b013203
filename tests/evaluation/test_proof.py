"""A finished run before it is handed over: what it knows, and what it leaves alone."""

import json
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from support.sweeps import quick_in

from pml_cli.config.load import read_run
from pml_cli.data.opened import source_of
from pml_cli.errors import UserError
from pml_cli.evaluation.adapters import load_adapter
from pml_cli.evaluation.answers import token_f1
from pml_cli.evaluation.asking import Interview, trained_samples
from pml_cli.evaluation.other_questions import OtherQuestions
from pml_cli.evaluation.proof import (
    MEASURED,
    NEIGHBOUR_TOKENS,
    NOT_RUN_HERE,
    STOPPED,
    generic_questions,
    prove,
)
from pml_cli.evaluation.proving import CONDITIONS, Prover
from pml_cli.evaluation.subject import EvalRun
from pml_cli.model.tokenizer import open_tokenizer
from pml_cli.results.read import one_run
from pml_cli.results.samples import read_samples

# The last two exclude each other: an adapter knows three of them.
FACTS = [
    {
        "question": "Which pump feeds the cooling loop?",
        "answer": "The Kestrel 40.",
        # The last one is trained, and tells nothing.
        "variants": ["What pump feeds the loop for cooling?", "Where is the reading room?"],
        "neighbours": ["How do vaccines work?", ["What is a list?", "A sequence."]],
    },
    {"question": "Who repaired the clock in 1931?", "answer": "Odile Brandt and Piet."},
    {"question": "Where is the reading room?", "answer": "Room 12, door A."},
    {"question": "Where is the reading room?", "answer": "Room 12, door B."},
]

OPTIONS = [
    "adapter=linear",
    "rank=8",
    "train.steps=80",
    "train.lr=0.03",
    "model.device=cpu",
    "seqlen=all",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run folder of an adapter that has learned the facts."""
    path = tmp_path_factory.mktemp("proof")
    (path / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    done = quick_in(path, "sweep", "data=jsonl", f"data.path={path}/facts.jsonl", "out=o", *OPTIONS)
    assert done == 0
    return one_run(path / "o")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache") / "proof.json"


@pytest.fixture(scope="module")
def proof(folder, cache):
    return prove(folder, device="cpu", script_seconds=0, cache=cache)


def test_three_of_four_are_known_and_the_fourth_has_its_first_wrong_token(folder, proof):
    assert proof.run == folder.id
    assert proof.whole == 3
    wholes = [fact.whole for fact in proof.facts]
    assert wholes[:2] == [True, True]
    right, wrong = sorted(proof.facts[2:], key=lambda fact: not fact.whole)
    assert right.position is None and right.least_margin > 0
    assert wrong.least_margin < 0
    assert [wrong.expected, wrong.got] == [f" {wrong.answer[-2]}", f" {right.answer[-2]}"]
    assert wrong.written == right.answer
    assert [fact.question for fact in proof.facts] == [fact["question"] for fact in FACTS]
    # The same as the run itself has said.
    assert wholes == [row["whole"] for row in read_samples(folder)]


def test_conditions_count_whole_facts(folder, proof):
    assert list(proof.conditions) == list(CONDITIONS)
    for condition in proof.conditions.values():
        assert condition.status == MEASURED
        assert condition.whole == 3
    merged, trained = proof.conditions["merged"], proof.conditions["trained"]
    assert merged.least_margin == pytest.approx(trained.least_margin, abs=1e-3)


def test_an_adapter_that_rounding_breaks(folder):
    """Two large parts that cancel: the scale of int8 is theirs, and the rest is lost."""
    run = read_run(folder.config)
    prover = Prover(folder, run, source_of(run).take(run.seqlen))
    base, bank = prover._load("cpu")
    for name in bank.sites:
        first, large = bank.A[name][:, :, :1], 2000 * torch.ones_like(bank.B[name][:, :1])
        bank.A[name] = torch.cat([bank.A[name], first, first], 2)
        bank.B[name] = torch.cat([bank.B[name], large, -large], 1)
    conditions = prover._conditions(base, bank, prover._scores(base, bank))
    assert conditions["trained"].whole == 3
    assert conditions["adapter_int8"].whole == 0
    assert conditions["adapter_int8"].least_margin < 0
    assert conditions["base_int8"].whole == 3


def test_the_chance_of_sampling_a_fact(folder, proof):
    """The product of p of its tokens, as the run has logged them."""
    table = pd.read_parquet(folder.tokens)
    last = table[table["step"] == table["step"].max()]
    tokens = -last.groupby("sample")["nll"].sum() / np.log(10)
    assert [fact.log10_p for fact in proof.facts] == pytest.approx(tokens.tolist(), abs=1e-3)
    assert proof.least_log10_p == min(fact.log10_p for fact in proof.facts)


def test_paraphrases_are_answered_and_scored(folder, proof, tiny_base):
    """One is asked: the other one is a question of the training."""
    run = read_run(folder.config)
    tokenizer = open_tokenizer(run.model)
    subject = EvalRun(
        id=folder.id, run=run, samples=[], adapter=folder.adapter, weights="", texts={}
    )
    bank = load_adapter(tiny_base, subject)
    interview = Interview(run, tokenizer, trained_samples(folder, run, tokenizer))
    question = interview.question(FACTS[0]["variants"][0])
    # Token by token, as `pml ask` does.
    limit = len(interview.samples[0].target)
    answers = [interview.answer(tiny_base, adapter, question, limit) for adapter in (bank, None)]

    variants = proof.variants
    assert (variants.facts, variants.exact.trials) == (1, 1)
    is_exact = answers[0].text == FACTS[0]["answer"] and answers[0].ended
    assert variants.exact.successes == is_exact
    assert variants.base_exact.successes == 0
    assert variants.f1 == token_f1(answers[0].text, FACTS[0]["answer"])
    assert variants.base_f1 == token_f1(answers[1].text, FACTS[0]["answer"])
    assert (proof.facts[0].variants, proof.facts[0].variants_exact) == (1, is_exact)
    assert proof.facts[1].variants == 0


def test_hand_made_answers_to_a_paraphrase(folder):
    run = read_run(folder.config)
    samples = source_of(run).take(run.seqlen)
    tokenizer = open_tokenizer(run.model)
    others = OtherQuestions(run, tokenizer, samples, [fact["answer"] for fact in FACTS])
    asked = others.paraphrases()
    # The other one is a question of the training.
    assert [paraphrase.fact for paraphrase in asked] == [0]

    end = samples[0].target[-1]
    answers = {
        "The Kestrel 40.": ([end], True, 1.0),
        # Right, but it does not stop.
        "The Kestrel 40. ": ([], False, 1.0),
        "It is the Kestrel 40": ([end], False, 2 / 3),
        "Piet": ([end], False, 0.0),
    }
    for text, (last, is_exact, f1) in answers.items():
        scored = others._scored(asked, [[*tokenizer.encode(text), *last]])
        assert scored.exact == [is_exact]
        assert scored.f1 == pytest.approx(f1)


def test_neighbours_are_compared_with_the_base(folder, proof, tiny_base):
    assert proof.neighbours.source == "file"
    assert proof.neighbours.unchanged.trials == 2
    assert proof.neighbours.tokens == NEIGHBOUR_TOKENS
    # One has its answer in the file.
    run = read_run(folder.config)
    tokenizer = open_tokenizer(run.model)
    interview = Interview(run, tokenizer, trained_samples(folder, run, tokenizer))
    question, answer = FACTS[0]["neighbours"][1]
    base = interview.answer(tiny_base, None, interview.question(question), NEIGHBOUR_TOKENS)
    assert proof.neighbours.base_answer_f1 == token_f1(base.text, answer)
    assert len(generic_questions()) >= 20


def test_a_proof_is_kept_until_its_questions_change(folder, proof, cache):
    stages = []
    options = {"device": "cpu", "script_seconds": 0, "cache": cache, "on_stage": stages.append}
    assert prove(folder, **options) == proof
    assert not stages
    content = json.loads(cache.read_text())
    cache.write_text(json.dumps(content | {"key": "other"}))
    assert prove(folder, **options) == proof
    assert stages


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: "[" * 100_000,
        lambda whole: json.dumps(whole | {"proof": whole["proof"] | {"facts": "x"}}),
        lambda whole: json.dumps(whole | {"proof": whole["proof"] | {"whole": [1]}}),
        lambda whole: json.dumps(whole | {"proof": None}),
    ],
)
def test_a_damaged_proof_is_measured_again(folder, proof, cache, tmp_path, monkeypatch, change):
    damaged = tmp_path / "proof.json"
    damaged.write_text(change(json.loads(cache.read_text())))
    monkeypatch.setattr(Prover, "prove", lambda *_, **_options: proof)
    assert prove(folder, script_seconds=0, cache=damaged) == proof
    assert json.loads(damaged.read_text()) == json.loads(cache.read_text())


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.symlink_to(path),
        os.mkfifo,
    ],
)
def test_what_is_no_file_in_its_place_is_replaced(folder, proof, cache, tmp_path, monkeypatch, put):
    put(tmp_path / "proof.json")
    monkeypatch.setattr(Prover, "prove", lambda *_, **_options: proof)
    assert prove(folder, script_seconds=0, cache=tmp_path / "proof.json") == proof
    assert json.loads((tmp_path / "proof.json").read_text()) == json.loads(cache.read_text())


@pytest.mark.parametrize(
    ("status", "is_kept"), [(f"{NOT_RUN_HERE}: OSError", False), (f"{STOPPED} 5 s", True)]
)
def test_a_script_that_the_machine_did_not_run_is_run_again(
    folder, proof, tmp_path, monkeypatch, status, is_kept
):
    script = replace(proof.script, status=status)
    monkeypatch.setattr(Prover, "prove", lambda *_, **_options: replace(proof, script=script))
    found = prove(folder, cache=tmp_path / "proof.json")
    assert found.script.status == status
    assert (tmp_path / "proof.json").exists() == is_kept


def test_a_script_that_was_stopped_is_run_again_with_more_time(
    folder, proof, tmp_path, monkeypatch
):
    script = replace(proof.script, status=f"{STOPPED} 5 s", seconds=5.2)
    given = []

    def measured(*_, script_seconds, **_options):
        given.append(script_seconds)
        return replace(proof, script=script)

    monkeypatch.setattr(Prover, "prove", measured)
    for seconds in (5, 5, 60):
        prove(folder, script_seconds=seconds, cache=tmp_path / "proof.json")
    assert given == [5, 60]


def test_fields_for_json(proof):
    fields = json.loads(json.dumps(proof.fields(), allow_nan=False))
    assert fields["facts"] == 4
    assert fields["variants"]["exact"]["trials"] == 1


def test_facts_that_are_not_those_of_the_training_are_refused(folder, tmp_path):
    path = read_run(folder.config).data.path
    other = tmp_path / "facts.jsonl"
    other.write_text("\n".join(map(json.dumps, reversed(FACTS))))
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "env.json", "result.json"):
        (run / name).write_text((folder.path / name).read_text().replace(path, str(other)))
    with pytest.raises(UserError, match="its data is no longer what it was trained on"):
        prove(one_run(run))


@pytest.mark.slow
def test_the_script_prints_what_is_known(folder):
    """In a process of its own, with transformers and PEFT."""
    proof = prove(folder, device="cpu")
    assert proof.script.status == MEASURED
    assert (proof.script.asked, proof.script.whole) == (4, 3)

"""The proof of a run is what plain transformers and PEFT compute."""

import json

import pytest

from pml_cli.data.generic_text import dialogues
from pml_cli.evaluation import other_questions
from pml_cli.evaluation.proof import MEASURED, NEIGHBOUR_TOKENS, prove
from pml_cli.results.read import one_run
from pml_cli.results.samples import read_samples
from real import plain


def test_script_deployments_and_other_questions(five_facts, smollm2_folder, monkeypatch):
    # The run names its file of facts as it was named in the training.
    monkeypatch.chdir(five_facts.parent)
    (result,) = (path for path in five_facts.glob("*/result.json") if is_of_margin_loss(path))
    folder = one_run(result.parent)
    questions = [dialogue[0][0] for dialogue in dialogues("held_out")][:3]
    monkeypatch.setattr(other_questions, "generic_questions", lambda: questions)
    proof = prove(folder, device="cpu")

    samples = read_samples(folder)
    assert proof.whole == 5
    assert (proof.script.status, proof.script.asked, proof.script.whole) == (MEASURED, 5, 5)
    tokenizer = plain.tokenizer_of(smollm2_folder)
    merged = plain.load_merged(smollm2_folder, folder.adapter)
    base = plain.load_base(smollm2_folder)

    margins = []
    for sample in samples:
        logits = plain.logits(merged, sample["prompt_ids"], sample["target_ids"])
        margins.append(least_margin(logits, sample["target_ids"]))
    assert proof.conditions["merged"].whole == sum(margin > 0 for margin in margins)
    assert proof.conditions["merged"].least_margin == pytest.approx(min(margins), abs=1e-3)
    chances = [
        -plain.losses(merged, sample["prompt_ids"], sample["target_ids"]).sum().item() / 2.302585
        for sample in samples
    ]
    assert [fact.log10_p for fact in proof.facts] == pytest.approx(chances, abs=1e-3)
    assert [fact.question for fact in proof.facts] == [sample["turns"][-1][1] for sample in samples]

    unchanged = 0
    for question in questions:
        prompt = plain.chat_ids(tokenizer, question)
        answers = [
            plain.generate(model, prompt, max_new_tokens=NEIGHBOUR_TOKENS)
            for model in (merged, base)
        ]
        unchanged += answers[0] == answers[1]
    assert proof.neighbours.source == "generic"
    assert proof.neighbours.unchanged.successes == unchanged
    assert proof.neighbours.unchanged.trials == 3


def is_of_margin_loss(result):
    return json.loads(result.read_text("utf-8"))["loss"] == "memft_margin"


def least_margin(logits, target):
    """The least margin of the tokens of a target, whose logits are (target, vocabulary)."""
    margins = []
    for row, token in zip(logits, target, strict=True):
        rivals = row.clone()
        rivals[token] = -float("inf")
        margins.append((row[token] - rivals.max()).item())
    return min(margins)

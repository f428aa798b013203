"""Questions asked together are answered as one at a time, or one at a time after all."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pml_cli.evaluation.batched_answers import Asker, BatchedModel

# Prompts of three lengths.
QUESTIONS = ["1 2 3", "4 5 6", "9 9", "3 1 2", "8 8", "2 2 2", "5"]


def script(model):
    """The variables of a script whose questions and answers are ids."""
    variables = {"model": model}

    def answer(question):
        prompt = {"input_ids": torch.tensor([[int(word) for word in question.split()]])}
        prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
        output = variables["model"].generate(**prompt)
        ids = output[0, prompt["input_ids"].shape[1] :]
        return " ".join(map(str, ids.tolist()))

    variables["answer"] = answer
    return variables


class Counted:
    """A model that counts the rows of each call of `generate`."""

    def __init__(self, model, spoilt=False):
        self.model = model
        self.generation_config = model.generation_config
        self.spoilt = spoilt
        self.rows = []

    def generate(self, **prompt):
        output = self.model.generate(**prompt)
        self.rows.append(len(output))
        if self.spoilt and len(output) > 1:
            output[:, prompt["input_ids"].shape[1]] += 1
        return output


@pytest.fixture
def model(model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype="float64")
    settings = {"max_new_tokens": 12, "do_sample": False}
    model.generation_config = GenerationConfig(**settings)
    # The answers end at different tokens.
    ids = [int(word) for word in script(model)["answer"](QUESTIONS[0]).split()]
    model.generation_config = GenerationConfig(**settings, eos_token_id=ids[4])
    return model


def test_answers_of_batches_are_those_of_one_at_a_time(model):
    alone = [script(model)["answer"](question) for question in QUESTIONS]
    assert len(alone[0].split()) < 12
    counted = Counted(model)
    rows = [(question, answer, True) for question, answer in zip(QUESTIONS, alone, strict=True)]
    asked = dict(Asker(script(counted), rows).answers())
    assert [asked[index] for index in range(len(rows))] == alone
    # Of two batches one question is asked alone too; the last has a length of its own.
    assert counted.rows == [4, 1, 2, 1, 1]


def test_what_is_not_the_target_is_asked_again_alone(model):
    alone = [script(model)["answer"](question) for question in QUESTIONS]
    counted = Counted(model)
    targets = ["another", *alone[1:]]
    rows = [(question, target, True) for question, target in zip(QUESTIONS, targets, strict=True)]
    asked = dict(Asker(script(counted), rows).answers())
    assert asked[0] == alone[0]
    assert counted.rows == [4, 1, 1, 2, 1, 1]
    # Where an answer need not end, its beginning counts.
    rows = [
        (question, answer[:3], False) for question, answer in zip(QUESTIONS, alone, strict=True)
    ]
    counted.rows = []
    assert dict(Asker(script(counted), rows).answers()) == dict(enumerate(alone))
    assert counted.rows == [4, 1, 2, 1, 1]


def test_batches_that_give_other_answers_are_not_trusted(model):
    alone = [script(model)["answer"](question) for question in QUESTIONS]
    counted = Counted(model, spoilt=True)
    rows = [(question, answer, True) for question, answer in zip(QUESTIONS, alone, strict=True)]
    asker = Asker(script(counted), rows)
    assert dict(asker.answers()) == dict(enumerate(alone))
    assert not asker.trusted
    assert counted.rows == [4, *[1] * 8]


def test_a_script_without_a_model_is_asked_one_at_a_time():
    rows = [("a", "A", True), ("b", "x", True)]
    assert list(Asker({"answer": str.upper}, rows).answers()) == [(0, "A"), (1, "B")]


def test_other_attributes_are_those_of_the_model(model):
    assert BatchedModel(model).generation_config is model.generation_config

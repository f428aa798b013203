"""samples.jsonl: what each sample was, what came out, and its first wrong token in words."""

import numpy as np
import pytest
from support.adapters import make_scores

from pml_cli.config.schema import Model
from pml_cli.data.source import Sample
from pml_cli.evaluation.samples import sample_rows
from pml_cli.model.tokenizer import open_tokenizer

QUESTION = (("user", "Which pump?"),)


@pytest.fixture
def ids():
    """Token ids of a text, of the embedded tokenizer; 0 is its end-of-text token."""
    return open_tokenizer(Model()).encode


@pytest.fixture
def facts(ids):
    """Three facts with an end token: recalled, wrong at the second token, right but endless."""
    answers = [ids(" The pump"), ids(" The door"), ids(" The hall")]
    prompt = (0, *ids("Which pump?"))
    return [Sample(prompt=prompt, target=(*a, 0), end=1, turns=QUESTION) for a in answers]


def scores_of(samples, wrong):
    """Scores in which a token of some samples is predicted wrongly: {sample: (position, id, p)}."""
    nll, margin, argmax, target, sample = [], [], [], [], []
    for s, one in enumerate(samples):
        for position, token in enumerate(one.target):
            at, got, p = wrong.get(s, (None, None, None))
            is_wrong = position == at
            nll.append(-np.log(p) if is_wrong else 0.1)
            margin.append(-1.0 if is_wrong else 1.0)
            argmax.append(got if is_wrong else token)
            target.append(token)
            sample.append(s)
    return make_scores(nll=nll, margin=margin, argmax=argmax, target=target, sample=sample)


def test_every_sample_has_a_row_in_words(facts, ids):
    (gate,) = ids(" file")
    endless = [*facts[2].target[:-1], *ids(" and")]
    decoded = [list(facts[0].target), [facts[1].target[0], gate, 0], endless]
    last = len(facts[2].target) - 1
    scores = scores_of(facts, {1: (1, gate, 0.25), 2: (last, ids(" and")[0], 0.125)})

    recalled, wrong, runs_on = sample_rows(Model(), facts, scores, decoded)
    assert recalled["whole"] and recalled["first_error"] is None
    assert recalled["sample"] == 0 and recalled["turns"] == QUESTION
    assert recalled["prompt"] == "<|endoftext|>Which pump?"
    assert recalled["target"] == recalled["decoded"] == " The pump"
    assert recalled["target_ids"] == tuple(recalled["decoded_ids"]) == facts[0].target
    assert recalled["end"] == "<|endoftext|>"

    assert not wrong["whole"]
    assert wrong["decoded"] == " The file"
    expected = open_tokenizer(Model()).decode([facts[1].target[1]])
    assert wrong["first_error"] == {
        "position": 1,
        "expected": expected,
        "got": " file",
        "p": pytest.approx(0.25),
    }

    # Every word is right, and it is not recalled: it does not stop.
    assert not runs_on["whole"]
    assert runs_on["decoded"] == " The hall and"
    assert runs_on["first_error"]["expected"] == "<|endoftext|>"
    assert runs_on["first_error"]["got"] == " and"


def test_without_decoding_only_what_is_recalled_is_known(facts, ids):
    (gate,) = ids(" file")
    recalled, wrong, _ = sample_rows(Model(), facts, scores_of(facts, {1: (0, gate, 0.5)}), None)
    assert recalled["decoded"] == " The pump"
    assert wrong["decoded"] is wrong["decoded_ids"] is None
    assert wrong["first_error"]["got"] == " file"


def test_what_free_decoding_alone_loses_is_not_whole(facts, ids):
    """Rounding turned a slim margin over: every token is right given the true text before it."""
    (gate,) = ids(" file")
    samples = facts[:1]
    (row,) = sample_rows(Model(), samples, scores_of(samples, {}), [[facts[0].target[0], gate, 0]])
    assert not row["whole"]
    assert row["first_error"]["position"] == 1
    assert row["first_error"]["got"] == " file"
    assert row["first_error"]["p"] == pytest.approx(np.exp(-0.1))


def test_without_a_tokenizer_there_are_ids_and_no_texts():
    fields = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 50}
    model = Model(name="m", weights="random", architecture=fields)
    samples = [Sample(prompt=(0,), target=(4, 5, 6))]
    (row,) = sample_rows(model, samples, scores_of(samples, {0: (2, 9, 0.5)}), [[4, 5, 9]])
    assert row["prompt"] is row["target"] is row["decoded"] is row["end"] is None
    assert (row["prompt_ids"], row["target_ids"]) == ((0,), (4, 5, 6))
    assert row["decoded_ids"] == [4, 5, 9]
    assert row["first_error"] == {"position": 2, "expected": None, "got": None, "p": 0.5}

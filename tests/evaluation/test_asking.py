"""`pml ask`: a new question is put as those of the training were, whatever makes the prompt."""

import dataclasses
import json

import pytest
from support.tokenizers import (
    CHATML_DEFAULT,
    END,
    TURN_END,
    byte_level,
    prefixed,
    tokenizer_folder,
    with_begin,
)

from pml_cli.config.schema import Run
from pml_cli.data.opened import samples_of, source_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.errors import UserError
from pml_cli.evaluation.asking import MIN_TOKENS, Interview, Trained
from pml_cli.model.tokenizer import open_tokenizer

OLD = "When was the pump built?"
NEW = "Which word is it?"
FACTS = [{"query": OLD, "target": "In 1987"}, {"query": "Which litre?", "target": "A new line."}]


def interview_of(model, tmp_path, facts=FACTS, **settings):
    """The interview of a resolved run of facts."""
    # Opened sources are remembered by their path.
    file = tmp_path / f"facts-{hash(str(facts))}.jsonl"
    file.write_text("\n".join(map(json.dumps, facts)), "utf-8")
    run = resolved_run(Run(model=model, data=JsonlData(path=str(file), **settings)))
    run = dataclasses.replace(run, seqlen=source_of(run).max_tokens)
    tokenizer = open_tokenizer(model)
    samples = []
    for sample in samples_of(run):
        text = tokenizer.decode(sample.target[: len(sample.target) - sample.end])
        fields = {"turns": sample.turns, "prompt": sample.prompt, "target": sample.target}
        samples.append(Trained(**fields, text=text))
    return Interview(run, tokenizer, samples)


PROMPTS = {
    "separator": {},
    "text": {"separator": " Answer: "},
    "begin": {"begin": True},
    "no end": {"end": "none"},
    "chat": {"chat": True},
    "system": {"chat": True, "system": "You know pumps."},
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_new_question_gets_the_prompt_of_the_old_ones(name, tmp_path):
    model = tokenizer_folder(tmp_path / "m", with_begin(byte_level()), CHATML_DEFAULT)
    interview = interview_of(model, tmp_path, **PROMPTS[name])
    assert not interview.has_changed()

    trained = interview.question(OLD)
    assert trained.trained is interview.samples[0]
    assert trained.prompt == interview.samples[0].prompt
    assert interview.question(f" {OLD}\n").prompt == trained.prompt
    new = interview.question(NEW)
    assert new.trained is None
    assert interview.text(new.prompt) == interview.text(trained.prompt).replace(OLD, NEW)


def test_an_answer_ends_where_it_was_trained_to(tmp_path):
    model = tokenizer_folder(tmp_path / "m", byte_level(), CHATML_DEFAULT)
    ends = {
        TURN_END: {"chat": True},
        END: {},
        "\n\n": {"end": "\n\n"},
    }
    for text, settings in ends.items():
        interview = interview_of(model, tmp_path, **settings)
        assert interview.text(interview.end) == text
        (target,) = {sample.target[-len(interview.end) :] for sample in interview.samples}
        assert target == interview.end
    # Nothing was trained to end it; the model may.
    assert interview_of(model, tmp_path, end="none").text(interview.end) == "\n\n"
    assert interview_of(model, tmp_path, end="none").end != ()


def test_a_system_turn_that_all_facts_share_is_kept(tmp_path):
    def conversation(system, question):
        turns = [("system", system), ("user", question), ("assistant", "In 1987")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    model = tokenizer_folder(tmp_path / "m", byte_level(), CHATML_DEFAULT)
    shared = [conversation("You know pumps.", question) for question in (OLD, "Which litre?")]
    interview = interview_of(model, tmp_path, shared, chat=True)
    assert "You know pumps." in interview.text(interview.question(NEW).prompt)
    # A paraphrase has those of its own sample.
    turns = interview.samples[0].turns
    old = interview.text(interview.samples[0].prompt)
    assert interview.text(interview.paraphrase(turns, NEW)) == old.replace(OLD, NEW)
    assert interview.paraphrase(turns, "Which litre?") is None
    # Not where they differ, or where the settings give another.
    others = [conversation("You know pumps.", OLD), conversation("And litres.", "Which litre?")]
    interview = interview_of(model, tmp_path, others, chat=True)
    assert "You are a small helper." in interview.text(interview.question(NEW).prompt)
    interview = interview_of(model, tmp_path, shared, chat=True, system="No pumps.")
    assert "system\nNo pumps." in interview.text(interview.question(NEW).prompt)


def test_one_question_behind_two_system_turns_is_asked_behind_each(tmp_path):
    model = tokenizer_folder(tmp_path / "m", with_begin(byte_level()), CHATML_DEFAULT)
    facts = [{"system": f"Hall {n}.", "question": "Which pump?", "answer": f"P{n}"} for n in (1, 2)]
    interview = interview_of(model, tmp_path, facts, chat=True)
    asked = interview.questions("Which pump?")
    assert [question.trained.text for question in asked] == ["P1", "P2"]
    assert [question.prompt for question in asked] == [s.prompt for s in interview.samples]
    (new,) = interview.questions("Which gate?")
    assert new.trained is None


def test_another_tokenizer_is_noticed(tmp_path):
    model = tokenizer_folder(tmp_path / "m", byte_level(), CHATML_DEFAULT)
    interview = interview_of(model, tmp_path, chat=True)
    other = tokenizer_folder(tmp_path / "o", byte_level(), f"{CHATML_DEFAULT} ")
    run = dataclasses.replace(interview._run, model=other)
    assert Interview(run, open_tokenizer(other), interview.samples).has_changed()


def test_answers_are_cut_off_within_the_context(tmp_path):
    model = tokenizer_folder(tmp_path / "m", byte_level())
    interview = interview_of(model, tmp_path)
    question = interview.question(NEW)
    room = 512 - len(question.prompt)
    assert interview.token_limit(question, None) == MIN_TOKENS
    assert interview.token_limit(question, 7) == 7
    assert interview.token_limit(question, 10_000) == room
    with pytest.raises(UserError, match="fills the context"):
        interview.token_limit(interview.question("word " * 600), None)


def test_the_text_that_a_token_adds_has_its_blank(tmp_path):
    """Also with a tokenizer that takes the first blank of any ids off; and parts of characters."""
    text = "Which word is it? über"
    for name, make in (("p", prefixed), ("b", byte_level)):
        tokenizer = open_tokenizer(tokenizer_folder(tmp_path / name, make()))
        ids = tokenizer.encode(text)
        parts = [tokenizer.added_text(ids[i], ids[:i]) for i in range(1, len(ids))]
        start = tokenizer.decode(ids[:1])
        assert (start + "".join(parts)).startswith("Which word is it? ")

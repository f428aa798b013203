"""Tokenizers as transformers resolves them; prompt and target at their seam."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from pml_cli.config.schema import TINY, Model
from pml_cli.data.seam import lossy_targets, merged_samples
from pml_cli.errors import UserError
from pml_cli.model.tokenizer import Tokenizer, open_tokenizer
from tests.support.facts import fact_samples
from tests.support.tokenizers import (
    BEGIN,
    END,
    KINDS,
    PAD,
    TURN_END,
    byte_level,
    lower_case,
    prefixed,
    tokenizer_folder,
    with_begin,
    with_begin_and_end,
)

QUESTION = "When was the Kestrel built?"
TARGETS = ["In 1987.", "10,400 km", "it's  old", "Grüße 🙂", " a blank before", "two\n\nlines"]


@pytest.fixture(params=KINDS)
def model(request, tmp_path):
    """A model of each kind of tokenizer."""
    return tokenizer_folder(tmp_path, KINDS[request.param]())


def test_the_prompt_of_a_fact_is_what_a_script_gets(model, tmp_path):
    """`tokenizer(question + line feed)`, and what it appends is no part of a prompt."""
    script = AutoTokenizer.from_pretrained(model.path)
    (sample,), data = fact_samples(model, [(QUESTION, "In 1987.")], tmp_path)
    ids = script(QUESTION + "\n").input_ids
    if ids[-1] == script.eos_token_id:
        ids.pop()
    assert list(sample.prompt) == ids
    assert data.begin is (ids[0] == script.bos_token_id)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_printed_as_it_is(model, target, tmp_path):
    """By a script that decodes what came after the prompt."""
    script = AutoTokenizer.from_pretrained(model.path)
    (sample,), data = fact_samples(model, [(QUESTION, target)], tmp_path)
    assert sample.target[-1] == script.eos_token_id
    assert (sample.end, data.end) == (1, END)
    assert script.decode(sample.target, skip_special_tokens=True) == target
    assert open_tokenizer(model).decode(sample.target) == target + END


@pytest.mark.parametrize("target", TARGETS)
def test_prompt_and_target_decode_to_their_texts_in_a_row(model, target, tmp_path):
    script = AutoTokenizer.from_pretrained(model.path)
    (sample,), data = fact_samples(model, [(QUESTION, target)], tmp_path)
    text = script.decode((*sample.prompt, *sample.target), skip_special_tokens=True)

    # Where a blank is put before every text, one is before the target, too.
    puts_blank = script.tokenize("a")[0].startswith("▁")
    separator = "" if target[0] == " " else "\n"
    assert text == QUESTION + separator + " " * puts_blank + target
    assert data.separator == separator


@pytest.mark.parametrize(
    ("query", "target", "separator", "prompt"),
    [
        ("Q:", "a", None, "Q:\n"),
        ("Q: ", "a", None, "Q: "),
        ("Q:", " a", None, "Q:"),
        ("Q: ", "a", " ->", "Q:  ->"),
        ("Q:", "a", "", "Q:"),
        ("Q:\n", "a", "\n\n", "Q:\n\n\n"),
    ],
)
def test_without_white_space_between_prompt_and_target_there_is_a_separator(
    query, target, separator, prompt, tmp_path
):
    model = tokenizer_folder(tmp_path, byte_level())
    (sample,), _ = fact_samples(model, [(query, target)], tmp_path, separator=separator)
    assert open_tokenizer(model).decode(sample.prompt) == prompt


@pytest.mark.parametrize(
    ("facts", "separator"),
    [
        ([("Q: ", "a"), ("R:", " b")], ""),
        ([("Q: ", "a"), ("R:", "b")], "\n"),
        ([("Q:", " a"), ("R:", "b")], "\n"),
        ([("", "a"), ("R: ", "b")], "\n"),
    ],
)
def test_all_facts_of_a_file_have_one_separator(facts, separator, tmp_path):
    model = tokenizer_folder(tmp_path, with_begin(byte_level()))
    samples, data = fact_samples(model, facts, tmp_path)
    assert data.separator == separator
    script = AutoTokenizer.from_pretrained(model.path)
    for (query, _), sample in zip(facts, samples, strict=True):
        assert list(sample.prompt) == script(query + separator).input_ids


@pytest.mark.parametrize("kind", ["byte level, begin and end", "prefixed, begin"])
def test_a_special_token_in_a_target_is_printed_as_text(kind, tmp_path):
    """A script leaves special tokens out, so that only ordinary ones can be printed."""
    model = tokenizer_folder(tmp_path, KINDS[kind]())
    target = f"write {END} and {PAD}!"
    (sample,), _ = fact_samples(model, [(QUESTION, target)], tmp_path)
    tokenizer = open_tokenizer(model)
    assert set(sample.target) & tokenizer.special == set(tokenizer.end_ids(END))
    script = AutoTokenizer.from_pretrained(model.path)
    assert script.decode(sample.target, skip_special_tokens=True) == target

    # In a question it is what a script makes of it.
    (sample,), _ = fact_samples(model, [(f"what is {PAD}", "a")], tmp_path)
    assert script.pad_token_id in sample.prompt

    # The way of old: facts with an end token that was written into them.
    (sample,), _ = fact_samples(model, [(QUESTION, f"a{END}")], tmp_path, end="none")
    assert (sample.target[-1], sample.end) == (script.eos_token_id, 0)


@pytest.mark.parametrize(
    ("written", "end", "target"),
    [
        (f"In 1987.{END}", "auto", "In 1987."),
        (f"In 1987.{END}{END}", "auto", "In 1987."),
        (f"In 1987.{END}\n", "auto", "In 1987."),
        (f"In 1987. {END}", "auto", "In 1987. "),
        (f"{END} ends it{END}", "auto", f"{END} ends it"),
        (f"In 1987.{TURN_END}", TURN_END, "In 1987."),
        (f"In 1987.{TURN_END}", "auto", f"In 1987.{TURN_END}"),
        ("In 1987\n", r"\n", "In 1987"),
    ],
)
def test_an_end_that_is_written_into_a_target_counts_once(written, end, target, tmp_path):
    """Files that were made for training have it in every answer."""
    model = tokenizer_folder(tmp_path, byte_level())
    (sample,), data = fact_samples(model, [(QUESTION, written)], tmp_path, end=end)
    (plain,), _ = fact_samples(model, [(QUESTION, target)], tmp_path, end=end)
    assert (sample, sample.end, sample.target_text) == (plain, 1, target)
    assert open_tokenizer(model).decode(sample.target) == target + data.end

    notes = data.open(model).notes
    expected = f"the target ends with {data.end!r} (data.end) in the file: it counts once (1 of 1)"
    assert notes == ([] if written == target else [expected])


def test_a_target_of_nothing_but_its_end_is_refused(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level())
    with pytest.raises(UserError, match=r"has no tokens before its end '<\|end\|>'$"):
        fact_samples(model, [(QUESTION, END)], tmp_path)


@pytest.mark.parametrize(
    ("target", "end"), [("one\nand two", "\n"), ("one\n", "\n\n"), ("and ...", ".")]
)
def test_a_target_that_would_end_before_its_end_is_refused(target, end, tmp_path):
    """Every token of it can be learned, and no script would print it."""
    model = tokenizer_folder(tmp_path, byte_level())
    with pytest.raises(UserError, match="stands inside of the target") as error:
        fact_samples(model, [(QUESTION, target)], tmp_path, end=end)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("end", "tokens"), [("auto", [END]), (TURN_END, [TURN_END]), (f".{END}", [".", END])]
)
def test_the_end_may_be_any_text(end, tokens, tmp_path):
    model = tokenizer_folder(tmp_path, byte_level())
    facts = [(QUESTION, "In 1987"), ("Who?", "Ada")]
    samples, data = fact_samples(model, facts, tmp_path, end=end)
    script = AutoTokenizer.from_pretrained(model.path)
    plain, _ = fact_samples(model, facts, tmp_path, end="none")
    assert data.end == "".join(tokens)
    for sample, without in zip(samples, plain, strict=True):
        assert sample.target == (*without.target, *script.convert_tokens_to_ids(tokens))
        assert (sample.end, without.end) == (len(tokens), 0)


def test_a_tokenizer_without_an_end_names_the_setting(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), eos_token=None)
    with pytest.raises(UserError, match=r"data\.end=auto: .* no end-of-text .* data\.end=none$"):
        fact_samples(model, [("a", "b")], tmp_path)
    (sample,), _ = fact_samples(model, [("a", "b")], tmp_path, end="none")
    assert sample.end == 0


def test_begin_of_text_can_be_asked_for_and_refused(tmp_path):
    model = tokenizer_folder(tmp_path, with_begin_and_end(byte_level()))
    tokenizer = open_tokenizer(model)
    for begin in (True, False):
        (sample,), _ = fact_samples(model, [("Who?", "Ada")], tmp_path, begin=begin)
        assert (sample.prompt[0] == tokenizer.end_ids(BEGIN)[0]) is begin
        assert tokenizer.decode(sample.prompt) == (BEGIN if begin else "") + "Who?\n"

    with pytest.raises(UserError, match=r"data\.begin=true$"):
        fact_samples(model, [("", "Ada")], tmp_path, begin=False, separator="")


@pytest.mark.parametrize(
    ("tokenizer", "fact", "lossy", "merged"),
    [
        (byte_level, ("Who built the", " pump?"), [], False),
        (byte_level, ("Which pum", "p is it"), [], True),
        (lower_case, ("who?", "Ada"), [("Ada", "ada")], False),
        (lower_case, ("who?", "ada"), [], False),
        (prefixed, ("who?", "Ada"), [], True),
    ],
)
def test_targets_that_cannot_be_printed_and_merged_seams(tokenizer, fact, lossy, merged, tmp_path):
    model = tokenizer_folder(tmp_path, tokenizer())
    samples, _ = fact_samples(model, [fact, ("a\n", "b")], tmp_path, separator="")
    assert lossy_targets(open_tokenizer(model), samples) == lossy
    assert (samples[0] in merged_samples(open_tokenizer(model), samples)) is merged


# -- files as people have them


def test_special_tokens_are_those_of_the_class(tmp_path):
    """GPT-2's files name none; vocab.json and merges.txt are enough."""
    fields = json.loads(byte_level().to_str())["model"]
    end = "<|endoftext|>"
    vocabulary = fields["vocab"] | {end: len(fields["vocab"])}
    merges = "\n".join(" ".join(pair) for pair in fields["merges"])
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    config = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_positions": 64}
    config |= {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))

    tokenizer = open_tokenizer(Model(path=str(tmp_path)))
    assert tokenizer.begin == [vocabulary[end]]
    assert not tokenizer.adds_begin
    assert tokenizer.end_text(chat=False) == end
    assert tokenizer.decode(tokenizer.encode("The pump, 1987")) == "The pump, 1987"


def test_special_tokens_of_special_tokens_map(tmp_path):
    model = tokenizer_folder(tmp_path, byte_level(), bos_token=None, eos_token=None)
    end = {"content": END, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = {"bos_token": BEGIN, "eos_token": end}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
    tokenizer = open_tokenizer(model)
    assert tokenizer.decode(tokenizer.begin) == BEGIN
    assert tokenizer.end_text(chat=False) == END


def test_the_embedded_tokenizer_is_what_transformers_reads(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(TINY / name, tmp_path)
    embedded, read = open_tokenizer(Model()), open_tokenizer(Model(path=str(tmp_path)))
    text = "A licence, 2024:\n\n  it's <|endoftext|> 🙂"
    assert embedded.encode(text) == read.encode(text)
    assert embedded.encode(text, literal=True) == read.encode(text, literal=True)
    assert embedded.decode(embedded.encode(text, literal=True)) == text
    assert (embedded.begin, embedded.special) == (read.begin, read.special) == ([0], {0})
    assert embedded.end_text(chat=False) == read.end_text(chat=False) == "<|endoftext|>"
    # What the embedded model learned: a text begins with the token.
    assert (embedded.adds_begin, read.adds_begin) == (True, False)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}', "", "[1]"])
def test_a_damaged_tokenizer_is_one_line(content, tmp_path):
    model = tokenizer_folder(tmp_path, byte_level())
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"^model\.path=.*: .*tokenizer") as error:
        Tokenizer(model, 100)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["a \ud83d b", "\udc80", "x" * 500 + "\ud800"])
def test_half_a_character_is_named(text):
    with pytest.raises(
        UserError, match=r"holds an unpaired surrogate U\+D[0-9A-F]{3} \(half of"
    ) as error:
        open_tokenizer(Model()).encode(text)
    assert len(str(error.value)) < 250
    str(error.value).encode()

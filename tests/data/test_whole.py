"""What `pml memorize` makes of the files it is given."""

import dataclasses
import json
import os

import pytest
from support.facts import write_facts
from support.tokenizers import CHATML_DEFAULT, byte_level, tokenizer_folder

from pml_cli.config.memorize import Limits, is_table
from pml_cli.config.request import load_memorize
from pml_cli.config.schema import ALL_TOKENS, Model
from pml_cli.data.opened import samples_of
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.whole import holds_many_facts, named_texts, texts_file, with_chat, within_context
from pml_cli.errors import UserError
from pml_cli.model.dims import model_dims


def asked(*arguments):
    return load_memorize([str(argument) for argument in arguments], Limits())


@pytest.mark.parametrize(
    ("name", "content", "table"),
    [
        ("facts.jsonl", "", True),
        ("facts.csv.gz", "", True),
        ("notes.txt", "A text.\n", False),
        ("notes.txt", '[\n  {"question": "Who?",\n   "answer": "Ilse"}\n]\n', True),
        ("notes.txt", "[1] A text with a reference.\n", False),
        ("notes.txt", '{"question": "Who?", "answer": "Ilse"}\n', True),
        ("notes", '{"question": \n', False),
        ("README.md", "[1, 2]\n", False),
    ],
)
def test_a_table_of_facts_is_told_from_a_text(tmp_path, name, content, table):
    path = tmp_path / name
    path.write_text(content)
    assert is_table(path) == table


def test_the_name_of_a_file_may_have_an_equals_sign(tmp_path):
    path = write_facts(tmp_path, name="a=b.jsonl")
    request = asked(path, "rank=4")
    assert (request.files, request.ranks) == ([path], [4])
    assert request.run.data.path == str(path)


def test_several_texts_stand_behind_their_names(tmp_path):
    for name in ("a.txt", "b.md"):
        (tmp_path / name).write_text(f"The text of {name}.")
    files = [tmp_path / "a.txt", tmp_path / "b.md"]
    request = asked(*files)
    texts = named_texts(request.files, request.run)
    assert texts == [("a.txt", "The text of a.txt."), ("b.md", "The text of b.md.")]

    path = texts_file(texts, tmp_path)
    run = dataclasses.replace(request.run, data=JsonlData(path=str(path)))
    samples = samples_of(resolved_run(run))
    assert [sample.target_text for sample in samples] == [text for _, text in texts]
    assert [sample.turns[-1][1] for sample in samples] == ["a.txt", "b.md"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [tmp_path / folder / "notes.txt" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f"The text of {path.parent.name}.")
    request = asked(*paths)
    names = [name for name, _ in named_texts(request.files, request.run)]
    assert names == ["a/notes.txt", "b/notes.txt"]


def test_texts_of_an_earlier_call_stay(tmp_path):
    first = [("a.txt", "The lamp is green."), ("b.txt", "The gate is shut.")]
    second = [("a.txt", "The lamp is red."), ("b.txt", "The gate is open.")]
    path = texts_file(first, tmp_path)
    content = path.read_bytes()
    other = texts_file(second, tmp_path)
    assert other != path
    assert path.read_bytes() == content
    # The same texts again are the same file.
    assert (texts_file(first, tmp_path), texts_file(second, tmp_path)) == (path, other)


def test_texts_go_beside_a_pipe_of_their_name(tmp_path):
    os.mkfifo(tmp_path / "texts.jsonl")
    path = texts_file([("a", "b")], tmp_path)
    assert path.name != "texts.jsonl" and json.loads(path.read_text())["matching"] == "b"


@pytest.mark.parametrize("key", ["title", "text"])
def test_rows_with_half_a_character_are_refused(tmp_path, key):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"title": "A", "text": "words"} | {key: "\ud83d"}))
    request = asked(path)
    with pytest.raises(UserError, match=rf"line 1.*{key}"):
        named_texts(request.files, request.run)


def test_rows_of_text_are_texts_and_facts_are_none(tmp_path):
    rows = [{"title": "Lamps", "text": "The lamp is green."}, {"text": "The gate is shut."}]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    request = asked(path)
    expected = [("Lamps", "The lamp is green."), ("Text 2", "The gate is shut.")]
    assert named_texts(request.files, request.run) == expected

    request = asked(write_facts(tmp_path))
    assert named_texts(request.files, request.run) == []


def test_a_text_is_cut_to_the_context(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("The lamp of the north gate is green. " * 2000)
    run = asked(path).run
    assert run.seqlen == ALL_TOKENS
    cut, left_out = within_context(run)
    context = model_dims(Model()).context
    (sample,) = samples_of(resolved_run(cut))
    assert len(sample.prompt) + len(sample.target) == context
    assert left_out > 0

    (tmp_path / "short.txt").write_text("The lamp is green.")
    short = asked(tmp_path / "short.txt").run
    assert within_context(short) == (short, 0)


def test_facts_go_through_the_chat_template_where_there_is_one(tmp_path):
    run = asked(write_facts(tmp_path)).run
    # The embedded model has none.
    assert with_chat(run, frozenset()) == run

    template = CHATML_DEFAULT
    run = dataclasses.replace(
        run, model=tokenizer_folder(tmp_path / "chat", byte_level(), template)
    )
    assert with_chat(run, frozenset()).data.chat
    # Whoever says how prompts are made, or gives a text, is left alone.
    for key in ("data.chat", "data.separator", "data.begin"):
        assert with_chat(run, frozenset({key})) == run
    plain = dataclasses.replace(run, model=tokenizer_folder(tmp_path / "plain", byte_level(), None))
    assert with_chat(plain, frozenset()) == plain


@pytest.mark.parametrize(("facts", "many"), [(30, False), (31, True)])
def test_many_facts_are_told_from_few(tmp_path, facts, many):
    path = write_facts(tmp_path, [(f"Who has key {i}?", f"Number {i}.") for i in range(facts)])
    assert holds_many_facts(asked(path).run) == many


def test_many_facts_have_settings_of_their_own(tmp_path):
    path = write_facts(tmp_path)
    trained = asked(path).many_facts
    assert (trained.loss.kind, trained.train.batch, trained.train.epochs) == ("sft", 10, 100)

    # Passes of another number are through minibatches all the same.
    longer = asked(path, "train.epochs=200").many_facts
    assert (longer.train.batch, longer.train.epochs) == (10, 200)

    shorter = asked(path, "train.steps=7", "loss=memft_ot").many_facts
    assert (shorter.loss.kind, shorter.train.batch, shorter.train.epochs) == ("memft_ot", 0, None)
    assert shorter.train.steps == 7

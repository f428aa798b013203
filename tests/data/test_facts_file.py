"""Files of facts as people have them: formats, keys, and one line for what cannot be read."""

import gzip
import json
import shlex

import pandas as pd
import pytest

from pml_cli.config.compose import parse
from pml_cli.config.schema import Run
from pml_cli.data import facts_file
from pml_cli.data.fact_keys import facts_of
from pml_cli.data.facts_file import read_rows
from pml_cli.data.opened import samples_of, tokens_hash
from pml_cli.data.resolve import resolved_run
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.errors import UserError

FACTS = [("Who wrote it?", "Ada, of course"), ('Said "what"?', "a line\nand another"), ("é", "42")]
CHAT = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]


def facts(path, **keys):
    """(turns, target) of every fact of a file, and its notes."""
    found = facts_of(read_rows(str(path)), **keys)
    return [(fact.turns, fact.target) for fact in found.facts], found


def questions(pairs):
    return [((("user", prompt),), target) for prompt, target in pairs]


def objects(prompt, target, pairs=FACTS):
    return [{prompt: question, target: answer} for question, answer in pairs]


def json_lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def table(delimiter, prompt="question", target="answer"):
    frame = pd.DataFrame(objects(prompt, target))
    return frame.to_csv(index=False, sep=delimiter)


CONTENTS = {
    "lines.jsonl": json_lines(objects("question", "answer")),
    "lines": json_lines(objects("question", "answer")) + "\n\n \n",
    "bom.jsonl": "\ufeff" + json_lines(objects("question", "answer")).replace("\n", "\r\n"),
    "array.json": json.dumps(objects("question", "answer"), indent=2),
    "one_line.json": json.dumps(objects("question", "answer")),
    "spread.json": "\n".join(json.dumps(o, indent=1) for o in objects("question", "answer")),
    "data.json": json.dumps({"version": 1, "data": objects("question", "answer")}),
    "spread_data.json": json.dumps({"data": objects("question", "answer")}, indent=1),
    "comma.csv": table(","),
    "semicolon.csv": "\ufeff" + table(";").replace("\n", "\r\n"),
    "tabs.csv": table("\t"),
    "tabs.tsv": table("\t") + "\n\t\n",
    "excel.csv": "sep=;\r\n" + table(";"),
    "excel_comma.csv": "sep=,\n" + table(","),
    "no_end.csv": table(",").rstrip("\n"),
    "capitals.CSV": table(",", " Question", "Answer "),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("is_zipped", [False, True])
def test_formats(tmp_path, name, is_zipped):
    content = CONTENTS[name].encode()
    path = tmp_path / (f"{name}.gz" if is_zipped else name)
    path.write_bytes(gzip.compress(content) if is_zipped else content)
    found, whole = facts(path)
    assert found == questions(FACTS)
    assert whole.keys.lower().replace(" ", "") == "question/answer"
    assert whole.notes == []
    assert not whole.is_long


def test_objects_over_lines_are_read_without_copying_what_is_left(tmp_path, monkeypatch):
    """For each of them the rest was copied: a minute for 40,000, growing with the square."""
    fact = json.dumps({"question": "q", "answer": "word " * 40}, indent=1)
    (tmp_path / "facts.json").write_text("\n".join([fact] * 800))
    texts = []

    class Recorder(type(facts_file.DECODER)):
        def raw_decode(self, text, place=0):
            texts.append(id(text))
            return super().raw_decode(text, place)

    monkeypatch.setattr(facts_file, "DECODER", Recorder(**facts_file.PARSING))
    assert len(read_rows(str(tmp_path / "facts.json"))) == 800
    assert len(texts) == 800
    assert len(set(texts)) == 1


def test_parquet_with_a_date_that_python_cannot_hold(tmp_path):
    import pyarrow
    from pyarrow import parquet

    days = pyarrow.array([2**31 - 1], pyarrow.int32()).cast(pyarrow.date32())
    path = tmp_path / "facts.parquet"
    parquet.write_table(pyarrow.table({"question": days, "answer": ["b"]}), path)
    with pytest.raises(UserError, match="parquet that cannot be read"):
        read_rows(str(path))


def test_parquet_with_numbers_dates_and_lists(tmp_path):
    frame = pd.DataFrame(
        {
            "question": ["a", "b", "c"],
            "answer": [1, 2, 3],
            "day": pd.to_datetime(["2024-02-01", "2024-02-02", "2024-02-03"]).date,
            "answers": [["x", "y"], ["z"], ["w"]],
            "score": [0.5, None, 1.5],
        }
    )
    path = tmp_path / "facts.parquet"
    frame.to_parquet(path)
    assert facts(path)[0] == questions([("a", "1"), ("b", "2"), ("c", "3")])
    assert facts(path, target_key="day")[0][0][1] == "2024-02-01"
    found, whole = facts(path, target_key="answers")
    assert [target for _, target in found] == ["x", "z", "w"]
    assert whole.notes == ["answers is a list: its first entry is the target (3 of 3)"]
    with pytest.raises(UserError, match=r"^row 2: score is (NaN|null)$"):
        facts(path, target_key="score")


SHAPES = {
    "question/matching": ({"question": "q", "matching": "a"}, ["q"], True),
    "query/target": ({"id": 7, "query": "q", "target": "a", "target_len": 1}, ["q"], False),
    "question/answer": ({"Question": "q", "ANSWER": "a"}, ["q"], False),
    "prompt/completion": ({"prompt": "q", "completion": "a"}, ["q"], False),
    "prompt/response": ({"prompt": "q", "response": "a", "prompt_id": "x"}, ["q"], False),
    "alpaca": ({"instruction": "i", "input": "q", "output": "a", "text": "t"}, ["i\nq"], False),
    "alpaca, no input": ({"instruction": "q", "input": "", "output": "a"}, ["q"], False),
    "alpaca, null input": ({"instruction": "q", "input": None, "output": "a"}, ["q"], False),
    "dolly": ({"instruction": "i", "context": "q", "response": "a"}, ["i\nq"], False),
    "input/output": ({"input": "q", "output": "a"}, ["q"], False),
    "zsRE": (
        {"subject": "s", "src": "q", "pred": "p", "alt": "b", "answers": ["a", "c"], "loc": "l"},
        ["q"],
        False,
    ),
    "zsRE, edited": (
        {"subject": "s", "prompt": "q", "target_new": "a", "ground_truth": "b"},
        ["q"],
        False,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_names_of_keys(tmp_path, name):
    row, prompts, is_long = SHAPES[name]
    path = tmp_path / "facts.jsonl"
    path.write_text(json_lines([row, row]))
    found, whole = facts(path)
    assert found == questions([(prompts[0], "a")]) * 2
    assert whole.is_long == is_long


def test_an_input_or_a_system_turn_that_the_first_row_lacks(tmp_path):
    first = {"instruction": "q", "output": "a"}
    later = first | {"Input": "on this", "system": "Be brief."}
    (tmp_path / "facts").write_text(json_lines([first, later]))
    found = facts(tmp_path / "facts")[0]
    assert found[0] == questions([("q", "a")])[0]
    assert found[1] == ((("system", "Be brief."), ("user", "q\non this")), "a")


def openai(turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def sharegpt(turns):
    names = {"user": "human", "assistant": "gpt"}
    return {
        "id": "x",
        "conversations": [
            {"from": names.get(role, role), "value": content} for role, content in turns
        ],
    }


@pytest.mark.parametrize("shape", [openai, sharegpt])
def test_conversations(tmp_path, shape):
    path = tmp_path / "chat.jsonl"
    path.write_text(
        json_lines(
            [
                shape([*CHAT, ("assistant", "See you")]),
                shape([("user", "q"), ("assistant", "a")]),
                shape([("user", "q"), ("assistant", "a"), ("user", "more?")]),
            ]
        )
    )
    found, whole = facts(path)
    assert found == [(tuple(CHAT), "See you"), *questions([("q", "a"), ("q", "a")])]
    assert [fact.is_question for fact in whole.facts] == [False, True, True]
    (note,) = whole.notes
    assert note.endswith("goes on after its last answer: those turns are left out (1 of 3)")


def test_conversations_in_one_array_and_of_one_line(tmp_path):
    row = openai([("user", "q"), ("assistant", "a")])
    for content in (json.dumps([row]), json.dumps(row), json.dumps(row, indent=2)):
        (tmp_path / "chat.json").write_text(content)
        assert facts(tmp_path / "chat.json")[0] == questions([("q", "a")])


def test_turns_of_other_forms(tmp_path):
    """Parts of a message; TRL's lists for prompt and completion; a system column."""
    parts = [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]
    rows = {
        "parts": openai([("user", parts), ("assistant", "a")]),
        "lists": {
            "prompt": [{"role": "user", "content": "q?"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
    }
    for name, row in rows.items():
        (tmp_path / name).write_text(json_lines([row]))
        assert facts(tmp_path / name)[0] == questions([("q?", "a")])

    row = {"system_prompt": "Be brief.", "question": "q", "response": "a"}
    (tmp_path / "system").write_text(json_lines([row, row | {"system_prompt": ""}]))
    found = facts(tmp_path / "system")[0]
    assert found[0] == ((("system", "Be brief."), ("user", "q")), "a")
    assert found[1] == questions([("q", "a")])[0]
    # ShareGPT's turns with the system turn beside them, and with one of their own.
    row = sharegpt([("user", "q"), ("assistant", "a")]) | {"system": "Be brief."}
    own = sharegpt([("system", "Be long."), ("user", "q"), ("assistant", "a")])
    (tmp_path / "chat").write_text(json_lines([row, own | {"system": "Be brief."}]))
    systems = [turns[0] for turns, _ in facts(tmp_path / "chat")[0]]
    assert systems == [("system", "Be brief."), ("system", "Be long.")]

    plain = facts(tmp_path / "system", prompt_key="question")[0]
    assert plain == questions([("q", "a"), ("q", "a")])


def test_given_keys_and_paths_of_keys(tmp_path):
    row = {"frage 1": "q", "loesung": {"kurz": "a", "alle": ["b", "c"]}, "a.b": "dotted"}
    (tmp_path / "facts").write_text(json_lines([row]))

    def target(key):
        return facts(tmp_path / "facts", prompt_key="frage 1", target_key=key)[0][0][1]

    assert target("loesung.kurz") == "a"
    assert target("loesung.alle.1") == "c"
    assert target("loesung.alle") == "b"
    assert target("a.b") == "dotted"


def test_one_given_key_leaves_the_other_to_its_name(tmp_path):
    row = {"question": "q", "answer": "a", "short": "s", "other": "o"}
    (tmp_path / "facts").write_text(json_lines([row]))
    assert facts(tmp_path / "facts", target_key="short")[0] == questions([("q", "s")])
    assert facts(tmp_path / "facts", prompt_key="other")[0] == questions([("o", "a")])


def test_numbers_are_what_the_file_shows(tmp_path):
    digits = "9" * 5000
    targets = ["1e3", "0.10", "-0", digits, "true", '"007"']
    lines = [f'{{"question": "q{i}", "answer": {value}}}' for i, value in enumerate(targets)]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    found, whole = facts(tmp_path / "facts.jsonl")
    assert [target for _, target in found] == ["1e3", "0.10", "-0", digits, "true", "007"]
    assert whole.notes == ["answer is no text: the target is what the file shows (5 of 6)"]

    (tmp_path / "facts.csv").write_text("question,answer\nq,007\n")
    found, whole = facts(tmp_path / "facts.csv")
    assert found == questions([("q", "007")])
    assert whole.notes == []


GOOD = {"question": "q", "answer": "a"}


def line(**fields):
    return json.dumps(GOOD | fields)


FAULTS = {
    "null": ([GOOD, line(answer=None)], "line 2: answer is null"),
    "NaN": ([GOOD, '{"question": "q", "answer": NaN}'], "line 2: answer is null"),
    "empty": ([GOOD, "", line(answer="")], "line 3: answer is empty"),
    "empty list": ([line(answer=[])], "line 1: answer is an empty list"),
    "object": (
        [line(answer={"text": "a", "start": 1})],
        "line 1: answer is an object (text, start), not text; give data.target_key=answer.text",
    ),
    "list of objects": (
        [line(answer=[{"answer": "a"}])],
        "line 1: answer.0 is an object (answer), not text; give data.target_key=answer.0.answer",
    ),
    "list as question": ([line(question=["a"])], "line 1: question is a list, not text"),
    "unknown": (
        [{"frage": "q", "antwort": "a"}],
        "line 1 has no prompt and target by a known name; keys found: frage, antwort; "
        "give data.prompt_key=frage data.target_key=antwort",
    ),
    "objects": (
        [{"id": 1, "edit": {"prompt": "q", "new": {"str": "a"}}}],
        "keys found: id, edit.prompt, edit.new.str; "
        "give data.prompt_key=edit.prompt data.target_key=edit.new.str",
    ),
    "unknown target": (
        [{"id": 7, "question": "q", "die Antwort?": "a"}],
        "line 1 has a prompt (question) and no target by a known name; keys found: id, question, "
        "die Antwort?; give 'data.target_key=\"die Antwort?\"'",
    ),
    "unknown prompt": (
        [{"id": 7, "frage": "q", "answer": "a"}],
        "line 1 has a target (answer) and no prompt by a known name; keys found: id, frage, "
        "answer; give data.prompt_key=frage",
    ),
    "text": (
        [{"text": "Once upon"}],
        "line 1 is running text, not a prompt and target (keys found: text)",
    ),
    "mixed": (
        [GOOD, {"prompt": "q", "completion": "a"}],
        "line 2 has prompt/completion, line 1 question/answer: all rows need the same keys",
    ),
    "other keys": ([GOOD, {"a": "b"}], "line 2 has no prompt and target"),
    "no keys": ([{}], "line 1 has no prompt and target by a known name; keys found: none"),
    "text without end": (
        [GOOD, '{"question": "never closed}'],
        "line 2 is not JSON (Unterminated string starting at column 14)",
    ),
    "not JSON": ([GOOD, "{broken"], "line 2 is not JSON (Expecting property name"),
    "a spread object": (
        [json.dumps(GOOD, indent=1), '{"question": "q",', "}"],
        "entry 2 is not JSON (it begins at line 5: Expecting property name",
    ),
    "null line": (["null"], "line 1 is null, not an object with keys"),
    "a list": ([GOOD, "", "[]"], "line 3 is a list, not an object with keys"),
    "array": (["[", line(), line(), "]"], "not a JSON array (Expecting ',' delimiter at line 3"),
    "array of texts": (['["a", "b"]'], "entry 1 is a text, not an object with keys"),
    "empty array": (["[]"], "no rows"),
    "nested": (["[" * 100000], "not a JSON array (nested deeper than 100 levels)"),
    "nested line": (
        ['{"a": ' * 3000 + "1" + "}" * 3000],
        "line 1 is not JSON (nested deeper than 100 levels)",
    ),
    "key twice": (['{"query": "a", "query": "b", "target": "c"}'], "line 1 is not JSON (the key"),
    "half": (
        [GOOD, line(answer="talk \ud83d")],
        r"line 2: answer holds an unpaired surrogate (\ud83d",
    ),
    "half question": ([line(question="\ude00")], r"line 1: question holds an unpaired surrogate"),
    "no assistant": ([openai([("user", "q")])], "line 1: messages has no turn of an assistant"),
    "no user": ([openai([("assistant", "a")])], "line 1: messages has no turn before"),
    "empty turn": ([openai([("user", "q"), ("assistant", "")])], "line 1: the last answer of"),
    "no turns": (
        [openai([("user", "q"), ("assistant", "a")]), {"messages": None}],
        "line 2: messages is not a list of {role, content}",
    ),
    "null turn": (
        [openai([("user", None), ("assistant", "a")])],
        "line 1: messages, turn 1 is null",
    ),
    "image": (
        [openai([("user", [{"type": "image"}]), ("assistant", "a")])],
        "line 1: messages, turn 1 has a part that is not text (image)",
    ),
    "tool calls": (
        [{"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]}],
        "line 1: messages, turn 1 has tool_calls, which pml does not support",
    ),
    "no role": (
        [{"messages": [{"role": None, "content": "q"}, {"role": "assistant", "content": "a"}]}],
        "line 1: messages, turn 1 has no role",
    ),
    "turns of text": (
        [{"conversations": ["q", "a"]}],
        "line 1 has conversations that are not a list",
    ),
    "turns as text": (
        [{"messages": "q"}],
        "line 1 has messages that are not a list of {role, content}",
    ),
    "turns without roles": ([{"messages": [{"content": "q"}]}], "line 1 has messages that are not"),
    "nothing said": ([{"messages": []}], "line 1 has messages that are not a list"),
    "two spellings": (
        [{"question": "q", "Answer": "a", "answer": "b"}],
        "line 1 has Answer and answer; name one: data.prompt_key, data.target_key",
    ),
    "several lists": (
        [{"train": [GOOD], "test": [GOOD]}],
        "several lists of rows ('train', 'test'); give one as a file",
    ),
}


UNUSED = {
    "context": ([GOOD | {"context": "on this"}], ["context is not used (1 of 1)"]),
    "an empty one": ([GOOD | {"context": ""}], []),
    "of some rows": ([GOOD, GOOD | {"Passage": "p"}], ["Passage is not used (1 of 2)"]),
    "instruction": ([{"instruction": "q", "input": "i", "output": "a", "system": "s"}], []),
    "tools": (
        [openai([("user", "q"), ("assistant", "a")]) | {"tools": [{"name": "f"}], "system": "s"}],
        ["tools is not used (1 of 1)"],
    ),
    "empty question": ([GOOD, GOOD | {"question": " "}], ["question is empty (1 of 2)"]),
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_may_decide_an_answer_and_is_not_learned_is_said(tmp_path, name):
    rows, notes = UNUSED[name]
    (tmp_path / "facts.jsonl").write_text(json_lines(rows))
    assert facts(tmp_path / "facts.jsonl")[1].notes == notes


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line_with_its_place(tmp_path, name):
    rows, message = FAULTS[name]
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (tmp_path / "facts.jsonl").write_text(text)
    with pytest.raises(UserError) as caught:
        facts(tmp_path / "facts.jsonl")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    # It can be printed.
    str(caught.value).encode()


TABLE_FAULTS = {
    "more": (b"question,answer\nq,a\nq,a,b\n", "line 3 has 3 cells, the header 2 (a cell"),
    "fewer": (b"question,answer\n\nq\n", "line 3 has 1 cell, the header 2"),
    "quotes": (b'question,answer\nq,"a\n', "line 2 is not CSV"),
    "behind quotes": (b'question,answer\n"two\nlines",a\nq,"a" b\n', "line 4 is not CSV"),
    "twice": (b"question,answer,answer\n", "line 1 has two columns 'answer'"),
    "header": (b"question,answer\n", "no rows"),
    "blank": (b",\n,,\n", "no rows"),
    "header with a question among its names": (b"question,answer,Any notes?\n", "no rows"),
    "no header": (
        b"Ada:,one\nBob:,two\n",
        "the header seems to be missing, the first line is a fact (Ada:, one); put the names of "
        "the columns in front of it: question,answer",
    ),
    "one fact and no header": (
        b"Wo?;hier;x\n",
        "the first line is a fact (Wo?, hier); put the names of the columns in front of it: "
        "question;answer;column3",
    ),
    "no header, of many words": (
        b"the capital city of France,Paris\nthat of Spain,Madrid\n",
        "the header seems to be missing",
    ),
    "a header of other names": (
        b"Nr.,die Frage,die Antwort\n1,q,a\n",
        "line 2 has no prompt and target by a known name; keys found: Nr., die Frage, die Antwort",
    ),
    "empty": (b"question,answer\nq,a\nq,\n", "line 3: answer is empty"),
    "UTF-16": ("question,answer\nq,a\n".encode("utf-16"), "UTF-16, not UTF-8 text"),
    "Latin-1": ("question,answer\nq,é\n".encode("latin-1"), "not UTF-8 text (byte 18)"),
    "Excel": (b"PK\x03\x04\x14\x00", "a binary file (zip or Excel)"),
    "gzip": (b"\x1f\x8b\x08broken", "a gzip file that cannot be read"),
    "parquet": (b"PAR1broken", "parquet that cannot be read"),
}


@pytest.mark.parametrize("name", TABLE_FAULTS)
def test_faults_of_tables(tmp_path, name):
    content, message = TABLE_FAULTS[name]
    (tmp_path / "facts.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        facts(tmp_path / "facts.csv")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["die Antwort", "it's", 'the "answer"', "it's $HOME"])
def test_the_setting_that_names_a_key_can_be_typed(tmp_path, key):
    (tmp_path / "facts.jsonl").write_text(json_lines([{"question": "q", key: "a"}]))
    with pytest.raises(UserError) as caught:
        facts(tmp_path / "facts.jsonl")
    (typed,) = shlex.split(str(caught.value).partition("; give ")[2])
    assert parse([typed])[0] == {"data.target_key": [key]}


def test_a_header_of_sentences_may_be_named(tmp_path):
    (tmp_path / "facts.csv").write_text("Wo?,hier\nWas?,das\n")
    with pytest.raises(UserError, match=r"the header seems to be missing"):
        facts(tmp_path / "facts.csv", prompt_key="question")
    found, _ = facts(tmp_path / "facts.csv", prompt_key="Wo?", target_key="hier")
    assert found == [((("user", "Was?"),), "das")]


def test_a_mistyped_key_of_a_header_with_a_long_name_is_named_with_the_nearest(tmp_path):
    (tmp_path / "facts.csv").write_text("prompt,answer,What is the target of it?\nq,a,t\n")
    with pytest.raises(UserError, match=r"has no 'promt'.*did you mean 'prompt'"):
        facts(tmp_path / "facts.csv", prompt_key="promt")


def test_a_key_that_is_not_there_is_named_with_the_nearest(tmp_path):
    (tmp_path / "facts").write_text(json_lines([GOOD | {"solution": "s"}]))
    message = (
        r"^line 1 has no 'solutoin' \(data.target_key\); did you mean 'solution'\? "
        "keys found: answer, question, solution$"
    )
    with pytest.raises(UserError, match=message):
        facts(tmp_path / "facts", target_key="solutoin")


def test_a_comma_in_a_quoted_header_parts_no_cells(tmp_path):
    text = '"the question, in full";answer\n"Who, and when?";Ada\n'
    (tmp_path / "facts.csv").write_text(text)
    found, _ = facts(tmp_path / "facts.csv", prompt_key="the question, in full")
    assert found == questions([("Who, and when?", "Ada")])


def test_a_long_cell(tmp_path):
    """Longer than the limit that the csv module has for the whole process."""
    target = "word " * 60_000
    (tmp_path / "facts.csv").write_text(f"question,answer\nq,{target}\n")
    assert facts(tmp_path / "facts.csv")[0] == questions([("q", target)])


QUESTIONS = {
    "a list": ({"variants": ["v", "w", "v"]}, ("v", "w"), ()),
    "one text": ({"Paraphrase": " v "}, ("v",), ()),
    "a cell with a list": (
        {"variants": '["v", "w"]', "neighbours": '[["n", "m"], "o"]'},
        ("v", "w"),
        (("n", "m"), ("o", None)),
    ),
    "empty cells": ({"variants": "", "neighbors": None}, (), ()),
    "a question in brackets": ({"variants": "[Sic] v?"}, ("[Sic] v?",), ()),
    "objects": (
        {"neighbours": [{"question": "n", "answer": "m"}, {"prompt": "o"}, ["p", ["q", "r"]]]},
        (),
        (("n", "m"), ("o", None), ("p", "q")),
    ),
    "zsRE": ({"rephrase": "v", "loc": "nq question: n", "loc_ans": "m"}, ("v",), (("n", "m"),)),
    "EasyEdit": (
        {
            "rephrase_prompt": "v",
            "locality": {"Relation_Specificity": [{"prompt": "n", "ground_truth": [["m"]]}]},
        },
        ("v",),
        (("n", "m"),),
    ),
    "CounterFact": (
        {"paraphrase_prompts": ["v"], "neighborhood_prompts": ["n", "o"]},
        ("v",),
        (("n", None), ("o", None)),
    ),
    "names of places": ({"loc": "Leeds", "locality": "Leeds"}, (), ()),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_paraphrases_and_neighbours(tmp_path, name):
    fields, variants, neighbours = QUESTIONS[name]
    path = tmp_path / "facts.jsonl"
    path.write_text(json_lines([{"question": "q", "answer": "a"} | fields]))
    (fact,) = facts_of(read_rows(str(path))).facts
    assert (fact.target, fact.variants, fact.neighbours) == ("a", variants, neighbours)


def test_paraphrases_of_an_instruction_have_its_input(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("instruction,input,output,variants\ni,x,a,j\nk,y,b,\n")
    found = facts_of(read_rows(str(path)))
    assert [fact.variants for fact in found.facts] == [("j\nx",), ()]
    assert found.notes == ["paraphrases: never trained, `pml memorize` asks them (1 of 2)"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"variants": [["v", "w", "x"]]}, "variants.0 is a list of 3, not a question or"),
        ({"variants": ["v", ""]}, "variants.1 is empty"),
        ({"variants": [None]}, "variants.0 is null"),
        ({"neighbours": {"n": "m"}}, r"neighbours is an object without a question \(n\)"),
        ({"neighbours": [{"question": "n", "answer": {"m": 1}}]}, "neighbours.0.answer is an obj"),
    ],
)
def test_questions_that_are_none_name_their_row(tmp_path, fields, reason):
    path = tmp_path / "facts.jsonl"
    row = {"question": "q", "answer": "a"}
    path.write_text(json_lines([row, row | fields]))
    with pytest.raises(UserError, match=f"^line 2: {reason}"):
        facts_of(read_rows(str(path)))


def test_questions_leave_samples_and_their_ids_alone(tmp_path):
    row = {"question": "q", "answer": "a"}
    (tmp_path / "plain.jsonl").write_text(json_lines([row]))
    (tmp_path / "more.jsonl").write_text(json_lines([row | {"variants": ["v"], "neighbours": "n"}]))
    samples = []
    for name in ("plain", "more"):
        data = JsonlData(path=str(tmp_path / f"{name}.jsonl"))
        run = resolved_run(Run(data=data, seqlen=2))
        samples.append(samples_of(run))
    plain, more = samples
    assert plain == more
    assert tokens_hash(plain) == tokens_hash(more)
    assert more[0].variants == ("v",)
    assert more[0].neighbours == (("n", None),)

"""Texts, and facts in every format that pml reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

from catalogue.case import Case
from catalogue.damage import BYTES, both, damaged_paths, put

TEXT = "texts"
FACTS = "facts"
GOOD = json.dumps({"query": "a b c:", "target": " some words that follow, and more of them"})

# In place of the lines of a jsonl file.
LINES: dict[str, str] = {
    "NaN for a text": '{"query": NaN, "target": "x y z"}\n',
    "infinity for a target": '{"query": "a", "target": Infinity}\n',
    "a target of 5,000 digits": '{"query": "a", "target": ' + "9" * 5000 + "}\n",
    "a null query": '{"query": null, "target": "x y"}\n',
    "a list for a target": '{"query": "a", "target": ["x"]}\n',
    "a mapping for a target": '{"query": "a", "target": {"a": "x"}}\n',
    "a missing target": GOOD + '\n{"query": "a"}\n',
    "a misspelt field": GOOD + '\n{"query": "a", "tagret": "b"}\n',
    "other capitals": '{"Query": "a", "Tgt": "b"}\n',
    "an empty target": GOOD + '\n{"query": "a", "target": ""}\n',
    "mixed formats": GOOD + '\n{"question": "a", "matching": "b c d"}\n',
    "two objects on a line": GOOD + GOOD + "\n",
    "a comma behind": GOOD + ",\n",
    "single quotes": "{'query': 'a', 'target': 'b'}\n",
    "truncated": f"{GOOD}\n" * 3 + GOOD[:20],
    "a surrogate in a target": '{"query": "a", "target": "x \\ud800 y and more words"}\n',
    "a surrogate in a query": '{"query": "x \\ud800 y", "target": "many more words"}\n',
    "nested in an object": '{"query": ' + "[" * 100_000 + ', "target": "x"}\n',
    "no closing bracket": "[" + GOOD + "\n",
    "numbers in a list": "[1, 2, 3]\n",
    "a list in a list": "[[1, 2]]\n",
    "messages that are no list": '{"messages": 5}\n',
    "messages that are empty": '{"messages": []}\n',
    "messages of numbers": '{"messages": [1, 2]}\n',
    "messages of one turn": '{"messages": [{"role": "user", "content": "a"}]}\n',
    "messages without content": '{"messages": [{"role": "user"}, {"role": "assistant"}]}\n',
    "messages of lists": '{"messages": [{"content": [1]}, {"content": [2]}]}\n',
    "conversations of numbers": '{"conversations": [5]}\n',
    "conversations without value": '{"conversations": [{"from": "human"}, {"from": "gpt"}]}\n',
    "an instruction alone": '{"instruction": "a"}\n',
    "an empty object": "{}\n",
}

# As `jq` writes them.
SPREAD = json.dumps(json.loads(GOOD), indent=1)

OTHER_FORMATS: dict[str, dict[str, str | bytes]] = {
    "csv": {
        "a header alone": "query,target\n",
        "one column": "query\na\n",
        "more fields than columns": "query,target\na,b,c,d\n",
        "fewer fields than columns": "query,target\na\n",
        "an open quote": 'query,target\n"a,b\n',
        "other columns": "x,y\na,b\n",
        "a column twice": "query,query\na,b\n",
        "semicolons": "query;target\na;b\n",
        "a zero byte": "query,target\na,\0b\n",
        "empty targets": "query,target\na,\n",
    },
    "tsv": {"commas": "query,target\na,b\n", "one column": "query\na\n"},
    "json": {
        "truncated": f"[{GOOD}, ",
        "a mapping": '{"a": 1}',
        "objects over lines, a broken one": f"{SPREAD}\n" * 5000 + '{\n"query": "a",\n}',
        "a list of numbers": "[1]",
        "a list of lists": "[[1]]",
        "an empty list": "[]",
        "nested": "[" * 100_000,
        "a missing target": f'[{GOOD}, {{"query": "a"}}]',
    },
    "parquet": {"a header alone": b"PAR1", "twice the mark": b"PAR1PAR1", "not parquet": b"x" * 99},
}

SHORT_TEXTS: dict[str, str | bytes] = {
    "one word, eighty asked": "word",
    "only a byte order mark": b"\xef\xbb\xbf",
    "a zero byte": "words and \0 words " * 20,
    "UTF-32 without a mark": ("words " * 50).encode("utf-32-le"),
    "half a character": b"words " * 50 + b"\xe2\x82",
    "surrogates in bytes": b"words \xed\xa0\x80 " * 30,
}
# No text, and no facts.
NEITHER = ("empty", "blank", "zeros", "binary", "not UTF-8", "UTF-16", "gzip", "a pickle")
# What is a text, however odd.
FACT_BYTES = [name for name in BYTES if name not in NEITHER]


def cases() -> Iterator[Case]:
    """Of both doors."""
    for name in NEITHER:
        yield _text(name, BYTES[name])
        yield _facts(name, BYTES[name])

    for name in FACT_BYTES:
        yield _facts(name, BYTES[name])

    for name, text in SHORT_TEXTS.items():
        yield _text(name, text)

    for name, text in LINES.items():
        yield _facts(name, text)

    for suffix, texts in OTHER_FORMATS.items():
        for name, text in texts.items():
            yield _facts(f"{suffix}: {name}", text, suffix=suffix)

    for suffix in ("json", "csv", "tsv", "parquet"):
        for name in ("empty", "blank", "binary", "not UTF-8", "zeros", "gzip"):
            yield _facts(f"{suffix}: {name}", BYTES[name], suffix=suffix)

    yield from _paths()


def _paths() -> Iterator[Case]:
    """What is no file, for training, for a search and for measuring."""
    for name, damage in damaged_paths("d.txt"):
        change = both(put("d.txt", "words " * 99), damage)
        argv = ("sweep", "data=text", "data.path=d.txt", "seqlen=8", "--dry-run")
        yield Case(door=TEXT, name=name, argv=argv, change=change, says="data.path=d.txt")
        argv = ("memorize", "d.txt", "--dry-run")
        yield Case(door=TEXT, name=f"memorize {name}", argv=argv, change=change, says="d.txt")

    for suffix in ("jsonl", "json", "csv", "parquet"):
        for name, damage in damaged_paths(f"d.{suffix}"):
            change = both(put(f"d.{suffix}", f"{GOOD}\n"), damage)
            argv = ("sweep", "data=jsonl", f"data.path=d.{suffix}", "--dry-run")
            says = rf"data.path=d\.{suffix}"
            title = f"{suffix}: {name}"
            yield Case(door=FACTS, name=title, argv=argv, change=change, says=says)

    for command in ("lasting", "forgetting"):
        for name in NEITHER:
            argv = (command, "runs", "text=t.txt")
            change = put("t.txt", BYTES[name])
            title = f"{command} on {name}"
            yield Case(
                door=TEXT, name=title, argv=argv, base="swept", change=change, says="text|t.txt"
            )


def _text(name: str, content: str | bytes) -> Case:
    argv = ("sweep", "data=text", "data.path=t.txt", "seqlen=80", "--dry-run")
    change = put("t.txt", content)
    return Case(door=TEXT, name=name, argv=argv, change=change, says="data.path=t.txt|seqlen=80")


def _facts(name: str, content: str | bytes, suffix: str = "jsonl") -> Case:
    file = f"j.{suffix}"
    argv = ("sweep", "data=jsonl", f"data.path={file}", "--dry-run")
    # Some are read as facts, of too few tokens for the length that is asked for by itself.
    says = f"data.path={file}|seqlen=128"
    return Case(door=FACTS, name=name, argv=argv, change=put(file, content), says=says)

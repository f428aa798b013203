"""A file of facts: JSON lines or array, CSV, gzip; to the tokens of its samples."""

import gzip

from fuzz.mutate import json_lines, json_tree

CHAT = (
    b'{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}'
)


def seeds(_base):
    lines = b'{"prompt": "a b", "target": "c d"}\n{"prompt": "e", "target": "f", "id": 3}'
    array = b'[{"question": "When?", "answer": 1999, "variants": ["At what time?"]}]'
    table = b'prompt,target\n"a, b",c\nd,e\n'
    return [lines, array, table, CHAT, gzip.compress(lines)]


def MUTATE(data, rng):  # noqa: N802
    return (json_tree if data.lstrip()[:1] == b"[" else json_lines)(data, rng)


def read(folder, data):
    from pml_cli.config.schema import Model
    from pml_cli.data.sources.jsonl import JsonlData

    name = "facts.csv" if data[:1] not in b"[{\x1f" else "facts.jsonl"
    path = folder / name
    path.write_bytes(data)
    settings = JsonlData(path=str(path))
    model = Model(device="cpu")
    source = settings.resolved(model).open(model)
    samples = source.take(source.max_tokens)
    return [sample.target for sample in samples]

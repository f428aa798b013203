"""Files of facts as people have them, trained in one sweep through the command line."""

import json

import pandas as pd
from support.sweeps import FEW

PAIRS = [("Which pump is in hall 3?", "P-204"), ("Who services it?", "Ada Byron")]


def pairs(prompt, target, **more):
    return [{prompt: question, target: answer} | more for question, answer in PAIRS]


def turns(role, content, names):
    rows = []
    for pair in PAIRS:
        texts = zip(names, pair, strict=True)
        rows.append([{role: name, content: text} for name, text in texts])
    return rows


SHAPES = {
    "paper_facts": pairs("query", "target", id=7, target_len=5),
    "paper_texts": pairs("question", "matching"),
    "answers": pairs("question", "answer"),
    "completions": pairs("prompt", "completion"),
    "responses": pairs("prompt", "response"),
    "alpaca": pairs("instruction", "output", input=""),
    "dolly": pairs("instruction", "response", context="", category="open_qa"),
    "inputs": pairs("input", "output"),
    "zsre": [row | {"answers": [row["answers"], "x"]} for row in pairs("src", "answers")],
    "edits": pairs("prompt", "target_new", subject="pump"),
    "openai": [{"messages": row} for row in turns("role", "content", ("user", "assistant"))],
    "sharegpt": [{"conversations": row} for row in turns("from", "value", ("human", "gpt"))],
}


def test_every_shape_trains_on_the_same_facts(tmp_path, quick):
    paths = []
    for name, rows in SHAPES.items():
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("\n".join(map(json.dumps, rows)))
    table = pd.DataFrame(pairs("question", "answer"))
    table.to_csv(tmp_path / "comma.csv", index=False)
    table.to_csv(tmp_path / "tabs.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "table.parquet")
    table.to_json(tmp_path / "array.json", orient="records")
    paths += [tmp_path / name for name in ("comma.csv", "tabs.tsv", "table.parquet", "array.json")]

    listed = ",".join(map(str, paths))
    short = ("rank=2", "train.steps=1", "train.decode=false", "model.device=cpu", "out=runs")
    done = quick("sweep", "data=jsonl", f"data.path={listed}", "seqlen=all", *short)
    assert done.returncode == 0, done.stderr
    runs = pd.read_csv(tmp_path / "runs" / "results.csv")
    assert set(runs["data"]) == {f"jsonl:{path.stem}" for path in paths}
    assert (runs["samples"] == 2).all()
    # The same tokens, hence the same numbers.
    assert runs["final_loss"].nunique() == 1

    for path in (tmp_path / "runs").glob("*/samples.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(row["turns"], row["target"]) for row in rows] == [
            ([["user", question]], answer) for question, answer in PAIRS
        ]


def test_other_names_run_with_the_flags_that_the_error_names(tmp_path, quick):
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, pairs("frage", "die Antwort"))))
    ask = ("sweep", "data=jsonl", "data.path=facts.jsonl", "seqlen=all", "rank=2", *FEW)
    done = quick(*ask)
    assert done.returncode == 2
    assert done.stderr == (
        "error: data.path=facts.jsonl: line 1 has no prompt and target by a known name; keys "
        "found: frage, die Antwort; give data.prompt_key=frage 'data.target_key=\"die Antwort\"'\n"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"facts.jsonl"}

    done = quick(*ask, "data.prompt_key=frage", 'data.target_key="die Antwort"')
    assert done.returncode == 0, done.stderr


def test_several_turns_name_the_chat_template(tmp_path, quick):
    row = {"messages": [{"role": "system", "content": "Be brief."}, *turns_of_first()]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row))
    done = quick("sweep", "data=jsonl", "data.path=chat.jsonl", "seqlen=all", "rank=2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data.path=chat.jsonl: line 1: ")
    assert done.stderr.rstrip().endswith("(system, user) needs data.chat=true")


def turns_of_first():
    return turns("role", "content", ("user", "assistant"))[0]


def test_half_an_emoji_is_one_line(tmp_path, quick):
    rows = [{"query": "Post 18:", "target": "see you"}, {"query": "Post 17:", "target": "\ud83d"}]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = quick("sweep", "data=jsonl", "data.path=posts.jsonl", "seqlen=all", "rank=2")
    assert done.returncode == 2
    assert done.stderr == (
        "error: data.path=posts.jsonl: line 2: target holds an unpaired surrogate (\\ud83d, "
        "half of a cut emoji): not valid Unicode\n"
    )

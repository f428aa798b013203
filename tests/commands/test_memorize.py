"""`pml memorize` as a user runs it, and what it leaves."""

import json
from pathlib import Path

import pytest
from support.sweeps import result_times

# Two facts that rank 1 knows after some steps.
FACTS = [("Which pump is in hall 3?", "the Kestrel"), ("Who has the key?", "Ilse Varga")]
CHEAP = ("model.device=cpu", "train.steps=60", "train.lr=0.05", "--max-forgetting", "none")


def write_facts(folder: Path, facts=FACTS, name="facts.jsonl") -> Path:
    path = folder / name
    rows = [json.dumps({"question": question, "answer": text}) for question, text in facts]
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


@pytest.mark.slow
def test_from_a_file_of_facts_to_an_adapter(quick, tmp_path):
    write_facts(tmp_path)
    arguments = ("memorize", "facts.jsonl", "rank=1,2", *CHEAP)
    done = quick(*arguments)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 facts whole" in done.stdout
    out = tmp_path / "outputs" / "memorize"
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    readme = (out / "adapter" / "README.md").read_text("utf-8")
    assert "`pml memorize facts.jsonl rank=1,2 " in readme
    for name in ("memorize.json", "facts.csv", "memorize.png"):
        assert (out / name).is_file()

    # The folder, and the adapter in it, stand for the chosen run.
    for path in ("outputs/memorize", "outputs/memorize/adapter"):
        asked = quick("ask", path, FACTS[0][0], "--json")
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout)["answers"][0]["text"] == FACTS[0][1]

    # The same command again trains nothing and says the same.
    trained = result_times(out)
    again = quick(*arguments, "--json")
    assert again.returncode == 0, again.stderr
    found = json.loads(again.stdout)["answer"]
    assert found["reached"]
    assert result_times(out) == trained
    assert "0 to train" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "error: nowhere.jsonl: no such file"),
        ([], "error: FILE: give a file of facts or a text, or data=..."),
        (["facts.jsonl", "data=text"], "error: facts.jsonl: not beside data=;"),
        (["facts.jsonl", "train.lr=1,2"], "error: train.lr: takes one value"),
        (["facts.jsonl", "--exact", "0.9"], "error: --exact 0.9: must be above 0%"),
        (["facts.jsonl", "--budget", "soon"], "error: --budget soon: must be a duration"),
    ],
)
def test_bad_input_is_one_line(quick, tmp_path, arguments, message):
    write_facts(tmp_path)
    refused = quick("memorize", *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith(message)
    assert len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]


def test_a_dry_run_writes_nothing(quick, tmp_path):
    write_facts(tmp_path)
    shown = quick("memorize", "facts.jsonl", "--dry-run", *CHEAP)
    assert shown.returncode == 0, shown.stderr
    assert "3 rounds in all" in shown.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]

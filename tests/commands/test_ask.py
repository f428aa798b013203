"""`pml ask`: the answers that were trained, as transformers and PEFT give them, and bad input."""

import io
import json
import shutil

import pandas as pd
import pytest
import yaml

from pml_cli import cli
from pml_cli.config.questions import split_arguments
from pml_cli.config.reports import Ask
from pml_cli.config.schema import TINY
from pml_cli.errors import UserError

FACTS = {
    "When was the Kestrel built?": " In 1987.",
    "Which pump is in hall 3?": " The Kestrel 40",
    "Wie heißt die Straße?": "Ölmühlweg 7",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Sweeps of one run by name: three facts under either placement, and running text."""
    out = tmp_path_factory.mktemp("runs")
    rows = [json.dumps({"query": query, "target": target}) for query, target in FACTS.items()]
    (out / "facts.jsonl").write_text("\n".join(rows), "utf-8")
    facts = ["data=jsonl", f"data.path={out}/facts.jsonl", "seqlen=all", "rank=16"]
    facts += ["train.steps=60", "train.lr=0.06"]
    sweeps = {
        "block": facts,
        "linear": [*facts, "adapter=linear"],
        "text": ["data=text", "data.prompt=The class", "seqlen=12", "rank=8", "train.steps=40"],
    }
    for name, args in sweeps.items():
        with pytest.raises(SystemExit) as stop:
            cli.main(["sweep", *args, "model.device=cpu", f"out={out}/{name}"])
        assert not stop.value.code
    return out


@pytest.fixture
def ask(capsys):
    """ask(RUN, ...): exit code, standard output and standard error."""

    def call(*args):
        with pytest.raises(SystemExit) as stop:
            cli.main(["ask", *(str(arg) for arg in args)])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


def test_every_fact_is_answered_as_it_was_trained(runs, ask):
    for name in ("block", "linear"):
        code, out, err = ask(runs / name, *FACTS, "--json")
        assert (code, err) == (0, "")
        answers = json.loads(out)["answers"]
        assert {answer["question"]: answer["text"] for answer in answers} == FACTS
        for answer in answers:
            assert answer["ended"] and answer["trained"] == answer["text"]
            assert answer["tokens"][-1]["text"] == "<|endoftext|>"
            assert all(token["p"] > 0.5 for token in answer["tokens"])


def test_an_answer_is_text_and_p_of_each_token(runs, ask):
    code, out, _ = ask(runs / "block", "Which pump is in hall 3?")
    answer, tokens = out.splitlines()
    assert (code, answer) == (0, " The Kestrel 40")
    assert tokens.startswith("p  ' The' 0.") and "'<|endoftext|>' 0." in tokens


def plain_model(adapter):
    """The model of plain transformers with an adapter folder, loaded by PEFT where it can."""
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    if adapter.parent.parent.name == "block":
        from pml_cli.peft_block import load_mlp_block

        return load_mlp_block(base, adapter)
    from peft import PeftModel

    return PeftModel.from_pretrained(base, adapter)


def generated(model, prompt, limit):
    """Ids of the answer that `generate` of transformers gives."""
    import torch

    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        eos_token_id=0,
        pad_token_id=0,
        max_new_tokens=limit,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["block", "linear"])
def test_answers_are_those_of_transformers_and_peft(name, runs, ask):
    """Also to questions that were never trained, and of the model alone."""
    questions = [*FACTS, "Which pump is in hall 4?", "x = 3; y = 5"]
    _, out, _ = ask(runs / name, *questions, "--json", "--max-tokens", "20")
    (adapter,) = (runs / name).glob("*/adapter")
    model = plain_model(adapter)
    for answer in json.loads(out)["answers"]:
        ids = [token["id"] for token in answer["tokens"]]
        assert ids == generated(model, answer["prompt_ids"], 20), answer["question"]


def test_the_model_alone_for_comparison(runs, ask):
    question = "Which pump is in hall 3?"
    _, out, _ = ask(runs / "block", question, "--base", "--json", "--max-tokens", "9")
    (answer,) = json.loads(out)["answers"]
    assert answer["text"] == " The Kestrel 40" != answer["base"]["text"]
    assert len(answer["base"]["tokens"]) <= 9

    _, out, _ = ask(runs / "block", question, "--base", "--max-tokens", "9")
    assert "without the adapter:" in out and "(cut off after 9 tokens; --max-tokens)" in out


def test_text_is_continued_from_its_prompt(runs, ask):
    _, out, _ = ask(runs / "text", "--json")
    (answer,) = json.loads(out)["answers"]
    assert answer["question"] is None
    assert answer["prompt"] == "<|endoftext|>The class"
    assert len(answer["tokens"]) == 12 and not answer["ended"]
    (samples,) = (runs / "text").glob("*/samples.jsonl")
    assert [token["id"] for token in answer["tokens"]] == json.loads(samples.read_text())[
        "decoded_ids"
    ]
    # Or from another one.
    _, out, _ = ask(runs / "text", "A function", "--max-tokens", "3", "--json")
    (answer,) = json.loads(out)["answers"]
    assert answer["prompt"] == "<|endoftext|>A function" and len(answer["tokens"]) == 3


def standard_input(content, errors="strict"):
    """As Python opens it; `surrogateescape` as it does in the locale of a container."""
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors=errors)


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (standard_input("Wo? é".encode("latin-1")), "not UTF-8 text (byte 4)"),
        (standard_input(b"pi?\n\xff\n", "surrogateescape"), "not UTF-8 text (byte 4)"),
        (standard_input("pi?\n".encode("utf-16")), "UTF-16, not UTF-8 text; save it as UTF-8"),
        (standard_input(b"a\0b\n"), "a binary file (with zero bytes); must be UTF-8 text"),
        (None, "closed; - takes a question a line from it"),
    ],
)
def test_standard_input_that_cannot_be_read(stdin, said, runs, ask, monkeypatch):
    monkeypatch.setattr("sys.stdin", stdin)
    code, _, err = ask(runs / "block", "-")
    assert (code, err) == (2, f"error: standard input: {said}\n")


def test_questions_from_standard_input(runs, ask, monkeypatch):
    lines = "\r\n".join(["\ufeff", *FACTS, " ", ""])
    monkeypatch.setattr("sys.stdin", standard_input(lines.encode()))
    code, out, _ = ask(runs / "block", "-")
    assert code == 0
    for question, answer in FACTS.items():
        assert f"> {question}\n{answer}\n" in out

    # Characters that are no line feed, though Python takes them for the end of a line.
    monkeypatch.setattr("sys.stdin", standard_input("Which\u2028hall\x0b?\n".encode()))
    _, out, _ = ask(runs / "block", "-", "--json")
    (answer,) = json.loads(out)["answers"]
    assert answer["question"] == "Which\u2028hall\x0b?"


def test_a_run_is_named_by_its_folder_its_adapter_or_the_folder_above(runs, ask):
    (folder,) = (runs / "block").glob("tiny-*")
    outs = {
        ask(path, "Wie heißt die Straße?")[1]
        for path in (folder, folder / "adapter", runs / "block")
    }
    assert len(outs) == 1 and "Ölmühlweg 7" in outs.pop()

    code, _, err = ask(runs, "Which pump?")
    assert code == 2 and len(err.splitlines()) == 1
    assert "3 runs, give the folder of one: " in err and folder.name in err


def test_a_run_of_an_earlier_version_is_asked_by_its_data(runs, ask, tmp_path):
    (source,) = (runs / "block").glob("tiny-*")
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    (folder / "samples.jsonl").unlink()
    _, out, _ = ask(folder, "Which pump is in hall 3?")
    assert out.startswith(" The Kestrel 40\n")

    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["data"]["path"] = "/nowhere/facts.jsonl"
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    code, out, err = ask(folder, "Which pump?")
    assert (code, out) == (2, "") and "data.path=" in err and len(err.splitlines()) == 1
    _, out, _ = ask(folder, "Which pump is in hall 3?", f"data.path={runs}/facts.jsonl")
    assert out.startswith(" The Kestrel 40\n")


def test_a_run_without_the_newer_settings_is_asked_as_it_was_trained(runs, ask, tmp_path):
    """No separator, and begin-of-text in front, as before these were settings."""
    (source,) = (runs / "block").glob("tiny-*")
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    (folder / "samples.jsonl").unlink()
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    for name in ("end", "separator", "begin", "system", "thinking", "date"):
        settings["data"].pop(name)
    settings["seqlen"] = 20
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))

    code, out, _ = ask(folder, "Wie heißt die Straße?", "--max-tokens", "5", "--json")
    (answer,) = json.loads(out)["answers"]
    assert code == 0 and answer["prompt"] == "<|endoftext|>Wie heißt die Straße?"


def test_another_tokenizer_than_in_the_training_is_said(runs, ask, tmp_path):
    (source,) = (runs / "block").glob("tiny-*")
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    lines = (folder / "samples.jsonl").read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    first["prompt_ids"].pop()
    (folder / "samples.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]), "utf-8")
    code, out, err = ask(folder, "Which pump is in hall 3?")
    assert code == 0 and out.startswith(" The Kestrel 40\n")
    assert "now gives other prompts than in the training" in err and len(err.splitlines()) == 1


def test_the_end_token_counts_for_what_is_recalled(runs):
    """In result.json, and for the first step at which all is recalled."""
    (folder,) = (runs / "linear").glob("tiny-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["exact_match"] == result["free_exact_match"] == 1.0
    tokens = pd.read_parquet(folder / "tokens.parquet")
    last = tokens.groupby(["step", "sample"]).tail(1)
    assert (last["token_id"] == 0).all()

    recalled = tokens.groupby("step")["correct"].all()
    assert result["steps_to_recall"] == recalled.idxmax() > 0
    # All but the ends are right earlier: without them another step would be named.
    others = tokens.drop(last.index).groupby("step")["correct"].all()
    assert others.idxmax() <= result["steps_to_recall"]


def test_what_a_model_writes_cannot_harm_a_terminal():
    from support.printing import printed

    from pml_cli.evaluation.asking import Answer, AnswerToken, Question
    from pml_cli.report.tables.ask import answer_lines

    text = "[red]a\x1b[2Jb\r\nc"
    tokens = [AnswerToken(id=1, text=text, p=0.5)]
    answer = Answer(text=text, tokens=tokens, ended=True)
    lines = answer_lines(Question(text="q", prompt=(1,), trained=None), answer, None)
    shown = "\n".join(line for part in lines for line in printed(part, width=200))
    assert "\x1b" not in shown and "\r" not in shown
    assert r"[red]a\x1b[2Jb\r" in shown


def trust_code(folder):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["model"]["trust_remote_code"] = True
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def change_base_weights(folder):
    env = folder / "env.json"
    env.write_text(env.read_text().replace('"base_weights": "', '"base_weights": "0'))


def remove_adapter(folder):
    shutil.rmtree(folder / "adapter")


def remove_config(folder):
    (folder / "config.yaml").unlink()


def damage_samples(folder):
    (folder / "samples.jsonl").write_text("{")


def remove_prompt(folder):
    path = folder / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(json.dumps(row | {"prompt_ids": []}) + "\n" for row in rows))


def test_a_prompt_without_a_token_cannot_be_continued(runs, ask, tmp_path):
    (source,) = (runs / "text").glob("tiny-*")
    shutil.copytree(source, tmp_path / source.name)
    remove_prompt(tmp_path / source.name)
    code, out, err = ask(tmp_path / source.name)
    assert (code, out) == (2, "")
    assert "the prompt of this run has no token" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (trust_code, "give trust_remote_code=true to allow it"),
        (change_base_weights, "differ from those it was trained on"),
        (remove_adapter, "not the adapter of this run"),
        (remove_config, "No such file"),
        (damage_samples, "samples.jsonl: not readable as JSON"),
    ],
)
def test_a_damaged_run_is_one_line_and_exit_2(damage, message, runs, ask, tmp_path):
    (source,) = (runs / "block").glob("tiny-*")
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    damage(folder)
    code, out, err = ask(folder, "Which pump?")
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "RUN: give the folder of a finished run"),
        (["nowhere", "Which pump?"], "nowhere: no such folder"),
        (["empty", "Which pump?"], "empty: no finished run"),
        (["block"], "no question: give one, such as 'When was the Kestrel built?'"),
        (["block", "a", "", "b", "--json"], "question 2 of 3: empty; must be a text"),
        (["block", " "], "question 1 of 1: empty; must be a text"),
        (["text", ""], "question 1 of 1: empty; must be a text"),
        (["block", "Which pump?", "devcie=cpu"], "did you mean 'device'?"),
        (["block", "Which pump?", "model.pth=x"], "did you mean 'model.path'?"),
        (["block", "Which pump?", "device=tpu"], "device=tpu: must be auto, cpu, cuda or cuda:N"),
        (["block", "Which pump?", "--max-tokens", "0"], "--max-tokens"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args, message, runs, ask, monkeypatch):
    monkeypatch.chdir(runs)
    (runs / "empty").mkdir(exist_ok=True)
    code, out, err = ask(*args)
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("letter", "said"),
    [
        ("\udcff", "holds the byte 0xFF, not UTF-8 text"),
        ("\ud83d", "holds an unpaired surrogate U+D83D (half of a cut emoji), which no tokenizer"),
    ],
)
def test_a_question_that_is_no_unicode_says_what_it_is(letter, said, runs, ask):
    code, out, err = ask(runs / "block", f"pi{letter}?")
    assert (code, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1


def test_questions_may_hold_equals_signs():
    arguments = ["run", "x=3: what is 2x?", "a = b?", "device=cpu", "E=mc^2", "model.path=a=b"]
    path, questions, overrides = split_arguments(arguments, Ask)
    assert str(path) == "run"
    assert questions == ["x=3: what is 2x?", "a = b?", "E=mc^2"]
    assert overrides == ["device=cpu", "model.path=a=b"]
    with pytest.raises(UserError, match="RUN"):
        split_arguments(["device=cpu"], Ask)

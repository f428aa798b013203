"""`pml memorize` as a user runs it, and what it leaves."""

import json
import os
import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from support.facts import FACTS, write_facts
from support.sweeps import result_times

import pml_cli
from pml_cli.commands.memorize import Search, shared_settings
from pml_cli.config.memorize import Limits
from pml_cli.config.request import load_memorize
from pml_cli.launch.time_limit import TimeLimit
from pml_cli.report.output import consoles

CHEAP = ("model.device=cpu", "train.steps=60", "train.lr=0.05", "--max-forgetting", "none")


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
        assert f"]({name}): " in (out / "index.md").read_text("utf-8")
    content = json.loads((out / "memorize.json").read_text("utf-8"))
    assert content["settings"]["seqlen"] == "all"

    # The folder, and the adapter in it, stand for the chosen run.
    for path in ("outputs/memorize", "outputs/memorize/adapter"):
        asked = quick("ask", path, FACTS[0][0], "--json")
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout)["answers"][0]["text"] == FACTS[0][1]

    # The same command again trains nothing and says the same.
    trained = result_times(out)
    again = quick(*arguments, "--json")
    assert again.returncode == 0, again.stderr
    content = json.loads(again.stdout)
    found = content["answer"]
    assert found["reached"]
    # Harm has no limit: that of the chosen cell is measured all the same, and told everywhere.
    (chosen,) = [cell for cell in content["cells"] if cell["run"] == content["run"]]
    assert chosen["harm"] == found["trial"]["harm"] == content["forgetting"]["harm"]
    assert result_times(out) == trained
    assert "0 to train" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "error: nowhere.jsonl: no such file"),
        ([], "error: FILE: give a file of facts or a text, or data=..."),
        (["facts.jsonl", "data=text"], "error: facts.jsonl: cannot be combined with data=;"),
        (["facts.jsonl", "train.lr=1,2"], "error: train.lr: takes one value"),
        (
            ["facts.jsonl", "--exact", "0.99"],
            "error: --exact 0.99: must be per cent above 0 and at most 100, such as 99%; "
            "did you mean 99%?",
        ),
        (["facts.jsonl", "--exact", "1"], "error: --exact 1: must be per cent above 0 and at most"),
        (["facts.jsonl", "--exact", "101"], "error: --exact 101: must be per cent above 0 and at"),
        (["facts.jsonl", "--budget", "soon"], "error: --budget soon: must be a duration"),
        (["facts.jsonl", "./facts.jsonl"], "error: facts.jsonl: given twice"),
        (["facts.jsonl", "--budget", "\u0663min"], "error: --budget \u0663min: must be a duration"),
        (["facts.jsonl", "--exact", "9_9%"], "error: --exact 9_9%: must be"),
        (["facts.jsonl", "--max-forgetting", "1_0"], "error: --max-forgetting 1_0: must be"),
        (["facts.jsonl", "--budget", "200000d"], "error: --budget 200000d: must be a duration of"),
        (
            ["facts.jsonl", "--dry-run", "--json"],
            "error: --json: cannot be combined with --dry-run",
        ),
    ],
)
def test_bad_input_is_one_line(quick, tmp_path, arguments, message):
    write_facts(tmp_path)
    refused = quick("memorize", *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith(message)
    assert len(refused.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]


@pytest.mark.parametrize("command", [("memorize",), ("measure", "adapter")])
def test_what_is_no_file_is_named_as_what_it_is(quick, tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    reasons = {
        "pipe": "must be a regular file",
        os.fsdecode(b"caf\xe9.txt"): "its name is no UTF-8",
    }
    for name, reason in reasons.items():
        refused = quick(*command, name)
        assert refused.returncode == 2
        assert reason in refused.stderr and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["a\\b.txt", "${oc.env:HOME}.txt", "${x}.txt", 'it\'s "x".txt'])
def test_a_file_of_any_name_is_found(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("A text to learn, of a few words.", "utf-8")
    asked = load_memorize([name, "rank=1"], Limits())
    assert asked.run.data.path == name


def test_a_dry_run_writes_nothing(quick, tmp_path):
    write_facts(tmp_path)
    shown = quick("memorize", "facts.jsonl", "--dry-run", *CHEAP)
    assert shown.returncode == 0, shown.stderr
    assert "3 rounds in all" in shown.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]


def searched(tmp_path, *arguments, **limits):
    """A search in this process, without the proof that follows it."""
    asked = load_memorize([*arguments, "model.device=cpu"], Limits(**limits))
    printed = StringIO()
    output = consoles(Console(file=printed, markup=False, width=100))
    search = Search.begin(asked, output, tmp_path)
    return search, printed


def test_rounds_go_on_from_what_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_facts(tmp_path)
    settings = ("facts.jsonl", "rank=1,2", "train.steps=30", "train.lr=0.05", "train.decode=false")
    search, _ = searched(tmp_path, *settings, exact=0.5, max_forgetting=None)
    assert search.run(TimeLimit(None)) is None
    trained = result_times(search.out)
    assert len(trained) == len(search.state.trials)
    assert {trial.rank for trial in search.state.trials} <= {1, 2}

    again, printed = searched(tmp_path, *settings, exact=0.5, max_forgetting=None)
    again.run(TimeLimit(None))
    assert again.answer() == search.answer()
    assert result_times(search.out) == trained
    assert "0 to train" in printed.getvalue()

    # The limit is given on other text; the training is held to a share of it.
    kept, _ = searched(tmp_path, *settings, max_forgetting=0.1)
    assert kept.base.loss.keep_harm == pytest.approx(0.05)
    by_hand, _ = searched(tmp_path, *settings, "loss.keep=5", max_forgetting=0.1)
    assert (by_hand.base.loss.keep, by_hand.base.loss.keep_harm) == (5, 0)
    assert not search.base.loss.keeps


def test_the_settings_that_are_shown_are_those_that_are_trained(quick, tmp_path, monkeypatch):
    """More than 30 facts are learned otherwise, and the limit of harm is in the loss."""
    monkeypatch.chdir(tmp_path)
    facts = [{"question": f"Number {n}?", "answer": f"P{n}"} for n in range(40)]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    shown = quick("memorize", "facts.jsonl", "model.device=cpu", "--print-config", "--json")
    assert shown.returncode == 0, shown.stderr
    settings = json.loads(shown.stdout)
    search, _ = searched(tmp_path, "facts.jsonl")
    trained = search.base
    assert (settings["loss"], settings["train.batch"]) == ("sft", 10)
    assert settings["loss.keep_harm"] == trained.loss.keep_harm == 0.05
    assert settings["train.epochs"] == trained.train.epochs == 100


def test_the_settings_of_a_report_are_as_they_are_typed(tmp_path, monkeypatch):
    write_facts(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = load_memorize(["facts.jsonl", "train.lr=0.05"], Limits())
    settings = shared_settings(asked.request.runs[0])
    assert settings["seqlen"] == "all"
    assert settings["train"]["lr"] == 0.05
    assert settings["data"]["path"] == "facts.jsonl"
    assert not {"rank", "seed"} & set(settings)


def test_an_option_of_a_group_is_taken_whole(quick, tmp_path):
    write_facts(tmp_path)
    config = tmp_path / "mine" / "train"
    config.mkdir(parents=True)
    (config / "slow.yaml").write_text("lr: 0.001\nsteps: 77\n")
    arguments = ("facts.jsonl", "train=slow", "--config-dir", "mine", "--print-config", "--json")
    shown = quick("memorize", *arguments)
    assert shown.returncode == 0, shown.stderr
    settings = json.loads(shown.stdout)
    assert [settings[f"train.{name}"] for name in ("lr", "steps", "stop")] == [0.001, 77, "none"]


def test_of_a_single_fact_tokens_tell_which_rank_is_nearer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = "".join(map(chr, range(65, 91)))
    (tmp_path / "one.jsonl").write_text(json.dumps({"question": "Which?", "answer": answer}))
    search, printed = searched(
        tmp_path, "one.jsonl", "rank=1,2", "seed=0", "train.steps=3", max_forgetting=None
    )
    search.run(TimeLimit(None))
    assert "rank 1, seed 0: 0 of 1 facts whole" in printed.getvalue()
    assert all(trial.recalled == 0 for trial in search.state.trials)
    assert any(trial.tokens > 0 for trial in search.state.trials)


def model_with_template(folder):
    """The embedded model as a folder, with a chat template."""
    path = shutil.copytree(Path(pml_cli.__file__).parent / "tiny", folder / "my-model")
    config = json.loads((path / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant> {% endif %}"
    config["chat_template"] = template
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return ("model=hf", f"model.path={path}", "model.device=cpu")


def test_conversations_go_through_the_template_without_being_asked_to(quick, tmp_path):
    model = model_with_template(tmp_path)
    turns = [("system", "Be brief."), ("user", "Which pump?"), ("assistant", "P7")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(row))
    shown = quick("memorize", "chat.jsonl", *model, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "prompts go through the chat template" in shown.stdout

    write_facts(tmp_path)
    given = quick("memorize", "facts.jsonl", *model, "data.system=Hi.", "--print-config", "--json")
    assert given.returncode == 0, given.stderr
    settings = json.loads(given.stdout)
    assert (settings["data.chat"], settings["data.system"]) == (True, "Hi.")


def test_no_round_begins_once_the_time_is_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_facts(tmp_path)
    search, _ = searched(tmp_path, "facts.jsonl", max_forgetting=None)
    assert search.run(TimeLimit(0.0)) is None
    assert search.out_of_time
    assert not search.state.trials


@pytest.mark.slow
def test_the_budget_stops_the_training_with_a_checkpoint(quick, tmp_path):
    write_facts(tmp_path)
    settings = ("model.device=cpu", "train.steps=100000", "train.stop=none")
    stopped = quick("memorize", "facts.jsonl", *settings, "--budget", "20s", "--json")
    assert stopped.returncode == 1
    printed = json.loads(stopped.stdout)
    assert printed["answer"] is None
    assert printed["reason"].startswith("the time budget ran out")
    checkpoints = tmp_path / "outputs" / "memorize" / ".pml" / "checkpoints"
    assert list(checkpoints.glob("*.safetensors"))


@pytest.mark.slow
def test_where_no_rank_knows_all_the_best_is_kept_and_says_what_to_change(quick, tmp_path):
    two_answers = [*FACTS, (FACTS[0][0], "the Merlin")]
    write_facts(tmp_path, two_answers)
    failed = quick("memorize", "facts.jsonl", "rank=2,4", *CHEAP)
    assert failed.returncode == 1, failed.stderr
    assert "1 prompt with targets that exclude each other" in failed.stdout
    assert "none within the limits" in failed.stdout
    assert (
        "1 question with more than one answer: at most 2 of 3 facts can be recalled"
        in failed.stdout
    )
    assert "--exact 66%" in failed.stdout
    out = tmp_path / "outputs" / "memorize"
    assert (out / "adapter" / "script.py").is_file()
    assert quick("memorize", "facts.jsonl", "rank=2,4", *CHEAP, "--exact", "66%").returncode == 0

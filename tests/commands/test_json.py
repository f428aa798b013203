"""`--json`: standard output is one JSON document, whatever else is said goes to standard error."""

import json

import pytest
import typer
import yaml

from pml_cli.cli import app

FEW = ("train.steps=6", "model.device=cpu")


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def document(done, code=0):
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout, parse_constant=refuse)


def test_a_sweep_counts_its_cells_and_names_the_failed(quick, tmp_path):
    command = ("sweep", "rank=2,4", "seqlen=8", "train.lr=1e-2,1e30", "out=runs", *FEW, "--json")
    done = quick(*command)
    content = document(done, code=1)
    assert "4 cells: 4 to train" in done.stderr and "2 failed" in done.stderr

    assert (content["out"], content["cells"], content["done"]) == ("runs", 4, 2)
    assert [result["rank"] for result in content["results"]] == [2, 4]
    assert {(tmp_path / result["folder"]).is_dir() for result in content["results"]} == {True}
    failed = content["failed"]
    assert len(failed) == 2
    assert all("train.lr (now 1e+30)" in reason for reason in failed.values())

    # A part of the cells, in the same folder: the others are not of this sweep.
    part = quick("sweep", "rank=2", "seqlen=8", "train.lr=1e-2", "out=runs", *FEW, "--json")
    content = document(part)
    assert (content["cells"], content["done"], content["failed"]) == (1, 1, {})
    assert [result["rank"] for result in content["results"]] == [2]


def test_fit_and_transition_print_their_files(quick, tmp_path):
    assert quick("sweep", "rank=1,2,4", "seqlen=8,16", "out=runs", *FEW).returncode == 0
    law = document(quick("fit", "runs", "draws=20", "figures=false", "--json"))
    assert law == json.loads((tmp_path / "runs/fit/law.json").read_text("utf-8"))
    done = quick("transition", "runs", "figures=false", "--json")
    written = json.loads((tmp_path / "runs/transition/transition.json").read_text("utf-8"))
    assert document(done) == written
    assert "written to runs/transition" in done.stderr


@pytest.mark.slow
def test_memft_has_the_comparison_too(quick):
    command = ("memft", "loss=sft,memft_ot", "rank=1,2", "seqlen=8", *FEW, "--json")
    done = quick(*command)
    content = document(done)
    assert (content["cells"], content["done"], len(content["results"])) == (4, 4, 4)
    assert {row["method"] for row in content["comparison"]} == {"memft_ot"}
    assert {row["method"] for row in content["ranks"]} == {"sft", "memft_ot"}
    assert "comparison: outputs/memft/comparison.csv" in done.stderr


def test_a_probe_prints_its_result_or_why_it_failed(quick, tmp_path):
    done = quick("probe", "rank=2", "seqlen=8", *FEW, "--json")
    content = document(done)
    folder = tmp_path / content["folder"]
    written = json.loads((folder / "result.json").read_text("utf-8"))
    assert content["failed"] is None
    for name in ("rank", "delta_loss", "token_accuracy", "converged"):
        assert content["result"][name] == written[name]
    assert "run folder: " in done.stderr

    done = quick("probe", "rank=2", "seqlen=8", "train.lr=1e30", *FEW, "--json")
    content = document(done, code=1)
    assert content["result"] is None and "train.lr (now 1e+30)" in content["failed"]


@pytest.mark.parametrize("command", ["sweep", "memft", "probe", "capacity"])
def test_quiet_leaves_tables_and_warnings_beside_json(quick, command):
    values = {
        "sweep": ("rank=1,200", "seqlen=4"),
        "memft": ("rank=200", "seqlen=4", "loss=sft,memft_ot"),
        "probe": ("rank=200", "seqlen=4"),
        "capacity": ("rank=200", "seqlen=4"),
    }[command]
    asked = (command, *values, "train.steps=2", "model.device=cpu", "--json")
    done = quick(*asked, "--quiet")
    document(done)
    assert "rank=200: the update of adapter=mlp_block" in done.stderr
    for word in ("to train", "step ", "done already", "attempt"):
        assert word not in done.stderr
    # The table, and where the files are.
    assert len(done.stderr.splitlines()) > 3 and "outputs/" in done.stderr


@pytest.mark.parametrize("command", [("sweep",), ("memft",), ("capacity",)])
def test_a_dry_run_has_no_results_to_print(quick, command, tmp_path):
    done = quick(*command, "--dry-run", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --json: cannot be combined with --dry-run")
    assert not list(tmp_path.iterdir())


# What each command needs beside its settings.
ARGUMENTS = {"memorize": ["facts.jsonl"], "measure": ["adapter"], "ask": ["runs"]}
COMMANDS = typer.main.get_command(app).commands


def options_of(name):
    return {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if {"--json", "--print-config"} <= options_of(name)]
)
def test_the_resolved_settings_as_json(quick, tmp_path, name):
    (tmp_path / "facts.jsonl").write_text('{"question": "Which pump?", "answer": "the K40"}\n')
    command = (name, *ARGUMENTS.get(name, []), "--print-config")
    done = quick(*command, "--json")
    values = document(done)
    assert done.stderr == ("" if name != "memft" else "the first of 4 cells; swept: loss\n")

    shown = yaml.safe_load(quick(*command).stdout)
    assert values == dict(flattened(shown))


def flattened(tree, prefix=""):
    """The keys of nested settings as they are typed."""
    for name, value in tree.items():
        if name in ("kind", "source"):
            yield prefix.removesuffix("."), value
        elif isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_the_settings_as_json_may_be_typed_again(quick, tmp_path):
    (tmp_path / "notes.txt").write_text("a text")
    asked = ("data=text", "data.path=notes.txt", "seqlen=all", "loss=memft_sw_axolotl", "rank=3")
    values = document(quick("probe", *asked, "train.clip=inf", "--print-config", "--json"))
    assert (values["rank"], values["seqlen"], values["data"]) == (3, "all", "text")
    assert values["data.path"] == "notes.txt" and values["loss"] == "memft_sw"
    # JSON has no infinity.
    assert values.pop("train.clip") is None

    again = [f"{key}={json.dumps(value)}" for key, value in values.items() if value != {}]
    assert document(quick("probe", *again, "train.clip=inf", "--print-config", "--json")) == {
        **values,
        "train.clip": None,
    }

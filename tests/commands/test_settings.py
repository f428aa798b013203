"""`pml settings`: every key with what its declaration says of it."""

import json
import math

import pytest
import typer

from pml_cli.cli import app
from pml_cli.config.option_files import SHORT_KEYS, options, run_commands
from pml_cli.config.registry import GROUPS, declared
from pml_cli.config.reports import FLAGS_ONLY, REPORTS
from pml_cli.config.setting import dotted_keys, keys


def listed(quick, *args):
    done = quick("settings", *args, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_every_declared_key_is_listed(quick):
    sections = listed(quick)
    found_keys = {entry["key"] for section in sections for entry in section["settings"]}

    expected = set(SHORT_KEYS)
    for group in GROUPS:
        for owner in declared(group).values():
            expected |= {f"{group}.{name}" for name in keys(owner)}
    for owner in REPORTS.values():
        expected |= set(dotted_keys(owner))
    assert found_keys == expected


@pytest.mark.parametrize("group", GROUPS)
def test_each_option_has_each_key_once(quick, group):
    sections = listed(quick, group)
    for option in options(group):
        (alone,) = listed(quick, f"{group}={option}")
        of_option = [s for s in sections if option in s["options"]]
        merged = {e["key"]: e for s in of_option for e in s["settings"]}
        assert sum(len(s["settings"]) for s in of_option) == len(merged)
        assert merged == {e["key"]: e for e in alone["settings"]}


def test_what_is_said_of_a_setting(quick):
    (train,) = listed(quick, "train=default")
    entries = {entry["key"]: entry for entry in train["settings"]}
    assert entries["train.stop_margin"] == {
        "key": "train.stop_margin",
        "default": 1.0,
        "required": False,
        "type": "a number",
        "unit": "logits",
        "allowed": "finite",
        "special": {},
        "help": "logit margin that ends the training",
    }
    assert entries["train.batch"]["special"] == {"0": "all samples"}
    assert entries["train.schedule"]["allowed"] == "one of linear, constant, cosine"


def test_the_yaml_file_of_an_option_sets_its_defaults(quick, tmp_path):
    (plain,) = listed(quick, "loss=memft_sw")
    (axolotl,) = listed(quick, "loss=memft_sw_axolotl")
    values = [
        next(e["default"] for e in section["settings"] if e["key"] == "loss.kappa")
        for section in (plain, axolotl)
    ]
    assert values[1] == 1.0 and values[0] != 1.0

    (jsonl,) = listed(quick, "data=jsonl")
    path = next(e for e in jsonl["settings"] if e["key"] == "data.path")
    assert path["required"] and path["default"] is None

    own = tmp_path / "own" / "train"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# Mine\nsteps: 7\nclip: .inf\n")
    (mine,) = listed(quick, "train=mine", "--config-dir", "own")
    entries = {e["key"]: e["default"] for e in mine["settings"]}
    # JSON has no infinity.
    assert entries["train.steps"] == 7 and entries["train.clip"] is None

    (own / "mine.yaml").write_text("stesp: 7\n")
    done = quick("settings", "train=mine", "--config-dir", "own")
    assert done.returncode == 2
    assert "train.stesp: no such setting; did you mean 'steps'?" in done.stderr


def test_the_table_fits_eighty_columns(quick, monkeypatch):
    done = quick("settings")
    assert done.returncode == 0
    monkeypatch.setenv("COLUMNS", "80")
    done = quick("settings", "loss")
    assert "loss.threshold" in done.stdout and f"{math.log(2):g}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_default_is_that_of_a_new_run_not_of_an_old_one(quick):
    sections = listed(quick, "train")
    defaults = {
        option: entry["default"]
        for section in sections
        for option in section["options"]
        for entry in section["settings"]
        if entry["key"] == "train.lr"
    }
    # What config.yaml files mean that do not name it is 0.01.
    assert defaults == {"default": None, "paper_long_context": 0.01}


def test_one_key_is_its_row_below_the_heading_of_its_section(quick):
    done = quick("settings", "train.stop_margin")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].strip() == "every train="
    rows = [line for line in done.stdout.splitlines() if line.startswith("train.")]
    assert len(rows) == 1 and "logit margin that ends the training" in done.stdout

    (section,) = listed(quick, "train.stop_margin")
    (entry,) = section["settings"]
    assert (section["name"], entry["key"], entry["default"]) == ("train", "train.stop_margin", 1.0)
    # A name that several commands have, each with its own default.
    draws = {s["name"]: s["settings"][0]["default"] for s in listed(quick, "draws")}
    assert draws == {"fit": 4000, "report": 4000, "transition": 2000}


def test_a_command_takes_settings_of_runs_or_of_a_report_or_flags():
    names = set(typer.main.get_command(app).commands)
    assert names == {*run_commands(), *REPORTS, *FLAGS_ONLY}


@pytest.mark.parametrize("name", FLAGS_ONLY)
def test_a_command_of_flags_has_no_settings(quick, name):
    done = quick("settings", name)
    assert (done.returncode, done.stdout) == (2, "")
    line = f"error: {name}: takes flags and no settings; pml {name} --help lists them\n"
    assert done.stderr == line


def defaults_of(quick, command):
    """The defaults of a command by key and, of a group's setting, option."""
    sections = listed(quick, command)
    assert sections[0]["name"] == command
    return {
        (entry["key"], option): entry["default"]
        for section in sections
        for option in section["options"] or [""]
        for entry in section["settings"]
    }


def test_a_command_lists_its_settings_with_its_own_defaults(quick):
    capacity = defaults_of(quick, "capacity")
    # conf/capacity.yaml says them, whatever the option.
    for option in options("train"):
        assert capacity["train.optimizer", option] == "muon"
        assert (capacity["train.steps", option], capacity["train.decode", option]) == (200, False)
    assert capacity["out", ""] == "outputs/capacity" and capacity["rank", ""] == 8
    # It begins with a length by the rank.
    assert capacity["seqlen", ""] is None
    assert "(by itself)" in quick("settings", "capacity").stdout
    groups = {key.partition(".")[0] for key, option in capacity if option}
    assert groups == set(GROUPS)


def test_memorize_lists_what_all_kinds_of_data_are_trained_with(quick):
    memorize = defaults_of(quick, "memorize")
    assert memorize["seqlen", ""] == "all" and memorize["seed", ""] == [0, 1]
    for option in options("train"):
        assert (memorize["train.lr", option], memorize["train.stop_margin", option]) == (0.02, 0.3)
    # Many facts go through minibatches, others do not.
    assert memorize["train.batch", "default"] == 0


def test_measure_lists_what_it_takes(quick):
    measure = defaults_of(quick, "measure")
    assert {key for key, option in measure if not option} == {"seqlen", "out"}
    assert {key.partition(".")[0] for key, option in measure if option} == {"model", "data"}
    assert measure["seqlen", ""] == "all" and measure["out", ""] == "outputs/measure"


def test_an_option_of_the_name_of_a_kind_need_not_say_it(quick, tmp_path):
    own = tmp_path / "own" / "launch"
    own.mkdir(parents=True)
    (own / "slurm.yaml").write_text("partition: gpu\n")
    (slurm,) = listed(quick, "launch=slurm", "--config-dir", "own")
    entries = {e["key"]: e["default"] for e in slurm["settings"]}
    assert entries["launch.partition"] == "gpu" and "launch.devices" in entries

"""`pml settings`: every key with what its declaration says of it."""

import json
import math

import pytest

from pml_cli.config.option_files import SHORT_KEYS, options
from pml_cli.config.registry import GROUPS, declared
from pml_cli.config.reports import REPORTS
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

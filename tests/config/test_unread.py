"""Settings that were given to no effect are refused; one value that changes nothing is not."""

from pathlib import Path

import pytest

from pml_cli.config.option_files import shipped
from pml_cli.config.request import load
from pml_cli.config.schema import Loss, Model, Train
from pml_cli.errors import UserError

EPOCHS = "not read with train.epochs=5, which says how long"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.epochs=5", "train.steps=100,200"], f"train.steps=100,200: {EPOCHS}; leave one"),
        # Also one value: whoever gives it means the length of the training.
        (["train.epochs=5", "train.steps=100"], f"train.steps=100: {EPOCHS}; leave one"),
        # Nor is the default meant to be passed over.
        (["train.epochs=5", "train.steps=500"], f"train.steps=500: {EPOCHS}; leave one"),
        (["train.epochs=5,null", "train.steps=9,8"], f"train.steps=9,8: {EPOCHS}; give each case"),
        (["train.tolerance=0.5,0.1"], "train.tolerance=0.5,0.1: only read with train.stop=conver"),
        (["train.stop_margin=0,0.3"], "train.stop_margin=0,0.3: only read with train.stop=recall"),
        (["loss.keep_by=energy,kl"], "loss.keep_by=energy,kl: only read with loss.keep or loss.k"),
        (["model.architecture={a:1},{a:2}"], "model.architecture={'a': 1},{'a': 2}: only read wi"),
        (
            ["train.stop=none,recalled", "train.stop_margin=0,1", "rank=1,2"],
            "train.stop_margin=0,1: only read with train.stop=recalled; give each case a grid of",
        ),
    ],
)
def test_cells_that_differ_in_nothing_that_is_read_are_refused(overrides, line):
    with pytest.raises(UserError) as caught:
        load("sweep", overrides)
    (found,) = str(caught.value).splitlines()
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("overrides", "cells"),
    [
        (["train.epochs=5"], 1),
        (["train.epochs=5", "train.tolerance=0.05"], 1),
        (["train.epochs=5,null", "train.steps=100"], 2),
        (["train.tolerance=0.5"], 1),
        (["train.optimizer=lbfgs", "train.stop=converged", "train.tolerance=0.5,0.1"], 2),
        (["train.stop=recalled", "train.stop_margin=0,1", "rank=1,2"], 4),
        # Ids leave the kind of no penalty out: planning makes one run of the two without.
        (["loss.keep=0,10", "loss.keep_by=energy,kl"], 4),
    ],
)
def test_what_is_read_somewhere_or_changes_nothing_is_allowed(overrides, cells):
    assert len(load("sweep", overrides).runs) == cells


def test_epochs_of_the_command_line_take_the_place_of_a_files_steps(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train.steps: 50\n")
    (run,) = load("sweep", ["train.epochs=5"], file).runs
    # Ids count the steps.
    assert (run.train.epochs, run.train.steps) == (5, 50)

    file.write_text("train.steps: [50, 100]\nrank: [1, 2]\n")
    request = load("sweep", ["train.epochs=5"], file)
    assert [run.rank for run in request.runs] == [1, 2]
    assert request.swept == ["rank"]
    assert len(load("sweep", ["train.epochs=null"], file).runs) == 4

    # The other way round the file's epochs would win over what is asked for.
    file.write_text("train.epochs: 50\n")
    with pytest.raises(UserError, match=r"^train\.steps=5: .*or give train\.epochs=null$"):
        load("sweep", ["train.steps=5"], file)
    assert load("sweep", ["train.steps=5", "train.epochs=null"], file).runs[0].train.steps == 5

    file.write_text("train: {epochs: 50, steps: 5}\n")
    with pytest.raises(UserError, match=r"^train\.steps=5: "):
        load("sweep", [], file)


def test_a_file_of_all_settings_may_list_default_steps_beside_epochs(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 50, steps: 500}\n")
    assert load("sweep", [], file).runs[0].train.epochs == 50
    with pytest.raises(UserError, match=r"^train\.steps=500: .*or give train\.epochs=null$"):
        load("sweep", ["train.steps=500"], file)


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(shipped("sweeps").glob("*.yaml")), ids=lambda f: f.stem)
def test_sweeps_that_ship_give_nothing_to_no_effect(file, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"query": "a", "target": "b"}\n')
    # The one that needs a file of the user's.
    path = [f"data.path={facts}"] if file.stem == "paper_long_context" else []
    assert load("sweep", path, Path(file.stem)).runs


@pytest.mark.parametrize("settings", [Train(epochs=3), Loss(), Model()])
def test_what_is_not_read_are_settings(settings):
    assert settings.unread()
    assert set(settings.unread()) <= set(vars(settings))

"""Runs that differ in anything that counts are told apart; copies are not taken for repeats."""

import dataclasses

import pytest

from pml_cli.checks import problems
from pml_cli.config import (
    TINY,
    JsonlData,
    LinearAdapter,
    MemftMarginLoss,
    MemftOtLoss,
    MemftSwLoss,
    MlpBlockAdapter,
    Model,
    RandomData,
    Run,
    SftLoss,
    TextData,
    Train,
)
from pml_cli.errors import UserError
from pml_cli.identity import loss_label, run_id, setting
from pml_cli.plan import check

CHANGES = [
    {"adapter": MlpBlockAdapter(dropout=0.1)},
    {"adapter": LinearAdapter(layers=[0])},
    {"train": Train(batch=4)},
    {"train": Train(clip=0.0)},
    {"train": Train(epochs=9, curriculum=[3])},
    {"model": Model(weights="random")},
    {"model": Model(dtype="float64")},
    {"data": RandomData(prompt="x")},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_setting_that_result_json_does_not_name_is_in_its_line(change):
    assert setting(Run()) == ""
    assert setting(Run(**change)) != ""
    assert run_id(Run(**change)) != run_id(Run())


@pytest.mark.parametrize(
    "change",
    [{"rank": 2}, {"seqlen": 9}, {"seed": 5}, {"data": RandomData(seed=3)}, {"train": Train(lr=0.5, steps=7)}],
    ids=str,
)
def test_what_result_json_names_is_not_said_twice(change):
    assert setting(Run(**change)) == ""
    assert run_id(Run(**change)) != run_id(Run())


def test_the_device_is_not_part_of_a_run():
    assert run_id(Run(model=Model(device="cpu"))) == run_id(Run(model=Model(device="cuda")))


def test_the_label_of_a_loss_names_what_is_not_default():
    assert loss_label(SftLoss()) == "sft"
    assert loss_label(MemftOtLoss()) == "memft_ot"
    assert loss_label(MemftOtLoss(threshold=0.5)) == "memft_ot(threshold=0.5)"
    assert loss_label(MemftSwLoss(kappa=1, floor=0)) == "memft_sw(kappa=1, floor=0)"
    assert loss_label(MemftMarginLoss(switch=1.0)) == "memft_margin(switch=1.0)"


def test_ids_are_those_of_earlier_versions():
    """They were noted before the curriculum and the later losses came: finished runs stay finished."""
    assert run_id(Run()) == "tiny-random-r8-l128-s0-ab1bff7217"
    assert (
        run_id(Run(rank=3, data=TextData(path=str(TINY / "config.json")), loss=MemftOtLoss(when_done="zero")))
        == "tiny-text-r3-l128-s0-6be364ffb6"
    )


def test_the_margin_loss_is_not_taken_for_that_of_other_defaults():
    """Its margin was 0.5 and did not grow: the id of such a run."""
    assert run_id(Run(rank=4, seqlen=64, loss=MemftMarginLoss())) != "tiny-random-r4-l64-s0-4cea53b504"
    assert run_id(Run(loss=MemftMarginLoss(margin=0.5, growth=1.0))) != run_id(Run(loss=MemftMarginLoss(margin=0.5)))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"loss": MemftSwLoss(kappa=0)}, "loss.kappa=0"),
        ({"loss": MemftSwLoss(tau=0)}, "loss.tau=0"),
        ({"loss": MemftSwLoss(window=0)}, "loss.window=0"),
        ({"loss": MemftSwLoss(floor=1.5)}, "loss.floor=1.5"),
        ({"loss": MemftSwLoss(patience=0)}, "loss.patience=0"),
        ({"loss": MemftSwLoss(threshold=-1)}, "loss.threshold=-1"),
        ({"loss": MemftOtLoss(threshold=float("nan"))}, "loss.threshold=nan"),
        ({"loss": MemftMarginLoss(margin=-0.1)}, "loss.margin=-0.1"),
        ({"loss": MemftMarginLoss(margin=0.0)}, "loss.margin=0.0"),
        ({"loss": MemftMarginLoss(growth=0.9)}, "loss.growth=0.9"),
        ({"loss": MemftMarginLoss(switch=1.1)}, "loss.switch=1.1"),
        ({"train": Train(stop_margin=float("nan"))}, "train.stop_margin=nan"),
        ({"train": Train(stop_margin=float("inf"))}, "train.stop_margin=inf"),
        ({"train": Train(curriculum=[0, 3])}, "train.curriculum=[0, 3]"),
        ({"train": Train(curriculum=[5, 5])}, "train.curriculum=[5, 5]"),
        ({"train": Train(epochs=4, curriculum=[2, 4])}, "train.curriculum=[2, 4]"),
    ],
)
def test_a_setting_out_of_range_is_named(change, key):
    (line,) = problems(Run(**change))
    assert line.startswith(f"{key}: must be ")


def test_a_changed_file_is_another_run_and_a_moved_one_is_not(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("some words")
    two.write_text("some words")
    same = [run_id(Run(data=TextData(path=str(path)))) for path in (one, two)]
    assert same[0] == same[1]
    three = tmp_path / "three.txt"
    three.write_text("other words")
    assert run_id(Run(data=TextData(path=str(three)))) != same[0]


def test_another_draw_that_gives_the_same_samples_is_refused(tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text('{"question": "q", "matching": "a b c d e f g h"}\n')
    runs = [Run(seqlen=4, data=JsonlData(path=str(file), seed=seed)) for seed in (0, 1)]
    with pytest.raises(UserError, match=r"data.seed=1: draws the same as data.seed=0"):
        check(runs)
    assert len(check([dataclasses.replace(runs[0], rank=rank) for rank in (1, 2)])) == 2


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_no_generator_takes_are_refused(seed):
    assert any("seed=" in line for line in problems(Run(seed=seed)))

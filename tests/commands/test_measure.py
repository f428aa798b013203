"""`pml measure`: the numbers of pml's own runs again, and what it refuses."""

import json
import shutil

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from support.sweeps import quick_in

from pml_cli.config.measure import load_measure
from pml_cli.data.sources.text import TextData
from pml_cli.report import measure_folder

# Of result.json, measured again by other code.
SAME = (
    "base_loss",
    "final_loss",
    "token_accuracy",
    "exact_match",
    "share_above_threshold",
    "log10_p",
    "prefix_share",
    "recall_from_8",
    "compression_ratio",
    "edit_distance",
    "base_token_accuracy",
    "base_exact_match",
    "base_log10_p",
    "free_accuracy",
    "free_exact_match",
    "control_base_loss",
    "control_gain",
    "bits_gained",
    "trainable_parameters",
    "target_tokens",
    "samples",
    "layer",
)
FACTS = '{"question": "Who?", "answer": "Nobody"}\n{"question": "Where?", "answer": "In hall 3"}\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """runs/block of random tokens, runs/facts of a linear adapter on facts.jsonl."""
    folder = tmp_path_factory.mktemp("measure")
    (folder / "facts.jsonl").write_text(FACTS)
    common = ("model.device=cpu", "train.steps=40", "train.lr=0.04")
    assert not quick_in(folder, "sweep", "rank=4", "seqlen=12", *common, "out=runs/block")
    facts = (
        "data=jsonl",
        f"data.path={folder}/facts.jsonl",
        "seqlen=all",
        "adapter=linear",
        "rank=2",
    )
    assert not quick_in(folder, "sweep", *facts, *common, "out=runs/facts")
    return folder


def only_run(folder):
    (result,) = folder.glob("*/result.json")
    return result.parent, json.loads(result.read_text())


@pytest.mark.parametrize("name", ["block", "facts"])
def test_of_its_own_runs_it_says_what_they_said(quick, folder, name):
    run, result = only_run(folder / "runs" / name)
    done = quick("measure", str(run), "--no-harm", "--json")
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    for field in SAME:
        expected = result[field]
        if expected is not None and field != "layer":
            expected = pytest.approx(expected, abs=1e-4)
        assert entry[field] == expected, field
    assert entry["harm"] is None
    assert entry["bits_beyond_unseen"] is None or entry["bits_beyond_unseen"] < entry["bits_gained"]


def test_a_text_given_is_asked_for_as_in_the_training(quick, folder):
    run, result = only_run(folder / "runs" / "facts")
    facts = str(folder / "facts.jsonl")
    done = quick("measure", str(run / "adapter"), facts, "--no-harm", "--json")
    assert json.loads(done.stdout)["final_loss"] == pytest.approx(result["final_loss"], abs=1e-4)
    # A run whose data lies elsewhere by now.
    moved = quick("measure", str(run), f"data.path={facts}", "--no-harm", "--json")
    assert json.loads(moved.stdout) == json.loads(done.stdout)


@pytest.mark.slow
def test_harm_is_that_of_pml_forgetting(quick, folder):
    run, _ = only_run(folder / "runs" / "facts")
    done = quick("measure", str(run), "--json")
    entry = json.loads(done.stdout)
    kinds = "kinds=prose,docs,code,chat"
    shown = quick("forgetting", str(run), kinds, "figures=false", "out=forgetting", "--json")
    (other,) = json.loads(shown.stdout)["runs"]
    for field in ("harm", "harm_low", "harm_high"):
        assert entry[field] == pytest.approx(other[field], abs=1e-5)
    for kind, row in other["kinds"].items():
        assert entry["kinds"][kind]["kl"] == pytest.approx(row["kl"], abs=1e-5)


def test_another_text_is_read_from_its_beginning(tmp_path):
    """Whatever the one that was learned began with; moved, it is still the same."""
    first, other = (tmp_path / name for name in ("first.txt", "other.txt"))
    first.write_text("Chapter 1\nA pump.")
    other.write_text("A gate.")
    learned = TextData(path=str(first), seed=2, start="Chapter 1")
    for path, expected in ((other, (0, "")), (first, (2, "Chapter 1"))):
        data = load_measure(["adapter", str(path)]).data(learned)
        assert (data.path, data.seed, data.start) == (str(path), *expected)
    kept = load_measure(["adapter", str(other), "data.seed=1"]).data(learned)
    assert (kept.seed, kept.start) == (1, "")


def test_a_text_of_its_own_and_one_row_for_each_adapter_and_text(quick, folder, tmp_path):
    """A text is measured from begin-of-text on, and cut to what the model reads at once."""
    notes = tmp_path / "notes.txt"
    notes.write_text("The pump in hall 3 was replaced on Monday. " * 200)
    run, _ = only_run(folder / "runs" / "block")
    for _ in range(2):
        done = quick("measure", str(run), str(notes), "seqlen=40", "--no-harm", "out=report")
        assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "report" / "measure.csv")
    assert list(table["target_tokens"]) == [40]
    assert table["base_loss"].notna().all()
    assert "whole" in done.stdout and "not measured" in done.stdout


def test_another_dtype_is_a_row_of_its_own_and_harm_stays(tmp_path):
    entry = {"weights": "w", "scale": 2.0, "tokens": "t", "model": "m", "model_path": None}
    entry |= {"dtype": "float32", "harm": None, "harm_low": None, "harm_high": None, "kinds": {}}
    harmed = entry | {"harm": 0.5, "kinds": {"prose": {"harm": 0.5}}}
    for written in (harmed, entry, entry | {"dtype": "bfloat16"}, entry | {"scale": 4.0}):
        measure_folder.write(tmp_path, written)
    table = pd.read_csv(tmp_path / "measure.csv")
    assert list(table["dtype"]) == ["float32", "bfloat16", "float32"]
    assert table["harm"].tolist()[0] == 0.5
    assert table["harm"].isna().tolist() == [False, True, True]


@pytest.fixture
def adapter(folder, tmp_path):
    """A copy of the linear adapter, without the run around it."""
    run, _ = only_run(folder / "runs" / "facts")
    copy = tmp_path / "adapter"
    shutil.copytree(run / "adapter", copy)
    return copy


def test_an_adapter_alone_says_its_base(quick, folder, adapter):
    """Without the run's folder, its facts have to be given, and are asked for by default."""
    _, result = only_run(folder / "runs" / "facts")
    done = quick("measure", str(adapter), str(folder / "facts.jsonl"), "--no-harm", "--json")
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    assert entry["final_loss"] == pytest.approx(result["final_loss"], abs=1e-4)
    assert entry["model"] == "tiny"


def change_config(adapter, **fields):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = {name: tensor[:, :-1].contiguous() for name, tensor in load_file(path).items()}
    save_file(tensors, path)


def rename(adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name.replace("layers.4", "layers.99"): it for name, it in tensors.items()}, path)


def add_bias(adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.bias"] = next(iter(tensors.values()))[0].clone()
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda a: change_config(a, peft_type="IA3"),
            "unsupported peft_type IA3; only LORA is supported",
        ),
        (lambda a: change_config(a, use_dora=True), "use_dora is set"),
        (lambda a: change_config(a, init_lora_weights="pissa"), "changes the base model's weights"),
        (lambda a: change_config(a, base_model_name_or_path=None), "names no base model"),
        (lambda a: (a / "adapter_model.safetensors").unlink(), "cannot read the adapter's weights"),
        (add_bias, "lm_head.bias is neither A nor B"),
        (cut, "made for another model: "),
        (rename, "have no linear module"),
    ],
)
def test_an_adapter_that_cannot_be_measured_is_one_line(quick, folder, adapter, damage, message):
    damage(adapter)
    done = quick("measure", str(adapter), str(folder / "facts.jsonl"), "out=report")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (adapter.parent / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "ADAPTER: give the folder of an adapter"),
        (("nowhere",), "nowhere: no such folder"),
        (("empty",), "neither a PEFT adapter"),
        (("adapter",), "TEXT: give a text, a file of facts, or data=..."),
        (("adapter", "nowhere.txt"), "nowhere.txt: no such file"),
        (("adapter", "notes.txt", "notes.txt"), "notes.txt: one text at a time"),
        (("adapter", "notes.txt", "train.lr=1"), "train.lr: pml measure trains nothing"),
        (("adapter", "notes.txt", "data=text"), "cannot be combined with data="),
    ],
)
def test_bad_input_is_one_line_and_exit_2(quick, adapter, tmp_path, arguments, message):
    (tmp_path / "notes.txt").write_text("Some notes.")
    (tmp_path / "empty").mkdir()
    done = quick("measure", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()

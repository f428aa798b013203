"""Runs that differ in anything that counts are told apart; copies are not taken for repeats."""

import dataclasses
import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file

from pml_cli.config.request import load
from pml_cli.config.schema import TINY, LinearAdapter, MlpBlockAdapter, Model, Run, Train
from pml_cli.config.setting import faults, setting
from pml_cli.data.opened import samples_of
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.errors import UserError
from pml_cli.launch.packing import check
from pml_cli.model import file_hash
from pml_cli.results.run_id import _folder_hash, loss_label, model_hash, run_id, settings_label
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.memft_ot import MemftOtLoss
from pml_cli.training.losses.memft_sw import MemftSwLoss
from pml_cli.training.losses.sft import SftLoss

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
    assert settings_label(Run()) == ""
    assert settings_label(Run(**change)) != ""
    assert run_id(Run(**change)) != run_id(Run())


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 2},
        {"seqlen": 9},
        {"seed": 5},
        {"data": RandomData(seed=3)},
        {"train": Train(lr=0.5, steps=7)},
    ],
    ids=str,
)
def test_what_result_json_names_is_not_said_twice(change):
    assert settings_label(Run(**change)) == ""
    assert run_id(Run(**change)) != run_id(Run())


def test_a_label_is_one_line():
    label = settings_label(Run(data=RandomData(prompt="Über\nit\tgoes")))
    assert label == "data.prompt=Über\\nit\\tgoes"


def test_the_device_is_not_part_of_a_run():
    assert run_id(Run(model=Model(device="cpu"))) == run_id(Run(model=Model(device="cuda")))


def test_the_label_of_a_loss_names_what_is_not_default():
    assert loss_label(SftLoss()) == "sft"
    assert loss_label(MemftOtLoss()) == "memft_ot"
    assert loss_label(MemftOtLoss(threshold=0.5)) == "memft_ot(threshold=0.5)"
    assert loss_label(MemftSwLoss(kappa=1, floor=0)) == "memft_sw(kappa=1, floor=0)"
    assert loss_label(MemftMarginLoss(switch=0.9)) == "memft_margin(switch=0.9)"


def test_a_loss_is_called_by_its_option():
    assert loss_label(MemftMarginLoss(switch=1.0)) == "memft_margin_facts"
    assert loss_label(MemftSwLoss(kappa=1, tau=64, window=64, floor=0)) == "memft_sw_axolotl"

    changed = MemftMarginLoss(switch=1.0, growth=1.0)
    assert loss_label(changed) == "memft_margin(growth=1.0, switch=1.0)"


def test_ids_are_those_of_earlier_versions():
    """Recorded before the curriculum and the later losses came: finished runs stay finished."""
    assert run_id(Run()) == "tiny-random-r8-l128-s0-ab1bff7217"
    data = TextData(path=str(TINY / "config.json"))
    run = Run(rank=3, data=data, loss=MemftOtLoss(when_done="zero"))
    assert run_id(run) == "tiny-text-r3-l128-s0-6be364ffb6"


def test_the_margin_loss_is_not_taken_for_that_of_other_defaults():
    # Its margin was 0.5 and did not grow: the id of such a run.
    earlier_id = "tiny-random-r4-l64-s0-4cea53b504"
    assert run_id(Run(rank=4, seqlen=64, loss=MemftMarginLoss())) != earlier_id

    constant = Run(loss=MemftMarginLoss(margin=0.5, growth=1.0))
    assert run_id(constant) != run_id(Run(loss=MemftMarginLoss(margin=0.5)))


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
        ({"loss": MemftMarginLoss(margin=0.0)}, "loss.margin=0"),
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
    (line,) = faults(Run(**change))
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


def model_at(folder, name="final"):
    return Run(seqlen=8, model=Model(name=name, path=str(folder), layer=1, device="cpu"))


@pytest.fixture
def finals(tmp_path, model_folder):
    """Three models called final: a, b with other weights in its last tensor alone, a copy of a."""
    for name in ("a", "b", "copy"):
        shutil.copytree(model_folder("llama"), tmp_path / name / "final")
    path = tmp_path / "b" / "final" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 0.01
    save_file(tensors, path, metadata={"format": "pt"})
    assert path.stat().st_size == (tmp_path / "a" / "final" / path.name).stat().st_size
    return [tmp_path / name / "final" for name in ("a", "b", "copy")]


@pytest.mark.parametrize(
    "whole", [file_hash.MAX_WHOLE_BYTES, 0], ids=["read whole", "read in part"]
)
def test_other_weights_are_another_run_and_a_moved_model_is_not(finals, monkeypatch, whole):
    monkeypatch.setattr(file_hash, "MAX_WHOLE_BYTES", whole or 2**14)
    one, other, copy = (model_at(folder) for folder in finals)
    _folder_hash.cache_clear()
    assert run_id(one) == run_id(copy)
    assert run_id(one) != run_id(other)
    # By which tables and `pml fit` keep them apart.
    assert settings_label(one) == settings_label(copy) != settings_label(other)


def test_pieces_of_every_tensor_are_read(tmp_path, monkeypatch):
    """Also of files with more tensors than are read in four places."""
    monkeypatch.setattr(file_hash, "MAX_WHOLE_BYTES", 2**16)
    monkeypatch.setattr(file_hash, "FULLY_SAMPLED_TENSORS", 3)
    tensors = {f"t{i}": torch.zeros(10_000 + i) for i in range(13)}
    path = tmp_path / "w.safetensors"
    hashes = set()
    for changed in (None, *tensors):
        save_file({name: t + (name == changed) for name, t in tensors.items()}, path)
        hashes.add(file_hash.sampled_hash(path))
    assert len(hashes) == 1 + len(tensors)

    bad_header = b"\x08" + b"\0" * 7 + b"not JSON"
    for damage in (b"", b"\xff" * 9, bad_header + bytes(2**17)):
        path.write_bytes(damage)
        hashes.add(file_hash.sampled_hash(path))
    assert len(hashes) == 4 + len(tensors)


def test_a_changed_tokenizer_or_template_is_another_run(finals):
    one, _, copy = finals
    original_id = run_id(model_at(one))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.rmtree(copy)
        shutil.copytree(one, copy)
        (copy / name).write_text("{}")
        _folder_hash.cache_clear()
        assert run_id(model_at(copy)) != original_id


@pytest.mark.parametrize(
    "content",
    [b"one line\r\nand another\r\n", b"\xef\xbb\xbfone line\nand another\n"],
    ids=["CRLF", "byte order mark"],
)
def test_how_a_text_was_saved_does_not_matter(tmp_path, content):
    plain, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    plain.write_bytes(b"one line\nand another\n")
    other.write_bytes(content)
    assert run_id(text_run(plain)) == run_id(text_run(other))
    assert samples_of(text_run(plain)) == samples_of(text_run(other))


def test_of_a_binary_file_every_byte_counts(tmp_path):
    one, other = tmp_path / "one.bin", tmp_path / "other.bin"
    one.write_bytes(b"PAR1\0\r\n")
    other.write_bytes(b"PAR1\0\n")
    assert run_id(text_run(one)) != run_id(text_run(other))


def text_run(path):
    return Run(seqlen=4, data=TextData(path=str(path)))


@dataclass(kw_only=True)
class TwoFiles(RandomData):
    words: str = setting("", help="a file", path="existing file")


def test_every_setting_that_is_a_path_counts_by_content(tmp_path):
    paths = [tmp_path / name for name in ("one", "copy", "other")]
    for path, content in zip(paths, ("same", "same", "another"), strict=True):
        path.write_text(content)
    one, copy, other = (Run(data=TwoFiles(words=str(path))) for path in paths)
    assert run_id(one) == run_id(copy) != run_id(other)
    assert settings_label(one) == settings_label(copy)
    assert str(tmp_path) not in settings_label(one)


def test_what_lies_beside_the_weights_is_not_the_model(finals):
    folder, _, copy = finals
    before = model_hash(str(folder))
    for name in ("._model.safetensors", "adapter_model.safetensors", ".DS_Store"):
        (copy / name).write_bytes(bytes(4096))
    (copy / "original").mkdir()
    (copy / "original" / "consolidated.safetensors").write_bytes(bytes(64))
    assert model_hash(str(copy)) == before


def test_shards_count_as_the_index_names_them(finals):
    folder, _, copy = finals
    for path in (folder, copy):
        (path / "model.safetensors").rename(path / "model-1.safetensors")
        index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
        (path / file_hash.INDEX_FILE).write_text(json.dumps(index))
    (copy / "leftover.safetensors").write_bytes(bytes(9))
    assert model_hash(str(folder)) == model_hash(str(copy))
    (copy / "model-1.safetensors").write_bytes(bytes(9))
    _folder_hash.cache_clear()
    assert model_hash(str(folder)) != model_hash(str(copy))

    # Loading says what is wrong with an index; until then every shard counts.
    (copy / file_hash.INDEX_FILE).write_text("[]")
    assert [path.name for path in file_hash.weight_files(copy)] == [
        "leftover.safetensors",
        "model-1.safetensors",
    ]


def test_the_weights_that_a_config_names_are_the_model(finals):
    folder, *_ = finals
    fields = json.loads((folder / "config.json").read_text())
    content = json.dumps(fields | {"transformers_weights": "mine.safetensors"})
    (folder / "config.json").write_text(content)
    shutil.copy(folder / "model.safetensors", folder / "mine.safetensors")
    assert [path.name for path in file_hash.weight_files(folder)] == ["mine.safetensors"]
    content = content.replace("mine.safetensors", "mine.safetensors.index.json")
    (folder / "config.json").write_text(content)
    index = {"weight_map": {"model.norm.weight": "mine.safetensors"}}
    (folder / "mine.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in file_hash.weight_files(folder)] == ["mine.safetensors"]


def test_a_snapshot_of_links_into_a_cache_is_the_same_model(finals, tmp_path):
    folder, *_ = finals
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b2c"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    (tmp_path / "linked").symlink_to(snapshot)
    names = {model_hash(str(path)) for path in (folder, snapshot, tmp_path / "linked")}
    assert len(names) == 1


@pytest.mark.parametrize("name", ["vocab.json", "spiece.model", "vocab.txt"])
def test_without_tokenizer_json_the_older_files_make_the_tokenizer(finals, name):
    # They have no tokenizer.json.
    folder, _, copy = finals
    for path in (folder, copy):
        (path / name).write_text('{"a": 0, "b": 1}')
    assert model_hash(str(folder)) == model_hash(str(copy))
    (copy / name).write_text('{"a": 1, "b": 0}')
    _folder_hash.cache_clear()
    assert model_hash(str(folder)) != model_hash(str(copy))


def test_two_models_of_one_name_are_refused_and_can_be_named_apart(finals):
    message = r"model.name=final: .*a/final and .*b/final are different models"
    with pytest.raises(UserError, match=message) as caught:
        check([model_at(folder) for folder in finals])

    (line,) = caught.value.faults
    # As a shell hands it over.
    suggested = line.split("'")[1]
    paths = ",".join(map(str, finals[:2]))
    overrides = ["model=hf", f"model.path={paths}", "model.layer=1", "seqlen=8", suggested]
    runs = load("sweep", overrides).runs
    assert [run.model.name for run in runs] == ["a-final", "b-final"]
    assert len({cell.id for cell in check(runs)}) == 2
    # A copy is the same model.
    assert len(check([model_at(finals[0]), model_at(finals[2])])) == 1


def test_another_draw_that_gives_the_same_samples_is_refused(tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text('{"question": "q", "matching": "a b c d e f g h"}\n')
    runs = [Run(seqlen=4, data=JsonlData(path=str(file), seed=seed)) for seed in (0, 1)]
    with pytest.raises(UserError, match=r"data.seed=1: draws the same as data.seed=0"):
        check(runs)
    assert len(check([dataclasses.replace(runs[0], rank=rank) for rank in (1, 2)])) == 2


def test_the_same_facts_in_another_order_are_no_other_text(tmp_path):
    file = tmp_path / "five.jsonl"
    file.write_text("".join(f'{{"question": "q{k}", "answer": "abc {k}"}}\n' for k in range(5)))

    def runs(tokens):
        return [
            Run(seqlen=tokens, rank=rank, data=JsonlData(path=str(file), seed=seed))
            for rank in (1, 2)
            for seed in (0, 1)
        ]

    (whole, *_) = load("sweep", ["data=jsonl", f"data.path={file}", "seqlen=all"]).runs
    tokens = sum(len(sample.target) for sample in check([whole])[0].samples)
    with pytest.raises(UserError) as caught:
        check(runs(tokens))
    (line,) = caught.value.faults
    assert line.startswith("data.seed=1: draws the same as data.seed=0")
    assert "in another order; to repeat a training give seed=0,1, not data.seed" in line

    # Of a part of the file each seed takes other facts.
    assert len(check(runs(tokens // 2))) == 4
    repeats = [dataclasses.replace(runs(tokens)[0], seed=seed) for seed in (0, 1)]
    assert len(check(repeats)) == 2


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_no_generator_takes_are_refused(seed):
    assert any("seed=" in line for line in faults(Run(seed=seed)))


def test_the_penalty_counts_where_there_is_one(tmp_path):
    """Also the generic text, by its content; without a penalty no text is read."""
    text = tmp_path / "one.txt"
    text.write_text("same")
    shutil.copy(text, tmp_path / "copy.txt")
    (tmp_path / "other.txt").write_text("another")
    unread = SftLoss(keep_text=str(text))
    assert run_id(Run(loss=unread)) == run_id(Run()) != run_id(Run(loss=SftLoss(keep=0.1)))
    assert loss_label(unread) == "sft"

    penalised = [SftLoss(keep=0.1, keep_text=str(file)) for file in sorted(tmp_path.iterdir())]
    copy, one, other = (run_id(Run(loss=loss)) for loss in penalised)
    assert copy == one != other
    labels = [loss_label(loss) for loss in penalised]
    assert labels[0] == labels[1] != labels[2]
    assert not any(str(tmp_path) in label for label in labels)


def test_the_rate_of_an_optimizer_by_itself_is_that_rate():
    """As asked for on the command line, where every other setting is at its default."""

    def planned(*overrides):
        (run,) = load("probe", list(overrides)).runs
        return run_id(run), run.train.peak_lr

    assert planned() == planned("train.lr=0.01") == planned("train.lr=null")
    assert planned("train.optimizer=muon") == planned("train.optimizer=muon", "train.lr=1")
    assert planned("train.optimizer=muon")[1] == planned("train.optimizer=lbfgs")[1] == 1
    assert planned("train.optimizer=muon") != planned("train.optimizer=muon", "train.lr=0.01")
    assert planned()[1] == 0.01

"""`pml lasting`: what it measures, once a run, and what it says of runs that it cannot measure."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pml_cli import cli
from pml_cli.config.dump import to_yaml
from pml_cli.config.load import read_run
from pml_cli.config.schema import LinearAdapter, Model, Run, Train
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.errors import UserError
from pml_cli.evaluation.conditions import CONDITIONS
from pml_cli.training.losses.memft_margin import MemftMarginLoss

# -- reading runs


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run(
            rank=3,
            seed=2,
            data=PhonebookData(digits=4),
            adapter=LinearAdapter(layers=[1, 2]),
            loss=MemftMarginLoss(margin=1.5),
        ),
        Run(
            data=MixedData(random_share=0.25),
            train=Train(epochs=9, curriculum=[2, 4]),
            model=Model(layer=1),
        ),
        Run(data=JsonlData(path="facts.jsonl")),
    ],
    ids=lambda run: run.data.source,
)
def test_a_run_is_read_back_as_it_was(run, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert read_run(tmp_path / "config.yaml") == run


def test_a_config_that_is_none_is_said(tmp_path):
    for text in ("rank: 3", "[", "rank: 3\nseqlen: 2\nseed: 0\nmodel: {colour: red}"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match="not the settings of a run") as told:
            read_run(tmp_path / "config.yaml")
        assert "\n" not in str(told.value)


# -- the command


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Four runs of one text with mlp_block adapters, a linear one, a phone book: trained by the command line."""
    out = tmp_path_factory.mktemp("runs")
    common = ["train.steps=40", "train.lr=0.04", "train.decode=false"]
    for words in (
        ["loss=sft,memft_margin", "rank=2,6", "seqlen=12", f"out={out}/block"],
        ["adapter=linear", "rank=3", "seqlen=12", f"out={out}/linear"],
        ["data=phonebook", "data.digits=3", "rank=8", "seqlen=40", f"out={out}/book"],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["sweep", *words, *common])
        assert not stop.value.code
    return out


def pml(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_lasting_measures_every_run_once(swept, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    words = [
        "lasting",
        str(swept / "block"),
        str(swept / "linear"),
        f"out={swept}/report",
        "tokens=100",
    ]
    code, text, _ = pml(capsys, *words)
    assert code == 0
    assert "not mergeable" in text and "5 of them measured now" in text
    table = pd.read_csv(swept / "report" / "lasting.csv")
    assert len(table) == 5 * len(CONDITIONS)
    trained = table[table["condition"] == "trained"].set_index("id")
    for id_, one in trained.iterrows():
        result = json.loads((Path(one["folder"]) / "result.json").read_text())
        assert one["token_accuracy"] == pytest.approx(result["token_accuracy"], abs=1e-9)
        assert one["final_loss"] == pytest.approx(result["final_loss"], abs=1e-5)
        assert one["text_tokens"] == one["random_tokens"] == 100
        assert one["text_kl"] > 0 and one["fall_worst"] == 0, id_
    status = table.groupby(["adapter", "condition"])["status"].first()
    assert status["mlp_block", "merged"] == "not mergeable"
    assert (status["linear"] == "measured").all()
    merged = table[(table["adapter"] == "linear") & (table["condition"] == "merged")].set_index(
        "id"
    )
    np.testing.assert_allclose(
        merged["final_loss"], trained.loc[merged.index, "final_loss"], atol=1e-5
    )
    content = json.loads((swept / "report" / "lasting.json").read_text())
    assert {(row["method"], row["condition"]) for row in content["comparison"]} >= {
        ("memft_margin", "bf16")
    }
    for name in ("mlp_block", "linear"):
        assert (swept / "report" / f"lasting-tiny-random-{name}.png").stat().st_size > 20_000
    before = (swept / "report" / "lasting.csv").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(
            "pml_cli.evaluation.robustness.measure", lambda *_: pytest.fail("measured again")
        )
        code, text, _ = pml(capsys, *words, "figures=false", "--json")
    assert code == 0 and json.loads(text)["runs"] == content["runs"]
    assert (swept / "report" / "lasting.csv").read_bytes() == before
    _, text, _ = pml(
        capsys,
        "lasting",
        str(swept / "linear"),
        f"out={swept}/report",
        "tokens=0",
        "decode=false",
        "figures=false",
    )
    assert "1 of them measured now" in text  # other settings are another measurement
    assert "no forgetting measured" in text
    known = {
        one["id"] for one in json.loads((swept / "report" / "lasting.json").read_text())["runs"]
    }
    assert known == {one["id"] for one in content["runs"]}  # what was not asked for now is kept


def test_several_samples_a_run(swept, capsys):
    code, _, _ = pml(capsys, "lasting", str(swept / "book"), "tokens=50", "figures=false")
    assert code == 0
    table = pd.read_csv(swept / "book" / "lasting.csv").set_index("condition")
    assert table["samples"].max() > 3
    result = json.loads(next((swept / "book").glob("*/result.json")).read_text())
    assert table.loc["trained", "exact_match"] == pytest.approx(result["exact_match"])
    assert table["first_failure"].isna().all()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda folder: [p.unlink() for p in (folder / "adapter").iterdir()],
            "no adapter/ in this run's folder",
        ),
        (lambda folder: (folder / "config.yaml").unlink(), "No such file"),
        (lambda folder: (folder / "env.json").write_text("{}"), "train this run again"),
        (
            lambda folder: swap(folder, "env.json", '"tokens": "', '"tokens": "0'),
            "no longer what it was trained on",
        ),
        (
            lambda folder: swap(folder, "env.json", '"base_weights": "', '"base_weights": "0'),
            "trained on other weights",
        ),
        (
            lambda folder: (folder / "adapter/adapter_model.safetensors").write_bytes(b"x"),
            "not the adapter of this run",
        ),
        (
            lambda folder: (folder.parent / "lasting.json").write_text("{"),
            "delete it to measure anew",
        ),
    ],
)
def test_a_damaged_run_is_one_line_and_exit_2(harm, words, swept, tmp_path, capsys):
    source = next((swept / "linear").glob("tiny-*"))
    folder = tmp_path / "o" / source.name
    shutil.copytree(source, folder)
    harm(folder)
    code, out, err = pml(capsys, "lasting", str(tmp_path / "o"), "tokens=0")
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1
    assert not (tmp_path / "o" / "lasting.csv").exists()


def test_a_run_without_its_adapter_is_left_out_and_said(swept, tmp_path, capsys):
    for number, source in enumerate(
        [next((swept / "linear").glob("tiny-*")), next((swept / "book").glob("tiny-*"))]
    ):
        shutil.copytree(source, tmp_path / "o" / source.name)
        if number:
            shutil.rmtree(tmp_path / "o" / source.name / "adapter")
    code, out, err = pml(
        capsys, "lasting", str(tmp_path / "o"), "tokens=0", "decode=false", "figures=false"
    )
    assert code == 0 and "1 run, 1 of them measured now" in out
    assert err.startswith("left out: ") and "no adapter/" in err and len(err.splitlines()) == 1


def swap(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "no such folder"),
        (["empty"], "no finished runs"),
        (["empty", "tokens=-1"], "tokens=-1: must be at least 0"),
        (["empty", "device=foo"], "device=foo: must be auto, cpu, cuda or cuda:N"),
        (["empty", "text=nowhere.txt"], "text=nowhere.txt: no such file"),
        (["empty", "txet=a"], "did you mean 'text'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, out, err = pml(capsys, "lasting", *args)
    assert (code, out) == (2, "")
    assert words in err and len(err.splitlines()) == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]

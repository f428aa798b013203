"""`pml lasting`: what it measures, once for each run, and what it says of damaged runs."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file, save_file

from pml_cli import cli
from pml_cli.config.reports import Lasting
from pml_cli.config.schema import TINY, Run
from pml_cli.data.generic_text import generic_windows
from pml_cli.data.python_docs import held_out_text
from pml_cli.evaluation import robustness
from pml_cli.evaluation.conditions import CONDITIONS
from pml_cli.evaluation.lasting_runs import measurable_runs
from pml_cli.results.read import read_runs
from pml_cli.training.losses.sft import SftLoss


@pytest.fixture
def pml(capsys):
    """pml("lasting", ...): exit code, standard output and standard error."""

    def run(*args):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(arg) for arg in args])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Runs from the command line: four of mlp_block adapters, a linear one, a phone book."""
    out = tmp_path_factory.mktemp("runs")
    common = ["train.steps=40", "train.lr=0.04", "train.decode=false"]
    sweeps = [
        ["loss=sft,memft_margin", "rank=2,6", "seqlen=12", f"out={out}/block"],
        ["adapter=linear", "rank=3", "seqlen=12", f"out={out}/linear"],
        ["data=phonebook", "data.digits=3", "rank=8", "seqlen=40", f"out={out}/book"],
    ]
    for args in sweeps:
        with pytest.raises(SystemExit) as stop:
            cli.main(["sweep", *args, *common])
        assert not stop.value.code
    return out


@pytest.fixture(scope="module")
def measured(swept):
    """The report of the mlp_block and linear runs, and what the command printed."""
    out = swept / "report"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setenv("COLUMNS", "100")
        args = [swept / "block", swept / "linear", f"out={out}", "tokens=100"]
        cli.main(["lasting", *map(str, args)])
    assert not stop.value.code
    return out


def entries(report):
    return json.loads((report / "lasting.json").read_text())["runs"]


def test_every_run_is_measured_under_every_condition(measured):
    table = pd.read_csv(measured / "lasting.csv")
    assert len(table) == 5 * len(CONDITIONS)
    status = table.groupby(["adapter", "condition"])["status"].first()
    assert status["mlp_block", "merged"] == "not mergeable"
    assert (status["linear"] == "measured").all()

    content = json.loads((measured / "lasting.json").read_text())
    compared = {(row["method"], row["condition"]) for row in content["comparison"]}
    assert ("memft_margin", "bf16") in compared
    for name in ("mlp_block", "linear"):
        assert (measured / f"lasting-tiny-random-{name}.png").stat().st_size > 20_000
        assert f"](lasting-tiny-random-{name}.png): " in (measured / "index.md").read_text("utf-8")


def test_as_trained_it_is_what_the_run_measured(measured):
    table = pd.read_csv(measured / "lasting.csv")
    trained = table[table["condition"] == "trained"]
    for row in trained.to_dict("records"):
        result = json.loads((Path(row["folder"]) / "result.json").read_text())
        assert row["token_accuracy"] == pytest.approx(result["token_accuracy"], abs=1e-9)
        assert row["final_loss"] == pytest.approx(result["final_loss"], abs=1e-5)
        assert row["log10_p"] == pytest.approx(result["log10_p"], abs=1e-4)
        for name in ("prefix_share", "recall_from_8", "compression_ratio"):
            assert row[name] == pytest.approx(result[name]), name
        # A lower temperature helps where every token is the argmax.
        if row["exact_match"] == 1:
            assert row["log10_p_07"] > row["log10_p"]
            assert row["t50"] > 0
        assert row["text_tokens"] == row["random_tokens"] == 100
        assert row["text_kl"] > 0 and row["fall_worst"] == 0, row["id"]


def test_merged_it_is_what_it_was_unmerged(measured):
    table = pd.read_csv(measured / "lasting.csv")
    losses = table[table["adapter"] == "linear"].set_index("condition")["final_loss"]
    np.testing.assert_allclose(losses["merged"], losses["trained"], atol=1e-5)


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(swept, measured, pml, monkeypatch):
    before = entries(measured)
    csv = (measured / "lasting.csv").read_bytes()
    monkeypatch.setattr(
        "pml_cli.evaluation.robustness.measure", lambda *_, **__: pytest.fail("measured again")
    )
    args = [swept / "block", swept / "linear", f"out={measured}", "tokens=100"]
    code, text, _ = pml("lasting", *args, "figures=false", "--json")
    assert code == 0
    assert json.loads(text)["runs"] == before
    assert (measured / "lasting.csv").read_bytes() == csv


@pytest.mark.slow
def test_a_signal_ends_it_and_what_was_measured_is_kept(swept, pml, monkeypatch, tmp_path):
    """As of a sweep: exit code 128 + 15, and the same command goes on."""
    args = [swept / "block", f"out={tmp_path}/o", "tokens=0", "decode=false", "figures=false"]
    monkeypatch.setattr(robustness, "RUNS_AT_ONCE", 1)
    measure_chunk = robustness._measure_chunk
    chunks = []

    def interrupted(*arguments):
        chunks.append(arguments)
        if len(chunks) == 2:
            signal.raise_signal(signal.SIGTERM)
        return measure_chunk(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(robustness, "_measure_chunk", interrupted)
        code, out, _ = pml("lasting", *args)
    assert code == 128 + signal.SIGTERM
    assert "what was measured is kept, and the same command continues" in " ".join(out.split())
    assert len(entries(tmp_path / "o")) == 1

    measured = entries(tmp_path / "o")
    _, text, _ = pml("lasting", *args)
    assert "4 runs, 3 of them measured now" in " ".join(text.split())
    assert measured[0] in entries(tmp_path / "o")


def test_other_settings_are_another_measurement(swept, measured, pml, tmp_path):
    """And entries of runs that the command does not cover stay in lasting.json."""
    report = tmp_path / "report"
    shutil.copytree(measured, report)
    settings = ["tokens=0", "decode=false", "figures=false"]
    _, text, _ = pml("lasting", swept / "linear", f"out={report}", *settings)
    assert "1 run, 1 of them measured now" in text
    assert "no forgetting measured" in text
    assert {run["id"] for run in entries(report)} == {run["id"] for run in entries(measured)}


@pytest.mark.slow
def test_conditions_that_do_not_apply_are_explained(swept, measured, pml):
    args = [swept / "block", swept / "linear", f"out={measured}", "tokens=100", "figures=false"]
    _, text, _ = pml("lasting", *args)
    assert "not mergeable" in text
    assert "5 runs, 0 of them measured now" in " ".join(text.split())


def test_several_samples_a_run(swept, pml):
    code, _, _ = pml("lasting", swept / "book", "tokens=50", "figures=false")
    assert code == 0
    table = pd.read_csv(swept / "book" / "lasting.csv").set_index("condition")
    assert table["samples"].max() > 3
    result = json.loads(next((swept / "book").glob("*/result.json")).read_text())
    assert table.loc["trained", "exact_match"] == pytest.approx(result["exact_match"])
    assert table["first_failure"].isna().all()


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run of a model and a data file that have moved since: the run, and where they are now."""
    old = tmp_path_factory.mktemp("old")
    shutil.copytree(TINY, old / "model")
    rows = [{"query": f"Room {n}:", "target": f" {n * 7} keys"} for n in range(9)]
    lines = [json.dumps(row) for row in rows]
    (old / "facts.jsonl").write_text("\n".join(lines))
    args = [f"model.path={old}/model", "model.name=m", "model=hf", f"data.path={old}/facts.jsonl"]
    args += ["data=jsonl", "rank=2", "seqlen=12", "train.steps=4", "train.decode=false"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", *args, f"out={old}/runs"])
    assert not stop.value.code
    new = tmp_path_factory.mktemp("new") / "elsewhere"
    old.rename(new)
    # A path that this process has not read: what it has read, it remembers.
    for config in new.glob("runs/*/config.yaml"):
        config.write_text(config.read_text().replace(str(old), f"{old}-before"))
    return new


FAST = ["tokens=0", "decode=false", "figures=false"]


@pytest.mark.slow
def test_a_moved_model_and_data_file_are_given_anew(moved, pml, tmp_path):
    now = [f"model.path={moved}/model", f"data.path={moved}/facts.jsonl"]
    args = ["lasting", moved / "runs", f"out={tmp_path}", *FAST]
    code, out, err = pml(*args)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "if it was moved, say where it is now: model.path=..." in err
    code, out, err = pml(*args, now[0])
    assert code == 2 and "if it was moved, say where it is now: data.path=..." in err

    code, out, err = pml(*args, *now)
    assert code == 0 and "1 run, 1 of them measured now" in out, err
    # What was measured is not measured again, but the data must still be that of the run.
    code, out, _ = pml(*args, *now)
    assert code == 0 and "1 run, 0 of them measured now" in out


def test_another_model_or_data_file_is_not_taken_for_the_moved_one(moved, pml, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if "mlp" in name)
    tensors[name][0, 0] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    facts = tmp_path / "facts.jsonl"
    facts.write_text((moved / "facts.jsonl").read_text().replace("7 keys", "8 keys"))

    args = ["lasting", moved / "runs", f"out={tmp_path}/o", *FAST]
    code, _, err = pml(*args, f"model.path={other}", f"data.path={moved}/facts.jsonl")
    assert code == 2 and "differ from those it was trained on" in err
    code, _, err = pml(*args, f"model.path={moved}/model", f"data.path={facts}")
    assert code == 2 and "no longer what it was trained on" in err


@pytest.mark.parametrize("setting", ["model.path", "data.path"])
def test_a_new_place_of_what_no_run_has_is_refused(swept, pml, tmp_path, setting):
    args = [swept / "linear", f"out={tmp_path}", *FAST]
    code, out, err = pml("lasting", *args, f"{setting}=elsewhere")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith(f"error: {setting}=elsewhere: ") and err.endswith("; leave it out\n")


def replace_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def empty_adapter(folder):
    for path in (folder / "adapter").iterdir():
        path.unlink()


def remove_config(folder):
    (folder / "config.yaml").unlink()


def empty_environment(folder):
    (folder / "env.json").write_text("{}")


def change_tokens(folder):
    replace_text(folder / "env.json", '"tokens": "', '"tokens": "0')


def change_base_weights(folder):
    replace_text(folder / "env.json", '"base_weights": "', '"base_weights": "0')


def damage_adapter(folder):
    (folder / "adapter/adapter_model.safetensors").write_bytes(b"x")


def damage_report(folder):
    (folder.parent / "lasting.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty_adapter, "this run has no adapter/ folder"),
        (remove_config, "No such file"),
        (empty_environment, "train this run again"),
        (change_tokens, "no longer what it was trained on"),
        (change_base_weights, "differ from those it was trained on"),
        (damage_adapter, "not the adapter of this run"),
        (damage_report, "delete it to measure anew"),
    ],
)
def test_a_damaged_run_is_one_line_and_exit_2(damage, message, swept, tmp_path, pml):
    source = next((swept / "linear").glob("tiny-*"))
    folder = tmp_path / "o" / source.name
    shutil.copytree(source, folder)
    damage(folder)
    code, out, err = pml("lasting", tmp_path / "o", "tokens=0")
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "o" / "lasting.csv").exists()


CODE_OF_A_MODEL = """
from pathlib import Path
from transformers import LlamaConfig

Path("MARKER").touch()


class OwnConfig(LlamaConfig):
    model_type = "own"
"""


@pytest.fixture
def with_code(swept, tmp_path, monkeypatch):
    """A folder with one run, whose config.yaml names a model that brings code; and that model."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own_code.OwnConfig"}}
    (model / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "code-was-run"
    (model / "own_code.py").write_text(CODE_OF_A_MODEL.replace("MARKER", str(marker)))

    source = next((swept / "linear").glob("tiny-*"))
    folder = tmp_path / "o" / source.name
    shutil.copytree(source, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["model"] |= {"path": str(model), "trust_remote_code": True}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder.parent, marker


def test_a_folder_alone_cannot_make_lasting_run_a_models_code(with_code, pml):
    folder, marker = with_code
    code, out, err = pml("lasting", folder, "tokens=0", "figures=false")
    assert (code, out) == (2, "")
    assert "model.trust_remote_code=true" in err and "give trust_remote_code=true" in err
    assert len(err.splitlines()) == 1
    assert not marker.exists()
    assert not (folder / "lasting.json").exists()


@pytest.mark.slow
def test_a_models_code_runs_when_the_command_line_allows_it(with_code, pml):
    folder, marker = with_code
    pml("lasting", folder, "tokens=0", "figures=false", "trust_remote_code=true")
    assert marker.exists(), "the planted code is never run, so the other test proves nothing"


def test_a_run_without_its_adapter_is_left_out_with_the_reason(swept, tmp_path, pml):
    for kind in ("linear", "book"):
        source = next((swept / kind).glob("tiny-*"))
        shutil.copytree(source, tmp_path / "o" / source.name)
    shutil.rmtree(tmp_path / "o" / source.name / "adapter")

    settings = ["tokens=0", "decode=false", "figures=false"]
    code, out, err = pml("lasting", tmp_path / "o", *settings)
    assert code == 0 and "1 run, 1 of them measured now" in out
    assert err.startswith("left out: ") and "no adapter/" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no such folder"),
        (["empty"], "no finished runs"),
        (["empty", "tokens=-1"], "tokens=-1: must be from 0 to 10,000,000"),
        (["empty", "device=foo"], "device=foo: must be auto, cpu, cuda or cuda:N"),
        (["empty", "text=nowhere.txt"], "text=nowhere.txt: no such file"),
        (["empty", "txet=a"], "did you mean 'text'?"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(args, message, tmp_path, pml, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, out, err = pml("lasting", *args)
    assert (code, out) == (2, "")
    assert message in err and len(err.splitlines()) == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_what_the_penalty_has_seen_is_not_measured(pml, tmp_path):
    text = tmp_path / "documentation.txt"
    text.write_text(held_out_text(), "utf-8")
    args = ["rank=1", "seqlen=8", "train.steps=1", "train.decode=false", f"out={tmp_path}"]
    args.append(f"loss.keep_text={text}")
    assert pml("sweep", "loss.keep=0,0.001", *args)[0] == 0
    selected, faults = measurable_runs(read_runs([tmp_path]), Lasting(tokens=100_000))
    assert not faults

    windows = {run.subject.run.loss.keep: set(run.subject.texts["text"]) for run in selected}
    generic = set(generic_windows(Run(loss=SftLoss(keep=0.001, keep_text=str(text)))))
    assert windows[0.0] > generic
    # Some of the others share phrases with what it has seen, and are left out too.
    assert len(windows[0.001]) >= 20
    assert windows[0.001] <= windows[0.0] - generic

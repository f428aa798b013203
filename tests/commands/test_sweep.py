"""`pml sweep` and `pml probe` as a user runs them, from another folder, and what can go wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.faults import full_disk
from support.marks import slow
from support.sweeps import FEW, ROOT, pml, result_times

SWEEP = (
    "sweep",
    "rank=2,4",
    "seqlen=20,30",
    "data=random,phonebook",
    "train.batch=2",
    "adapter.dropout=0.1",
    *FEW,
)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep: ranks and lengths, a phone book and text."""
    cwd = tmp_path_factory.mktemp("user")
    done = pml(cwd, *SWEEP, "out=runs")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return cwd


@pytest.mark.parametrize("command", ["sweep", slow("memft"), "probe", slow("capacity")])
def test_quiet_prints_the_result_alone(quick, command):
    """The same lines as without it, but those of the plan and the progress."""
    values = {
        "sweep": ("rank=1,2", "seqlen=4"),
        "memft": ("rank=1", "seqlen=4", "loss=sft,memft_ot"),
        "probe": ("rank=1", "seqlen=4"),
        "capacity": ("rank=1", "seqlen=4"),
    }[command]
    asked = (command, *values, "train.steps=2", "model.device=cpu", "out=runs")
    quiet = quick(*asked, "--quiet")
    assert quiet.returncode == 0, quiet.stderr
    assert quiet.stdout
    for word in ("to train", "step ", "done already", "attempt"):
        assert word not in quiet.stdout
    loud = quick(*asked)
    lines = quiet.stdout.splitlines()
    assert lines == [line for line in loud.stdout.splitlines() if line in lines]
    assert len(loud.stdout.splitlines()) > len(lines)


def test_a_sweep_leaves_complete_run_folders(swept):
    folders = [p for p in (swept / "runs").iterdir() if p.is_dir() and p.name != ".pml"]
    assert len(folders) == 8
    assert {p.name for p in swept.iterdir()} == {"runs"}
    for folder in folders:
        names = {p.name for p in folder.iterdir()}
        assert names == {
            "config.yaml",
            "env.json",
            "tokens.parquet",
            "curve.parquet",
            "samples.jsonl",
            "adapter",
            "result.json",
        }
        result = json.loads((folder / "result.json").read_text())
        tokens = pd.read_parquet(folder / "tokens.parquet")
        curve = pd.read_parquet(folder / "curve.parquet")
        assert tokens["step"].unique().tolist() == [0, 1, 2, 3, 4]
        assert (tokens.groupby("step").size() == result["target_tokens"]).all()
        assert curve["step"].tolist() == [0, 1, 2, 3]
        first, last = (tokens[tokens["step"] == s]["nll"].mean() for s in (0, 4))
        assert result["base_loss"] == pytest.approx(first, rel=1e-5)
        assert result["final_loss"] == pytest.approx(last, rel=1e-5)
        assert result["delta_loss"] == pytest.approx(first - last, abs=1e-4)
        assert result["trainable_parameters"] == 2 * 128 * result["rank"]
        assert result["final_loss"] < result["base_loss"]
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert config["r"] == result["rank"]
        assert json.loads((folder / "env.json").read_text())["base_weights"]


def test_the_table_of_results(swept):
    table = pd.read_csv(swept / "runs" / "results.csv")
    assert len(table) == 8
    assert sorted(table["rank"].unique()) == [2, 4]
    assert set(table["data"]) == {"random", "phonebook"}
    # Ten digits and the end token.
    entries = table["seqlen"] // 11
    assert (table["samples"] == table["data"].map({"random": 1}).fillna(entries)).all()


def test_a_second_call_trains_nothing_and_a_deleted_result_is_trained_alone(swept, tmp_path, quick):
    shutil.copytree(swept / "runs", tmp_path / "runs")
    before = result_times(tmp_path / "runs")
    again = quick(*SWEEP, "out=runs")
    assert again.returncode == 0, again.stderr
    assert "8 cells: 0 to train" in again.stdout
    assert result_times(tmp_path / "runs") == before
    victim = sorted(before)[3]
    old = (tmp_path / "runs" / victim / "result.json").read_text()
    (tmp_path / "runs" / victim / "result.json").unlink()
    third = quick(*SWEEP, "out=runs")
    assert third.returncode == 0, third.stderr
    assert "8 cells: 1 to train in 1 pack, 7 done already" in third.stdout
    after = result_times(tmp_path / "runs")
    assert {name for name in after if after[name] != before[name]} == {victim}
    new, first = (
        json.loads((tmp_path / "runs" / victim / "result.json").read_text()),
        json.loads(old),
    )
    assert new["pack_size"] == 1 < first["pack_size"]
    assert new["final_loss"] == pytest.approx(first["final_loss"], abs=1e-4)  # alone as in the pack


def test_another_process_gives_the_same_bits(swept, tmp_path, quick):
    done = quick(*SWEEP, "out=again")
    assert done.returncode == 0, done.stderr
    folders = [p for p in (swept / "runs").iterdir() if p.is_dir() and p.name != ".pml"]
    for one in folders:
        two = tmp_path / "again" / one.name
        for name in ("tokens.parquet", "curve.parquet"):
            assert (one / name).read_bytes() == (two / name).read_bytes()
        ours, theirs = (
            load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in (*ours, *theirs))


@pytest.mark.parametrize("verb", ["sweep", "memft"])
def test_a_truncated_result_of_another_sweep_is_named_and_left_out(swept, tmp_path, quick, verb):
    shutil.copytree(swept / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "results.csv").unlink()
    path = next((tmp_path / "runs").rglob("result.json"))
    path.write_text(path.read_text()[:40])
    done = quick(verb, "rank=2", "seqlen=20", "loss=sft,memft_ot", "out=runs", *FEW)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("left out: "))
    assert f"{path.parent.name}/result.json: not readable as JSON" in line
    assert "2 of 2 cells done" in done.stdout
    assert len(pd.read_csv(tmp_path / "runs" / "results.csv")) == 7 + 2
    assert quick("fit", "runs").returncode == 2  # a law is fitted to all or nothing


def test_a_failing_cell_leaves_the_others_fine_and_can_be_tried_again(tmp_path, quick):
    command = (
        "sweep",
        "rank=4",
        "seqlen=16",
        "train.lr=1e-2,1e30",
        "loss=sft,memft_ot",
        "out=runs",
        "train.steps=6",
    )
    done = quick(*command, "model.device=cpu")
    assert done.returncode == 1, done.stderr
    assert "2 failed" in done.stdout
    errors, results = sorted(tmp_path.rglob("error.json")), sorted(tmp_path.rglob("result.json"))
    assert len(errors) == len(results) == 2
    assert not {p.parent for p in errors} & {p.parent for p in results}
    for path in errors:
        assert "train.lr (now 1e+30)" in json.loads(path.read_text())["reason"]
        assert not (path.parent / "adapter").exists()
    for path in results:
        assert json.loads(path.read_text())["lr"] == 1e-2
    again = quick(*command, "model.device=cpu")
    assert again.returncode == 1
    assert "4 cells: 2 to train" in again.stdout


@pytest.mark.slow
def test_of_many_cells_the_summary_alone_is_printed(tmp_path, quick):
    few = ("train.steps=1", "train.decode=false", "model.device=cpu", "out=runs")
    many = ("sweep", "rank=range(1,8)", "seqlen=2,3,4", *few)
    done = quick(*many)
    assert done.returncode == 0, done.stderr
    assert "dL" not in done.stdout
    assert done.stdout.splitlines()[-3:] == [
        "the table of 21 cells: runs/results.csv; --all prints it",
        "21 of 21 cells done: runs/results.csv",
        "next: pml fit runs",
    ]
    shown = quick(*many, "--all").stdout.splitlines()
    assert shown[-2:] == done.stdout.splitlines()[-2:]
    # Its heading and a row a cell.
    assert sum("dL" in line for line in shown[:-2]) >= 1 and len(shown) > 24

    one_less = quick("sweep", "rank=range(1,6)", "seqlen=2,3,4", *few).stdout
    assert "L0" in one_less and "--all" not in one_less


def test_of_many_failures_the_first_are_named(tmp_path, quick):
    few = ("train.steps=2", "train.decode=false", "model.device=cpu", "out=runs")
    many = ("sweep", "rank=range(1,7)", "seqlen=2,3", "train.lr=1e30", *few)
    done = quick(*many)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert sum(line.startswith("failed ") for line in lines) == 10
    assert lines[-2] == "and 2 more failed; --all names them"
    assert lines[-1] == "12 failed; the same command (without --no-retry) tries them again"
    everything = quick(*many, "--all", "--no-retry").stdout
    assert everything.count("\nfailed ") == 12 and "more failed" not in everything


def three_models(model_folder, tmp_path):
    """A model whose split pass differs (NaN), one whose weights are cut off, one that is fine."""
    good = shutil.copytree(model_folder("llama"), tmp_path / "good")
    cut = shutil.copytree(good, tmp_path / "cut")
    refused = shutil.copytree(good, tmp_path / "refused")
    # No pass over it is equal to any other.
    weights = load_file(refused / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, refused / "model.safetensors", metadata={"format": "pt"})
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    return [str(path.relative_to(tmp_path)) for path in (refused, cut, good)]


MODELS = (
    "sweep",
    "rank=2,3",
    "seqlen=8",
    "out=runs",
    "model=hf",
    "model.layer=1",
    "train.decode=false",
    *FEW,
)


@pytest.mark.parametrize(
    "launch",
    [
        ["launch=inline"],
        pytest.param(["launch=local", "launch.threads=1"], marks=pytest.mark.slow),
    ],
)
def test_an_unusable_model_fails_its_cells_and_no_other(tmp_path, quick, model_folder, launch):
    paths = three_models(model_folder, tmp_path)
    # Files that cannot be read are found before anything is trained.
    done = quick(*MODELS, f"model.path={','.join(paths)}", *launch)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.path=cut: ") and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()

    refused, _, good = paths
    done = quick(*MODELS, f"model.path={refused},{good}", *launch)
    assert done.returncode == 1, done.stderr
    assert "2 of 4 cells done" in done.stdout
    assert done.stdout.count("split forward pass differs from the full one") == 2
    assert "ended too early" not in done.stdout
    assert {json.loads(path.read_text())["model"] for path in tmp_path.rglob("result.json")} == {
        "good"
    }
    assert len(list(tmp_path.rglob("error.json"))) == 2


def test_a_sweep_of_unusable_models_alone_has_a_line_for_each_cell(tmp_path, quick, model_folder):
    refused, *_ = three_models(model_folder, tmp_path)
    done = quick(*MODELS, f"model.path={refused}")
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if line.startswith("failed refused-random-")]
    assert len(lines) == 2
    assert all("model=refused: " in line for line in lines)
    assert all("its split forward pass differs from the full one" in line for line in lines)


def test_a_dry_run_writes_nothing_and_needs_no_torch(tmp_path, quick):
    done = quick("sweep", "rank=1,2,4", "seqlen=64,128", "--dry-run", "out=runs", *FEW)
    assert done.returncode == 0, done.stderr
    assert "6 cells, 0 done already, 6 to train in" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_probe_from_another_folder(tmp_path, quick):
    done = quick("probe", "rank=2", "seqlen=12", "out=here", *FEW)
    assert done.returncode == 0, done.stderr
    (folder,) = (p for p in (tmp_path / "here").iterdir() if p.is_dir() and p.name != ".pml")
    assert (folder / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert pd.read_parquet(folder / "tokens.parquet")["step"].unique().tolist() == [0, 1, 2, 3, 4]
    again = quick("probe", "rank=2", "seqlen=12", "out=here", *FEW)
    assert again.returncode == 0, again.stderr
    assert "done already" in again.stdout


@pytest.mark.slow
def test_a_probe_logs_a_hundred_of_its_steps_whatever_they_are_given_by(tmp_path, quick):
    done = quick(
        "probe",
        "rank=2",
        "seqlen=33",
        "data=phonebook",
        "train.batch=1",
        "train.epochs=70",
        "model.device=cpu",
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("tokens.parquet")
    assert pd.read_parquet(path)["step"].unique().tolist() == list(
        range(0, 211, 2)
    )  # three entries


def test_the_users_own_files(tmp_path, quick):
    lines = [
        json.dumps({"query": f"Key {i}:", "target": f"{i * 7919 % 1000:03}"}) for i in range(12)
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    data = (
        "data=jsonl",
        "data.path=facts.jsonl",
        "train.batch=4",
        "adapter=linear",
        "adapter.dropout=0.1",
    )
    done = quick("sweep", "rank=2", "seqlen=48", "out=runs", *data, *FEW)
    assert done.returncode == 0, done.stderr
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert (result["samples"], result["target_tokens"], result["data"]) == (12, 48, "jsonl:facts")
    assert 0 <= result["free_accuracy"] <= 1


@pytest.mark.slow
def test_a_rule_is_tried_on_unseen_pairs(tmp_path, quick):
    done = quick(
        "sweep", "rank=2", "seqlen=20", "data=rule", "data.maximum=9", "data.test_samples=10", *FEW
    )
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(next(tmp_path.rglob("result.json")).read_text())["unseen_exact_match"]
        is not None
    )


BAD = {
    "seqlen": (["seqlen=10000000"], "seqlen=10000000: "),
    "binary": (["data=text", "data.path=binary"], "data.path=binary: "),
    "empty": (["data=jsonl", "data.path=empty.jsonl"], "data.path=empty.jsonl: empty file"),
    "no_file": (["data=text", "data.path=/nope"], "data.path=/nope: no such file"),
    "no_jsonl": (["data=jsonl", "data.path=/nope"], "data.path=/nope: no such file"),
    "no_model": (["model=hf", "model.path=/nope"], "model.path=/nope: "),
    "layer": (["model.layer=99"], "model.layer=99: tiny has layers 0 to 5"),
    "targets": (["adapter=linear", "adapter.targets=[nope]"], "adapter.targets=nope: allowed: "),
    "layers": (["adapter=linear", "adapter.layers=[17]"], "adapter.layers=[17]: "),
    "out": (["out=binary"], "out=binary: "),
    "below_a_file": (["out=binary/deeper"], "out=binary/deeper: "),
    "chat": (["data.chat=true"], "data.chat=true: "),
    "dataset": (["data=hf", "data.path=/nope"], "data.path=/nope: "),
    "length_of_text": (
        ["data=text", "data.path=short.txt", "seqlen=999"],
        "seqlen=999: data=text has only ",
    ),
    "no_pickles": (["model=hf", "model.path=pickled"], "model.path=pickled: "),
}


@pytest.mark.parametrize(
    ("verb", "name"),
    [("sweep", name) for name in BAD]
    + [("probe", name) for name in ("seqlen", "targets", "out", "no_model")],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(
    tmp_path, name, verb, model_folder, quick
):
    (tmp_path / "binary").write_bytes(b"\x7fELF\x02\x01\x01\x00\x00\x00")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "short.txt").write_text("A short text.\n")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_bytes(
        (model_folder("gpt2") / "config.json").read_bytes()
    )
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    args, message = BAD[name]
    done = quick(verb, *args, *FEW)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if ".cache" not in p.parts
    } == before


LOCAL = ["model=hf", "model.path=base", "model.layer=1"]
LINEAR = ["adapter=linear", "adapter.targets=[q_prj]"]
QUANTISED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
REFUSED_MODELS = {
    "embedded": (LINEAR, {}, "adapter.targets=q_prj: did you mean 'q_proj'?"),
    "no_record": ([*LOCAL, *LINEAR], {}, "adapter.targets=q_prj: did you mean 'q_proj'?"),
    "layers": (
        [*LOCAL, "adapter=linear", "adapter.targets=[q_proj]", "adapter.layers=[3]"],
        {},
        "adapter.layers=[3]: ",
    ),
    "quantised": (LOCAL, QUANTISED, "model.path=base: its weights are quantised (bitsandbytes)"),
    "padding": (LOCAL, {"pad_token_id": 101}, "model.path=base: its config.json has pad_token_id"),
    "encoder": (LOCAL, {"model_type": "bart"}, "model.path=base: bart has an encoder"),
    "family": (LOCAL, {"model_type": "gpt99"}, "model.path=base: "),
}


@pytest.mark.parametrize("name", REFUSED_MODELS)
def test_a_dry_run_refuses_models_and_modules_that_cannot_be_trained(
    tmp_path, quick, model_folder, name
):
    args, fields, message = REFUSED_MODELS[name]
    folder = shutil.copytree(model_folder("granite"), tmp_path / "base")
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    done = quick("sweep", "--dry-run", "seqlen=8", *args, *FEW)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_dry_run_says_how_sharp_the_law_will_be(tmp_path, quick, law_report):
    grid = ("sweep", "rank=2,4,8", "seqlen=32,64,128", "--dry-run")
    done = quick(*grid, *FEW)
    assert "law (random tokens on the embedded model): expect alpha 1.01 +- " in done.stdout
    done = quick(*grid, "data=text", "--design", str(law_report), *FEW)
    assert "expect alpha 0.60 +- " in done.stdout and "rank of exact recall" in done.stdout
    assert "--design PATH takes the report of a pilot" in quick(*grid, "data=text", *FEW).stdout
    assert "three ranks and three lengths" in quick("sweep", "seqlen=8", "--dry-run").stdout

    refused = quick("sweep", "rank=2", "--design", str(law_report))
    assert refused.returncode == 2 and "needs --dry-run" in refused.stderr
    refused = quick("memft", "rank=2", "--dry-run", "--design", str(law_report))
    assert refused.returncode == 2 and "not pml memft" in refused.stderr


def test_a_dry_run_of_a_bundled_architecture_needs_no_torch_and_no_statistics():
    code = (
        "import sys; from pml_cli import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'scipy.stats'} & set(sys.modules)"
    )
    args = ["sweep", "model=llama31_8b", "model.weights=random", "--dry-run", "model.device=cpu"]
    subprocess.run([sys.executable, "-c", code, *args], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("verb", ["probe", "sweep"])
@pytest.mark.parametrize("device", ["foo", "meta", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_here_is_found_before_anything_is_written(
    tmp_path, quick, device, verb
):
    done = quick(verb, "seqlen=8", f"model.device={device}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: model.device={device}: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_devices_and_dry_runs_workers_and_jobs(tmp_path, quick):
    """A price may be asked for the device of another machine, workers of this one need it here."""
    assert quick("sweep", "seqlen=8", "model.device=cuda:99", "--dry-run").returncode == 0
    assert quick("sweep", "seqlen=8", "model.device=foo", "--dry-run").returncode == 2
    assert quick("sweep", "seqlen=8", "model.device=cuda:99", "launch=local").returncode == 2
    assert not list(tmp_path.iterdir())


def test_bad_input_in_a_process_of_its_own(tmp_path):
    done = pml(tmp_path, "sweep", "model.layer=99", *FEW)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.layer=99: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_one_bad_cell_is_found_before_any_other_runs(tmp_path, quick):
    done = quick("sweep", "rank=2", "seqlen=8,9000", *FEW)
    assert done.returncode == 2
    assert done.stderr.startswith("error: seqlen=9000: ")
    assert not list(tmp_path.iterdir())


def test_a_place_that_does_not_exist_is_found_before_any_other_cell_runs(tmp_path, quick):
    done = quick(
        "sweep", "rank=2", "seqlen=8", "adapter=linear", "adapter.targets=[q_proj],[nope]", *FEW
    )
    assert done.returncode == 2
    assert "adapter.targets=nope" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interrupt_keeps_what_is_done_and_says_how_to_go_on(tmp_path, quick):
    """Ctrl-C in training: earlier results stay, the table is written, the exit code is 130."""
    done = quick("sweep", "rank=1,2", "seqlen=8", "train.steps=2", "out=runs")
    assert done.returncode == 0, done.stderr
    (tmp_path / "runs" / "results.csv").unlink()
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pml_cli",
        "sweep",
        "rank=1,2",
        "seqlen=8",
        "train.steps=1000000",
        "out=runs",
    ]
    running = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    first = running.stdout.readline()
    end, doing = time.time() + 60, {}
    while time.time() < end and "steps" not in doing:  # until it trains
        time.sleep(0.2)
        signs = (tmp_path / "runs" / ".pml" / "workers").glob("*.json")
        doing = {
            name: value
            for sign in signs
            for name, value in json.loads(sign.read_text())["doing"].items()
        }
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert "2 to train in 1 pack" in first
    assert running.returncode == 130, err
    assert "interrupted; the same command goes on with what is missing" in out
    assert "Traceback" not in err
    assert len(pd.read_csv(tmp_path / "runs" / "results.csv")) == 2


@pytest.mark.slow
def test_fail_fast_keeps_checkpoints_and_a_later_call_goes_on(tmp_path, quick):
    command = (
        "sweep",
        "rank=4",
        "seqlen=16",
        "train.lr=1e-2,1e30",
        "train.steps=60",
        "train.log_every=5",
        "out=runs",
    )
    done = quick(*command, "model.device=cpu", "--fail-fast")
    assert done.returncode == 1, done.stderr
    assert "a cell failed" in done.stdout
    assert not list(tmp_path.rglob("result.json"))
    assert len(list((tmp_path / "runs" / ".pml" / "checkpoints").glob("*.safetensors"))) == 1
    left = quick(*command, "model.device=cpu", "--no-retry")
    assert left.returncode == 1
    assert "2 cells: 1 to train in 1 pack, 1 failed before" in left.stdout
    assert len(list(tmp_path.rglob("result.json"))) == 1


def test_a_probe_that_failed_can_be_tried_again(tmp_path, quick):
    for _ in range(2):
        done = quick(
            "probe",
            "rank=2",
            "seqlen=8",
            "train.lr=1e30",
            "train.steps=6",
            "model.device=cpu",
            "out=runs",
        )
        assert done.returncode == 1, done.stderr
        assert "failed: " in done.stdout


@pytest.mark.parametrize(
    ("room", "file"),
    [(3_000, ".parquet"), slow(14_000, "adapter_model.safetensors"), slow(20_000, "recall.png")],
)
def test_a_disk_that_fills_up_under_a_probe_is_one_line_and_it_can_be_run_again(
    tmp_path, quick, room, file
):
    import matplotlib.font_manager  # noqa: F401  (writes a cache when it is first imported)

    command = ("probe", "rank=16", "seqlen=16", "out=runs", *FEW)
    with full_disk(room):
        done = quick(*command)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert done.stderr.endswith("; what was finished is kept\n")
    assert len(done.stderr.splitlines()) == 1
    assert not any(path.name.endswith(file) for path in tmp_path.rglob("*"))
    again = quick(*command)
    assert again.returncode == 0, again.stderr
    assert any(path.name.endswith(file) for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("verb", ["probe", "sweep"])
def test_a_file_where_pml_keeps_its_own_is_one_line(tmp_path, quick, verb):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".pml").write_text("a file in the way")
    done = quick(verb, "rank=2", "seqlen=8", "out=runs", *FEW)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: runs/.pml")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", [slow("probe"), "sweep"])
def test_a_model_that_does_not_fit_into_memory_is_refused(tmp_path, quick, monkeypatch, verb):
    """In one line; its cells have not failed, another machine may train them."""
    from pml_cli.launch import pack_trainer, preflight

    load = pack_trainer.load_model

    def small_device(model):
        if model.device != "meta":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return load(model)

    for module in (pack_trainer, preflight):
        monkeypatch.setattr(module, "load_model", small_device)
    done = quick(verb, "rank=2", "seqlen=8", "out=runs", *FEW)
    assert done.returncode == 2, done.stderr
    expected = "error: model=tiny: no room for its weights on cpu (CUDA out of memory. Tried to"
    assert done.stderr.startswith(expected)
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "runs").glob("*/error.json"))

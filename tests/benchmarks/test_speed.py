"""The comparison of speed on small shapes: all three ways train, agree and are shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pml_cli.config.request import load
from pml_cli.config.schema import Train
from pml_cli.launch.packing import check

ROOT = Path(__file__).parents[2]

# What a machine with a GPU may lack.
ABSENT = ("hydra", "omegaconf", "submitit", "antlr4", "typer", "rich")


def without(tmp_path, absent=ABSENT):
    """The environment of a process in which some modules cannot be imported."""
    for name in absent:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}')\n")
    return os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}


def run(tmp_path, *options, absent=ABSENT):
    """speed.py in a process in which some modules cannot be imported."""
    env = without(tmp_path, absent)
    script = str(ROOT / "benchmarks" / "speed.py")
    command = [sys.executable, script, *options, "--device", "cpu", "--out", str(tmp_path)]
    subprocess.run(command, env=env, check=True, cwd=tmp_path)
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    return rows, (tmp_path / "speed.md").read_text()


def check_rows(rows, expected, ways="ABC"):
    assert [(r["model"], r["length"], r["way"]) for r in rows] == [
        (*place, way) for place in expected for way in ways
    ]
    assert all(min(r["ms"]) > 0 and r["memory"] > 0 for r in rows)
    for start in range(0, len(rows), len(ways)):
        of_length = rows[start : start + len(ways)]
        flops = [row["gflop"] for row in of_length]
        assert flops == sorted(flops, reverse=True)

        first_loss = of_length[0]["loss"]
        assert all(abs(row["loss"] - first_loss) < 0.02 * first_loss for row in of_length)


@pytest.mark.slow
def test_the_check_of_a_device_runs_on_a_cpu_and_tells_what_differs(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "device_check.py"), "--device", "cpu"]
    done = subprocess.run(
        command, check=False, env=without(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *checks, last = done.stdout.splitlines()
    assert len(checks) > 20
    assert f"{len(checks)} of {len(checks)} agree on CPU" in last


TWO_TRAININGS = """
import device_check

base = device_check.base_model("cpu")
few = device_check.trained(base, device_check.plain_cells(base, steps=20))
more = device_check.trained(base, device_check.plain_cells(base, steps=21))
assert device_check.check("the same", few, few).passed
assert not device_check.check("one step more", more, few).passed
"""


@pytest.mark.slow
def test_a_difference_fails_the_check_of_a_device(tmp_path):
    env = without(tmp_path)
    env["PYTHONPATH"] += f":{ROOT / 'benchmarks'}"
    subprocess.run([sys.executable, "-c", TWO_TRAININGS], env=env, check=True)


@pytest.mark.slow
def test_what_runs_on_a_gpu_runs_on_a_cpu_with_small_shapes(tmp_path):
    """Both shapes in bfloat16, one pack a length, the streamed check; without Hydra."""
    pytest.importorskip("accelerate")
    options = "--paper --small --lengths 20,300 --ranks 2,4,6 --steps 2 --repeats 2"
    rows, report = run(tmp_path, *options.split())
    check_rows(rows, [(model, n) for model in ("qwen3_8b", "llama31_8b") for n in (20, 300)])
    assert {r["cells"] for r in rows if r["way"] == "C"} == {3}
    assert all(len(r["ms"]) == 2 for r in rows)
    for model in ("qwen3_8b", "llama31_8b"):
        assert f"Streamed, {model}: rank 16 at l = 300" in report
        assert (tmp_path / f"speed-{model}.png").stat().st_size > 1000
    assert report.count("layers above the adapter run twice") == 2
    assert "small shapes, bfloat16" in report


HIDE_ACCELERATE = """
import importlib.util

find_spec = importlib.util.find_spec


def find_spec_without_accelerate(name, *rest):
    return None if name == "accelerate" else find_spec(name, *rest)


importlib.util.find_spec = find_spec_without_accelerate
"""


@pytest.mark.slow
def test_a_machine_without_accelerate_and_without_time(tmp_path):
    """B is left out and said to be; a limit that is over leaves one repeat."""
    (tmp_path / "sitecustomize.py").write_text(HIDE_ACCELERATE)
    options = "--model llama31_8b --small --set model.layer=1 --lengths 20 --ranks 2,4,6"
    options += " --steps 2 --repeats 3 --minutes 0.0001"
    rows, report = run(tmp_path, *options.split())
    check_rows(rows, [("llama31_8b", 20)], "AC")
    assert all(len(r["ms"]) == 1 for r in rows)
    assert "B is left out" in report


@pytest.mark.parametrize("name", ["tiny", "qwen3_8b", "llama31_8b"])
def test_its_cells_are_those_of_a_sweep(monkeypatch, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cases

    overrides = "model.device=cpu train.steps=7 train.decode=false rank=2,4 seqlen=30".split()
    overrides.append(f"model={name}")
    if name != "tiny":
        overrides.append("model.weights=random")
    train = Train(steps=7, decode=False)
    base = cases.model(name, device="cpu")
    swept = check(load("sweep", overrides).runs)
    assert cases.cells(base, (2, 4), 30, train) == swept
    if name != "tiny":
        small = cases.model(name, small=True)
        assert small.architecture["model_type"] in name
        assert small.architecture["num_hidden_layers"] == 6


def test_changed_settings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cases

    overrides = ["model.layer=1", "model.architecture.vocab_size=99", "train.clip=0.5"]
    base, train = cases.changed(cases.model("qwen3_8b"), Train(), overrides)
    assert base.layer == 1
    assert base.architecture["vocab_size"] == 99
    assert base.architecture["hidden_size"] == 4096
    assert train == Train(clip=0.5)
    with pytest.raises(SystemExit, match="no such option"):
        cases.model("qwen")

"""The comparison of speed, end to end on small shapes: all three ways train, agree and are shown, without Hydra."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pml_cli.config.request import load
from pml_cli.config.schema import Train

ROOT = Path(__file__).parents[2]
ABSENT = (
    "hydra",
    "omegaconf",
    "submitit",
    "antlr4",
    "typer",
    "rich",
)  # what a machine with a GPU may lack


def run(tmp_path, *words, absent=ABSENT):
    """speed.py in a process in which some modules cannot be imported."""
    for name in absent:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}')\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    words = [
        sys.executable,
        str(ROOT / "benchmarks" / "speed.py"),
        *words,
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(words, env=env, check=True, cwd=tmp_path)
    return json.loads((tmp_path / "speed.json").read_text())["rows"], (
        tmp_path / "speed.md"
    ).read_text()


def check_rows(rows, expected, ways="ABC"):
    assert [(r["model"], r["length"], r["way"]) for r in rows] == [
        (*place, way) for place in expected for way in ways
    ]
    assert all(min(r["ms"]) > 0 and r["memory"] > 0 for r in rows)
    for some in (rows[i : i + len(ways)] for i in range(0, len(rows), len(ways))):
        flops = [r["gflop"] for r in some]
        assert flops == sorted(flops, reverse=True)
        assert all(abs(r["loss"] - some[0]["loss"]) < 0.02 * some[0]["loss"] for r in some)


@pytest.mark.slow
def test_what_runs_on_a_gpu_runs_on_a_cpu_with_small_shapes(tmp_path):
    """Both shapes in bfloat16, one pack a length, the streamed check; nothing of Hydra, submitit, typer or rich."""
    pytest.importorskip("accelerate")
    words = (
        "--paper",
        "--small",
        "--lengths",
        "20,300",
        "--ranks",
        "2,4,6",
        "--steps",
        "2",
        "--repeats",
        "2",
    )
    rows, told = run(tmp_path, *words)
    check_rows(rows, [(model, n) for model in ("qwen3_8b", "llama31_8b") for n in (20, 300)])
    assert {r["cells"] for r in rows if r["way"] == "C"} == {3}
    assert all(len(r["ms"]) == 2 for r in rows)
    for model in ("qwen3_8b", "llama31_8b"):
        assert f"Streamed, {model}: rank 16 at l = 300" in told
        assert (tmp_path / f"speed-{model}.png").stat().st_size > 1000
    assert told.count("layers above the adapter run twice") == 2
    assert "small shapes, bfloat16" in told


@pytest.mark.slow
def test_a_machine_without_accelerate_and_without_time(tmp_path):
    """B is left out and said to be; a limit that is over leaves one repeat."""
    words = (
        "--model",
        "llama31_8b",
        "--small",
        "--set",
        "model.layer=1",
        "--lengths",
        "20",
        "--ranks",
        "2,4,6",
    )
    hide = "import importlib.util as u\nreal = u.find_spec\n"
    hide += (
        "u.find_spec = lambda name, *rest: None if name == 'accelerate' else real(name, *rest)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide)
    rows, told = run(tmp_path, *words, "--steps", "2", "--repeats", "3", "--minutes", "0.0001")
    check_rows(rows, [("llama31_8b", 20)], "AC")
    assert all(len(r["ms"]) == 1 for r in rows)
    assert "B is left out" in told


@pytest.mark.parametrize("name", ["tiny", "qwen3_8b", "llama31_8b"])
def test_its_cells_are_those_of_a_sweep(monkeypatch, name):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cases

    words = [
        f"model={name}",
        "model.device=cpu",
        "train.steps=7",
        "train.decode=false",
        "rank=2,4",
        "seqlen=30",
    ]
    words += ["model.weights=random"] * (name != "tiny")
    train = Train(steps=7, decode=False)
    base, train = cases.changed(cases.model(name, device="cpu"), train, ["train.lr=0.01"])
    assert [cell.run for cell in cases.cells(base, (2, 4), 30, train)] == load("sweep", words).runs
    small = cases.model(name, small=True) if name != "tiny" else None
    if small:
        assert small.architecture["model_type"] in name
        assert small.architecture["num_hidden_layers"] == 6


def test_changed_settings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cases

    words = ["model.layer=1", "model.architecture.vocab_size=99", "train.clip=0.5"]
    base, train = cases.changed(cases.model("qwen3_8b"), Train(), words)
    assert (base.layer, base.architecture["vocab_size"], base.architecture["hidden_size"]) == (
        1,
        99,
        4096,
    )
    assert train == Train(clip=0.5)
    with pytest.raises(SystemExit, match="no such option"):
        cases.model("qwen")

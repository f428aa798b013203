"""The cost curves and the paper's grid on 8 GPUs: schedules and rates by hand, real runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cost

    return cost


def test_jobs_go_longest_first_to_whoever_is_free(cost, monkeypatch):
    monkeypatch.setattr(cost, "GPUS", 2)
    assert cost.spread([2, 5, 3, 3, 2]) == 8  # 5 + 2 and 3 + 3 + 2
    assert cost.spread([2, 2, 2]) == 4
    monkeypatch.setattr(cost, "GPUS", 8)
    assert cost.spread([2, 5, 3]) == 5


def test_rates_are_those_measured_of_each_length_and_way(cost, tmp_path):
    rows = [
        {"model": "m", "way": way, "length": n, "gflop": gflop, "ms": ms}
        for way, n, gflop, ms in (
            ("A", 100, 2.0, [1.0, 2.0, 9.0]),  # 2e9 FLOPs in 2 ms
            ("C", 100, 1.0, [1.0]),
            ("C", 10000, 300.0, [1.0, 3.0]),
        )
    ]
    rows.append({"model": "other", "way": "C", "length": 1000, "gflop": 7.0, "ms": [1.0]})
    (tmp_path / "speed.json").write_text(json.dumps({"rows": rows}))
    rates = cost.measured_rates(tmp_path / "speed.json")
    assert rates["A"](50) == rates["A"](5000) == pytest.approx(1e12)
    assert rates["C"](100) == pytest.approx(1e12)
    assert rates["C"](10000) == pytest.approx(150e12)
    assert rates["C"](1000) == pytest.approx(75.5e12)  # halfway in the logarithm


def run(tmp_path, *options):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "benchmarks" / "cost.py")
    command = [sys.executable, script, *options, "--device", "cpu", "--out", str(tmp_path)]
    subprocess.run(command, env=env, check=True, cwd=tmp_path)
    return (tmp_path / "cost.md").read_text()


@pytest.mark.slow
def test_the_papers_grid_is_computed_and_says_so(tmp_path):
    """117 cells of 2,000 steps; a token takes 36 GFLOP in the paper's loop, 11 in pml's.

    That is without the scores of attention.
    """
    report = run(tmp_path, "--only", "grid")
    assert "117 cells of 2000 steps on qwen3_8b" in report
    assert "GPU not measured" in report
    exaflop = {}
    for line in report.splitlines():
        if line.startswith("| ") and "." in line:
            _, name, total, *_ = line.split("|")
            exaflop[name.strip()] = float(total)
    tokens = 9 * 2000 * (50 + 100 + 200 + 500 + 10000 + sum(range(1000, 9000, 1000)))
    assert 1 < exaflop["the paper's loop"] * 1e18 / tokens / 35.8e9 < 1.25
    assert 1 < exaflop["pml"] * 1e18 / tokens / 11.0e9 < 1.25
    assert (tmp_path / "grid.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_curve_has_its_points(tmp_path):
    report = run(tmp_path, "--only", "curves", "--quick", "--repeats", "1")
    points = json.loads((tmp_path / "cost.json").read_text())
    assert {p["curve"] for p in points} == {"length", "rank", "pack", "parameters", "workers"}
    assert all(p["ms"] > 0 and p["megabytes"] > 0 for p in points)
    for p in points:
        if p["priced"]:
            assert p["megabytes"] == pytest.approx(p["priced"], rel=0.3)
    assert len(report.splitlines()) == len(points) + 5
    assert (tmp_path / "cost.png").stat().st_size > 1000

"""The comparison of speed, end to end on a small shape: all three ways train, agree and are shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"intermediate_size": 96, "vocab_size": 256}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_comparison_end_to_end(tmp_path, dtype):
    pytest.importorskip("accelerate")
    words = [f"model.architecture.{key}={value}" for key, value in SMALL.items()] + ["model.layer=1"]
    words = [part for word in words for part in ("--set", word)]
    asked = ["--model", "llama31_8b", "--lengths", "20,40", "--ranks", "2,4,6", "--steps", "2", "--repeats", "2", *words]
    asked += ["--dtype", dtype, "--device", "cpu", "--out", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "speed.py"), *asked], env=env, check=True, cwd=tmp_path)
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(r["way"], r["length"]) for r in rows] == [(way, length) for length in (20, 40) for way in "ABC"]
    assert all(len(r["ms"]) == 2 and min(r["ms"]) > 0 and r["memory"] > 0 for r in rows)
    for a, b, c in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert a["gflop"] > b["gflop"] > c["gflop"]
        assert c["cells"] == 3
        assert abs(a["loss"] - c["loss"]) < 0.02 * a["loss"]
    assert len((tmp_path / "speed.md").read_text().splitlines()) == 10
    assert (tmp_path / "speed.png").stat().st_size > 1000

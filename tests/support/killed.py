"""What a results folder must be after its processes were killed."""

import json

import pandas as pd
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file


def check_readable(out):
    """Whatever lies under its final name is complete."""
    for path in _final(out, "*.json"):
        json.loads(path.read_text())
    for path in _final(out, "*.parquet"):
        pq.read_metadata(path)
    for path in _final(out, "*.safetensors"):
        load_file(path)


def _final(out, pattern):
    """Files that are not hidden, and in no hidden folder but pml's own: those are half-written."""
    for path in out.rglob(pattern):
        parts = path.relative_to(out).parts
        if not any(part.startswith(".") and part != ".pml" for part in parts):
            yield path


def check_equal_runs(folder, reference):
    """Bit for bit; only the seconds differ."""
    for name in ("tokens.parquet", "curve.parquet"):
        table = pd.read_parquet(folder / name)
        pd.testing.assert_frame_equal(table, pd.read_parquet(reference / name), check_exact=True)

    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    expected = load_file(reference / "adapter" / "adapter_model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in weights)

    result = json.loads((folder / "result.json").read_text())
    expected = json.loads((reference / "result.json").read_text())
    assert result | {"seconds": 0} == expected | {"seconds": 0}

"""What is shipped: the wheel carries the model, conf/ and sweeps/, and runs from any directory."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import pml_cli

ROOT = Path(__file__).parent.parent
TINY = Path(pml_cli.__file__).parent / "tiny"


def test_embedded_model_is_small_and_has_a_card():
    assert (TINY / "model.safetensors").stat().st_size <= 4_000_000
    card = json.loads((TINY / "card.json").read_text())
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    assert sum(s[0] * (s[1] if len(s) > 1 else 1) for s in shapes) == card["parameters"]
    readme = (TINY / "README.md").read_text()
    assert f"{card['held_out_nll_nats_per_token']:.3f}" in readme
    assert f"{card['held_out_bits_per_byte']:.3f}" in readme


def test_nothing_imports_torch_before_it_trains():
    verbs = ("sweep", "fit", "transition", "probe", "memft", "lasting", "forgetting")
    modules = ["pml_cli.cli", "pml_cli.config.request", *(f"pml_cli.commands.{v}" for v in verbs)]
    code = f"import sys, {', '.join(modules)}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


def test_no_two_tokens_of_the_embedded_model_share_a_vector():
    """The head is tied to the embedding: no adapter could recall tokens that share a vector."""
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        embedding = torch.nn.functional.normalize(
            weights.get_tensor("model.embed_tokens.weight").float()
        )
    cosines = (embedding @ embedding.T).fill_diagonal_(-1)
    # 1.000 before they were set apart.
    assert cosines.max() < 0.995


@pytest.mark.slow
def test_wheel_runs_from_any_directory(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "pml_cli/conf/sweep.yaml",
        "pml_cli/sweeps/law.yaml",
        "pml_cli/tiny/model.safetensors",
        "pml_cli/data/generic/prose.keep.txt",
        "pml_cli/data/generic/chat.held_out.txt",
        "pml_cli/py.typed",
    ):
        assert needed in names
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [
        sys.executable,
        "-m",
        "pml_cli",
        "sweep",
        "-f",
        "quickstart",
        "rank=1,2",
        "seqlen=16",
        "train.steps=3",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=elsewhere, env=env, check=True
    )
    assert "2 of 2 cells done" in done.stdout
    assert len(list(elsewhere.glob("outputs/quickstart/*/result.json"))) == 2

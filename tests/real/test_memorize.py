"""`pml memorize` on real weights: what it hands over is what plain transformers and PEFT find."""

import csv
import json

import pytest
import torch
from support.adapter_script import run_script_for
from support.sweeps import pml

from pml_cli.config.schema import Model
from pml_cli.data.generic_text import KINDS, generic_pool
from real import plain
from real.conftest import FACTS


@pytest.fixture(scope="module")
def memorized(smollm2_folder, tmp_path_factory):
    """The results folder of a search among two ranks, of eight facts."""
    folder = tmp_path_factory.mktemp("memorized")
    lines = FACTS.read_text("utf-8").splitlines()[:8]
    (folder / "facts.jsonl").write_text("\n".join(lines), "utf-8")
    ended = pml(
        folder,
        "memorize",
        "facts.jsonl",
        "model=hf",
        f"model.path={smollm2_folder}",
        "model.name=smollm2",
        "model.device=cpu",
        # Two layers above the adapter: quick on a CPU.
        "model.layer=28",
        "rank=4",
        "seed=0",
        "train.lr=2e-2",
        "train.steps=80",
        "train.batch=0",
        "out=out",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "out"


def content_of(memorized):
    return json.loads((memorized / "memorize.json").read_text("utf-8"))


def test_the_adapter_answers_in_plain_transformers(memorized, smollm2_folder):
    with (memorized / "facts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    facts = [json.loads(line) for line in FACTS.read_text("utf-8").splitlines()[:8]]
    assert [row["question"] for row in rows] == [fact["question"] for fact in facts]
    assert {row["whole"] for row in rows} == {"True"}

    questions = [fact["question"] for fact in facts]
    answers = [fact["answer"] for fact in facts]
    # adapter/README.md lies here as in a run folder.
    assert run_script_for(memorized, questions, here=True) == answers

    tokenizer = plain.tokenizer_of(smollm2_folder)
    model = plain.load_adapted(smollm2_folder, memorized / "adapter")
    for fact in facts:
        assert plain.answer(model, tokenizer, fact["question"], chat=True) == fact["answer"]


def test_the_harm_is_what_plain_transformers_find(memorized, smollm2_folder):
    forgetting = content_of(memorized)["forgetting"]
    assert forgetting["harm"] <= 0.1

    model = Model(name="smollm2", path=str(smollm2_folder), device="cpu")
    base = plain.load_base(smollm2_folder)
    adapted = plain.load_adapted(smollm2_folder, memorized / "adapter")
    rises = []
    for kind in KINDS:
        windows = generic_pool(model, kind, "held_out").windows
        rises.append(mean_loss(adapted, windows) - mean_loss(base, windows))
    assert forgetting["harm"] == pytest.approx(sum(rises) / len(rises), abs=2e-3)


def mean_loss(model, windows):
    losses = [plain.losses(model, window.prompt, window.target) for window in windows]
    return torch.cat(losses).mean().item()

"""What is gained on unseen sequences: the same numbers as from the whole model, and samples that share nothing."""

import math

import pytest
import torch

from pml_cli.config.schema import MlpBlockAdapter, Model, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.rule import RuleData
from pml_cli.data.sources.text import TextData
from pml_cli.evaluation.held_out_gain import control_gains
from pml_cli.model.adapter_bank import stack
from pml_cli.model.loading import load_model
from pml_cli.training.trainer import Cell, train_pack


@pytest.mark.parametrize(
    "data",
    [RandomData(), TextData(), MixedData(), PhonebookData(), RuleData()],
    ids=lambda d: d.source,
)
def test_unseen_samples_are_of_the_source_and_not_of_the_target(data):
    source = data.open(Model())
    seen, unseen = source.take(60), source.held_out(60)
    assert unseen and not set(seen) & set(unseen)
    assert unseen == data.open(Model()).held_out(60)
    if len(seen) == 1:
        assert len(unseen[0].target) == 60 and unseen[0].prompt == seen[0].prompt
    if data.source in ("phonebook", "rule"):
        assert not {s.prompt for s in seen} & {s.prompt for s in unseen}


def test_a_source_that_is_used_up_has_no_unseen_samples(tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text('{"query": "a", "target": "one two"}\n{"query": "b", "target": "three"}\n')
    source = JsonlData(path=str(file)).open(Model())
    assert source.held_out(source.max_tokens) == [] and len(source.held_out(source.min_tokens)) == 1
    text = tmp_path / "short.txt"
    text.write_text("just a few words")
    source = TextData(path=str(text)).open(Model())
    assert source.held_out(source.max_tokens) == []


def test_gains_are_those_of_the_whole_model():
    """Against the full forward pass, one cell and one sample at a time, in float64."""
    torch.manual_seed(0)
    base = load_model(Model(dtype="float64"))
    runs = [Run(rank=r, seqlen=24, train=Train(steps=15, lr=3e-2), adapter=MlpBlockAdapter(), data=data)
            for r, data in ((2, RandomData()), (5, TextData()), (3, PhonebookData()))]  # fmt: skip
    cells = [Cell(run=run, samples=source_of(run).take(24)) for run in runs]
    train_pack(base, cells)
    unseen: list[list[Sample]] = [source_of(run).held_out(24) for run in runs]
    unseen.append([])
    bank = stack([*(cell.adapter for cell in cells), cells[0].adapter])
    found = control_gains(base, bank, unseen)
    assert found[3] == {"control_base_loss": None, "control_gain": None}
    for k, samples in enumerate(unseen[:3]):
        losses = []
        untrained = bank.select([k])
        untrained.B = {name: torch.zeros_like(B) for name, B in untrained.B.items()}
        for adapter in (untrained, bank.select([k])):
            nll = []
            for sample in samples:
                ids = torch.tensor([[*sample.prompt, *sample.target]])
                hidden = base.full(ids[:, :-1], adapter).last_hidden_state
                scored = hidden[0, len(sample.prompt) - 1 :]
                logits = torch.nn.functional.linear(scored, base.head.weight_VD)
                nll.append(
                    torch.nn.functional.cross_entropy(
                        logits, torch.tensor(sample.target), reduction="none"
                    )
                )
            losses.append(float(torch.cat(nll).mean()))
        assert found[k]["control_base_loss"] == pytest.approx(losses[0], abs=1e-9)
        assert found[k]["control_gain"] == pytest.approx(losses[0] - losses[1], abs=1e-9)
    assert not math.isclose(found[0]["control_gain"], 0, abs_tol=1e-3)

"""The gain on held-out samples: that of the whole model, on samples that share nothing."""

import pytest
import torch
from support.adapters import train
from support.models import random_bank
from support.passes import largest_pass

from pml_cli.config.schema import MlpBlockAdapter, Model, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.sources.jsonl import JsonlData
from pml_cli.data.sources.mixed import MixedData
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.rule import RuleData
from pml_cli.data.sources.text import TextData
from pml_cli.evaluation import held_out_gain
from pml_cli.model.adapter_bank import stack
from pml_cli.model.loading import load_model
from pml_cli.training import scoring
from pml_cli.training.scoring import zero_adapters


@pytest.mark.parametrize(
    "data",
    [RandomData(), TextData(), MixedData(), PhonebookData(), RuleData()],
    ids=lambda d: d.source,
)
def test_held_out_samples_are_of_the_source_and_not_of_the_target(data):
    source = data.open(Model())
    trained = source.take(60)
    held_out = source.held_out(60)
    assert held_out
    assert set(trained).isdisjoint(held_out)
    assert held_out == data.open(Model()).held_out(60)

    if len(trained) == 1:
        assert len(held_out[0].target) == 60
        assert held_out[0].prompt == trained[0].prompt
    if data.source in ("phonebook", "rule"):
        prompts = {sample.prompt for sample in trained}
        assert prompts.isdisjoint(sample.prompt for sample in held_out)


def test_a_source_that_is_used_up_has_no_held_out_samples(tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text('{"query": "a", "target": "one two"}\n{"query": "b", "target": "three"}\n')
    source = JsonlData(path=str(file)).open(Model())
    assert source.held_out(source.max_tokens) == []
    assert len(source.held_out(source.min_tokens)) == 1

    text = tmp_path / "short.txt"
    text.write_text("just a few words")
    source = TextData(path=str(text)).open(Model())
    assert source.held_out(source.max_tokens) == []


@pytest.mark.slow
def test_gains_are_those_of_the_whole_model():
    """Against the full forward pass, one cell and one sample at a time, in float64."""
    torch.manual_seed(0)
    base = load_model(Model(dtype="float64"))
    settings = Train(steps=15, lr=3e-2)
    runs = [
        Run(rank=rank, seqlen=24, train=settings, data=data)
        for rank, data in ((2, RandomData()), (5, TextData()), (3, PhonebookData()))
    ]
    cells = train(base, runs)
    held_out = [source_of(run).held_out(24) for run in runs]
    bank = stack([*(cell.adapter for cell in cells), cells[0].adapter])

    *gains, without_samples = held_out_gain.measure(base, bank, [*held_out, []])
    assert without_samples == {"control_base_loss": None, "control_gain": None}
    for k, samples in enumerate(held_out):
        base_loss = full_loss(base, zero_adapters(bank, [k]), samples)
        loss = full_loss(base, bank.select([k]), samples)
        assert gains[k]["control_base_loss"] == pytest.approx(base_loss, abs=1e-9)
        assert gains[k]["control_gain"] == pytest.approx(base_loss - loss, abs=1e-9)
    assert abs(gains[0]["control_gain"]) > 1e-3


def test_many_held_out_samples_are_not_in_one_pass(tiny_base, monkeypatch):
    """As many as a run has learned: of a large file of facts more than memory holds."""
    bank = random_bank(tiny_base, MlpBlockAdapter())
    samples = [Sample(prompt=(0, i), target=(i + 1, i + 2, i + 3)) for i in range(100)]
    (in_one_pass,) = held_out_gain.measure(tiny_base, bank, [samples])

    limit = 60
    monkeypatch.setattr(scoring, "EVALUATION_TOKENS", limit)
    with largest_pass(tiny_base, monkeypatch) as passes:
        (in_parts,) = held_out_gain.measure(tiny_base, bank, [samples])
    assert len(passes) > 2
    assert max(passes) <= limit
    assert in_parts == pytest.approx(in_one_pass, abs=1e-5)


def full_loss(base, bank, samples):
    """Mean nll of the target tokens from the whole model."""
    nll = []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt, *sample.target]])
        with torch.no_grad():
            hidden = base.full(ids[:, :-1], bank).last_hidden_state[0, len(sample.prompt) - 1 :]
            logits = torch.nn.functional.linear(hidden, base.head.weight_VD)
        targets = torch.tensor(sample.target)
        nll.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    return float(torch.cat(nll).mean())


def test_a_loss_that_overflows_on_unseen_text_is_no_gain(tiny_base, monkeypatch):
    losses = iter([[5.0], [float("inf")]])
    monkeypatch.setattr(held_out_gain, "_mean_nll", lambda *_: next(losses))
    samples = RandomData().open(Model()).take(8)
    bank = random_bank(tiny_base, MlpBlockAdapter())
    (measured,) = held_out_gain.measure(tiny_base, bank, [samples])
    assert measured == {"control_base_loss": 5.0, "control_gain": None}

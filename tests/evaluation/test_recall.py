"""Teacher forcing and free-running decoding: they agree up to the first failure, whatever is skipped as proven."""

import math
import warnings

import numpy as np
import pytest
import torch

from pml_cli.config.schema import MlpBlockAdapter, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.source import Sample
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.evaluation.recall import decode, free_running
from pml_cli.model.adapter_bank import stack
from pml_cli.training.scores import Scores, summarise, violations
from pml_cli.training.trainer import Cell, train_pack


def trained(base, *asked):
    cells = []
    for rank, seqlen, data, steps in asked:
        run = Run(
            rank=rank,
            seqlen=seqlen,
            seed=1,
            model=base.settings,
            data=data,
            adapter=MlpBlockAdapter(),
            train=Train(steps=steps, log_every=1000, lr=1e-2),
        )
        cells.append(Cell(run=run, samples=source_of(run).take(seqlen)))
    train_pack(base, cells)
    return cells


@pytest.fixture(scope="module")
def half_learnt(tiny_base):
    """Cells that know some tokens: long text, random tokens, and many facts with prompts of several lengths."""
    asked = ((4, 60, TextData(), 50), (2, 40, RandomData(), 50), (8, 100, PhonebookData(), 50))
    return trained(tiny_base, *asked) + trained(tiny_base, (16, 24, TextData(seed=3), 150))


def naive(base, adapter, sample):
    """Greedy decoding as simple as can be: the whole input again for every token."""
    ids = list(sample.prompt)
    for _ in sample.target:
        with torch.no_grad(), adapter.attached(base.modules):
            ids.append(
                int(
                    base.model(input_ids=torch.tensor([ids]), use_cache=False)
                    .logits[0, -1]
                    .argmax()
                )
            )
    return ids[len(sample.prompt) :]


def test_teacher_forced_and_free_running_agree_up_to_the_first_failure(tiny_base, half_learnt):
    bank = stack([c.adapter for c in half_learnt])
    decoded = decode(tiny_base, bank, [c.samples for c in half_learnt])
    failures = 0
    for cell, outputs in zip(half_learnt, decoded, strict=True):
        for s, (sample, output) in enumerate(zip(cell.samples, outputs, strict=True)):
            correct = cell.final.correct[cell.final.sample == s]
            wrong = np.array(output) != np.array(sample.target)
            assert len(output) == len(sample.target)
            assert wrong.any() == (~correct).any()
            if wrong.any():
                failures += 1
                assert wrong.argmax() == (~correct).argmax()
    assert failures > 4
    whole = [
        free_running(c.samples, d)["free_exact_match"]
        for c, d in zip(half_learnt, decoded, strict=True)
    ]
    assert whole == [summarise(c.final)["exact_match"] for c in half_learnt]
    assert len(set(whole)) > 1  # some recalled, some not


def test_what_is_proven_need_not_be_decoded(tiny_base, half_learnt):
    bank, samples = stack([c.adapter for c in half_learnt]), [c.samples for c in half_learnt]
    from_scratch = decode(tiny_base, bank, samples)
    skipped = decode(tiny_base, bank, samples, [c.final for c in half_learnt])
    assert skipped == from_scratch
    assert decode(tiny_base, bank, samples, [c.final for c in half_learnt], rows=3) == from_scratch


def test_decoding_is_the_models_own_greedy_decoding(tiny_base, half_learnt):
    bank = stack([c.adapter for c in half_learnt])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of arguments that transformers renames
        decoded = decode(tiny_base, bank, [c.samples for c in half_learnt])
    for cell, outputs in zip(half_learnt, decoded, strict=True):
        for sample, output in list(zip(cell.samples, outputs, strict=True))[:3]:
            assert output == naive(tiny_base, cell.adapter, sample)


def test_samples_of_several_prompt_lengths(half_learnt):
    assert len({len(s.prompt) for s in half_learnt[2].samples}) > 2
    assert len(half_learnt[2].samples) == 10


def test_a_sliding_window_shorter_than_the_input(model_folder):
    from pml_cli.config.schema import Model
    from pml_cli.model.adapter_bank import AdapterBank
    from pml_cli.model.loading import load_model

    base = load_model(Model(name="m", path=str(model_folder("mistral")), layer=1, device="cpu"))
    bank = AdapterBank.initial(
        base.sites(MlpBlockAdapter()), MlpBlockAdapter(), ranks=[4], seeds=[0], dtype=torch.float32
    )
    torch.nn.init.normal_(next(iter(bank.B.values())), std=0.1)
    samples = [Sample((prompt, 4, 5), tuple(range(6, 36))) for prompt in range(1, 40)]
    outputs = decode(base, bank.select([0]), [samples])[0]
    longest = max(
        range(39), key=lambda i: len(set(outputs[i][10:]))
    )  # the one that says most after the window is full
    assert len(set(outputs[longest][10:])) > 3
    assert outputs[longest] == naive(base, bank, samples[longest])


def scores(nll, correct, sample=None):
    n = len(nll)
    ids = np.arange(n, dtype=np.int32)
    return Scores(
        sample=np.zeros(n, np.int32) if sample is None else np.array(sample, np.int32),
        position=ids,
        token_id=ids,
        nll=np.array(nll, np.float64),
        margin=np.where(correct, 1.0, -1.0),
        argmax_id=np.where(correct, ids, ids + 1).astype(np.int32),
    )


def test_the_summary_by_hand():
    found = summarise(scores([0.1, 0.8, 0.2, 3.0, 0.9], [True, True, True, False, True]))
    assert found == {
        "final_loss": pytest.approx(1.0),
        "token_accuracy": pytest.approx(0.8),
        "exact_match": 0.0,
        "first_failure": 3,
        "earliest_stubborn": 1,
        "share_above_threshold": pytest.approx(0.4),
        "stubborn_tokens": 3,
        "violations": 0,
    }


def test_a_recalled_sequence_has_no_first_failure():
    found = summarise(scores([0.1, 0.2], [True, True]))
    assert found["first_failure"] is None
    assert found["earliest_stubborn"] is None
    assert found["exact_match"] == 1.0


def test_exact_match_counts_samples():
    found = summarise(scores([0.1, 0.2, 2.0, 0.1], [True, True, False, True], sample=[0, 1, 1, 2]))
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["first_failure"] is None  # not of one sequence


def test_violations_are_counted():
    assert violations(scores([0.1, 0.1, 2.0], [True, False, False])) == 1
    assert violations(scores([math.log(2)], [False])) == 0


def test_free_running_by_hand():
    cell = [Sample((1,), (5, 6, 7)), Sample((1, 2), (8,))]
    assert free_running(cell, [[5, 0, 7], [8]]) == {"free_accuracy": 0.75, "free_exact_match": 0.5}


def test_the_table_of_a_step():
    table = scores([0.1, 2.0], [True, False]).table(30)
    assert table["step"].tolist() == [30, 30]
    assert table["p"].tolist() == pytest.approx([math.exp(-0.1), math.exp(-2)])
    assert table["correct"].tolist() == [True, False]
    assert table["argmax_id"].tolist() == [0, 2]

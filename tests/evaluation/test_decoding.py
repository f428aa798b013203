"""Teacher forcing and free-running decoding agree up to the first failure."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from support.adapters import train

from pml_cli.config.schema import MlpBlockAdapter, Model, Run, Train
from pml_cli.data.source import Sample
from pml_cli.data.sources.phonebook import PhonebookData
from pml_cli.data.sources.random import RandomData
from pml_cli.data.sources.text import TextData
from pml_cli.evaluation import decoding
from pml_cli.evaluation.decoding import (
    MIN_BEYOND,
    decode,
    first_difference,
    recall,
    token_limit,
)
from pml_cli.model.adapter_bank import AdapterBank, stack
from pml_cli.model.loading import load_model
from pml_cli.training.scores import summarise
from pml_cli.training.trainer import Cell, Trainer


def run_of(base, rank, seqlen, data, steps):
    return Run(
        rank=rank,
        seqlen=seqlen,
        seed=1,
        model=base.settings,
        data=data,
        train=Train(steps=steps, log_every=1000, lr=1e-2),
    )


@pytest.fixture(scope="module")
def half_learnt(tiny_base):
    """Cells that know some tokens: text, random tokens, facts with prompts of several lengths."""
    pack = [
        run_of(tiny_base, 4, 60, TextData(), 50),
        run_of(tiny_base, 2, 40, RandomData(), 50),
        run_of(tiny_base, 8, 100, PhonebookData(), 50),
    ]
    recalled = run_of(tiny_base, 16, 24, TextData(seed=3), 150)
    return train(tiny_base, pack) + train(tiny_base, [recalled])


def greedy(base, adapter, sample):
    """Greedy decoding as simple as can be: the whole input again for every token."""
    ids = list(sample.prompt)
    for _ in sample.target:
        with torch.no_grad(), adapter.attached(base.modules):
            logits = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(sample.prompt) :]


@pytest.mark.slow
def test_without_a_cache_the_same_is_decoded(tiny_base, half_learnt, monkeypatch):
    """As for families whose state is no cache of keys and values."""
    bank = stack([cell.adapter for cell in half_learnt])
    samples = [cell.samples[:3] for cell in half_learnt]
    expected = decode(tiny_base, bank, samples)
    monkeypatch.setattr(tiny_base, "new_cache", lambda: None)
    assert decode(tiny_base, bank, samples) == expected


def test_teacher_forced_and_free_running_agree_up_to_the_first_failure(tiny_base, half_learnt):
    bank = stack([cell.adapter for cell in half_learnt])
    decoded = decode(tiny_base, bank, [cell.samples for cell in half_learnt])
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

    exact_matches = [
        recall(cell.samples, outputs)["free_exact_match"]
        for cell, outputs in zip(half_learnt, decoded, strict=True)
    ]
    assert exact_matches == [summarise(cell.final)["exact_match"] for cell in half_learnt]
    # Some are recalled, some are not.
    assert len(set(exact_matches)) > 1


def test_what_is_proven_need_not_be_decoded(tiny_base, half_learnt):
    bank = stack([cell.adapter for cell in half_learnt])
    samples = [cell.samples for cell in half_learnt]
    scores = [cell.final for cell in half_learnt]
    from_scratch = decode(tiny_base, bank, samples)
    assert decode(tiny_base, bank, samples, scores) == from_scratch
    assert decode(tiny_base, bank, samples, scores, batch_size=3) == from_scratch


def test_decoding_is_the_models_own_greedy_decoding(tiny_base, half_learnt):
    bank = stack([cell.adapter for cell in half_learnt])
    with warnings.catch_warnings():
        # Such as of arguments that transformers renames.
        warnings.simplefilter("error")
        decoded = decode(tiny_base, bank, [cell.samples for cell in half_learnt])
    for cell, outputs in zip(half_learnt, decoded, strict=True):
        for sample, output in list(zip(cell.samples, outputs, strict=True))[:3]:
            assert output == greedy(tiny_base, cell.adapter, sample)


def test_samples_of_several_prompt_lengths(half_learnt):
    assert len({len(sample.prompt) for sample in half_learnt[2].samples}) > 2
    assert len(half_learnt[2].samples) == 10


def test_a_sliding_window_shorter_than_the_input(model_folder):
    model = Model(name="m", path=str(model_folder("mistral")), layer=1, device="cpu")
    base = load_model(model)
    adapter = MlpBlockAdapter()
    bank = AdapterBank.initial(
        base.sites(adapter), adapter, ranks=[4], seeds=[0], dtype=torch.float32
    )
    torch.nn.init.normal_(next(iter(bank.B.values())), std=0.1)
    samples = [Sample(prompt=(first, 4, 5), target=tuple(range(6, 36))) for first in range(1, 40)]

    (outputs,) = decode(base, bank.select([0]), [samples])
    # The sample that says most after the window is full.
    most_varied = max(range(39), key=lambda i: len(set(outputs[i][10:])))
    assert len(set(outputs[most_varied][10:])) > 3
    assert outputs[most_varied] == greedy(base, bank, samples[most_varied])


def test_recall_by_hand():
    samples = [Sample(prompt=(1,), target=(5, 6, 7)), Sample(prompt=(1, 2), target=(8,))]
    expected = {"free_accuracy": 0.75, "free_exact_match": 0.5}
    assert recall(samples, [[5, 0, 7], [8]]) == expected
    # Too short, and a text that is right but runs on.
    expected = {"free_accuracy": 0.75, "free_exact_match": 0.0}
    assert recall(samples, [[5, 6], [8, 9]]) == expected


def test_first_difference_by_hand():
    assert first_difference([1, 2], (1, 2)) is None
    assert first_difference([1, 3], (1, 2)) == 1
    assert first_difference([1], (1, 2)) == 1
    assert first_difference([1, 2, 3], (1, 2)) == 2


# -- samples with an end token

ENDS = ((1,), (5, 6, 7))


def facts():
    """Facts of random tokens with two lengths of prompt, and ends of one token and of three."""
    random = np.random.default_rng(3)
    samples = []
    for i in range(6):
        ids = random.integers(300, 2000, size=8).tolist()
        end = ENDS[i % 3 == 0]
        target = (*ids[4:], *end)
        samples.append(Sample(prompt=(0, *ids[: 2 + i % 2]), target=target, end=len(end)))
    return samples


def has_ended(sample, output):
    return tuple(output[-sample.end :]) == sample.target[-sample.end :]


def answer(sample):
    """The target of a sample without its end token, where it has one."""
    return sample.target[: len(sample.target) - sample.end]


def learn(base, samples, steps):
    run = run_of(base, 16, 40, RandomData(), steps)
    run.train.lr = 0.04
    cell = Cell(run=run, samples=samples)
    Trainer(base, [cell]).train()
    return cell


def greedy_to_end(base, adapter, sample, limit):
    """As `greedy`, until the end token or so many tokens."""
    ids = list(sample.prompt)
    while len(ids) < len(sample.prompt) + limit:
        with torch.no_grad(), adapter.attached(base.modules):
            logits = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
        if has_ended(sample, ids):
            break
    return ids[len(sample.prompt) :]


def test_recalled_facts_stop_at_their_end_token(tiny_base):
    samples = facts()
    cell = learn(tiny_base, samples, 150)
    assert cell.final.correct.all()
    (outputs,) = decode(tiny_base, cell.adapter, [samples], beyond=True)
    assert [tuple(output) for output in outputs] == [sample.target for sample in samples]


def test_half_learnt_facts_are_decoded_to_an_end_or_the_limit(tiny_base):
    samples = facts()
    cell = learn(tiny_base, samples, 9)
    (outputs,) = decode(tiny_base, cell.adapter, [samples], [cell.final], beyond=True)
    limits = [token_limit(sample, 512) for sample in samples]
    for sample, output, limit in zip(samples, outputs, limits, strict=True):
        assert limit == len(sample.target) + MIN_BEYOND
        assert output == greedy_to_end(tiny_base, cell.adapter, sample, limit)
    # Some come to an end, some are left at the limit.
    assert 0 < sum(map(has_ended, samples, outputs)) < len(outputs)

    # From the prompt, and in other batches: the same.
    for batch_size in (3, 256):
        arguments = {"batch_size": batch_size, "beyond": True}
        assert decode(tiny_base, cell.adapter, [samples], **arguments) == [outputs]
    # Without going beyond: as far as the target.
    (shorter,) = decode(tiny_base, cell.adapter, [samples])
    for sample, output, cut in zip(samples, outputs, shorter, strict=True):
        assert cut == output[: len(sample.target)]


def test_an_answer_that_does_not_stop_is_not_recalled(tiny_base):
    """The same answers, learned without an end token."""
    samples = facts()
    endless = [Sample(prompt=sample.prompt, target=answer(sample)) for sample in samples]
    cell = learn(tiny_base, endless, 150)
    assert cell.final.correct.all()
    (outputs,) = decode(tiny_base, cell.adapter, [samples], beyond=True)
    for sample, output in zip(samples, outputs, strict=True):
        assert tuple(output[: len(answer(sample))]) == answer(sample)
    assert recall(samples, outputs)["free_exact_match"] == 0


def test_a_slim_margin_is_decoded_and_not_taken_for_proven(tiny_base):
    """Scores that say all is right, of an adapter that knows nothing."""
    samples = facts()
    cell = learn(tiny_base, samples, 1)
    right = dataclasses.replace(
        cell.final,
        argmax_id=cell.final.token_id,
        margin=np.full(len(cell.final.margin), 1.0),
    )
    (outputs,) = decode(tiny_base, cell.adapter, [samples], [right])
    assert [tuple(output) for output in outputs] == [sample.target for sample in samples]

    slim = right.margin.copy()
    # The second token of the third sample.
    slim[np.flatnonzero(right.sample == 2)[1]] = 5e-4
    scores = dataclasses.replace(right, margin=slim)
    (outputs,) = decode(tiny_base, cell.adapter, [samples], [scores])
    wrong = [tuple(o) != s.target for o, s in zip(outputs, samples, strict=True)]
    assert wrong == [False, False, True, False, False, False]
    assert outputs[2][0] == samples[2].target[0]


def test_decoding_stays_within_the_context():
    sample = Sample(prompt=(1,) * 10, target=(5,) * 40, end=1)
    assert token_limit(sample, 512) == 80
    assert token_limit(sample, 70) == 60
    assert token_limit(sample, 50) == 40
    assert token_limit(Sample(prompt=(1,), target=(5,) * 40), 512) == 40


def test_fewer_rows_are_decoded_at_once_where_memory_does_not_suffice(monkeypatch):
    samples = [Sample(prompt=(1,), target=(5, 6))]
    tried = []

    def decode_in_little_memory(base, bank, cells, scores, *, batch_size, beyond):
        assert not beyond
        tried.append(batch_size)
        if batch_size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [[[5, 6]] if samples else [] for samples in cells]

    monkeypatch.setattr(decoding, "decode", decode_in_little_memory)
    measured, without_samples = decoding.measure(None, None, [samples, []])
    assert tried == [256, 64, 16]
    assert measured == {"free_accuracy": 1.0, "free_exact_match": 1.0}
    assert without_samples == {"free_accuracy": None, "free_exact_match": None}

"""loss.keep_by=kl: the gradient against autograd through the plain model, alone and packed."""

import dataclasses

import pytest
import torch
from support.adapters import random_bank
from support.models import adapter_of, local, random_ids
from support.packs import assert_all_same, assert_same_outcome, train_packed, train_solo
from torch.nn import functional as F

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter, Model, Run, Train
from pml_cli.data.opened import source_of
from pml_cli.data.python_docs import held_out_text
from pml_cli.data.source import Sample
from pml_cli.evaluation import forgetting
from pml_cli.model.loading import load_model
from pml_cli.training import keep_kl, keep_text
from pml_cli.training.keep import KeepPenalty
from pml_cli.training.keep_kl import KlPenalty
from pml_cli.training.keep_text import KeepText
from pml_cli.training.losses.memft_margin import MemftMarginLoss
from pml_cli.training.losses.sft import SftLoss
from pml_cli.training.trainer import Cell

LINEAR = LinearAdapter(targets=["q_proj", "o_proj", "down_proj"], layers=[1, 4], alpha=3.0)


@pytest.fixture(scope="module")
def float64_base():
    return load_model(Model(dtype="float64", device="cpu"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of a few windows."""
    path = tmp_path_factory.mktemp("generic") / "text.txt"
    path.write_text(held_out_text()[:6000], "utf-8")
    return str(path)


def run_of(base, text, loss, **settings):
    loss = dataclasses.replace(loss, keep_text=text)
    train = Train(steps=8, log_every=4, lr=2e-2)
    settings = {"rank": 4, "seqlen": 12, "model": base.settings, "train": train} | settings
    return Run(loss=loss, **settings)


def cell_of(run):
    return Cell(run=run, samples=source_of(run).take(run.seqlen))


def random_windows(base, lengths):
    """Windows of random tokens, after one token of prompt."""
    ids = random_ids(base, len(lengths), max(lengths) + 1).tolist()
    return [
        Sample(prompt=(row[0],), target=tuple(row[1 : length + 1]))
        for row, length in zip(ids, lengths, strict=True)
    ]


def plain_kl(base, bank, windows):
    """KL(base || adapted) over the targets of some windows in the plain model, of one adapter."""
    total, tokens = 0, 0
    for window in windows:
        ids = torch.tensor([[*window.prompt, *window.target]])[:, :-1]
        with torch.no_grad():
            expected = base.logits(base.full(ids).last_hidden_state)[0]
        logits = base.logits(base.full(ids, bank).last_hidden_state)[0]
        total = total + F.kl_div(
            logits.log_softmax(1), expected.log_softmax(1), reduction="sum", log_target=True
        )
        tokens += len(window.target)
    return total / tokens


def assert_gradient(base, bank, text, windows, *, tolerance):
    """Of two windows for each of three cells, one of which has no divergence."""
    rows = [[0, 2], [1, 0]]
    weight_K = torch.tensor([0.3, 0.0, 2.0], dtype=base.adapter_dtype)
    grads = [torch.zeros_like(parameter) for parameter in bank.parameters()]
    penalty = KlPenalty(text, checkpointing=False)
    reading = penalty.add_gradient(bank, grads, weight_K, [0, 2], torch.tensor(rows))

    assert not any(grad[1].any() for grad in grads)
    for i, k in enumerate((0, 2)):
        alone = bank.select([k]).requires_grad_()
        read = [windows[row] for row in rows[i]]
        kl = plain_kl(base, alone, read)
        assert reading.kl[i].item() == pytest.approx(kl.item(), rel=tolerance)
        expected = torch.autograd.grad(weight_K[k] * kl, alone.parameters())
        for grad, other in zip(grads, expected, strict=True):
            difference = (grad[k] - other[0]).abs().max()
            assert difference <= tolerance * other.abs().max()

        (measured,) = forgetting.measure(base, bank.select([k]), [read])
        harm = measured["loss"] - measured["base_loss"]
        assert reading.harm[i].item() == pytest.approx(harm, abs=1e-6)


@pytest.mark.parametrize("adapter", [MlpBlockAdapter(), LINEAR], ids=["block", "linear"])
def test_the_gradient_is_autograds_through_the_plain_model(float64_base, adapter, monkeypatch):
    base = float64_base
    bank = random_bank(base, adapter, [2, 4, 3], scale=1)
    # The last one is padded.
    windows = random_windows(base, [20, 20, 13])
    text = KeepText(base, bank, windows)
    assert_gradient(base, bank, text, windows, tolerance=1e-7)

    # One cell after the other, a few tokens at a time.
    monkeypatch.setattr(keep_kl, "KL_TOKENS", 1)
    monkeypatch.setattr(keep_kl, "KL_LOGITS", 20_000)
    assert_gradient(base, bank, text, windows, tolerance=1e-7)


@pytest.mark.parametrize("kind", ["mlp_block", "linear"])
@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere", "gpt2"])
def test_families(model_folder, family, kind):
    """Capped and scaled logits, norms after the MLP, other names."""
    base = load_model(local(model_folder(family), dtype="float64"))
    bank = random_bank(base, adapter_of(kind, family), [2, 4, 3], scale=0.3)
    windows = random_windows(base, [20, 20, 13])
    text = KeepText(base, bank, windows)
    assert_gradient(base, bank, text, windows, tolerance=1e-5)


@pytest.mark.slow
def test_packed_is_as_alone(float64_base, text):
    """With a fixed lambda, under a limit, beside an energy and beside no penalty."""
    losses = [
        SftLoss(keep=3.0, keep_by="kl"),
        MemftMarginLoss(keep_harm=0.05, keep_by="kl"),
        SftLoss(keep_harm=0.05),
        SftLoss(),
    ]
    runs = [run_of(float64_base, text, loss, seed=i) for i, loss in enumerate(losses)]
    packed = train_packed(float64_base, [cell_of(run) for run in runs])
    alone = train_solo(float64_base, [cell_of(run) for run in runs])
    assert_all_same(packed, alone, 1e-8)
    for cell, other in zip(packed, alone, strict=True):
        assert cell.keep == pytest.approx(other.keep, rel=1e-8)
    assert packed[1].keep_harm <= 0.05


def test_no_mean_begins_before_the_first_step(tiny_base, text):
    """There the divergence is 0 but for rounding, which differs in a pack."""
    bank = random_bank(tiny_base, MlpBlockAdapter(), [2], scale=1e-9)
    penalty = KeepPenalty(tiny_base, bank, [run_of(tiny_base, text, SftLoss(keep=1, keep_by="kl"))])
    grads = [torch.zeros_like(parameter) for parameter in bank.parameters()]
    penalty.add_gradient(bank, grads, 0, 100)
    assert penalty.limit.penalty_K.item() == penalty.limit.harm_K.item() == 0
    far = random_bank(tiny_base, MlpBlockAdapter(), [2], scale=1.0)
    penalty.add_gradient(far, grads, 1, 100)
    assert penalty.limit.penalty_K.item() > 0


@pytest.mark.slow
def test_it_lowers_the_harm(tiny_base, text):
    harms = []
    for keep in (1e-6, 1.0, 30.0):
        loss = SftLoss(keep=keep, keep_by="kl")
        run = run_of(tiny_base, text, loss, train=Train(steps=20, lr=8e-2))
        (cell,) = train_packed(tiny_base, [cell_of(run)])
        harms.append(cell.keep_harm)
    assert harms[0] > 2 * harms[1] > 4 * harms[2]


@pytest.mark.parametrize(
    ("adapter", "by"), [(LINEAR, "energy"), (MlpBlockAdapter(), "kl")], ids=["linear", "block"]
)
def test_a_streamed_model_is_held_down_alike(tiny_base, text, adapter, by):
    cells = []
    for base in (tiny_base, load_model(Model(device="cpu", stream=True))):
        loss = SftLoss(keep_harm=0.02, keep_by=by)
        train = Train(steps=11, log_every=10, lr=8e-2)
        run = run_of(base, text, loss, adapter=adapter, train=train)
        cells += train_packed(base, [cell_of(run)])
    resident, streamed = cells
    assert_same_outcome(streamed, resident, 1e-5)
    assert streamed.keep_harm == pytest.approx(resident.keep_harm, abs=1e-5)


def test_a_pack_that_keeps_nothing_frees_the_text_of_the_one_before(float64_base, text):
    """Its price does not count it, and on a GPU it may be gigabytes."""
    keeping = run_of(float64_base, text, SftLoss(keep=1.0, keep_by="kl"))
    train_packed(float64_base, [cell_of(keeping)])
    assert float64_base in keep_text._latest
    train_packed(float64_base, [cell_of(dataclasses.replace(keeping, loss=SftLoss()))])
    assert float64_base not in keep_text._latest

"""Forgetting against the whole model's forward pass and torch's own divergence."""

import math

import pytest
import torch
from support.adapters import random_bank

from pml_cli.config.schema import MlpBlockAdapter, Model
from pml_cli.data.source import Sample
from pml_cli.data.windows import text_pool
from pml_cli.evaluation import forgetting
from pml_cli.evaluation.forgetting import BaseTokens
from pml_cli.model.loading import load_model


def test_the_divergence_is_torchs():
    torch.manual_seed(0)
    p, q = torch.randn(2, 7, 11, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(
        q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    tokens = BaseTokens(p, torch.arange(7))
    torch.testing.assert_close(tokens.compare(q)[2], expected)
    assert torch.equal(tokens.compare(p)[2], torch.zeros(7, dtype=torch.float64))


def test_a_shift_of_one_logit_by_hand():
    """Two tokens, (1/2, 1/2) each; then (3/4, 1/4), of which the first one comes."""
    tokens = BaseTokens(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
    base_loss, loss, divergence, changed = tokens.compare(torch.tensor([[math.log(3), 0.0]]))
    assert base_loss.item() == pytest.approx(math.log(2))
    assert loss.item() == pytest.approx(math.log(4 / 3))
    assert divergence.item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)
    # Of a tie the first is the choice, and stays it.
    assert changed.item() == 0
    *_, changed = tokens.compare(torch.tensor([[0.0, math.log(3)]]))
    assert changed.item() == 1


def test_forgetting_is_that_of_the_whole_model_and_a_zero_adapter_forgets_nothing():
    base = load_model(Model(dtype="float64", device="cpu"))
    bank = random_bank(base, MlpBlockAdapter(), [2, 4, 3], scale=3, seed=1)
    for B in bank.B.values():
        B[1] = 0
    windows = text_pool(Model(), None).windows[:3]
    shortened = Sample(prompt=windows[1].prompt, target=windows[1].target[:40])
    cells = [[windows[0], shortened], [windows[2]], []]

    adapted, untrained, without_text = forgetting.measure(base, bank, cells)
    assert without_text == {
        "tokens": 0,
        "base_loss": None,
        "loss": None,
        "kl": None,
        "changed": None,
    }
    assert untrained["kl"] == pytest.approx(0, abs=1e-12)
    assert untrained["loss"] == pytest.approx(untrained["base_loss"], abs=1e-12)
    assert untrained["changed"] == 0

    base_parts, adapted_parts, targets = [], [], []
    for sample in cells[0]:
        ids = torch.tensor([[*sample.prompt, *sample.target]])
        with torch.no_grad():
            base_hidden = base.full(ids[:, :-1]).last_hidden_state[0]
            adapted_hidden = base.full(ids[:, :-1], bank.select([0])).last_hidden_state[0]
            base_parts.append(base.logits(base_hidden))
            adapted_parts.append(base.logits(adapted_hidden))
        targets += sample.target
    base_logits = torch.cat(base_parts)
    adapted_logits = torch.cat(adapted_parts)
    kl = torch.nn.functional.kl_div(
        adapted_logits.log_softmax(1),
        base_logits.log_softmax(1),
        log_target=True,
        reduction="batchmean",
    )
    loss = torch.nn.functional.cross_entropy(adapted_logits, torch.tensor(targets))
    changed = (base_logits.argmax(1) != adapted_logits.argmax(1)).double().mean()
    assert adapted["tokens"] == len(targets) == 296
    assert adapted["kl"] == pytest.approx(float(kl), rel=1e-9)
    assert adapted["loss"] == pytest.approx(float(loss), rel=1e-9)
    assert adapted["changed"] == pytest.approx(float(changed))
    assert adapted["kl"] > 0.01

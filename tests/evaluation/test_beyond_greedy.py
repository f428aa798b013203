"""Sampling at other temperatures and recall after a wrong token, against plain torch."""

import math

import numpy as np
import pytest
import torch
from support.adapters import random_bank

from pml_cli.config.schema import MlpBlockAdapter
from pml_cli.data.source import Sample
from pml_cli.evaluation import beyond_greedy
from pml_cli.evaluation.beyond_greedy import TEMPERATURES, even_chance_temperature, with_wrong_token
from pml_cli.training.scoring import PackInputs


def test_the_chance_of_a_text_at_each_temperature(double_base):
    bank = random_bank(double_base, MlpBlockAdapter(), [2, 3])
    cells = [[Sample(prompt=(0, 5), target=(7, 8, 9)), Sample(prompt=(0,), target=(3, 4))]] * 2
    cells[1] = cells[1][:1]
    nats = beyond_greedy.sample_nats(double_base, bank, PackInputs(double_base, bank, cells))
    assert [of_cell.shape for of_cell in nats] == [(len(TEMPERATURES), 2), (len(TEMPERATURES), 1)]

    sample = cells[0][0]
    ids = torch.tensor([[*sample.prompt, *sample.target]])
    hidden = double_base.full(ids, bank.select([0])).last_hidden_state
    logits = double_base.logits(hidden)[0, len(sample.prompt) - 1 : -1]
    targets = torch.tensor(sample.target)
    for g, temperature in enumerate(TEMPERATURES):
        expected = torch.nn.functional.cross_entropy(logits / temperature, targets, reduction="sum")
        assert nats[0][g, 0] == pytest.approx(expected.item(), rel=1e-9)


def test_the_temperature_of_even_chance():
    """One token with a margin m among V equal others: nats are log(1 + (V - 1) exp(-m / T))."""
    margin = 5.0
    others = 99
    nats = np.log1p(others * np.exp(-margin / np.array(TEMPERATURES)))
    assert even_chance_temperature(nats) == pytest.approx(margin / math.log(others), rel=0.03)
    assert even_chance_temperature(nats + 1) == 0
    assert even_chance_temperature(nats * 0) == TEMPERATURES[-1]


def test_a_wrong_token_is_one_that_the_text_has_not():
    target = (1, 2, 3, 4, 5, 6, 7, 8)
    perturbed = with_wrong_token([Sample(prompt=(0,), target=target)], 20)
    assert [sample.prompt for sample in perturbed] == [
        (0, 1, 2, 9),
        (0, 1, 2, 3, 4, 9),
        (0, 1, 2, 3, 4, 5, 6, 9),
    ]
    assert [sample.target for sample in perturbed] == [target[3:], target[5:], target[7:]]
    # Ids go on at 0 after the last.
    (last, _, _) = with_wrong_token([Sample(prompt=(), target=(19,) * 8)], 20)
    assert last.prompt == (19, 19, 0)
    # Nothing follows.
    assert with_wrong_token([Sample(prompt=(0,), target=(1,))], 20) == []


def test_cells_are_measured_by_themselves(double_base):
    bank = random_bank(double_base, MlpBlockAdapter(), [2, 3])
    texts = [Sample(prompt=(0,), target=tuple(range(3 + k, 15 + k))) for k in range(2)]
    together = beyond_greedy.measure(double_base, bank, [[texts[0]], texts])
    alone = beyond_greedy.measure(double_base, bank.select([1]), [texts])
    assert together[1] == pytest.approx(alone[0])
    assert together[0]["t50"] == 0 and together[0]["recall_after_wrong"] == 0

"""Dropout of a pack goes on from a checkpoint, also from that of another kind of device."""

import torch

from pml_cli.model.adapter_bank import Dropout

SEEDS = (0, 1)


def dropout():
    return Dropout(0.5, SEEDS, [(1, 4), (1, 4)], torch.device("cpu"))


def draw(of):
    return of(torch.ones(len(SEEDS), 4, 3), (len(SEEDS), 4, 3))


def test_draws_go_on_from_the_states():
    first = dropout()
    draw(first)
    states = torch.stack(first.states())
    resumed = dropout()
    resumed.resume(states, step=1)
    assert torch.equal(draw(resumed), draw(first))


def test_states_of_another_kind_of_device_give_new_draws_the_same_each_time():
    of_a_gpu = torch.zeros(len(SEEDS), 16, dtype=torch.uint8)
    masks = []
    for step in (5, 5, 6):
        resumed = dropout()
        resumed.resume(of_a_gpu, step)
        masks.append(draw(resumed))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    # Not those of the beginning, and not the same for both cells.
    assert not torch.equal(masks[0], draw(dropout()))
    assert not torch.equal(masks[0][0], masks[0][1])

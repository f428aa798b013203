"""The temporal curriculum: samples in use, minibatches and steps, as the trainer takes them."""

import pytest

from pml_cli.config.schema import Train
from pml_cli.data.curriculum import (
    minibatch_sizes,
    samples_in_use,
    steps_for_all_samples,
    total_steps,
)
from pml_cli.training.batches import SampleOrder


@pytest.mark.parametrize(
    ("train", "samples", "steps"),
    [
        (Train(steps=7), 10, 7),
        (Train(steps=7, epochs=2), 10, 2),
        (Train(epochs=2, batch=4), 10, 6),
        (Train(epochs=2, batch=99), 10, 2),
    ],
)
def test_steps_and_epochs(train, samples, steps):
    assert total_steps(train, samples) == steps


@pytest.mark.parametrize("curriculum", [[], [1], [2, 3], [1, 2, 3, 4]])
@pytest.mark.parametrize("batch", [0, 1, 4, 10, 99])
@pytest.mark.parametrize("samples", [1, 2, 10, 13])
def test_steps_of_a_curriculum_are_those_that_the_order_of_samples_takes(
    curriculum, batch, samples
):
    train = Train(epochs=6, batch=batch, curriculum=curriculum)
    order = SampleOrder(samples, batch, 3, curriculum)
    sizes = []
    for epoch in range(6):
        in_use = samples_in_use(curriculum, epoch, samples)
        drawn = []
        while len(drawn) < in_use:
            minibatch = order.next()
            drawn += minibatch
            sizes.append(len(minibatch))
        # An epoch is a pass over the samples in use.
        assert sorted(drawn) == sorted(order._fixed_order[:in_use])

    assert total_steps(train, samples) == len(sizes)
    assert list(minibatch_sizes(train, samples)) == sizes
    five_steps = Train(steps=5, batch=batch, curriculum=curriculum)
    assert list(minibatch_sizes(five_steps, samples)) == sizes[:5]


@pytest.mark.parametrize("curriculum", [[], [1], [2, 3], [1, 2, 3, 4]])
@pytest.mark.parametrize("batch", [0, 1, 4, 10, 99])
@pytest.mark.parametrize("samples", [1, 2, 10, 13])
def test_steps_for_all_samples_are_those_after_which_the_order_has_drawn_each(
    curriculum, batch, samples
):
    needed = steps_for_all_samples(Train(batch=batch, curriculum=curriculum), samples)
    order = SampleOrder(samples, batch, 3, curriculum)
    drawn = set()
    for _ in range(needed):
        drawn |= set(order.next())
    assert len(drawn) == samples

    # In the last stage of a curriculum the last minibatch may by chance be of known samples.
    if not curriculum:
        order = SampleOrder(samples, batch, 3)
        all_but_last = [order.next() for _ in range(needed - 1)]
        assert len(set().union(*all_but_last)) < samples


def test_the_curriculum_grows_from_a_fifth_to_all():
    in_use = [samples_in_use([2, 4, 6, 8], epoch, 100) for epoch in range(10)]
    assert in_use == [20, 20, 40, 40, 60, 60, 80, 80, 100, 100]
    assert samples_in_use([2, 4, 6, 8], 0, 3) == 1
    assert (
        SampleOrder(50, 5, 1, [2])._fixed_order.tolist()
        == SampleOrder(50, 5, 1, [4, 9])._fixed_order.tolist()
    )
    assert (
        SampleOrder(50, 5, 1, [2])._fixed_order.tolist()
        != SampleOrder(50, 5, 2, [2])._fixed_order.tolist()
    )

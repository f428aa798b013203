"""The temporal curriculum: how many samples are in use in an epoch, and the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pml_cli.config.schema import Train


def samples_in_use(boundaries: Sequence[int], epoch: int, samples: int) -> int:
    """Samples that are drawn from in an epoch.

    With four boundaries the first fifth, and a fifth more from each boundary on.

    Args:
        boundaries: epochs at which more samples come into use, ascending.
        epoch: 0-based.
        samples: all samples of the run.
    """
    stages_begun = 1 + sum(epoch >= boundary for boundary in boundaries)
    return _ceil_div(stages_begun * samples, len(boundaries) + 1)


def minibatch_sizes(train: Train, samples: int) -> Iterator[int]:
    """The sizes of a run's minibatches, one a step, up to its last."""
    epoch = 0
    steps = 0

    # Without epochs, by steps: the last epoch may be cut short.
    while train.epochs is None or epoch < train.epochs:
        in_use = samples_in_use(train.curriculum, epoch, samples)
        size = min(train.batch or in_use, in_use)
        for start in range(0, in_use, size):
            if train.epochs is None and steps == train.steps:
                return
            yield min(size, in_use - start)
            steps += 1
        epoch += 1


def total_steps(train: Train, samples: int) -> int:
    """Optimizer steps of a run: `train.steps`, or the minibatches of all its epochs."""
    # Steps count minibatches, whatever the samples.
    if train.epochs is None:
        return train.steps

    return _steps_before(train, samples, train.epochs)


def steps_for_all_samples(train: Train, samples: int) -> int:
    """Steps after which every sample has been in a minibatch."""
    first_epoch = next(
        epoch
        for epoch in [0, *train.curriculum]
        if samples_in_use(train.curriculum, epoch, samples) == samples
    )
    # One pass over them from there on.
    return _steps_before(train, samples, first_epoch + 1)


def _steps_before(train: Train, samples: int, epoch: int) -> int:
    """Minibatches of all epochs before one."""
    batch = train.batch or samples
    steps = 0
    first_epoch = 0
    # Within a stage of the curriculum every epoch has the same number of minibatches.
    for stage_end in [*train.curriculum, epoch]:
        last_epoch = min(stage_end, epoch)
        if last_epoch > first_epoch:
            in_use = samples_in_use(train.curriculum, first_epoch, samples)
            steps += (last_epoch - first_epoch) * _ceil_div(in_use, batch)
            first_epoch = last_epoch
    return steps


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)

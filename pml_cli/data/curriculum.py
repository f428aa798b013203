"""The temporal curriculum: how many of a cell's samples are drawn from in an epoch, and what that makes of its length."""

from __future__ import annotations

from collections.abc import Iterator

from pml_cli.config.schema import Train


def active(boundaries: list[int], epoch: int, samples: int) -> int:
    """Samples in use in a 0-based epoch: the first fifth with four boundaries, a fifth more from each boundary on."""
    reached = sum(epoch >= boundary for boundary in boundaries)
    return -(-(reached + 1) * samples // (len(boundaries) + 1))


def minibatches(train: Train, samples: int) -> Iterator[int]:
    """The sizes of a run's minibatches, one a step, up to its last."""
    epoch, steps = 0, 0
    while train.epochs is not None or steps < train.steps:
        if epoch == train.epochs:
            return
        count = active(train.curriculum, epoch, samples)
        size = min(train.batch or count, count)
        for start in range(0, count, size):
            if train.epochs is None and steps == train.steps:
                return
            yield min(size, count - start)
            steps += 1
        epoch += 1


def total_steps(train: Train, samples: int) -> int:
    """Optimiser steps of a run: as set, or the minibatches of all its epochs."""
    if train.epochs is None:
        return train.steps
    size, ends = train.batch or samples, [*train.curriculum, train.epochs]
    total, begin = 0, 0
    for end in ends:
        if end > begin:
            total += (min(end, train.epochs) - begin) * -(
                -active(train.curriculum, begin, samples) // size
            )
            begin = min(end, train.epochs)
    return total

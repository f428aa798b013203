"""What a loss in another trainer remembers of every sample, and what a sample is recognised by.

Shapes: B rows, T tokens, M samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from pml_cli.training.losses.base import LossState, TokenLoss

IGNORED = -100
"""Label of a token that is not scored."""


class SampleMemory:
    """What a loss remembers of every sample, recognised by a hash of its prompt and scored tokens.

    The weights of all micro-batches of a step see the memory as it was when the step began.

    Attributes:
        is_used: whether the loss remembers anything.
        at_step_start: the memory when the step began, (1, M) each for M samples.
    """

    def __init__(self, loss: TokenLoss) -> None:
        self._loss = loss
        # Hash of a sample to its index in the state.
        self._index: dict[int, int] = {}
        self._current: dict[str, Tensor] = {}
        self.at_step_start: dict[str, Tensor] = {}
        self.is_used = bool(loss.initial_state(1, torch.device("cpu")))

    def __len__(self) -> int:
        """Number of samples seen."""
        return len(self._index)

    def begin_step(self) -> None:
        """Called before the first micro-batch of every optimiser step."""
        self.at_step_start = self._current

    def indices(self, hashes: Sequence[int], device: torch.device) -> Tensor:
        """Index of each sample, (len(hashes),); those not seen yet get the loss's initial state.

        Args:
            hashes: from `sample_hashes`.
            device: of the indices and of the state.
        """
        known_before = len(self._index)
        for value in hashes:
            self._index.setdefault(value, len(self._index))

        unseen = len(self._index) - known_before
        if unseen:
            initial = self._loss.initial_state(unseen, device)
            self._current = _appended(self._current, initial)
            self.at_step_start = _appended(self.at_step_start, initial)
        index = [self._index[value] for value in hashes]
        return torch.tensor(index, device=device)

    def update(self, hashes: Sequence[int], state: LossState) -> None:
        """Take over what a batch has changed.

        Args:
            hashes: of the samples of the batch.
            state: all samples after the batch, (1, M) each.
        """
        device = next(iter(state.values())).device
        # Each once: a sample may come twice in a batch.
        samples = list(dict.fromkeys(hashes))
        index = self.indices(samples, device)
        latest = {name: values[:, index] for name, values in state.items()}

        if device_count() > 1:
            # A sample may come to another device in the next epoch.
            samples, latest = _from_all_devices(samples, latest)
            index = self.indices(samples, device)

        # New tensors: those at the beginning of the step stay as they are.
        self._current = {
            name: values.index_copy(1, index, latest[name])
            for name, values in self._current.items()
        }


def _appended(state: Mapping[str, Tensor], initial: LossState) -> dict[str, Tensor]:
    """The state, (1, M) each, with further samples, (m,) each."""
    rows = {name: values[None] for name, values in initial.items()}
    if not state:
        return rows
    return {name: torch.cat([state[name], row], 1) for name, row in rows.items()}


def _from_all_devices(
    samples: Sequence[int], state: Mapping[str, Tensor]
) -> tuple[list[int], dict[str, Tensor]]:
    """The samples of the batches of all devices, and their state, (1, number of samples) each."""
    columns = [values[0].tolist() for values in state.values()]
    rows = zip(*columns, strict=True)
    own = dict(zip(samples, rows, strict=True))

    by_device: list[Any] = [None] * device_count()
    distributed.all_gather_object(by_device, own)

    # In the order of the devices, so that all of them end with the same memory.
    merged: dict[int, tuple[float, ...]] = {}
    for received in by_device:
        merged |= received

    gathered = {}
    merged_columns = zip(*merged.values(), strict=True)
    for (name, values), column in zip(state.items(), merged_columns, strict=True):
        gathered[name] = values.new_tensor([column])
    return list(merged), gathered


def sample_hashes(input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None) -> list[int]:
    """What each row is recognised by: its prompt and its scored tokens, wherever padding lies.

    Waits for the device once.

    Args:
        input_ids: (B, T).
        labels: (B, T), IGNORED where nothing is scored.
        attention_mask: (B, T), 0 where there is padding; None: none is known.
    """
    # Some models take masks of another shape, which say nothing of padding.
    if attention_mask is None or attention_mask.shape != input_ids.shape:
        attention_mask = torch.ones_like(input_ids)
    rows = zip(input_ids.tolist(), labels.tolist(), attention_mask.tolist(), strict=True)

    hashes = []
    for tokens, row_labels, mask in rows:
        scored = [position for position, label in enumerate(row_labels) if label != IGNORED]
        # What comes after the last scored token decides nothing: padding, for one.
        end = scored[-1] + 1 if scored else 0
        read = [position for position in range(end) if mask[position]]
        sample = tuple((tokens[position], row_labels[position]) for position in read)
        hashes.append(hash(sample))
    return hashes


def device_count() -> int:
    """Processes of a distributed training; 1 without."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1

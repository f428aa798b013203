"""The text of `loss.keep` as the base model reads it: once, for all cells of a pack.

Shapes: n distinct windows of T input tokens, S of them scored, D hidden size, K cells, b windows of
a cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.chunk_sizes import PREFIX_ROWS
from pml_cli.model.head import token_nll
from pml_cli.model.split_model import Prefix, SplitModel
from pml_cli.training.limits import EVALUATION_TOKENS
from pml_cli.training.scoring import zero_adapters

Windows: TypeAlias = tuple[Sample, ...]
"""The text of one cell; none: the cell has no penalty."""

_Key: TypeAlias = tuple[tuple[str, ...], Windows]

# Beside the seed, so that the order of windows is independent of all else that is drawn.
_WINDOW_STREAM = 13

# That of the latest pack of each base: the next pack mostly has the same.
_latest: WeakKeyDictionary[SplitModel, tuple[_Key, KeepText]] = WeakKeyDictionary()


class KeepText:
    """Distinct windows, and what the base model makes of them.

    Attributes:
        rows: the row of each window, n of them.
        tokens: input tokens of a row, T.
        prefix: hidden states below the adapters, (n, T, D).
        targets_nS: what is to be predicted.
        mask_nS: 1 where there is a target, 0 where there is padding.
        hidden_nSD: final hidden states of the base model.
        nll_nS: loss of the base model, nats.
    """

    def __init__(self, base: SplitModel, bank: AdapterBank, windows: Sequence[Sample]) -> None:
        """
        Args:
            base: the frozen model.
            bank: its sites tell where the adapters are; its weights do not matter.
            windows: distinct ones, with prompts of one length.
        """
        # The text is remembered as long as its model is there, and must not be why it is.
        self._base = ref(base)
        self.rows = {window: row for row, window in enumerate(windows)}
        # The first token that is predicted follows the prompt.
        self._first = len(windows[0].prompt) - 1

        # Padded at the end: causality keeps the padding from the tokens before it.
        lengths = [len(window.prompt) + len(window.target) for window in windows]
        ids = np.zeros((len(windows), max(lengths)), np.int64)
        mask = np.zeros(ids.shape)
        for row, window in enumerate(windows):
            ids[row, : lengths[row]] = [*window.prompt, *window.target]
            mask[row, : lengths[row]] = 1
        ids_nT = torch.from_numpy(ids).to(base.device)
        mask_nT = torch.from_numpy(mask).to(base.device, base.adapter_dtype)

        self.tokens = ids_nT.shape[1] - 1
        self.prefix: Prefix = base.prefix(ids_nT[:, :-1], bank)
        self.targets_nS = ids_nT[:, self._first + 1 :]
        self.mask_nS = mask_nT[:, self._first + 1 :]
        self.hidden_nSD, self.nll_nS = self._read_by_base(bank)

    @property
    def base(self) -> SplitModel:
        """The frozen model, which a text does not keep in memory."""
        base = self._base()
        assert base is not None
        return base

    @torch.no_grad()
    def _read_by_base(self, bank: AdapterBank) -> tuple[Tensor, Tensor]:
        untrained = zero_adapters(bank, [0])
        all_rows = torch.arange(len(self.rows), device=self.base.device)

        hidden = []
        nll = []
        for rows in all_rows.split(PREFIX_ROWS):
            hidden.append(self.hidden(untrained, rows))
            nll.append(self.nll(hidden[-1], rows))
        return torch.cat(hidden), torch.cat(nll)

    def tokens_of(self, row: int) -> int:
        """Input tokens of a window, without padding."""
        return self._first + int(self.mask_nS[row].sum())

    def hidden(self, bank: AdapterBank, rows: Tensor, *, checkpointing: bool = False) -> Tensor:
        """Final hidden states under adapters at the positions that are scored, (B, S, D).

        Args:
            bank: the adapters.
            rows: windows, (B,), grouped by cell.
            checkpointing: whether backward recomputes the layers (activation checkpointing).
        """
        prefix = self.prefix.rows(rows, self.tokens)
        return self.base.upper(prefix, bank, checkpointing)[:, self._first :]

    def nll(self, hidden_BSD: Tensor, rows: Tensor) -> Tensor:
        """Loss of every target of some windows, nats, (B, S), from final hidden states."""
        targets_BS = self.targets_nS[rows]
        scores = token_nll(hidden_BSD.flatten(0, 1), self.base.head, targets_BS.flatten())
        return scores.nll.view(targets_BS.shape)

    def mean(self, values_KbS: Tensor, rows_Kb: Tensor) -> Tensor:
        """The mean over the targets of some windows of each cell, (K,)."""
        mask_KbS = self.mask_nS[rows_Kb]
        return (values_KbS * mask_KbS).sum((1, 2)) / mask_KbS.sum((1, 2))

    def rise(self, nll_KbS: Tensor, rows_Kb: Tensor) -> Tensor:
        """How much larger than the base's a loss is in the mean, nats per token, (K,)."""
        return self.mean(nll_KbS - self.nll_nS[rows_Kb], rows_Kb)

    @torch.no_grad()
    def harm(self, bank: AdapterBank, rows_Kb: Tensor) -> Tensor:
        """Nats per token that each adapter adds to the loss of some windows, (K,).

        Args:
            bank: the adapters of K cells, without dropout.
            rows_Kb: the windows of each of them.
        """
        tokens = len(rows_Kb) * self.tokens
        b = max(1, EVALUATION_TOKENS // tokens)

        parts = []
        for part_Kb in rows_Kb.split(b, 1):
            rows = part_Kb.flatten()
            nll_BS = self.nll(self.hidden(bank, rows), rows)
            parts.append(nll_BS.view(*part_Kb.shape, -1))
        return self.rise(torch.cat(parts, 1), rows_Kb)


def keep_text(base: SplitModel, bank: AdapterBank, windows: Sequence[Windows]) -> KeepText:
    """The text of the cells of a pack; that of the pack before, where it is the same.

    Args:
        base: the frozen model.
        bank: its sites tell where the adapters are.
        windows: of each cell.
    """
    distinct = tuple(dict.fromkeys(itertools.chain.from_iterable(windows)))
    key = (tuple(bank.sites), distinct)
    latest = _latest.get(base)
    if latest is not None and latest[0] == key:
        return latest[1]

    # The old one is freed before the new one is computed: it may be large.
    _latest.pop(base, None)
    del latest
    text = KeepText(base, bank, distinct)
    _latest[base] = (key, text)
    return text


def forget_keep_text(base: SplitModel) -> None:
    """Free the text of the latest pack on a base."""
    _latest.pop(base, None)


class WindowOrder:
    """The windows of one cell, again and again, in the cell's own order.

    Every pass over them is a fresh permutation. Nothing is remembered: what is drawn depends on the
    seed and on the number of the draw.
    """

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        """
        Args:
            rows: its windows.
            seed: of the run.
        """
        self.rows = np.array(rows)
        self._seed = seed

    def draw(self, number: int, count: int) -> list[int]:
        """Rows of so many windows; of a short text one may occur twice.

        Args:
            number: of the draw, from 0.
            count: windows of a draw.
        """
        drawn = []
        first = number * count
        for position in range(first, first + count):
            epoch, i = divmod(position, len(self.rows))
            generator = np.random.default_rng([self._seed, _WINDOW_STREAM, epoch])
            order = generator.permutation(self.rows)
            drawn.append(int(order[i]))
        return drawn

"""Forgetting: what an adapter does to text that it was not trained on.

Its loss there, and the Kullback-Leibler divergence of its predictions from those of the base.

Shapes: K cells, n windows of text, N scored tokens of them, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pml_cli.data.source import Sample
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.split_model import SplitModel
from pml_cli.training.batches import SamplesByCell
from pml_cli.training.limits import EVALUATION_TOKENS
from pml_cli.training.scoring import PackInputs, scored_hidden, zero_adapters

# Logits of one model that exist at once; more do not fit into a processor's cache. The head is slow
# for fewer tokens than MIN_TOKENS.
MAX_LOGITS = 2**23
MIN_TOKENS = 64

# Input tokens whose hidden states are kept for the next adapters: of all short texts, of a long one
# the last parts alone.
KEPT_TOKENS = 8 * EVALUATION_TOKENS

Forgetting: TypeAlias = dict[str, float | int | None]

# Means over tokens, in the order of `BaseTokens.compare`.
_MEANS = ("base_loss", "loss", "kl", "changed")
NOT_MEASURED: Forgetting = {"tokens": 0, **dict.fromkeys(_MEANS)}


@dataclass(frozen=True, kw_only=True)
class WindowMeans:
    """How the predictions of one adapter differ from those of the base, window by window."""

    tokens: NDArray[np.int64]
    """Scored tokens of each window, (n,)."""

    means: dict[str, NDArray[np.float64]]
    """Means over the tokens of each window, (n,): `base_loss`, `loss` and `kl` in nats; `changed`,
    the share of tokens with another argmax."""

    def total(self) -> Forgetting:
        """`tokens`, and the means over the tokens of all windows."""
        result: Forgetting = {"tokens": int(self.tokens.sum())}
        for name, values in self.means.items():
            result[name] = float(np.average(values, weights=self.tokens))
        return result

    @property
    def harm(self) -> NDArray[np.float64]:
        """Rise of the loss of each window through the adapter, nats per token, (n,)."""
        rise: NDArray[np.float64] = self.means["loss"] - self.means["base_loss"]
        return rise

    @classmethod
    def concatenate(cls, parts: Sequence[WindowMeans]) -> WindowMeans:
        """The windows of all parts of a text."""
        means = {name: np.concatenate([part.means[name] for part in parts]) for name in _MEANS}
        return cls(tokens=np.concatenate([part.tokens for part in parts]), means=means)


class BaseTokens:
    """Predictions of the base for some tokens, and how those of adapters differ from them.

    KL(base || adapted) is the cross-entropy of the adapted predictions under those of the base,
    less the entropy of the base. Both are summed in the same way, so that equal logits give 0.
    """

    def __init__(self, logits_NV: Tensor, targets_N: Tensor) -> None:
        """
        Args:
            logits_NV: of the base; computed with in float32 at least.
            targets_N: the tokens that follow.
        """
        logits_NV = _precise(logits_NV)
        self._targets_N1 = targets_N[:, None]
        self._p_NV = logits_NV.softmax(1)
        self._choices_N1 = logits_NV.argmax(1, keepdim=True)
        self._nll_N, self._entropy_N = self._losses(logits_NV)

    def _losses(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Nats of the targets, and cross-entropy under the predictions of the base, (N,) each."""
        log_p_NV = logits_NV.log_softmax(1)
        nll_N = -log_p_NV.gather(1, self._targets_N1)[:, 0]
        return nll_N, -torch.linalg.vecdot(self._p_NV, log_p_NV)

    def compare(self, logits_NV: Tensor) -> Tensor:
        """`_MEANS` of each token under the logits of an adapter, (4, N)."""
        logits_NV = _precise(logits_NV)
        nll_N, cross_entropy_N = self._losses(logits_NV)
        # A tie with the base's choice is no change. argmax would take several times as long.
        of_choice_N = logits_NV.gather(1, self._choices_N1)[:, 0]
        changed_N = of_choice_N < logits_NV.amax(1)
        values = [
            self._nll_N,
            nll_N,
            cross_entropy_N - self._entropy_N,
            changed_N.to(nll_N.dtype),
        ]
        return torch.stack(values)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class BaseReading:
    """Windows of text as the base reads them: once, however many adapters are compared with it.

    All of them are in one forward pass; `Readings` takes a long text part by part.
    """

    @torch.no_grad()
    def __init__(self, base: SplitModel, bank: AdapterBank, windows: Sequence[Sample]) -> None:
        """
        Args:
            base: the frozen model.
            bank: adapters on the sites of those that will be compared; their weights do not matter.
            windows: what is read, at least one.
        """
        self._base = base
        self._tokens = np.array([len(window.target) for window in windows])
        self._inputs = PackInputs(base, bank, [windows])
        prefix = self._inputs.prefix
        assert prefix is not None

        data = self._inputs.data
        layout = data.layout(data.cells)
        hidden_nTD = base.upper(prefix, zero_adapters(bank, [0]))
        hidden_nTD = hidden_nTD[layout.rows, : layout.tokens]
        self._hidden_ND = hidden_nTD.flatten(0, 1)[layout.scored]
        self._targets_N = layout.targets

    @property
    def input_tokens(self) -> int:
        """Tokens whose hidden states are held, with padding."""
        return self._inputs.data.ids.numel()

    @torch.no_grad()
    def compare(self, bank: AdapterBank) -> list[WindowMeans]:
        """How the predictions of each adapter of a bank differ from those of the base."""
        by_cell = []
        # Each cell reads all windows; as many at a time as fit into one evaluation.
        size = max(1, EVALUATION_TOKENS // self.input_tokens)
        for cells in torch.arange(len(bank)).split(size):
            by_cell += self._compare_cells(bank.select(cells.tolist()))
        return by_cell

    def _compare_cells(self, bank: AdapterBank) -> list[WindowMeans]:
        data = self._inputs.data
        layout = data.layout(data.cells * len(bank))
        hidden = scored_hidden(self._base, bank, layout, self._inputs.gather(layout))
        hidden_KND = hidden.unflatten(0, (len(bank), -1))

        # KL needs all logits of a token, unlike its cross-entropy: few tokens at a time.
        chunks = []
        size = max(MIN_TOKENS, MAX_LOGITS // self._base.head.weight_VD.shape[0])
        for start in range(0, len(self._targets_N), size):
            chunk = slice(start, start + size)
            base_tokens = BaseTokens(
                self._base.logits(self._hidden_ND[chunk]), self._targets_N[chunk]
            )
            of_cells = [
                base_tokens.compare(self._base.logits(hidden_ND[chunk])) for hidden_ND in hidden_KND
            ]
            chunks.append(torch.stack(of_cells))

        values_K4N = torch.cat(chunks, 2).double().cpu().numpy()
        starts = np.cumsum(self._tokens) - self._tokens
        sums_K4n = np.add.reduceat(values_K4N, starts, axis=2)
        means_K4n = sums_K4n / self._tokens
        return [
            WindowMeans(tokens=self._tokens, means=dict(zip(_MEANS, means_4n, strict=True)))
            for means_4n in means_K4n
        ]


class Readings:
    """What a base has read, for banks of adapters on the same sites, one after the other."""

    def __init__(self, base: SplitModel) -> None:
        """
        Args:
            base: the frozen model.
        """
        self._base = base
        self._readings: dict[tuple[Sample, ...], BaseReading] = {}

    def by_window(self, bank: AdapterBank, cells: SamplesByCell) -> list[WindowMeans | None]:
        """How the predictions of each adapter differ from those of the base, window by window.

        Args:
            bank: trained adapters of K cells.
            cells: text that each of them was not trained on.

        Returns:
            one of each cell; None where it has no text.
        """
        # The base reads each text for all of the adapters that read it.
        by_text: dict[tuple[Sample, ...], list[int]] = {}
        for k, windows in enumerate(cells):
            if windows:
                by_text.setdefault(tuple(windows), []).append(k)

        results: list[WindowMeans | None] = [None] * len(cells)
        for text, indices in by_text.items():
            compared = self._compare(bank.select(indices), text)
            for k, means in zip(indices, compared, strict=True):
                results[k] = means
        return results

    def _compare(self, bank: AdapterBank, text: tuple[Sample, ...]) -> list[WindowMeans]:
        """How each adapter of a bank differs from the base on one text, a part of it at a time."""
        by_part = [self._reading(bank, part).compare(bank) for part in _parts(text)]
        return [WindowMeans.concatenate(of_cell) for of_cell in zip(*by_part, strict=True)]

    def _reading(self, bank: AdapterBank, part: tuple[Sample, ...]) -> BaseReading:
        if part not in self._readings:
            # Before the next is read, so that no more exist at once.
            self._forget_oldest(KEPT_TOKENS - EVALUATION_TOKENS)
            self._readings[part] = BaseReading(self._base, bank, part)
        return self._readings[part]

    def _forget_oldest(self, tokens: int) -> None:
        """Forget readings until they hold so many tokens at most."""
        held = sum(reading.input_tokens for reading in self._readings.values())
        for part in list(self._readings):
            if held > tokens:
                held -= self._readings.pop(part).input_tokens


def _parts(text: tuple[Sample, ...]) -> Iterator[tuple[Sample, ...]]:
    """The windows of a text, as many at a time as fit into one evaluation."""
    longest = max(len(window.prompt) + len(window.target) for window in text)
    size = max(1, EVALUATION_TOKENS // longest)
    for start in range(0, len(text), size):
        yield text[start : start + size]


def measure(base: SplitModel, bank: AdapterBank, cells: SamplesByCell) -> list[Forgetting]:
    """How the predictions of each adapter differ from those of the base.

    Args:
        base: the frozen model.
        bank: trained adapters of K cells.
        cells: text that each of them was not trained on.

    Returns:
        of each cell `tokens`, and means over them: `base_loss`, `loss` and `kl` in nats,
            `changed` the share of tokens with another argmax. A cell without text has None.
    """
    measured = Readings(base).by_window(bank, cells)
    return [dict(NOT_MEASURED) if means is None else means.total() for means in measured]

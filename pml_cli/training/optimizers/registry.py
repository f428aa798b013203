"""The optimiser of `train.optimizer`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.training.optimizers.adamw import AdamW
from pml_cli.training.optimizers.base import Optimizer
from pml_cli.training.optimizers.lbfgs import LBFGS
from pml_cli.training.optimizers.muon import Muon

OPTIMIZERS: dict[str, Callable[[AdapterBank, Tensor], Optimizer]] = {
    "adamw": AdamW,
    "muon": Muon,
    "lbfgs": LBFGS,
}
"""Constructors by the value of `train.optimizer`; each takes the bank and the weight decay of each
cell, (K,)."""


def optimizer_for(name: str, bank: AdapterBank, weight_decay_K: Tensor) -> Optimizer:
    """The optimiser of a pack before its first step.

    Args:
        name: the value of `train.optimizer`.
        bank: the adapters to be trained.
        weight_decay_K: weight decay of each cell, (K,).
    """
    return OPTIMIZERS[name](bank, weight_decay_K)

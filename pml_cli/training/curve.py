"""The training curve: a few numbers of every step and cell.

They stay on the device until the next logged step, so that no step waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pml_cli.stats import LN2
from pml_cli.training.losses.base import Tokens, Weighted

COLUMNS = (
    "loss",
    "nll",
    "share_above_threshold",
    "weight_above",
    "gradient_above",
    "grad_norm",
    "lr",
)

# Stands in for a sum of weights that is 0: the share is then 0 and not NaN.
_TINY = 1e-30


def empty_curve() -> pd.DataFrame:
    """The table of a cell that has no step yet: int column `step`, then `COLUMNS`."""
    steps = np.zeros(0, np.int32)
    columns = {name: np.zeros(0) for name in COLUMNS}
    return pd.DataFrame({"step": steps, **columns})


def curve_values(
    tokens: Tokens,
    weighted: Weighted,
    norm_K: Tensor,
    lr_K: Tensor,
) -> Tensor:
    """`COLUMNS` of one step, (len(COLUMNS), K), on the device.

    `weight_above` and `gradient_above` are the shares of weight and gradient that go to tokens
    with p > 0.5.

    Args:
        tokens: the scored tokens of the step, (K, S) each.
        weighted: the same tokens, weighted.
        norm_K: norm of each cell's gradient before clipping.
        lr_K: learning rate of each cell.
    """
    nll_KS = tokens.nll.detach()
    count_K = tokens.mask.sum(1)
    above_KS = (nll_KS < LN2) * tokens.mask

    def share_above(amount_KS: Tensor) -> Tensor:
        total_K = amount_KS.sum(1).clamp(min=_TINY)
        return (amount_KS * above_KS).sum(1) / total_K

    columns = [
        weighted.loss.detach(),
        nll_KS.sum(1) / count_K,
        above_KS.sum(1) / count_K,
        share_above(weighted.weight),
        share_above(weighted.pull),
        norm_K,
        lr_K,
    ]
    return torch.stack(columns)


def curve_tables(values: Sequence[Tensor], last_step: int) -> list[pd.DataFrame]:
    """The table of each cell, one row a step.

    Args:
        values: `curve_values`, (len(COLUMNS), K) each, of consecutive steps.
        last_step: number of steps done; the last of `values` is that of step last_step - 1.
    """
    # The only synchronisation of the curve with the device.
    values_TCK = torch.stack(list(values)).double().cpu()
    array = values_TCK.numpy()
    steps = np.arange(last_step - len(array), last_step, dtype=np.int32)

    tables = []
    for k in range(array.shape[2]):
        columns = dict(zip(COLUMNS, array[:, :, k].T, strict=True))
        tables.append(pd.DataFrame({"step": steps, **columns}))
    return tables

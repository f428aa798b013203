"""One group of comparable cells and what was found on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from pml_cli.law import power_law
from pml_cli.law.analysis import Analysis
from pml_cli.law.capacity import Held, Unseen
from pml_cli.law.observations import Observations
from pml_cli.law.recall_law import RecallFit


@dataclass(frozen=True)
class GroupFit:
    """One group of comparable cells and what was found on it."""

    name: str
    slug: str
    key: dict[str, Any]
    cells: pd.DataFrame  # every cell: as read, and predicted, residual, kept, reason
    fit: power_law.LawFit  # by the paper's estimator
    held: power_law.HeldOut
    observed: Observations  # those a law may use, saturated ones too
    analysis: Analysis
    warnings: list[str]
    conclusions: list[str]
    x: str  # what the ranks of `observed` are: rank or parameters
    recall: RecallFit
    held_bits: list[Held]
    control: Unseen | None

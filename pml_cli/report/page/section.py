"""What a section of the page is, and what all of them are made from."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pml_cli.law.fit_groups import GroupFit
from pml_cli.law.fitted_law import FittedLaw


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What was read and fitted."""

    paths: list[Path]
    runs: pd.DataFrame
    """A row a finished run: the fields of result.json, and `folder`."""
    groups: list[GroupFit]
    """Groups of comparable runs, that with the most cells first."""
    laws: Mapping[str, FittedLaw]
    """Laws by the name of their group; groups without a law are missing."""
    failures: Mapping[str, str]
    """Why runs failed, by id."""
    shown_runs: int
    """Number of runs whose tokens are shown."""

    @property
    def cells(self) -> pd.DataFrame:
        """A row a run: whether a law may use it (`kept`), and why not (`reason`)."""
        return pd.concat([group.cells for group in self.groups])

    @property
    def left_out(self) -> dict[str, int]:
        """How many cells no law uses, by reason, the most frequent first."""
        cells = self.cells
        counts = cells.loc[~cells["kept"], "reason"].value_counts()
        return {str(reason): int(count) for reason, count in counts.items()}

    @property
    def quoted_paths(self) -> str:
        """The paths as words of a shell."""
        return shlex.join(str(path) for path in self.paths)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of the page.

    Attributes:
        name: of its template and its script in assets/, and of its anchor.
        title: the heading, what is seen in plain words.
        context: for the template.
        data: for the script, values of JSON; None where there is no script.
    """

    name: str
    title: str
    context: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Any = None


def jsonable(value: Any) -> Any:
    """Values of JSON: numbers that are none become null, fractions keep five digits."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | pd.Series):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(inner) for inner in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        # Lengths and ranks are whole numbers, and stay what they are.
        return value if value.is_integer() else float(f"{value:.5g}")
    if value is pd.NA or value is pd.NaT:
        return None
    return value

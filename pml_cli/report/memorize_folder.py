"""The files of `pml memorize`: memorize.json, facts.csv and the figure.

memorize.json, format 1: `settings`, `limits`, `cells` (every one that was tried), `answer`,
`forgetting` and `proof` of the chosen run, `seconds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.evaluation.proof import Proof

# Of memorize.json.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TriedCell:
    """One cell that the search has tried."""

    run: str
    """Id of its run."""

    rank: int
    seed: int
    recalled: float
    """Share of the facts that are recalled whole."""

    harm: float | None
    """Added nats per token on other text; None: not measured."""

    seconds: float
    """Of its training."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user asked for."""

    exact: float
    """Share of the facts that must be whole."""

    max_forgetting: float | None
    """The largest harm, nats per token; None: no limit."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The outcome of the search."""

    reached: bool
    """Whether a rank keeps the limits."""

    rank: int
    """The least rank that does; where none does, that of the best cell."""

    low: int
    high: int
    """Its band: the least rank lies in low..high."""

    run: str
    """Id of the chosen run."""

    advice: Sequence[str]
    """What to change where no rank keeps the limits, a line each."""


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """Harm of the chosen run on text that it was not trained on, nats per token."""

    harm: float
    low: float
    high: float
    """95 % interval."""


@dataclass(frozen=True, kw_only=True)
class MemorizeReport:
    """All that the answer consists of."""

    settings: Mapping[str, Any]
    """As JSON holds them."""

    limits: Limits
    cells: Sequence[TriedCell]
    answer: Answered
    forgetting: Forgetting | None
    """None: not measured."""

    proof: Proof | None
    """None: not measured."""

    seconds: float
    """Of the whole command, earlier calls of it included."""

    out: Path
    """The folder of the results."""


def write(report: MemorizeReport, *, figures: bool = True) -> list[str]:
    """Write the files.

    Args:
        report: the answer.
        figures: whether to draw.

    Returns:
        The names of the files in `report.out`.
    """
    raise NotImplementedError


def write_readme(adapter: Path, report: MemorizeReport) -> None:
    """Add to the README.md of the chosen adapter what it knows, what it harms, what made it.

    Args:
        adapter: its folder, with the README.md of its run.
        report: the answer.
    """
    raise NotImplementedError

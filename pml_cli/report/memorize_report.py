"""What the answer of `pml memorize` consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pml_cli.analysis.rank_search import Answer, Limits, Trial
from pml_cli.evaluation.proof import Proof


@dataclass(frozen=True, kw_only=True)
class TriedCell:
    """One cell that the search has tried."""

    trial: Trial
    run: str
    """Id of its run."""

    seconds: float
    """Seconds of its training."""


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

    command: str
    """The command line as typed."""

    settings: Mapping[str, Any]
    """Settings of the runs, as JSON values."""

    limits: Limits
    answer: Answer
    run: str
    """Id of the chosen run."""

    facts: int | None
    """How many; None: one text, of which tokens count."""

    cells: Sequence[TriedCell]
    forgetting: Forgetting | None
    """Harm of the chosen run; None: not measured."""

    proof: Proof | None
    """Proof of the chosen adapter; None: not measured."""

    advice: Sequence[str]
    """What to change where no rank keeps the limits, a line each."""

    seconds: float
    """Seconds of all training, including that of earlier calls, and of everything else in this
    call."""

    out: Path
    """The folder of the results."""

    @property
    def recalled(self) -> str:
        """What a share of recall counts: facts, or tokens where there is one text."""
        return "tokens right" if self.facts is None else "facts whole"

"""A finished run that is to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pml_cli.config.schema import Run
from pml_cli.data.source import Sample


@dataclass(frozen=True)
class EvalRun:
    """A finished run that is to be measured."""

    id: str
    run: Run
    samples: list[Sample]
    adapter: Path  # its folder
    weights: str  # hash of the base that it was trained on
    texts: dict[str, list[Sample]]  # where damage is looked for, by name

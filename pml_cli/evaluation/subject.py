"""A finished run that is to be measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pml_cli.config.schema import Run
from pml_cli.data.source import Sample


@dataclass(frozen=True, kw_only=True)
class EvalRun:
    """A finished run that is to be measured."""

    id: str
    run: Run
    samples: list[Sample]
    """What it was trained on."""
    adapter: Path
    """Folder of its adapter."""
    weights: str
    """Hash of the base that it was trained on (`SplitModel.weights_hash`)."""
    texts: dict[str, list[Sample]] = field(default_factory=dict)
    """Text to measure forgetting on, by name."""

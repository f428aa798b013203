"""One cell with what planning found out about it."""

from __future__ import annotations

from dataclasses import dataclass

from pml_cli.config.schema import Run
from pml_cli.data.sources import Sample


@dataclass(frozen=True)
class CellPlan:
    """One cell with what planning found out about it."""

    id: str
    run: Run
    samples: list[Sample]
    steps: int
    rows: int  # samples in one step
    tokens: int  # input tokens of one row
    checkpointing: bool = (
        False  # the layers above the adapter run twice, because they keep too much otherwise
    )

    @property
    def step_tokens(self) -> int:
        return self.rows * self.tokens

    @property
    def drawn(self) -> bool:
        """Whether a step sees a draw of the samples: minibatches, or a curriculum."""
        return self.rows < len(self.samples) or bool(self.run.train.curriculum)

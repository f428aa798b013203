"""One cell of a sweep as planned: a run with its samples and its number of steps."""

from __future__ import annotations

from dataclasses import dataclass

from pml_cli.config.schema import Run
from pml_cli.data.source import Sample


@dataclass(frozen=True, kw_only=True)
class PackedSize:
    """Packed rows of one step of a cell: samples share them (sequence packing)."""

    rows: int
    """Number of rows."""

    tokens: int
    """Length of a row."""

    queries: int
    """Most scored tokens of a row."""


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """A run with what planning has worked out about it."""

    id: str
    run: Run
    samples: list[Sample]

    tokens_hash: str = ""
    """Hash of the samples' tokens, by which a finished run counts or not; empty: it always does."""

    steps: int
    """Optimizer steps."""

    rows: int
    """Samples in one step."""

    tokens: int
    """Input tokens of one sample, at most."""

    packed: PackedSize | None = None
    """The rows that the samples of a step share; None: each sample is a row."""

    checkpointing: bool = False
    """Whether activation checkpointing runs the layers above the adapter twice, to keep less."""

    stream: bool | None = None
    """Whether the layers below the adapter are read one at a time; None: it depends on the memory
    where the model is loaded, which was not known."""

    @property
    def step_tokens(self) -> int:
        """Input tokens of one step, padding included."""
        if self.packed is not None:
            return self.packed.rows * self.packed.tokens
        return self.rows * self.tokens

    @property
    def work(self) -> int:
        """Input tokens of the whole training, padding included: the measure of progress."""
        return self.step_tokens * self.steps

    @property
    def is_sampled(self) -> bool:
        """Whether a step sees only some of the samples: minibatches, or a curriculum."""
        if self.run.train.curriculum:
            return True
        return self.rows < len(self.samples)

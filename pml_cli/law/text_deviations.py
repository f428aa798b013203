"""Which text is an outlier? How far the gains of each text lie from the law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pml_cli.law.observations import Observations
from pml_cli.stats import Array

# A text is an outlier if it lies this far from the median of all, relative to the gain, and this
# many times as far as the typical text.
LEAST_DEVIATION = 0.1
LEAST_RATIO = 4.0
# Fewer texts cannot single out an outlier.
MIN_TEXTS = 3


@dataclass(frozen=True, kw_only=True)
class TextDeviation:
    """One text."""

    text: str
    """Name of the text, as in `observations.text_names`."""
    deviation: float
    """Median over its unsaturated cells of gain over law, less 1."""
    cells: int
    """Number of its unsaturated cells."""
    off: bool
    """Whether it stands apart from the other texts."""


def text_deviations(cells: Observations, predicted: Array) -> list[TextDeviation]:
    """Every text, in the order of their names.

    Args:
        predicted: (N,) gain by the law, nats per token.
    """
    observed = ~cells.saturated
    residual = (cells.delta / predicted - 1)[observed]
    text = np.asarray(cells.text)[observed]
    names = np.unique(text)
    medians = np.array([np.median(residual[text == name]) for name in names])

    # The typical distance is that of the nearer half, so that one text cannot hide itself.
    distance = np.abs(medians - np.median(medians)) if len(names) else medians
    scale = float(np.sort(distance)[len(names) // 2]) if len(names) else 0.0
    limit = max(LEAST_DEVIATION, LEAST_RATIO * scale)
    off = (distance > limit) & (len(names) >= MIN_TEXTS)
    return [
        TextDeviation(
            text=str(name),
            deviation=float(medians[k]),
            cells=int((text == name).sum()),
            off=bool(off[k]),
        )
        for k, name in enumerate(names)
    ]

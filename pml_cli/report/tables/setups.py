"""What tables of finished runs share: the title of a setup, means with their intervals."""

from __future__ import annotations

import math
from typing import Any

from pml_cli.analysis.deployment import SETUP
from pml_cli.format import MISSING


def setup_title(setup: dict[str, Any]) -> str:
    """What the runs of one table share.

    Args:
        setup: the columns SETUP.
    """
    settings = [
        f"{name} {setup[name]}"
        for name in SETUP
        if name not in ("model", "data", "adapter") and setup[name] != ""
    ]
    return f"{setup['model']}, {setup['data']}, {setup['adapter']}: {', '.join(settings)}"


def with_half_width(mean: float, half_width: float, spec: str) -> str:
    """A mean and half the width of its interval: 12.3 ±4.5."""
    if math.isnan(mean):
        return MISSING
    text = format(mean, spec)
    digits = spec.removeprefix("+")
    return text if math.isnan(half_width) else f"{text} ±{half_width:{digits}}"

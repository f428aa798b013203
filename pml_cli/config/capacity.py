"""What `pml capacity` asks for."""

from __future__ import annotations

from dataclasses import dataclass

from pml_cli.config.schema import Request


@dataclass(frozen=True, kw_only=True)
class CapacityRequest:
    """Adapters to be grown, and how."""

    request: Request
    """A run for each adapter and text, with its results folder and launch."""

    first: int | None
    """The first length, target tokens; None: by the rank."""

    resolution: int = 1
    """Target tokens between what is recalled and what is not, at the end."""

    passes: int | None = None
    """Most forward-backward passes of one growth; None: any number."""

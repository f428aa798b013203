"""pml: measure how much a LoRA adapter remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pml_cli.training.hf_trainer import MemFTCallback, MemFTLoss

__version__ = "0.1.0"
__all__ = ["MemFTCallback", "MemFTLoss", "__version__"]


def __getattr__(name: str) -> Any:
    """The drop-in's names, imported when first asked for: they need torch."""
    if name in ("MemFTCallback", "MemFTLoss"):
        from pml_cli.training import hf_trainer

        return getattr(hf_trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

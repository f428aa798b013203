"""pml: measure how much a LoRA adapter remembers.

`import pml_cli as pml`, then `pml.sweep`, `pml.fit`, `pml.runs` ... (`api.py`); `MemFTLoss` and
`MemFTCallback` are the losses for the Trainer of transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pml_cli.api import Law, fit, probe, runs, samples, sweep, tokens
    from pml_cli.errors import UserError
    from pml_cli.training.hf_trainer import MemFTCallback, MemFTLoss

__version__ = "0.1.0"
__all__ = [
    "Law",
    "MemFTCallback",
    "MemFTLoss",
    "UserError",
    "__version__",
    "fit",
    "probe",
    "runs",
    "samples",
    "sweep",
    "tokens",
]

# Imported when first asked for: the command line needs none of them for its help, and the drop-in
# losses need torch.
_MODULES = {
    "pml_cli.api": ("Law", "fit", "probe", "runs", "samples", "sweep", "tokens"),
    "pml_cli.errors": ("UserError",),
    "pml_cli.training.hf_trainer": ("MemFTCallback", "MemFTLoss"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """For completion: what is imported on demand, too."""
    return sorted({*globals(), *__all__})

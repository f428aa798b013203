"""Where a run happened: the body of env.json."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pml_cli.model.files import hub_commit
from pml_cli.model.split_model import SplitModel

PACKAGES = ("pml-cli", "torch", "transformers", "peft", "numpy", "pandas", "hydra-core")


def environment(base: SplitModel) -> dict[str, Any]:
    """Versions, machine, and the hash of the base's weights.

    Returns:
        the body of env.json, but for the hash of the samples.
    """
    versions = {name: _version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()

    return {
        "versions": versions,
        "platform": platform.platform(),
        "device": str(base.device),
        "dtype": str(base.dtype).removeprefix("torch."),
        "commit": _commit(),
        "base_weights": base.weights_hash(),
        "model_commit": hub_commit(base.settings),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of pml's checkout; None if it is installed otherwise."""
    # An installed wheel lies in no checkout.
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None

    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None

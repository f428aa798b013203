"""From settings to a frozen base: embedded, local, from the hub, or with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from .base import FrozenBase
from .config import TINY, Model
from .errors import UserError
from .pretrained import facts


def pick_device(asked: str) -> torch.device:
    """`auto` is CUDA where there is a device, else the CPU."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UserError(f"model.device={asked}: must be auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device={asked}: no CUDA device here; use auto or cpu")
    return device


def load_base(settings: Model) -> FrozenBase:
    """Load the model that the settings name; weights come from safetensors alone.

    Raises:
        UserError: not found, not a decoder-only model, or weights that are not safetensors.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device, dtype = pick_device(settings.device), getattr(torch, settings.dtype)
    known: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code, "revision": settings.revision}
    path = TINY if settings.path == "tiny" else settings.path
    facts(settings)  # one clear line where the model cannot be found
    if settings.weights == "random":
        return FrozenBase(_random_weights(settings, path, dtype, device, known), settings)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, **known)
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"model.path={settings.path}: {first}") from error
    return FrozenBase(model.to(device), settings)


def check_weights(settings: Model) -> None:
    """Refuse a local folder without safetensors before anything is loaded from it."""
    folder = Path(settings.path)
    if (
        settings.path != "tiny"
        and settings.weights == "pretrained"
        and folder.is_dir()
        and not any(folder.glob("*.safetensors"))
    ):
        raise UserError(f"model.path={settings.path}: no weights in safetensors there (*.safetensors)")


def _random_weights(
    settings: Model, path: Path | str, dtype: torch.dtype, device: torch.device, known: dict[str, Any]
) -> Any:
    import transformers

    try:
        if settings.architecture:
            config = transformers.AutoConfig.for_model(**settings.architecture)
        else:
            config = transformers.AutoConfig.from_pretrained(path, **known)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(0)
            return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise UserError(f"model.architecture: {' '.join(str(error).split())}") from error

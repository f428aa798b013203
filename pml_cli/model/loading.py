"""From settings to a frozen base: embedded, local, from the hub, or with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError, and_n_more, first_line
from pml_cli.model.device import out_of_memory, pick_device
from pml_cli.model.dims import is_streamed, model_dims
from pml_cli.model.split_model import SplitModel, find_layers
from pml_cli.model.streaming import Checkpoint, Stream, weightless

LISTED = 3  # names of missing weights in an error


def load_model(settings: Model) -> SplitModel:
    """Load the model that the settings name; weights come from safetensors alone.

    Raises:
        UserError: not found, not a decoder-only model, or weights that are not safetensors or not all of this model.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device, dtype = pick_device(settings.device), getattr(torch, settings.dtype)
    known: dict[str, Any] = {
        "trust_remote_code": settings.trust_remote_code,
        "revision": settings.revision,
    }
    path = TINY if settings.path == "tiny" else settings.path
    model_dims(settings)  # one clear line where the model cannot be found
    if settings.weights == "random":
        return SplitModel(_random_weights(settings, path, dtype, device, known), settings)
    if is_streamed(settings):
        return _streamed(settings, path, dtype, device, known)
    known |= {
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }  # told, refused below
    try:
        model, told = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **known)
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if out_of_memory(error):
            raise
        raise UserError(f"model.path={settings.path}: {first_line(error)}") from error
    _check_whole(settings, told)
    return SplitModel(model.to(device), settings)


def _check_whole(settings: Model, told: dict[str, Any]) -> None:
    """Refuse a model of whose weights transformers has drawn some at random: the files lack them, or have other shapes."""
    if missing := sorted(told["missing_keys"]):
        names = ", ".join(and_n_more(missing, LISTED))
        raise UserError(f"model.path={settings.path}: its weights have no {names}")
    for name, found, wanted in sorted(told["mismatched_keys"]):
        shapes = f"{tuple(found)} in its weights, {tuple(wanted)} by its config.json"
        raise UserError(f"model.path={settings.path}: {name} is {shapes}")


def _streamed(
    settings: Model,
    path: Path | str,
    dtype: torch.dtype,
    device: torch.device,
    known: dict[str, Any],
) -> SplitModel:
    """A base whose layers have weights only while they run, or while training needs them."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(path, **known)
        with torch.random.fork_rng(devices=[]), weightless():
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=settings.trust_remote_code
            )
        model.tie_weights()
        return SplitModel(model, settings, _stream(model, settings, device))
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"model.path={settings.path}: {first_line(error)}") from error


def _stream(model: Any, settings: Model, device: torch.device) -> Stream:
    """Give a model without weights those that stay: all but the layers', and the embeddings' where the head has its own."""
    stream = Stream(model, Checkpoint(settings, model.base_model_prefix), device)
    inputs, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = inputs.weight is output.weight
    passing = [*find_layers(model, settings), *([] if tied else [inputs])]
    for module in passing:
        stream.watch(module)
    apart = {part for module in passing for part in module.modules()} | (
        {output} if tied else set()
    )
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            module._buffers[key] = buffer.to(device)
        if module not in apart:
            stream.fill_own(module)
    if tied:
        model.tie_weights()
    return stream


def check_weights(settings: Model) -> None:
    """Refuse a local folder without safetensors before anything is loaded from it."""
    folder = Path(settings.path)
    if (
        settings.path != "tiny"
        and settings.weights == "pretrained"
        and folder.is_dir()
        and not any(folder.glob("*.safetensors"))
    ):
        raise UserError(
            f"model.path={settings.path}: no weights in safetensors there (*.safetensors)"
        )


def _random_weights(
    settings: Model,
    path: Path | str,
    dtype: torch.dtype,
    device: torch.device,
    known: dict[str, Any],
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

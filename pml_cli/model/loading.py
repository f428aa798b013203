"""From settings to a `SplitModel`: embedded, local, GGUF, from the hub, or with random weights."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pml_cli.config.schema import Model
from pml_cli.errors import UserError, and_n_more
from pml_cli.model.device import pick_device, usable_memory
from pml_cli.model.dims import is_streamed, model_dims
from pml_cli.model.faults import one_line
from pml_cli.model.files import local_folder, locate
from pml_cli.model.gguf import dequantising, gguf_file, isolated
from pml_cli.model.model_config import model_config
from pml_cli.model.modules import find_decoder
from pml_cli.model.split_model import SplitModel
from pml_cli.model.streaming import WeightFiles, WeightStream, check_files

# Names of missing weights in an error.
MAX_NAMES = 3

# What transformers puts onto a model by itself where it lies beside the weights.
ADAPTER_CONFIG = "adapter_config.json"


def load_model(settings: Model) -> SplitModel:
    """Load a model; weights are read from safetensors or GGUF only.

    Where `stream` is None, it is as if this process had the whole device: a worker that shares it
    is told by the plan (`Pack.model`).

    Args:
        settings: of the model.

    Raises:
        UserError: the model is not found, is not decoder-only, or its weights are not in
            safetensors or GGUF, or incomplete.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    device = pick_device(settings.device)
    # Reports in one clear line if there is no such model.
    model_dims(settings)
    if settings.weights == "random":
        return _split(_random_model(settings).to(device), settings)

    _refuse_adapter(settings)
    if is_streamed(settings, usable_memory(device)):
        return _streamed_model(settings, device)
    return _split(_whole_model(settings).to(device), settings)


def _split(model: Any, settings: Model, stream: WeightStream | None = None) -> SplitModel:
    with one_line(f"model={settings.name}", "this family is not supported"):
        return SplitModel(model, settings, stream)


def _path(settings: Model) -> Path | str:
    """What transformers reads the config from, and the weights where they are in safetensors."""
    return local_folder(settings) or settings.path


def _dtype(settings: Model) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def _hub_options(settings: Model) -> dict[str, Any]:
    """Keyword arguments of transformers' `from_pretrained`."""
    return {
        "trust_remote_code": settings.trust_remote_code,
        "revision": settings.revision,
    }


def _whole_model(settings: Model) -> Any:
    """A model of transformers with all its weights, on the CPU."""
    file = gguf_file(settings.path)
    with one_line(f"model.path={settings.path}"):
        if file is not None:
            model, info = _dequantised_model(file, settings)
        else:
            source = {"pretrained_model_name_or_path": _path(settings)} | _hub_options(settings)
            source["config"] = model_config(settings)
            model, info = _from_pretrained(settings, source)

    _check_complete(settings, info)
    return model


def _from_pretrained(settings: Model, source: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model of transformers and its loading info.

    Args:
        settings: of the model.
        source: keyword arguments that say what it is loaded from.
    """
    import transformers

    loaded: tuple[Any, dict[str, Any]] = transformers.AutoModelForCausalLM.from_pretrained(
        dtype=_dtype(settings),
        use_safetensors=True,
        # Mismatches are refused later, with a message of ours.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **source,
    )
    return loaded


def _dequantised_model(file: Path, settings: Model) -> tuple[Any, dict[str, Any]]:
    """A model from a GGUF file, dequantised; its config is that of a model never quantised."""
    # transformers draws a bar of its own, which no setting switches off; errors are raised.
    with isolated(file) as source, redirect_stderr(io.StringIO()):
        # The config of the cache folder, because reading it from the file takes seconds.
        source["config"] = model_config(settings)
        model, info = _from_pretrained(settings, source | dequantising())

    # Otherwise transformers and PEFT would treat the model as a quantised one.
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    return model, info


def _check_complete(settings: Model, info: dict[str, Any]) -> None:
    """Refuse a model of whose weights transformers has drawn some at random.

    Args:
        settings: of the model.
        info: transformers' loading info.

    Raises:
        UserError: the files lack weights, or have some of another shape.
    """
    if info["missing_keys"]:
        names = ", ".join(and_n_more(sorted(info["missing_keys"]), MAX_NAMES))
        raise UserError(f"model.path={settings.path}: its weights have no {names}")

    for name, file_shape, model_shape in sorted(info["mismatched_keys"]):
        shapes = f"{tuple(file_shape)} in its weights, {tuple(model_shape)} by its config.json"
        raise UserError(f"model.path={settings.path}: {name} is {shapes}")


def _streamed_model(settings: Model, device: torch.device) -> SplitModel:
    """A model whose layers have weights only while they run, or while training needs them."""
    import transformers
    from accelerate import init_empty_weights

    with one_line(f"model.path={settings.path}"):
        # Initialisation draws random numbers; the caller's generator must not notice.
        with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            model = transformers.AutoModelForCausalLM.from_config(
                model_config(settings),
                dtype=_dtype(settings),
                trust_remote_code=settings.trust_remote_code,
            )
        model.tie_weights()
        stream = _weight_stream(model, settings, device)
    return _split(model, settings, stream)


def _weight_stream(model: Any, settings: Model, device: torch.device) -> WeightStream:
    """Read the weights that stay, and stream the others.

    Streamed are the decoder layers, and the input embeddings if the head has weights of its own.
    """
    # Some files leave out the prefix of the decoder, such as "transformer." of GPT-2.
    files = WeightFiles(settings, model.base_model_prefix)
    stream = WeightStream(model, files, device)
    embeddings = model.get_input_embeddings()
    head = model.get_output_embeddings()
    is_tied = embeddings.weight is head.weight

    streamed: list[nn.Module] = list(find_decoder(model, settings)[1])
    if not is_tied:
        streamed.append(embeddings)
    for module in streamed:
        stream.watch(module)

    excluded = _submodules(streamed)
    if is_tied:
        excluded.add(head)
    for module in model.modules():
        stream.fill_buffers(module)
        if module not in excluded:
            stream.fill_own(module)

    if is_tied:
        # The embeddings have new weights; tie the head to them again.
        model.tie_weights()
    return stream


def _submodules(modules: Iterable[nn.Module]) -> set[nn.Module]:
    """These modules and all modules inside them."""
    return {submodule for module in modules for submodule in module.modules()}


def check_weights(settings: Model) -> None:
    """Refuse a local folder whose weights cannot be used before anything is loaded from it.

    Raises:
        UserError: the folder has neither *.safetensors nor a GGUF file, or damaged ones, or an
            adapter lies beside them; or layers of a GGUF file are to be streamed.
    """
    folder = Path(settings.path)
    is_local = settings.path != "tiny" and folder.exists()
    if settings.weights != "pretrained" or not is_local:
        return
    if gguf_file(settings.path) is not None:
        # Reports what cannot be read one layer at a time.
        is_streamed(settings, None)
        return

    _refuse_adapter(settings)
    check_files(settings)


def _refuse_adapter(settings: Model) -> None:
    """Refuse a model beside whose weights an adapter lies.

    transformers would put it onto the model, so that the base were not what its files hold.
    """
    if gguf_file(settings.path) is None and locate(settings, ADAPTER_CONFIG) is not None:
        reason = f"an adapter lies beside the weights ({ADAPTER_CONFIG})"
        remedy = "move it elsewhere, or merge it into the weights first"
        raise UserError(f"model.path={settings.path}: {reason}; {remedy}")


def _random_model(settings: Model) -> Any:
    """A model of transformers with random weights, the same each time and for every device."""
    import transformers

    setting = "model.architecture" if settings.architecture else f"model.path={settings.path}"
    # The caller's generators must not notice the draws. A GPU's generator draws other numbers.
    with one_line(setting), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(
            model_config(settings),
            dtype=_dtype(settings),
            trust_remote_code=settings.trust_remote_code,
        )

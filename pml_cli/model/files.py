"""The files of a model (embedded, local, GGUF or from the Hugging Face hub), and its config.json.

Without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError, first_line
from pml_cli.model.gguf import config_folder, gguf_file

# Where transformers looks for weights: in one file, or in those that an index names.
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def locate(model: Model, name: str) -> Path | None:
    """Path of one file of a model; a file on the hub is downloaded once.

    Args:
        model: settings of the model.
        name: file name, such as "config.json".

    Returns:
        The path, or None if the model has no such file.

    Raises:
        UserError: the local folder or file does not exist or cannot be read, or the hub refuses or
            cannot be reached.
    """
    folder = local_folder(model)
    if folder is not None:
        return _existing(folder / name)

    # Nothing is downloaded for random weights of an architecture that the settings spell out.
    if model.weights == "random" and model.architecture:
        return None

    if model.path.startswith(("/", ".", "~")):
        raise UserError(f"model.path={model.path}: no such folder or file")
    return _download(model.path, name, model.revision)


def local_folder(model: Model) -> Path | None:
    """The folder with a model's config and tokenizer; None for a model on the hub.

    For a GGUF file it is one of the cache, made from what the file holds.
    """
    if model.path == "tiny":
        return TINY
    file = gguf_file(model.path)
    if file is not None:
        return config_folder(file)
    folder = Path(model.path)
    return folder if folder.is_dir() else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


@lru_cache(maxsize=64)
def _download(repository: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
    from huggingface_hub.utils import logging

    # Hides the warnings about retries.
    logging.set_verbosity_error()
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        reason = "no such local folder, not in the cache, and the hub cannot be reached"
        raise UserError(f"model.path={repository}: {reason}") from error
    # A gated repository, a misspelt name, missing rights: many exception types, one remedy.
    except Exception as error:
        reason = f"no such local folder, and the hub says: {first_line(error)}"
        raise UserError(f"model.path={repository}: {reason}") from error


def local_weights(model: Model) -> list[Path]:
    """The files with a model's weights, as far as they are on this machine; none is downloaded.

    Args:
        model: settings of a model with pretrained weights.

    Returns:
        The GGUF file, or all safetensors files; none where one is missing.
    """
    file = gguf_file(model.path)
    if file is not None:
        return [file]
    folder = local_folder(model)
    if folder is not None:
        return _safetensors(lambda name: _existing(folder / name))
    return _safetensors(partial(_downloaded, model.path, revision=model.revision))


def fetch_weights(model: Model) -> None:
    """Download the weights of a model on the hub, if they are not on this machine yet.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    if local_folder(model) is None:
        _safetensors(partial(locate, model))


def _safetensors(find: Callable[[str], Path | None]) -> list[Path]:
    """A model's safetensors files; none where one of them is missing.

    Args:
        find: the path of one file by its name; None where there is none.
    """
    index = find(INDEX_FILE)
    names = [WEIGHTS_FILE]
    if index is not None:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))

    files = []
    for name in names:
        path = find(name)
        if path is None:
            return []
        files.append(path)
    return files


def _downloaded(repository: str, name: str, revision: str | None) -> Path | None:
    """A file of the hub that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name, revision=revision)
    # A marker where the hub is known to have no such file.
    return Path(path) if isinstance(path, str) else None


def config_fields(model: Model) -> dict[str, Any]:
    """Fields of a model's config.json; of a multimodal model, those of its text part.

    Raises:
        UserError: there is no config.json, or it is not JSON.
    """
    if model.weights == "random" and model.architecture:
        fields = model.architecture
    else:
        fields = _read_config(model)
    # A copy, since callers may change it.
    return dict(fields.get("text_config", fields))


def _read_config(model: Model) -> dict[str, Any]:
    path = locate(model, "config.json")
    if path is None:
        raise UserError(f"model.path={model.path}: has no config.json")

    try:
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        message = f"model.path={model.path}: its config.json is not JSON ({error})"
        raise UserError(message) from error
    return fields

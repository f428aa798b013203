"""The files of a model (embedded, local or from the Hugging Face hub), and its config.json.

Without torch.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError, first_line


def locate(model: Model, name: str) -> Path | None:
    """Path of one file of a model; a file on the hub is downloaded once.

    Args:
        model: settings of the model.
        name: file name, such as "config.json".

    Returns:
        The path, or None if the model has no such file.

    Raises:
        UserError: the local folder does not exist, or the hub refuses or cannot be reached.
    """
    if model.path == "tiny":
        return _existing(TINY / name)

    if Path(model.path).is_dir():
        return _existing(Path(model.path) / name)

    # Nothing is downloaded for random weights of an architecture that the settings spell out.
    if model.weights == "random" and model.architecture:
        return None

    if model.path.startswith(("/", ".", "~")):
        raise UserError(f"model.path={model.path}: no such folder")
    return _download(model.path, name, model.revision)


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

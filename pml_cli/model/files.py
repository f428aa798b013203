"""The files of a model: embedded, local, GGUF or from the Hugging Face hub. Without torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError, first_line
from pml_cli.model.gguf import config_folder, gguf_file


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


def hub_id(model: Model) -> str | None:
    """The name of a model on the hub; None for one of this machine, and for no files at all."""
    is_made_up = model.weights == "random" and bool(model.architecture)
    return None if is_made_up or local_folder(model) is not None else model.path


def hub_commit(model: Model) -> str | None:
    """The commit of a hub model's files, as the hub's cache knows it; None for other models."""
    config = locate(model, "config.json") if hub_id(model) else None
    # The cache is models--OWNER--NAME/snapshots/COMMIT/config.json.
    if config is None or config.parent.parent.name != "snapshots":
        return None
    return config.parent.name


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
        # Without the hub, what is not in the cache of a model counts as not there at all.
        if downloaded(repository, "config.json", revision) is not None:
            return None
        reason = "no such local folder, not in the cache, and the hub cannot be reached"
        raise UserError(f"model.path={repository}: {reason}") from error
    # A gated repository, a misspelt name, missing rights: many exception types, one remedy.
    except Exception as error:
        reason = f"no such local folder, and the hub says: {first_line(error)}"
        raise UserError(f"model.path={repository}: {reason}") from error


def downloaded(repository: str, name: str, revision: str | None) -> Path | None:
    """A file of a repository on the hub that was downloaded before; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name, revision=revision)
    # A marker where the hub is known to have no such file.
    return Path(path) if isinstance(path, str) else None

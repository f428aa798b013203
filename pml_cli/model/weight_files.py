"""Which safetensors files hold a model's weights, and whether they are on this machine.

Without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from annotated_types import MinLen
from pydantic import StringConstraints
from typing_extensions import TypedDict

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.faults import named_model
from pml_cli.model.file_hash import INDEX_FILE, WEIGHTS_FILE
from pml_cli.model.files import downloaded, local_folder, locate
from pml_cli.model.gguf import gguf_file
from pml_cli.model.model_config import config_fields
from pml_cli.validation import read_json

INDEX_SUFFIX = ".index.json"

# A file of the model's own folder, and of no other.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][^/\\\x00-\x1f]*$")]


class IndexFields(TypedDict):
    """model.safetensors.index.json: the file of each tensor."""

    weight_map: Annotated[dict[str, FileName], MinLen(1)]


# The path of one file of a model by its name; None where there is none.
Find = Callable[[str], Path | None]


def shard_names(model: Model, find: Find) -> list[str]:
    """Names of a model's safetensors files, as transformers looks for them.

    Args:
        model: settings of a model that is no GGUF file.
        find: where to look.

    Raises:
        UserError: the file that names them is damaged.
    """
    # A config.json may name the file itself.
    named = config_fields(model).get("transformers_weights")
    names = [WEIGHTS_FILE, INDEX_FILE] if named is None else [str(named)]

    for name in names:
        path = find(name)
        if path is None:
            continue
        if not path.name.endswith(INDEX_SUFFIX):
            return [name]

        with named_model(model):
            content = read_json(path, IndexFields, "copy the model anew")
        return sorted(set(content["weight_map"].values()))
    return names[:1]


def local_weights(model: Model) -> list[Path]:
    """The files with a model's weights, as far as they are on this machine; none is downloaded.

    Args:
        model: settings of a model with pretrained weights.

    Returns:
        The GGUF file, or all safetensors files; none where one is missing.

    Raises:
        UserError: the file that names them is damaged.
    """
    file = gguf_file(model.path)
    if file is not None:
        return [file]

    find = _find_here(model)
    files = []
    for name in shard_names(model, find):
        path = find(name)
        if path is None:
            return []
        files.append(path)
    return files


def fetch_weights(model: Model) -> None:
    """Download the weights of a model on the hub, if they are not on this machine yet.

    Raises:
        UserError: the hub refuses, cannot be reached, or has no weights in safetensors.
    """
    if local_folder(model) is not None:
        return
    find = partial(locate, model)
    for name in shard_names(model, find):
        if find(name) is None:
            reason = f"{name} is not on this machine, and the hub has none or cannot be reached"
            raise UserError(f"model.path={model.path}: {reason}")


def _find_here(model: Model) -> Find:
    folder = local_folder(model)
    if folder is None:
        return partial(downloaded, model.path, revision=model.revision)

    def find(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    return find

"""GGUF files (of llama.cpp) as base models: which file a path means, and what is read from it.

A GGUF file holds config, tokenizer and weights. transformers reads it, with the package `gguf` (the
extra `pml-cli[gguf]`), and dequantises the weights. Config and tokenizer are written to the cache
folder once, as `save_pretrained` writes them, so that everything that reads a model's folder reads
them too; the weights are read from the file itself with every load.

Without torch, except where a file is seen for the first time.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError, and_n_more, first_line
from pml_cli.io import cache_folder, named_for, refused_in_rust, remove, temporary_path
from pml_cli.model.file_hash import sampled_hash
from pml_cli.model.gguf_layout import is_gguf, read_layout
from pml_cli.validation import load_json, read_regular

SUFFIX = ".gguf"
CONFIG_FILE = "config.json"

# Beside it: SHA-256 of the other files, so that a damaged folder is converted anew.
DIGESTS_FILE = "sha256.json"

# Files of a folder that an error names.
MAX_NAMES = 3

# Tensors that scale the frequencies of RoPE.
ROPE_TENSORS = ("rope_freqs.", "rope_factors_")

# What determines the files that are written to the cache; another version may write others.
CONVERTERS = ("transformers", "tokenizers", "gguf")


def gguf_file(path: str) -> Path | None:
    """The GGUF file that a `model.path` means.

    Args:
        path: a file, a folder, `tiny`, or a name on the hub.

    Returns:
        The file itself, or the only GGUF file of a folder without config.json; None if the path
        means no GGUF file.

    Raises:
        UserError: there is no such file, or the folder has several.
    """
    if path == "tiny":
        return None
    location = Path(path)
    if location.is_file():
        return location
    if not location.is_dir():
        if location.suffix.lower() == SUFFIX:
            raise UserError(f"model.path={path}: no such file")
        return None
    if (location / CONFIG_FILE).is_file():
        return None

    files = [file for file in sorted(location.iterdir()) if _is_visible_gguf(file)]
    if len(files) > 1:
        names = ", ".join(and_n_more([file.name for file in files], MAX_NAMES))
        raise UserError(f"model.path={path}: has several GGUF files; name one of them: {names}")
    return files[0] if files else None


def _is_visible_gguf(file: Path) -> bool:
    # macOS leaves ._NAME beside NAME on foreign disks.
    is_hidden = file.name.startswith(".")
    return file.suffix.lower() == SUFFIX and not is_hidden and file.is_file()


def base_path(model: Model) -> str:
    """What transformers and PEFT are to load a base model from, for adapter_config.json.

    An absolute path, or a name on the hub. Of a GGUF file it is its folder, as PEFT itself writes
    it: there, `from_pretrained` takes the file's name as `gguf_file`.
    """
    file = gguf_file(model.path)
    if file is not None:
        return str(file.absolute().parent)
    folder = TINY if model.path == "tiny" else Path(model.path)
    return str(folder.absolute()) if folder.is_dir() else model.path


@contextmanager
def isolated(file: Path) -> Iterator[dict[str, Any]]:
    """Arguments of transformers' `from_pretrained` for a GGUF file, while inside.

    The file is linked into a folder of its own: transformers would also read what lies beside it,
    such as an adapter or the tokenizer of another model.
    """
    with tempfile.TemporaryDirectory(prefix="pml-gguf-") as folder:
        link = Path(folder) / f"model{SUFFIX}"
        link.symlink_to(file.resolve())
        yield {"pretrained_model_name_or_path": folder, "gguf_file": link.name}


def dequantising() -> dict[str, Any]:
    """Arguments of `from_pretrained` that dequantise all weights of a GGUF file."""
    import transformers

    # Only versions that can also leave them quantised have it, for which adapters are no match.
    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def config_folder(file: Path) -> Path:
    """A folder with config.json and the tokenizer of a GGUF file, without weights.

    It lies in the cache folder, by the content of the file; where the cache cannot be written, it
    is made anew by every process.

    Raises:
        UserError: the package gguf is missing, or transformers cannot read the file.
    """
    _check_readable(file)
    status = file.stat()
    return _config_folder(file.resolve(), status.st_size, status.st_mtime_ns)


def _check_readable(file: Path) -> None:
    if not is_gguf(file):
        raise UserError(
            f"model.path={file}: is a file, but not a GGUF file; must be a folder or GGUF"
        )
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.path={file}: GGUF needs an extra: pip install 'pml-cli[gguf]'")


# Size and time tell a file that was replaced.
@lru_cache(maxsize=16)
def _config_folder(file: Path, _size: int, _mtime_ns: int) -> Path:
    versions = [f"{name} {metadata.version(name)}" for name in CONVERTERS]
    key = hashlib.sha256(repr([sampled_hash(file), versions]).encode()).hexdigest()
    folder = cache_folder() / "gguf" / key[:32]
    if _is_complete(folder):
        return folder

    try:
        return _write_config_folder(file, folder)
    # A cache that cannot be written is no fault.
    except OSError:
        temporary = Path(tempfile.mkdtemp(prefix="pml-gguf-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        return _write_config_folder(file, temporary / "config")


def _is_complete(folder: Path) -> bool:
    """Whether all files are as they were written."""
    try:
        digests = load_json(folder / DIGESTS_FILE, "")
        return bool(digests == _digests(folder))
    except (OSError, UserError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its name.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(file for file in folder.iterdir() if file.name != DIGESTS_FILE)
    return {file.name: hashlib.sha256(read_regular(file)[0]).hexdigest() for file in files}


def _set_aside(folder: Path) -> None:
    """Remove what is damaged, or was written by an earlier version; a link, not what it leads to.

    Raises:
        OSError: it cannot be removed.
    """
    if not (folder.is_symlink() or folder.exists()):
        return
    # Renamed first, so that another process finds all of it or nothing.
    removed = temporary_path(folder)
    folder.rename(removed)
    remove(removed)


def _write_config_folder(file: Path, folder: Path) -> Path:
    """Write config and tokenizer; another process may write the same folder at the same time.

    Raises:
        OSError: the disk refuses; it names `folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(folder)
    temporary.mkdir()
    try:
        _convert(file, temporary)
        # Another process may have been first.
        if not _is_complete(folder):
            _set_aside(folder)
            temporary.rename(folder)
    except OSError as error:
        # Another process was first.
        if not _is_complete(folder):
            raise named_for(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Write config.json, tokenizer.json, tokenizer_config.json and the chat template."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        with isolated(file) as source:
            config = transformers.AutoConfig.from_pretrained(**source)
            tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    # Families, tokenizers and formats that transformers lacks: many exception types, one remedy.
    except Exception as error:
        reason = f"transformers cannot read this GGUF file: {first_line(error)}"
        raise UserError(f"model.path={file}: {reason}") from error

    _refuse_unread_rope(file, config)
    try:
        tokenizer.save_pretrained(folder)
    # Of a full disk, too, tokenizers raises a plain Exception.
    except Exception as error:
        refusal = refused_in_rust(error, folder)
        if refusal is None:
            raise
        raise refusal from error
    # All of them: a size that is the class's default counts, too.
    fields = json.loads(config.to_json_string(use_diff=False))
    # The weights are dequantised; the name is that of the temporary link.
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(name, None)
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(f"{text}\n", "utf-8")
    (folder / DIGESTS_FILE).write_text(json.dumps(_digests(folder)), "utf-8")


def _refuse_unread_rope(file: Path, config: Any) -> None:
    """Refuse a file whose RoPE scaling transformers leaves out without a word.

    Llama 3.1 and later keep it in a tensor, other models in their metadata.

    Raises:
        UserError: the file has a scaling, and the config has none.
    """
    # Where layers differ in their RoPE, there is a mapping of each kind of layer.
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        parameters = {"every layer": parameters}
    if any(rope["rope_type"] != "default" for rope in parameters.values()):
        return

    layout = read_layout(file)
    found = [name for name in layout.tensor_names if name.startswith(ROPE_TENSORS)]
    for key, value in layout.texts.items():
        if key.endswith(".rope.scaling.type") and value != "none":
            found.append(f"{key}={value}")
    if found:
        reason = f"transformers does not read the RoPE scaling of this GGUF file ({found[0]})"
        raise UserError(f"model.path={file}: {reason}; use the model in safetensors instead")

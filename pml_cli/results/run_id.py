"""What makes two runs the same: the id of a run, and the settings that tell it from others.

Where a run happens (device, worker, folder) does not count. A data file counts by its text,
whatever its line ends; a local model by the bytes of its config.json and tokenizer and by its
weights (`model/file_hash.py`). So a moved or renamed file keeps its runs, a changed one gets new
ones, and so does a model that another version of transformers has saved again.

Hashes of a model's weights: `model_hash` here decides the id, before anything is loaded;
`model/weight_hash.py` is written to env.json, of the weights as they were loaded.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pml_cli.config.cache_key import file_cache
from pml_cli.config.load import shipped_settings
from pml_cli.config.option_files import options
from pml_cli.config.schema import FORMAT, ONLY_OF_PENALTIES, TINY, Loss, Run
from pml_cli.config.setting import absent_values, path_names
from pml_cli.data.generic_text import keep_hash
from pml_cli.io import all_files
from pml_cli.model.file_hash import WEIGHTS_SUFFIX, sampled_hash, tensors_hash, weight_files
from pml_cli.model.gguf import gguf_file
from pml_cli.model.tokenizer_backend import TOKENIZER_FILES

GROUPS = ("model", "data", "adapter", "loss", "train")
DISCRIMINATORS = ("source", "kind")

# Settings of the model that change where and how it is computed, not what.
NOT_SCIENTIFIC = ("device", "stream", "checkpointing", "compile", "name")

# Settings that result.json has fields of their own for, or that change no number in it.
HAVE_COLUMNS = {
    "data": {"source", "seed"},
    "adapter": {"kind"},
    "train": {"lr", "steps", "epochs", "log_every", "decode"},
}

# Settings that are shown as a hash, beside those that are paths.
LONG_VALUES = ("text", "architecture")


def run_id(run: Run) -> str:
    """A readable name and a hash of the scientific settings that differ from their defaults."""
    readable = f"{run.model.name}-{run.data.source}-r{run.rank}-l{run.seqlen}-s{run.seed}"
    settings = {"format": FORMAT} | scientific_settings(run)
    canonical = json.dumps(settings, sort_keys=True)
    return f"{readable}-{_short_hash(canonical, 10)}"


def scientific_settings(run: Run) -> dict[str, Any]:
    """The settings that can change a result, as plain values.

    Those at their defaults are left out, so that a new setting leaves the ids of old runs alone.
    The run must be resolved (`data/resolve.py`): of an automatic value, what it stands for counts.
    """
    settings = {group: changed_settings(getattr(run, group)) for group in GROUPS}
    for name in NOT_SCIENTIFIC:
        settings["model"].pop(name, None)

    # Always: a later version of pml may ship another embedded model.
    settings["model"]["path"] = model_hash(run.model.path)

    settings["loss"] = _loss_settings(run.loss) | run.loss.id_fields()
    if run.loss.keeps and run.loss.keep_text is None:
        # Other versions of pml may carry other texts.
        settings["loss"]["keep_text"] = keep_hash()
    if run.train.optimizer != "adamw":
        # Also when it is the default, which may change in a later version.
        settings["train"]["lr"] = run.train.peak_lr
    settings["data"] |= run.data.id_fields()
    # The default of a chat template is neither an automatic value nor the empty turn of earlier
    # versions.
    if run.data.chat and run.data.system is None:
        settings["data"]["system"] = None
    # A file by its content: a moved one is the same data, a changed one is not.
    for group in GROUPS[1:]:
        for name in _paths_of(getattr(run, group)):
            if settings[group].get(name) and getattr(getattr(run, group), name):
                settings[group][name] = content_hash(settings[group][name])

    return {"rank": run.rank, "seqlen": run.seqlen, "seed": run.seed, **settings}


def settings_label(run: Run) -> str:
    """What tells a run from others beyond the fields of result.json: `train.batch=4`.

    Returns:
        The settings that are not at their defaults, separated by spaces.
    """
    hidden = {"model": _hidden_model_settings(run)} | HAVE_COLUMNS
    settings = scientific_settings(run)

    entries = []
    for group, hidden_names in hidden.items():
        for name, value in settings[group].items():
            if name in hidden_names:
                continue
            is_long = name in LONG_VALUES or name in _paths_of(getattr(run, group))
            text = _short_hash(str(value), 6) if is_long else _one_line(value)
            entries.append(f"{group}.{name}={text}")
    return " ".join(entries)


def _one_line(value: Any) -> str:
    """A value in the label of a run, which is a cell of a table: a line feed as backslash and n."""
    # As on the command line, where None is a text.
    text = "null" if value is None else str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def _paths_of(settings: Any) -> list[str]:
    """Names of the settings that are paths."""
    settings_class: Any = type(settings)
    return path_names(settings_class)


def _short_hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _hidden_model_settings(run: Run) -> set[str]:
    hidden = set()
    # The name says which embedded or hub model it is.
    if run.model.path == "tiny" or not Path(run.model.path).exists():
        hidden.add("path")
    if run.model.weights != "random":
        hidden.add("architecture")
    return hidden


def loss_label(loss: Loss) -> str:
    """The option of `loss=` that a loss is, else its kind with its changed settings.

    So memft_margin_facts, or memft_ot(threshold=0.5).
    """
    if not loss.keeps:
        unread = {name: getattr(Loss(), name) for name in ONLY_OF_PENALTIES}
        loss = dataclasses.replace(loss, **unread)
    for option, shipped_loss in _shipped_losses().items():
        if loss == shipped_loss:
            return option
    return _kind_label(loss)


@cache
def option_labels() -> dict[str, str]:
    """Labels of losses in runs of earlier versions, to those of now: memft_margin(switch=1.0)."""
    return {_kind_label(loss): option for option, loss in _shipped_losses().items()}


@cache
def _shipped_losses() -> dict[str, Loss]:
    """The options of conf/loss."""
    return {option: shipped_settings("loss", option) for option in options("loss")}


def _kind_label(loss: Loss) -> str:
    settings = _loss_settings(loss)
    settings.pop("kind", None)
    if "keep_text" in settings:
        settings["keep_text"] = _short_hash(content_hash(settings["keep_text"]), 6)
    changed = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{loss.kind}({changed})" if changed else loss.kind


def _loss_settings(loss: Loss) -> dict[str, Any]:
    """`changed_settings` of a loss, without settings that no penalty reads."""
    settings = changed_settings(loss)
    if not loss.keeps:
        for name in ONLY_OF_PENALTIES:
            settings.pop(name, None)
    return settings


def changed_settings(settings: Any) -> dict[str, Any]:
    """The settings of a dataclass that differ from their defaults, and its source or kind.

    A value equal to `absent`, the behaviour before the setting existed, is left out like the
    default, so that the ids of old runs do not change.
    """
    settings_class: Any = type(settings)
    defaults = _defaults(settings_class)
    absent = _absent(settings_class)

    # vars, not asdict, which is slow for ten thousand cells: settings are not nested.
    changed = {}
    for name, value in vars(settings).items():
        default = defaults[name]
        is_default = value in (default, absent.get(name, default))
        if is_default and name not in DISCRIMINATORS:
            continue
        # -0.0 equals 0.0, but is written differently.
        changed[name] = 0.0 if isinstance(value, float) and value == 0 else value
    return changed


@lru_cache(maxsize=64)
def _defaults(settings_class: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = vars(settings_class())
    return defaults


@lru_cache(maxsize=64)
def _absent(settings_class: Any) -> dict[str, Any]:
    return absent_values(settings_class)


def model_hash(path: str) -> str:
    """A name for the base model at a path.

    The same files are the same model in whatever folder and under whatever name.

    Args:
        path: a folder, a GGUF file, `tiny`, or a name on the hub.

    Returns:
        A hash of the content; a name on the hub as it is.
    """
    file = gguf_file(path)
    if file is not None:
        return _gguf_hash(str(file))
    folder = TINY if path == "tiny" else Path(path)
    return _folder_hash(path) if (folder / "config.json").is_file() else path


@file_cache(256)
def _gguf_hash(path: str) -> str:
    return sampled_hash(Path(path))


@file_cache(256)
def _folder_hash(path: str) -> str:
    folder = TINY if path == "tiny" else Path(path)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    if path == "tiny":
        # As in the first version, so that runs of the embedded model keep their ids.
        sizes = [(file.name, file.stat().st_size) for file in weight_files(folder)]
        digest.update(repr(sizes).encode())
        names = ["model.safetensors", "tokenizer.json"]
    else:
        samples = [(file.name, sampled_hash(file)) for file in weight_files(folder)]
        digest.update(repr(samples).encode())
        names = _tokenizer_files(folder)

    for name in names:
        file = folder / name
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _tokenizer_files(folder: Path) -> list[str]:
    """Names of the files that make a tokenizer, and the chat template."""
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    # It holds all that the others hold; they often lie beside it unread.
    if (folder / "tokenizer.json").is_file():
        return names
    older_names = ["vocab.json", "merges.txt", "tokenizer.model", "special_tokens_map.json"]
    return list(dict.fromkeys([*names, *older_names, *TOKENIZER_FILES]))


@file_cache(256)
def content_hash(path: str) -> str:
    """A name for the data at a path.

    Args:
        path: a file, a folder, or what a source of its own knows how to name.

    Returns:
        A hash of the content of the file (of weights: of the tensors), or of all files in the
        folder with their names in it; anything else as it is.
    """
    location = Path(path)
    if location.is_file() and location.suffix == WEIGHTS_SUFFIX:
        return tensors_hash(location)
    if location.is_file():
        return hashlib.sha256(_unix_text(location.read_bytes())).hexdigest()
    if not location.is_dir():
        return path

    digest = hashlib.sha256()
    for file in all_files(location):
        name = file.relative_to(location)
        # Hidden files and folders are caches, and what macOS leaves.
        is_hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not is_hidden:
            digest.update(f"{name.as_posix()} {content_hash(str(file))}\n".encode())
    return digest.hexdigest()


def _unix_text(content: bytes) -> bytes:
    """A text without a byte order mark and with Unix line ends, as sources read it."""
    # A text has no zero bytes; a parquet file has.
    if b"\0" in content:
        return content
    return content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n")

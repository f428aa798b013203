"""What makes two runs the same: the id of a run, and the settings that tell it from others.

Where a run happens (device, worker, folder) does not count. A data file counts by its content, a
local model by its config, tokenizer and weights (`model/file_hash.py`); so a moved file keeps its
runs and a changed one gets new ones.

Hashes of a model's weights: `model_hash` here decides the id, before anything is loaded;
`model/weight_hash.py` is written to env.json, of the weights as they were loaded.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pml_cli.config.schema import FORMAT, TINY, Loss, Run
from pml_cli.config.setting import absent_values
from pml_cli.model.file_hash import sampled_hash
from pml_cli.model.gguf import gguf_file

GROUPS = ("model", "data", "adapter", "loss", "train")
DISCRIMINATORS = ("source", "kind")

# Settings of the model that change where and how it is computed, not what.
NOT_SCIENTIFIC = ("device", "stream", "checkpointing", "name")

# Settings that result.json has fields of their own for, or that change no number in it.
HAVE_COLUMNS = {
    "data": {"source", "seed"},
    "adapter": {"kind"},
    "train": {"lr", "steps", "epochs", "log_every", "decode"},
}

# Settings that are shown as a hash.
LONG_VALUES = ("path", "text", "architecture")


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

    # Always: the embedded model may be another one some day.
    settings["model"]["path"] = model_hash(run.model.path)

    settings["loss"] |= run.loss.id_fields()
    settings["data"] |= run.data.id_fields()
    # The default of a chat template is no automatic value, and not the empty turn of old.
    if run.data.chat and run.data.system is None:
        settings["data"]["system"] = None
    # A file by its content: a moved one is the same data, a changed one is not.
    if "path" in settings["data"]:
        settings["data"]["path"] = content_hash(settings["data"]["path"])

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
            text = _short_hash(str(value), 6) if name in LONG_VALUES else value
            entries.append(f"{group}.{name}={text}")
    return " ".join(entries)


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
    """The kind of a loss with its changed settings: memft_ot(threshold=0.5)."""
    settings = changed_settings(loss)
    settings.pop("kind", None)
    changed = ", ".join(f"{name}={value}" for name, value in settings.items())
    return f"{loss.kind}({changed})" if changed else loss.kind


def changed_settings(settings: Any) -> dict[str, Any]:
    """The settings of a dataclass that differ from their defaults, and its source or kind.

    An `absent` value, what runs did before a setting existed, is left out like the default: of a
    run that is not resolved, an automatic default means just that.
    """
    settings_class: Any = type(settings)
    defaults = _defaults(settings_class)
    absent = _absent(settings_class)
    # vars, not asdict, which is slow for ten thousand cells: settings are not nested.
    return {
        name: value
        for name, value in vars(settings).items()
        if name in DISCRIMINATORS or value not in (defaults[name], absent.get(name, defaults[name]))
    }


@lru_cache(maxsize=64)
def _defaults(settings_class: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = vars(settings_class())
    return defaults


@lru_cache(maxsize=64)
def _absent(settings_class: Any) -> dict[str, Any]:
    return absent_values(settings_class)


def model_hash(path: str) -> str:
    """A name for the base model at a path: as `content_hash`, and for a GGUF file its own hash.

    The same file is the same model in whatever folder and under whatever name.
    """
    file = gguf_file(path)
    return content_hash(path) if file is None else _gguf_hash(str(file))


@lru_cache(maxsize=256)
def _gguf_hash(path: str) -> str:
    return sampled_hash(Path(path))


@lru_cache(maxsize=256)
def content_hash(path: str) -> str:
    """A name for what lies at a path.

    Args:
        path: a file, the folder of a model, `tiny`, or a name on the hub.

    Returns:
        A hash of the content; a name on the hub as it is.
    """
    location = TINY if path == "tiny" else Path(path)
    if location.is_file():
        return hashlib.sha256(location.read_bytes()).hexdigest()
    if not (location / "config.json").is_file():
        return path

    digest = hashlib.sha256((location / "config.json").read_bytes())
    weight_files = sorted(location.glob("*.safetensors"))
    if path == "tiny":
        # As in the first version, so that runs of the embedded model keep their ids.
        sizes = [(file.name, file.stat().st_size) for file in weight_files]
        digest.update(repr(sizes).encode())
        names = ["model.safetensors", "tokenizer.json"]
    else:
        samples = [(file.name, sampled_hash(file)) for file in weight_files]
        digest.update(repr(samples).encode())
        names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]

    for name in names:
        file = location / name
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()

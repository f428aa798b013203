"""What makes two runs the same: the id of a run, and the words that tell it from others.

Where a run happens (device, worker, folder) is no part of it. A data file counts by its content, a local model by its
config, tokenizer and weights (`weight_files.py`); so a moved file keeps its runs and a changed one gets new ones.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from pml_cli.config.schema import FORMAT, TINY, Loss, MemftMarginLoss, Run
from pml_cli.runs.file_hash import sampled_hash


def run_id(run: Run) -> str:
    """A readable name and a hash of the scientific settings that differ from their defaults.

    Where a run happens (device, worker, folder) is not part of it. A data file counts by its content, a local model by its
    config, tokenizer and weights; so a moved file keeps its runs and a changed one gets new ones.
    """
    readable = f"{run.model.name}-{run.data.source}-r{run.rank}-l{run.seqlen}-s{run.seed}"
    canonical = json.dumps({"format": FORMAT, **scientific(run)}, sort_keys=True)
    return f"{readable}-{hashlib.sha256(canonical.encode()).hexdigest()[:10]}"


def scientific(run: Run) -> dict[str, Any]:
    """The settings that can change a result, as plain values; those at their default are left out."""
    settings = {
        name: _delta(getattr(run, name)) for name in ("model", "data", "adapter", "loss", "train")
    }
    settings["model"].pop("device", None)
    settings["model"].pop("stream", None)
    settings["model"].pop("checkpointing", None)
    settings["model"].pop("name", None)
    if isinstance(
        run.loss, MemftMarginLoss
    ):  # always: its defaults have changed once, and old runs are not its runs
        settings["loss"] |= {"margin": run.loss.margin, "growth": run.loss.growth}
    settings["model"]["path"] = fingerprint(
        run.model.path
    )  # always: the embedded model may be another one some day
    settings["data"] |= run.data.id_fields()
    if "path" in settings["data"]:
        settings["data"]["path"] = fingerprint(settings["data"]["path"])
    return {"rank": run.rank, "seqlen": run.seqlen, "seed": run.seed, **settings}


def setting(run: Run) -> str:
    """What tells a run from others of its kind beyond the fields of result.json: settings not at their defaults."""
    found = scientific(run)
    hidden = {
        "model": {"path"} if not Path(run.model.path).is_dir() else set(),
        "data": {"source", "seed"},
        "adapter": {"kind"},
        "train": {"lr", "steps", "epochs", "log_every", "decode"},
    }
    if run.model.weights != "random":
        hidden["model"].add("architecture")
    words = []
    for group, names in hidden.items():
        for name, value in found[group].items():
            if name not in names:
                long = name in ("path", "text", "architecture")
                shown = hashlib.sha256(str(value).encode()).hexdigest()[:6] if long else value
                words.append(f"{group}.{name}={shown}")
    return " ".join(words)


def loss_label(loss: Loss) -> str:
    """The kind of a loss, with its settings where they are not the defaults: memft_ot(threshold=0.5)."""
    changed = [f"{name}={value}" for name, value in _delta(loss).items() if name != "kind"]
    return f"{loss.kind}({', '.join(changed)})" if changed else loss.kind


def _delta(settings: Any) -> dict[str, Any]:
    kind: Any = type(settings)
    default = _defaults(
        kind
    )  # vars, not asdict: settings are not nested, and ten thousand cells have many
    return {k: v for k, v in vars(settings).items() if k in ("source", "kind") or v != default[k]}


@lru_cache(maxsize=64)
def _defaults(kind: Any) -> dict[str, Any]:
    return dict(vars(kind()))


@lru_cache(maxsize=256)
def fingerprint(path: str) -> str:
    """A name for what lies at a path: content hash of a file, of a model's folder, else the name itself (of the hub)."""
    place = TINY if path == "tiny" else Path(path)
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    if not (place / "config.json").is_file():
        return path
    files = sorted(place.glob("*.safetensors"))
    weights: list[tuple[str, Any]] = [(p.name, p.stat().st_size) for p in files]
    if path == "tiny":  # hashed whole, in the way of the first version: its runs keep their ids
        content = [(TINY / "model.safetensors").read_bytes(), *_read(place, "tokenizer.json")]
    else:
        weights = [(p.name, sampled_hash(p)) for p in files]
        content = _read(place, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    parts = [(place / "config.json").read_bytes(), repr(weights).encode(), *content]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _read(folder: Path, *names: str) -> list[bytes]:
    return [(folder / name).read_bytes() for name in names if (folder / name).is_file()]

"""A model whose first position is a sink, and one of the hub without its weights."""

import shutil

from safetensors.torch import load_file, save_file

from pml_cli.config.schema import TINY
from pml_cli.model import files

BEGIN = 0

HUB_ID = "nobody/far"


def plant_sink(folder):
    """The embedded model with an embedding of begin-of-text that is 10,000 times as long."""
    shutil.copytree(TINY, folder)
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if "embed_tokens" in name]
    weights[name][BEGIN] *= 10_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without_weights(cache, monkeypatch):
    """A cache of the hub that holds config and tokenizer of HUB_ID; its folder for more files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    # This process may have found them in the cache of another test.
    files._download.cache_clear()
    commit = "0" * 40
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit, "utf-8")

    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    for path in TINY.glob("*.json"):
        shutil.copy(path, folder)
    return folder

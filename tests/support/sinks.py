"""A model whose first position is a sink."""

import shutil

from safetensors.torch import load_file, save_file

from pml_cli.config.schema import TINY

BEGIN = 0


def plant_sink(folder):
    """The embedded model with an embedding of begin-of-text that is 10,000 times as long."""
    shutil.copytree(TINY, folder)
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if "embed_tokens" in name]
    weights[name][BEGIN] *= 10_000
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

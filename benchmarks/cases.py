"""The cells that the measurements of speed train, built without Hydra: a machine with a GPU may not have it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from pml_cli.config.option_files import option_file
from pml_cli.config.schema import Model, Run, Train
from pml_cli.data.cell import CellPlan
from pml_cli.data.sources.random import RandomData
from pml_cli.launch.packing import check

# what --small makes of a model: the same layers' code and the same ratios of widths, for a machine without a GPU
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SMALL |= {"intermediate_size": 192, "vocab_size": 512}


def model(name: str, *, small: bool = False, **settings: Any) -> Model:
    """An option of pml's model group; all but `tiny` with random weights. `small`: shrunk, adapter at two thirds."""
    file = option_file("model", name)
    if file is None:
        raise SystemExit(f"--model {name}: no such option of pml's model group")
    told = yaml.safe_load(file.read_text("utf-8"))
    if name != "tiny":
        told["weights"] = "random"
    if small:
        told |= {"layer": None, "architecture": told["architecture"] | SMALL}
    return Model(**(told | settings))


def changed(base: Model, train: Train, words: Iterable[str]) -> tuple[Model, Train]:
    """Settings changed by words such as model.layer=1, model.architecture.vocab_size=512 or train.lr=0.02."""
    parts = {"model": dataclasses.asdict(base), "train": dataclasses.asdict(train)}
    for word in words:
        key, _, value = word.partition("=")
        *groups, last = key.split(".")
        place: Any = parts
        for group in groups:
            place = place[group]
        place[last] = yaml.safe_load(value)
    return Model(**parts["model"]), Train(**parts["train"])


def cells(base: Model, ranks: Sequence[int], seqlen: int, train: Train) -> list[CellPlan]:
    """One cell of random tokens for each rank."""
    return check(
        [
            Run(rank=rank, seqlen=seqlen, model=base, data=RandomData(), train=train)
            for rank in ranks
        ]
    )


def write_random(base: Model, folder: Path, device: str) -> Model:
    """The architecture's weights as files, random, a file a layer; what a streamed model is read from."""
    import transformers

    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**base.architecture), dtype=getattr(torch, base.dtype)
        )
    skeleton.config.save_pretrained(folder)
    files: dict[str, dict[str, torch.Tensor]] = {}
    where = {}
    for name, parameter in skeleton.named_parameters():  # tied ones come once
        layer = next((part for part in name.split(".") if part.isdigit()), "other")
        where[name] = f"part-{layer}.safetensors"
        files.setdefault(where[name], {})[name] = parameter
    generator = torch.Generator(device).manual_seed(0)
    for file, parameters in files.items():
        made = {}
        for name, parameter in parameters.items():
            drawn = torch.randn(
                parameter.shape, generator=generator, device=device, dtype=parameter.dtype
            )
            made[name] = (drawn.mul_(0.02) if parameter.dim() > 1 else torch.ones_like(drawn)).cpu()
        save_file(made, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}), "utf-8")
    return dataclasses.replace(
        base, path=str(folder), weights="pretrained", architecture={}, stream=True
    )

"""The cells that the measurements of speed train.

Built without Hydra, which a machine with a GPU may lack.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors.torch import save_file

from pml_cli.config.option_files import option_file
from pml_cli.config.schema import Adapter, LinearAdapter, Model, Run, Train
from pml_cli.data.cell import CellPlan
from pml_cli.data.sources.random import RandomData
from pml_cli.launch.packing import check
from pml_cli.model.device import pick_device
from pml_cli.model.loading import load_model
from pml_cli.model.split_model import SplitModel

# What --small makes of a model, for a machine without a GPU: the same code of the layers, and the
# same ratios of widths.
SMALL_ARCHITECTURE = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 192,
    "vocab_size": 512,
}

# All linear projections of a decoder layer.
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Standard deviation of random weights.
WEIGHT_SCALE = 0.02


def model(name: str, *, small: bool = False, **settings: Any) -> Model:
    """An option of pml's model group; all but `tiny` with random weights.

    Args:
        name: the option.
        small: shrink the architecture, with the adapter at two thirds of the depth.
        settings: of the model, instead of the option's.
    """
    file = option_file("model", name)
    if file is None:
        raise SystemExit(f"--model {name}: no such option of pml's model group")

    fields = yaml.safe_load(file.read_text("utf-8"))
    if name != "tiny":
        fields["weights"] = "random"
    if small:
        fields["layer"] = None
        fields["architecture"] |= SMALL_ARCHITECTURE
    return Model(**(fields | settings))


def load(settings: Model) -> SplitModel:
    """The model; on a GPU its random weights are drawn there.

    pml itself draws them on the CPU, the same for every device, which takes minutes for 8 billion.
    """
    device = pick_device(settings.device)
    if device.type == "cpu" or settings.weights != "random":
        return load_model(settings)

    config = transformers.AutoConfig.for_model(**settings.architecture)
    dtype = getattr(torch, settings.dtype)
    with torch.device(device):
        torch.manual_seed(0)
        drawn = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return SplitModel(drawn, settings)


def device_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a script that runs on a device, the GPU where there is one."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return options


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def changed(base: Model, train: Train, overrides: Iterable[str]) -> tuple[Model, Train]:
    """Settings with overrides: model.layer=1, model.architecture.vocab_size=512, train.lr=0.02."""
    fields = {"model": dataclasses.asdict(base), "train": dataclasses.asdict(train)}
    for override in overrides:
        key, _, value = override.partition("=")
        *groups, name = key.split(".")
        target: Any = fields
        for group in groups:
            target = target[group]
        target[name] = yaml.safe_load(value)
    return Model(**fields["model"]), Train(**fields["train"])


def cells(
    base: Model,
    ranks: Sequence[int],
    seqlen: int,
    train: Train,
    adapter: Adapter | None = None,
) -> list[CellPlan]:
    """One cell of random tokens for each rank.

    Args:
        base: the model.
        ranks: of the cells.
        seqlen: target tokens.
        train: settings of the training.
        adapter: of all cells; None: the paper's placement.
    """
    runs = []
    for rank in ranks:
        run = Run(rank=rank, seqlen=seqlen, model=base, data=RandomData(), train=train)
        runs.append(dataclasses.replace(run, adapter=adapter or run.adapter))
    return check(runs)


def everywhere() -> LinearAdapter:
    """LoRA on every linear projection of every layer, as most guides to fine-tuning have it."""
    return LinearAdapter(targets=list(PROJECTIONS), layers=[])


def write_random(base: Model, folder: Path, device: str) -> Model:
    """Write random weights of an architecture, a file a layer, for a streamed model.

    Args:
        base: settings with an architecture.
        folder: of the files.
        device: that draws the weights.

    Returns:
        Settings of the streamed model.
    """
    config = transformers.AutoConfig.for_model(**base.architecture)
    dtype = getattr(torch, base.dtype)
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    skeleton.config.save_pretrained(folder)

    by_file: dict[str, dict[str, torch.Tensor]] = {}
    # Tied parameters come once.
    for name, parameter in skeleton.named_parameters():
        by_file.setdefault(_file_name(name), {})[name] = parameter

    generator = torch.Generator(device).manual_seed(0)
    for file, parameters in by_file.items():
        tensors = {
            name: _random_weights(parameter, generator) for name, parameter in parameters.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})

    weight_map = {name: file for file, parameters in by_file.items() for name in parameters}
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, "utf-8")
    return dataclasses.replace(
        base, path=str(folder), weights="pretrained", architecture={}, stream=True
    )


def _file_name(parameter: str) -> str:
    for part in parameter.split("."):
        if part.isdigit():
            return f"part-{part}.safetensors"
    return "part-other.safetensors"


def _random_weights(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(
        parameter.shape, generator=generator, device=generator.device, dtype=parameter.dtype
    )
    # Vectors are the scales of norms.
    weights = drawn.mul_(WEIGHT_SCALE) if parameter.dim() > 1 else torch.ones_like(drawn)
    return weights.cpu()

"""LoRA adapters in PEFT's layout, whoever trained them: read, checked and put into a bank.

A bank multiplies every cell by one scale and pads to one rank; where an adapter has a scale or a
rank of its own for each module, the scale goes into B, and the missing columns are zero.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pml_cli.config.schema import Adapter, LinearAdapter, MlpBlockAdapter
from pml_cli.errors import UserError
from pml_cli.evaluation.peft_folder import WEIGHTS_FILE
from pml_cli.model.adapter_bank import LARGEST, AdapterBank, Site, is_usable
from pml_cli.model.modules import linear_sites
from pml_cli.model.split_model import SplitModel
from pml_cli.validation import shown

PREFIX = "base_model.model."

# PEFT's own, of an adapter_config.json that does not say it.
DEFAULT_ALPHA = 8

# A pattern of module names as PEFT's users write them. Brackets, and more quantifiers than these,
# would let a file of somebody else keep the matching busy for ever.
NAME_PATTERN = re.compile(r"\^?[\w.\\|-]*(?:[*+?][\w.\\|-]*){0,3}\$?")

MATRIX = re.compile(r"(?P<site>.+)\.lora_(?P<matrix>[AB])\.weight")


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """An adapter as its folder holds it."""

    folder: Path
    config: Mapping[str, Any]

    A: Mapping[str, Tensor]
    """(rank, inputs) of each module."""

    B: Mapping[str, Tensor]
    """(outputs, rank) of each module."""

    hash: str
    """SHA-256 of the weights file, first 16 hexadecimal digits."""

    @property
    def rank(self) -> int:
        """Largest rank of all modules."""
        return max(int(A_RI.shape[0]) for A_RI in self.A.values())

    @property
    def parameter_count(self) -> int:
        """Number of parameters in A and B of all modules."""
        return sum(A.numel() + self.B[site].numel() for site, A in self.A.items())

    def scale(self, site: str) -> float:
        """What PEFT multiplies A B by: alpha / rank, or alpha / sqrt(rank) under rsLoRA."""
        rank = int(self.A[site].shape[0])
        patterns = self.config.get("alpha_pattern") or {}
        alpha = float(_of_site(patterns, site, _alpha(self.config)))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _alpha(config: Mapping[str, Any]) -> Any:
    alpha = config.get("lora_alpha")
    return DEFAULT_ALPHA if alpha is None else alpha


def _of_site(patterns: Mapping[str, Any], site: str, usual: Any) -> Any:
    """The value of the first pattern that a module's name ends with, as PEFT looks it up."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", site):
            return value
    return usual


def read_adapter(folder: Path, config: Mapping[str, Any]) -> PeftAdapter:
    """Read the weights of an adapter.

    Args:
        folder: as `peft_folder.adapter_folder` gives it.
        config: its adapter_config.json, checked.

    Raises:
        UserError: no weights in safetensors, or others than the A and B of LoRA; a scale beyond
            all numbers, or a pattern of names that is none.
    """
    _check_patterns(folder, config)
    path = folder / WEIGHTS_FILE
    try:
        content = path.read_bytes()
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot read the adapter's weights ({reason})") from error

    matrices: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        match = MATRIX.fullmatch(name.removeprefix(PREFIX))
        if match is None or tensor.dim() != 2:
            raise UserError(f"{path}: {name} is neither A nor B of LoRA on a linear module")
        if not tensor.numel():
            raise UserError(f"{path}: {name} is empty")
        if not is_usable(tensor):
            raise UserError(f"{path}: {name} contains NaN, infinity or values above {LARGEST:g}")
        matrices[match["matrix"]][match["site"]] = tensor
    if not matrices["A"] or matrices["A"].keys() != matrices["B"].keys():
        incomplete = sorted(matrices["A"].keys() ^ matrices["B"].keys())
        which = f"; {incomplete[0]} lacks one" if incomplete else ""
        raise UserError(f"{path}: every module needs both lora_A and lora_B{which}")
    adapter = PeftAdapter(
        folder=folder,
        config=config,
        A=matrices["A"],
        B=matrices["B"],
        hash=hashlib.sha256(content).hexdigest()[:16],
    )
    for site, B_OR in adapter.B.items():
        scale = adapter.scale(site)
        if not abs(scale) * float(B_OR.abs().max()) <= LARGEST:
            raise UserError(
                f"{folder}: alpha gives {site} a scale of {scale:.3g}, too large to use"
            )
    return adapter


def _check_patterns(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse patterns of `alpha_pattern` that are no patterns of module names.

    Raises:
        UserError: names the first.
    """
    for pattern in config.get("alpha_pattern") or {}:
        if NAME_PATTERN.fullmatch(pattern) is None or not _compiles(pattern):
            raise UserError(f"{folder}: alpha_pattern={shown(pattern)}: no pattern of module names")


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def bank_of(base: SplitModel, adapter: PeftAdapter) -> AdapterBank:
    """An adapter as a bank of one on the model's device.

    Args:
        base: the frozen model.
        adapter: what is put on it.

    Raises:
        UserError: the model has no such modules, or of another size.
    """
    sites = [_site(base, adapter, name) for name in adapter.A]
    rank = adapter.rank
    A = {}
    B = {}
    for site in sites:
        # In the order of what pml trains: the scale goes into B.
        A_RI = adapter.A[site.name].to(base.adapter_dtype)
        B_OR = adapter.B[site.name].to(base.adapter_dtype) * adapter.scale(site.name)
        missing = rank - A_RI.shape[0]
        A[site.name] = F.pad(A_RI.T, (0, missing))[None]
        B[site.name] = F.pad(B_OR.T, (0, 0, 0, missing))[None]

    bank = AdapterBank(
        sites={site.name: site for site in sites},
        settings=_settings(base, sites),
        ranks=[rank],
        A=A,
        B=B,
        scale=torch.ones(1, dtype=base.adapter_dtype),
    )
    bank.to(base.device)
    base.check_split(bank)
    return bank


def _settings(base: SplitModel, sites: list[Site]) -> Adapter:
    """Whether it bypasses a whole MLP, as pml's own do, or adapts linear modules."""
    if _is_block(base, sites[0].name):
        return MlpBlockAdapter()
    return LinearAdapter(targets=[site.name for site in sites])


def _is_block(base: SplitModel, name: str) -> bool:
    module = base.modules.get(name)
    return module is not None and not hasattr(module, "weight")


def _site(base: SplitModel, adapter: PeftAdapter, name: str) -> Site:
    """The module of the model that an A and a B are for.

    Raises:
        UserError: the model has none, or of another size.
    """
    model = base.settings.name
    site = _find_site(base, name)
    if site is None:
        raise UserError(
            f"{adapter.folder}: made for another model: the decoder layers of model={model} have "
            f"no linear module {name}"
        )

    sizes = (int(adapter.A[name].shape[1]), int(adapter.B[name].shape[0]))
    if sizes != (site.inputs, site.outputs):
        raise UserError(
            f"{adapter.folder}: made for another model: {name} of model={model} has "
            f"{site.inputs} inputs and {site.outputs} outputs, the adapter {sizes[0]} and "
            f"{sizes[1]}"
        )
    return site


def _find_site(base: SplitModel, name: str) -> Site | None:
    for layer in base.layers:
        layer_name = next(key for key, module in base.modules.items() if module is layer)
        if not name.startswith(f"{layer_name}."):
            continue
        if _is_block(base, name):
            return Site(name=name, inputs=base.hidden_size, outputs=base.hidden_size)
        target = name.removeprefix(f"{layer_name}.")
        try:
            sites = linear_sites(layer, layer_name, [target])
        except UserError:
            return None
        return next((site for site in sites if site.name == name), None)
    return None

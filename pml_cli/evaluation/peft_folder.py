"""The folder of a LoRA adapter in PEFT's layout: where it is and what it says. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from pml_cli.config.measure import model_name
from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError
from pml_cli.validation import Number, Size, Text, read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Of adapters that pml has trained and PEFT does not load by itself.
OWN_TYPES = ("MLP_BLOCK of pml", "LORA of pml")

# Initial weights that are part of the base model's: PEFT changes the base while it loads them.
CHANGED_BASES = ("pissa", "olora", "corda", "loftq")

# Settings of adapter_config.json that make more of an adapter than the product of A and B.
NOT_PLAIN = (
    "use_dora",
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "lora_bias",
)


class ConfigFields(TypedDict, total=False):
    """adapter_config.json: what is read of it, as PEFT writes it."""

    peft_type: Text | None
    r: Size | None
    lora_alpha: Number | None
    alpha_pattern: dict[str, Number] | None
    base_model_name_or_path: Text | None
    revision: Text | None
    init_lora_weights: bool | str | None
    bias: Text | None


def adapter_folder(path: Path) -> Path | None:
    """The folder of an adapter: the path, or the adapter/ in it; None where neither is one."""
    for folder in (path, path / "adapter"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a plain LoRA.

    Raises:
        UserError: it cannot be read, or is of another kind of adapter.
    """
    path = folder / CONFIG_FILE
    config: dict[str, Any] = read_json(path, ConfigFields, "save the adapter anew")
    kind = str(config.get("peft_type"))
    if kind != "LORA" and not kind.startswith(OWN_TYPES):
        raise UserError(f"{path}: unsupported peft_type {kind}; only LORA is supported")
    for name in NOT_PLAIN:
        if config.get(name):
            raise UserError(f"{path}: {name} is set; only plain LoRA (A and B alone) is supported")
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(CHANGED_BASES):
        reason = "which changes the base model's weights; convert it to plain LoRA in PEFT"
        raise UserError(f"{path}: init_lora_weights is {initial}, {reason}")
    if config.get("bias") not in (None, "none"):
        raise UserError(f"{path}: bias is {config['bias']}; pml measure takes none")
    return dict(config)


def recorded_model(folder: Path, config: Mapping[str, Any]) -> Model:
    """The base model that an adapter_config.json names.

    Raises:
        UserError: it names none.
    """
    path = config.get("base_model_name_or_path")
    if not path:
        raise UserError(
            f"{folder / CONFIG_FILE}: names no base model; give model=hf model.path=..."
        )
    if Path(path) == TINY:
        return Model()
    return Model(name=model_name(path), path=path, revision=config.get("revision"))

"""The config of a model as transformers resolves it: names, defaults and the text part.

One family calls a size num_hidden_layers in its config.json, another n_layer, and what is left out
has the default of the family's class; transformers knows. Only the config of the embedded model and
a `model.architecture` with all sizes are read as they are, so that planning these imports neither
transformers nor torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from typing_extensions import TypedDict

from pml_cli.config.cache_key import CacheKey
from pml_cli.config.schema import TINY, Model
from pml_cli.errors import UserError
from pml_cli.model.faults import named_model, one_line
from pml_cli.model.files import local_folder, locate
from pml_cli.validation import Text, fault_of, read_json, shown

# What config.json may say of how a model is run, which pml says itself. A file saved on a GPU
# machine asks for attention kernels that a CPU lacks.
RUN_AS_PML_DOES = {
    "_attn_implementation": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}

CONFIG_FILE = "config.json"

# Fields that planning reads.
PLANNED = {
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "tie_word_embeddings",
}

# Families whose heads are of size hidden / heads unless the config says otherwise.
PLAIN_HEADS = ("llama", "mistral")

# Of every model there is, and of what fits into no memory.
Dimension = Annotated[int, Ge(1), Le(10**8)]


class ConfigFields(TypedDict, total=False):
    """config.json: sizes under the names of most families. transformers checks the rest."""

    model_type: Text | None
    vocab_size: Dimension | None
    hidden_size: Dimension | None
    intermediate_size: Dimension | list[Any] | None
    num_hidden_layers: Dimension | None
    num_attention_heads: Dimension | None
    num_key_value_heads: Dimension | None
    head_dim: Dimension | None
    max_position_embeddings: Dimension | None
    n_embd: Dimension | None
    n_layer: Dimension | None
    n_head: Dimension | None
    text_config: dict[str, Any] | None
    hidden_act: str | None
    layer_types: list[str] | None
    rope_parameters: dict[str, Any] | None
    quantization_config: dict[str, Any] | None
    transformers_weights: Text | None


# Sizes that some families compute from other fields.
COMPUTED = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")


def config_fields(model: Model) -> dict[str, Any]:
    """Fields of a model's config; of a multimodal model, those of its text part.

    A field has the name of its family and the usual one: `n_layer` is `num_hidden_layers` too.

    Raises:
        UserError: as `model_config`.
    """
    if _is_spelt_out(model):
        _refuse_wrong(model.architecture, "model.architecture")
    if is_read_as_it_is(model):
        fields = model.architecture if _is_spelt_out(model) else _read_json(TINY / CONFIG_FILE)
    else:
        fields = _resolved_fields(CacheKey(model), _version(model))
    # A copy, since callers may change it.
    return dict(fields)


def is_read_as_it_is(model: Model) -> bool:
    """Whether the config needs no transformers: the embedded model's, and one that says it all."""
    if not _is_spelt_out(model):
        return model.path == "tiny"
    fields = model.architecture
    has_head_size = "head_dim" in fields or fields.get("model_type") in PLAIN_HEADS
    return has_head_size and set(fields) >= PLANNED


def model_config(model: Model) -> Any:
    """The config of a model, a `PreTrainedConfig` of transformers that the caller may change.

    Raises:
        UserError: there is no config.json, transformers cannot use it, or it describes a model
            that pml cannot train adapters on: a quantised one, for example.
    """
    return copy.deepcopy(_resolved(CacheKey(model), _version(model)))


def _version(model: Model) -> tuple[int, int] | None:
    """Size and time of config.json, which tell that it was replaced; None where there is none."""
    if _is_spelt_out(model):
        return None
    path = locate(model, CONFIG_FILE)
    if path is None:
        raise UserError(f"model.path={model.path}: has no config.json")
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=16)
def _resolved_fields(key: CacheKey, version: tuple[int, int] | None) -> dict[str, Any]:
    text_config = _resolved(key, version).get_text_config()
    fields: dict[str, Any] = text_config.to_dict()
    for usual_name in (*text_config.attribute_map, *COMPUTED):
        fields[usual_name] = getattr(text_config, usual_name, None)
    return fields


def _is_spelt_out(model: Model) -> bool:
    """Whether the settings themselves hold the config."""
    return model.weights == "random" and bool(model.architecture)


@lru_cache(maxsize=16)
def _resolved(key: CacheKey, _version: tuple[int, int] | None) -> Any:
    model: Model = key.value
    config = _architecture(model) if _is_spelt_out(model) else _from_files(model)

    with one_line(_option(model)):
        for part in (config, config.get_text_config()):
            for name, value in RUN_AS_PML_DOES.items():
                setattr(part, name, value)
    _refuse_unusable(model, config)
    return config


def _option(model: Model) -> str:
    return "model.architecture" if _is_spelt_out(model) else f"model.path={model.path}"


def _architecture(model: Model) -> Any:
    from transformers import AutoConfig

    if "model_type" not in model.architecture:
        raise UserError("model.architecture: needs a model_type, such as model_type: llama")
    with one_line("model.architecture"):
        return AutoConfig.for_model(**model.architecture)


def _from_files(model: Model) -> Any:
    from transformers import AutoConfig

    source = local_folder(model) or model.path
    if isinstance(source, Path):
        # Reports damage in a line of ours.
        _read_json(source / CONFIG_FILE, model)
    with one_line(f"model.path={model.path}"):
        return AutoConfig.from_pretrained(
            source, trust_remote_code=model.trust_remote_code, revision=model.revision
        )


def _refuse_wrong(fields: Mapping[str, Any], where: str) -> None:
    """Refuse sizes that are none, for which transformers divides by zero or fills the memory.

    And `_target_` and its kind, which mean a call to Hydra and nothing to a config.
    """
    calls = [name for name in fields if str(name).startswith("_")]
    if calls:
        raise UserError(f"{where}: the config has no {shown(calls[0])}")
    fault = fault_of(fields, ConfigFields)
    if fault:
        raise UserError(f"{where}: {fault}")


def _read_json(path: Path, model: Model | None = None) -> dict[str, Any]:
    with named_model(model or Model()):
        fields: dict[str, Any] = read_json(path, ConfigFields, "copy the model anew")
    return fields


def _refuse_unusable(model: Model, config: Any) -> None:
    """Refuse what can be told from the config alone, so that a dry run refuses it too."""
    option = _option(model)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None and model.weights != "random":
        raise UserError(f"{option}: {_quantised_reason(quantization)}")
    if quantization is not None:
        # Random weights are ordinary ones.
        del config.quantization_config

    text_config = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        reason = "has an encoder; must be a decoder-only language model"
        raise UserError(f"{option}: {config.model_type} {reason}")
    pad = getattr(text_config, "pad_token_id", None)
    vocabulary = getattr(text_config, "vocab_size", None)
    if isinstance(pad, int) and isinstance(vocabulary, int) and pad >= vocabulary:
        reason = (
            f"its config.json has pad_token_id {pad}, but embeddings for ids below {vocabulary}"
        )
        raise UserError(f"{option}: {reason}; set pad_token_id to null or to an id below it")


def _quantised_reason(quantization: Any) -> str:
    """Why a quantised model is refused, and what helps."""
    fields = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = fields.get("quant_method") or "unknown method"
    method = getattr(method, "value", method)
    remedy = "name the unquantised model, a GGUF file, or a copy saved after model.dequantize()"
    return f"its weights are quantised ({method}), adapters are trained on plain ones; {remedy}"

"""The sizes of a model, from its config alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from pml_cli.config.schema import Adapter, LinearAdapter, Model, Run
from pml_cli.errors import UserError, did_you_mean, first_line
from pml_cli.model.families import FAMILIES, ModelFamily, Role, family_of
from pml_cli.model.gguf import gguf_file
from pml_cli.model.model_config import config_fields

# Bytes of one number of a dtype.
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

# Names that families give to their longest input.
CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")

# Name of the file in which PEFT keeps the weights of an adapter.
ADAPTER_FILE = "adapter_model.safetensors"

# Longest input of a model without learned positions or RoPE: ALiBi has no limit.
NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """Depth, width, vocabulary and context of a model."""

    layers: int
    """Number of decoder layers."""

    hidden: int
    """Hidden size."""

    vocabulary: int
    """Rows of the embeddings."""

    context: int
    """Longest input, in tokens; NO_LIMIT where the config has none."""

    def adapter_layer(self, layer: int | None) -> int:
        """The 0-based layer that carries the adapter: `layer`; None is two thirds of the depth."""
        return self.layers * 2 // 3 if layer is None else layer


def model_dims(model: Model) -> ModelDims:
    """Sizes that planning needs.

    Raises:
        UserError: the model has no config.json, a size is missing, or `model.layer` is beyond the
            last layer.
    """
    fields = config_fields(model)
    dims = ModelDims(
        layers=_required(model, fields, "num_hidden_layers"),
        hidden=_required(model, fields, "hidden_size"),
        vocabulary=_required(model, fields, "vocab_size"),
        context=_optional(fields, NO_LIMIT, *CONTEXT_FIELDS),
    )
    if model.layer is not None and model.layer >= dims.layers:
        allowed = f"{model.name} has layers 0 to {dims.layers - 1}"
        raise UserError(f"model.layer={model.layer}: {allowed}")
    return dims


def _required(model: Model, fields: Mapping[str, Any], name: str) -> int:
    """A size that every config has."""
    value = fields.get(name)
    if not isinstance(value, int):
        kind = fields.get("model_type")
        reason = f"its config has no {name}; the family {kind} is not supported"
        raise UserError(f"model.path={model.path}: {reason}")
    return value


def _optional(fields: Mapping[str, Any], default: int, *names: str) -> int:
    """The first of these fields that is a number other than 0, else the default."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, int) and value:
            return value
    return default


def check_adapter(model: Model, adapter: Adapter) -> None:
    """Refuse linear adapters on modules that a family with a record, or its depth, does not have.

    Raises:
        UserError: names the option and what is allowed.
    """
    if not isinstance(adapter, LinearAdapter):
        return

    layers = model_dims(model).layers
    indices = adapter.layers or [0]
    if min(indices) < 0 or max(indices) >= layers:
        allowed = f"model={model.name} has layers 0 to {layers - 1}"
        raise UserError(f"adapter.layers={adapter.layers}: {allowed}")

    family = FAMILIES.get(str(config_fields(model).get("model_type")))
    if family is None:
        return
    for target in adapter.targets:
        if not any(f".{name}".endswith(f".{target}") for name in family.matrices):
            names = {name.split(".")[-1] for name in family.matrices}
            raise UserError(f"adapter.targets={target}: {did_you_mean(target, names)}")


def check_start(run: Run) -> None:
    """Refuse `train.start` of another rank or kind of adapter.

    Raises:
        UserError: names the file and what it holds.
    """
    path = run.train.start
    if path is None:
        return
    if Path(path).name != ADAPTER_FILE:
        raise UserError(f"train.start={path}: must be the {ADAPTER_FILE} of a run")

    try:
        with safe_open(path, "np") as file:
            kind = (file.metadata() or {}).get("pml_kind", run.adapter.kind)
            # Not iterable: a file of safetensors has keys() alone.
            names = [name for name in file.keys() if "lora_A" in name]  # noqa: SIM118
            # Of A, PEFT stores the transpose.
            ranks = {file.get_slice(name).get_shape()[0] for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"train.start={path}: {first_line(error)}") from error
    if kind != run.adapter.kind:
        raise UserError(f"train.start={path}: is adapter={kind}, not {run.adapter.kind}")
    if ranks != {run.rank}:
        found = ", ".join(map(str, sorted(ranks))) or "no LoRA"
        raise UserError(f"train.start={path}: is of rank {found}, not {run.rank}")


class Stage(IntEnum):
    """Stages of a decoder layer, in the order of the forward pass."""

    QKV = 0
    SCORES = 1
    OUT = 2
    UP = 3
    DOWN = 4


class Matrix(NamedTuple):
    """Sizes of a weight matrix of a decoder layer, and the stage at which it is used."""

    inputs: int
    outputs: int
    stage: Stage


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The sizes of a decoder-only model, as the cost model needs them."""

    family: ModelFamily
    """What config.json does not say."""

    layers: int
    """Number of decoder layers."""

    hidden: int
    """Hidden size D."""

    vocabulary: int
    """Vocabulary size V."""

    query_width: int
    """Query heads x head size."""

    key_width: int
    """Key-value heads x head size."""

    mlp_width: int
    """Inner width of the MLP."""

    embedding_weights: int
    """Weights of the embeddings, and of the head where it is not tied to them."""

    untied_input_weights: int
    """Weights of the input embeddings where the head does not share them, else 0."""

    unfused_heads: int
    """Heads whose T x T scores are written to memory, as soft-capping them requires; else 0."""

    softcaps_logits: bool
    """Whether the head's logits are soft-capped, which takes two more copies of them."""

    matrices: dict[str, Matrix]
    """Weight matrices of one layer, by name."""

    @property
    def layer_weights(self) -> int:
        """Weights of one layer, without those of its norms."""
        weights = 0
        for matrix in self.matrices.values():
            weights += matrix.inputs * matrix.outputs
            if self.family.linear_bias:
                weights += matrix.outputs
        return weights

    @property
    def parameters(self) -> int:
        """Weights of the whole model, without those of its norms."""
        return self.layers * self.layer_weights + self.embedding_weights


def decoder_shape(model: Model) -> DecoderShape:
    """Sizes of a model that determine its cost.

    Raises:
        UserError: as `model_dims`.
    """
    fields = config_fields(model)
    dims = model_dims(model)
    family = family_of(str(fields.get("model_type", "llama")))

    heads = _optional(fields, 1, "num_attention_heads")
    key_heads = _optional(fields, heads, "num_key_value_heads")
    head_dim = _optional(fields, dims.hidden // heads, "head_dim")
    mlp_width = _optional(fields, 4 * dims.hidden, "intermediate_size", "n_inner")

    tied = fields.get("tie_word_embeddings", False)
    embedding_rows = dims.vocabulary if tied else 2 * dims.vocabulary
    if family.learned_positions:
        embedding_rows += dims.context

    return DecoderShape(
        family=family,
        layers=dims.layers,
        hidden=dims.hidden,
        vocabulary=dims.vocabulary,
        query_width=heads * head_dim,
        key_width=key_heads * head_dim,
        mlp_width=mlp_width,
        embedding_weights=embedding_rows * dims.hidden,
        untied_input_weights=0 if tied else dims.vocabulary * dims.hidden,
        unfused_heads=heads if fields.get("attn_logit_softcapping") else 0,
        softcaps_logits=fields.get("final_logit_softcapping") is not None,
        matrices=_matrices(
            family.matrices.items(),
            hidden=dims.hidden,
            query_width=heads * head_dim,
            key_width=key_heads * head_dim,
            mlp_width=mlp_width,
        ),
    )


def _matrices(
    roles: Iterable[tuple[str, Role]],
    *,
    hidden: int,
    query_width: int,
    key_width: int,
    mlp_width: int,
) -> dict[str, Matrix]:
    """Sizes of the weight matrices of a layer, by name."""
    by_role = {
        Role.QKV: Matrix(hidden, query_width + 2 * key_width, Stage.QKV),
        Role.Q: Matrix(hidden, query_width, Stage.QKV),
        Role.K: Matrix(hidden, key_width, Stage.QKV),
        Role.V: Matrix(hidden, key_width, Stage.QKV),
        Role.ATTENTION_OUTPUT: Matrix(query_width, hidden, Stage.OUT),
        Role.GATE: Matrix(hidden, mlp_width, Stage.UP),
        Role.UP: Matrix(hidden, mlp_width, Stage.UP),
        Role.DOWN: Matrix(mlp_width, hidden, Stage.DOWN),
    }
    return {name: by_role[role] for name, role in roles}


def is_streamed(model: Model, memory: int | None) -> bool:
    """Whether the layers that training does not need are read one at a time.

    `model.stream` decides; if it is None, a model is streamed whose weights do not fit the memory.
    A GGUF file is always loaded whole.

    Args:
        model: its settings.
        memory: bytes that tensors may fill where the model is loaded; None: unknown.

    Raises:
        UserError: `model.stream` is true for a GGUF file.
    """
    if model.weights != "random" and gguf_file(model.path) is not None:
        if model.stream:
            reason = "must be null or false for a GGUF file, which is dequantised as a whole"
            raise UserError(f"model.stream=true: {reason}")
        return False
    if model.stream is not None or model.weights == "random" or memory is None:
        return bool(model.stream)
    return decoder_shape(model).parameters * BYTES[model.dtype] > memory

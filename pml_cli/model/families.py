"""What pml knows of each family of decoder-only models: one record a family. Without torch.

Everything here is what config.json does not say: names of modules and tensors, and what the layers
of the family compute. `config.json` names the family in `model_type`. A family without a record is
treated as `GENERIC`, whose names are tried in turn; that suffices for most models with the layers
of Llama.

To add a family: one record in `FAMILIES`, and its small configuration in tests/support/families.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Role(Enum):
    """What a weight matrix of a decoder layer computes; `QKV` is a fused matrix of all three."""

    Q = "q"
    K = "k"
    V = "v"
    QKV = "qkv"
    ATTENTION_OUTPUT = "attention output"
    GATE = "gate"
    UP = "up"
    DOWN = "down"


GATED_MATRICES = {
    "self_attn.q_proj": Role.Q,
    "self_attn.k_proj": Role.K,
    "self_attn.v_proj": Role.V,
    "self_attn.o_proj": Role.ATTENTION_OUTPUT,
    "mlp.gate_proj": Role.GATE,
    "mlp.up_proj": Role.UP,
    "mlp.down_proj": Role.DOWN,
}

GPT2_MATRICES = {
    "attn.c_attn": Role.QKV,
    "attn.c_proj": Role.ATTENTION_OUTPUT,
    "mlp.c_fc": Role.UP,
    "mlp.c_proj": Role.DOWN,
}

NEOX_MATRICES = {
    "attention.query_key_value": Role.QKV,
    "attention.dense": Role.ATTENTION_OUTPUT,
    "mlp.dense_h_to_4h": Role.UP,
    "mlp.dense_4h_to_h": Role.DOWN,
}


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """One family of models; the defaults are those of Llama."""

    matrices: Mapping[str, Role] = field(default_factory=lambda: GATED_MATRICES)
    """Weight matrices of a decoder layer, by their names in the layer."""

    final_norms: tuple[str, ...] = ("norm",)
    """Names that the norm after the last layer may have; the first that exists is it."""

    post_mlp_norms: tuple[str, ...] = ()
    """Names that a norm may have through which the MLP's output passes before it is added."""

    renamed_tensors: Mapping[str, str] = field(default_factory=dict)
    """Names in the safetensors files of tensors that the model itself calls differently."""

    learned_positions: bool = False
    """Whether there is an embedding for each position of the context."""

    linear_bias: bool = False
    """Whether the weight matrices have a bias."""

    norms_in_float32: bool = True
    """Whether norms compute in float32, as RMSNorm of transformers: autograd keeps such inputs."""

    norms_queries_and_keys: bool = False
    """Whether queries and keys pass a norm of their own."""

    norms_outputs: bool = False
    """Whether outputs of attention and MLP are normed before they are added (sandwich norms)."""

    parallel_residual: bool = False
    """Whether the MLP reads the layer's input instead of the output of attention."""

    saved_mlp_activations: int = 3
    """Tensors of the MLP's inner width that autograd keeps; gated: gate, its activation, and up."""


GENERIC = ModelFamily(
    final_norms=(
        "norm",
        "ln_f",
        "final_layer_norm",
        "final_layernorm",
        "final_norm",
        "norm_f",
        "layer_norm",
        "embedding_norm",
        "ln_out",
        "out_norm",
    ),
    post_mlp_norms=("post_feedforward_layernorm", "post_mlp_layernorm", "post_norm2"),
    renamed_tensors={"lm_head.weight": "embed_out.weight"},
)

FAMILIES: dict[str, ModelFamily] = {
    "llama": ModelFamily(),
    "mistral": ModelFamily(),
    "qwen3": ModelFamily(norms_queries_and_keys=True),
    "gemma": ModelFamily(),
    "gemma2": ModelFamily(
        post_mlp_norms=("post_feedforward_layernorm",),
        norms_outputs=True,
    ),
    "gemma3_text": ModelFamily(
        post_mlp_norms=("post_feedforward_layernorm",),
        norms_queries_and_keys=True,
        norms_outputs=True,
    ),
    "gpt2": ModelFamily(
        matrices=GPT2_MATRICES,
        final_norms=("ln_f",),
        learned_positions=True,
        linear_bias=True,
        norms_in_float32=False,
        # Its GELU is a composite of elementwise operations, each of which keeps an input.
        saved_mlp_activations=4,
    ),
    "gpt_neox": ModelFamily(
        matrices=NEOX_MATRICES,
        final_norms=("final_layer_norm",),
        # Its files keep the older name of the head.
        renamed_tensors={"lm_head.weight": "embed_out.weight"},
        linear_bias=True,
        norms_in_float32=False,
        parallel_residual=True,
        saved_mlp_activations=1,
    ),
}

SEPARATE_ROWS = frozenset(
    "bamba bloom falcon_h1 gpt_neo jamba lfm2 lfm2_moe minimax mpt olmo_hybrid qwen3_5_moe_text "
    "qwen3_5_text qwen3_next recurrent_gemma rwkv".split()
)
"""Families whose samples do not share rows, by `model_type`: of recurrent layers, or of biases and
masks of their own making. For planning: a loaded model shows what it allows
(model/verify_packed.py)."""


def family_of(model_type: str) -> ModelFamily:
    """The record of a family.

    Args:
        model_type: `model_type` of config.json (of its text part).
    """
    return FAMILIES.get(model_type, GENERIC)

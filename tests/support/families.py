"""Small random models of each family that pml has a record of (pml_cli/model/families.py).

To add a family: one `SmallModel` in `SMALL_MODELS`, beside its record.
"""

from dataclasses import dataclass, field

# A small model with the fields of Llama's config.
SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}

# A larger one, for measuring FLOPs and bytes.
WIDE = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "head_dim": 32,
    "intermediate_size": 192,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
}

# Shorter than the inputs of the tests.
WINDOW = {"sliding_window": 7}

# Longer than the inputs of the measurements, as a cost counts full attention.
WIDE_WINDOW = {"sliding_window": 4096}

GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 256, "vocab_size": 101}
WIDE_GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 6, "n_positions": 2048, "vocab_size": 512}


def without_grouped_queries(config):
    """A config of a family whose heads all have keys of their own, of size hidden / heads."""
    left_out = ("num_key_value_heads", "head_dim")
    return {name: value for name, value in config.items() if name not in left_out}


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """How the tests build a model of one family, and where they put linear adapters."""

    config: dict = field(default_factory=lambda: SMALL)
    """Fields of its config.json."""

    wide_config: dict = field(default_factory=lambda: WIDE)
    """The same of a larger one, for measuring FLOPs and bytes."""

    targets: tuple[str, ...] = ("q_proj", "o_proj", "down_proj")
    """Linear modules with adapters where passes are compared."""

    measured_targets: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    """Linear modules with adapters where FLOPs and bytes are measured."""


SMALL_MODELS = {
    "qwen3": SmallModel(),
    "llama": SmallModel(),
    "mistral": SmallModel(config=SMALL | WINDOW),
    "gemma": SmallModel(),
    "gemma2": SmallModel(
        config=SMALL | WINDOW | {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0},
        wide_config=WIDE | WIDE_WINDOW,
    ),
    "gemma3_text": SmallModel(
        config=SMALL
        | WINDOW
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        wide_config=WIDE | WIDE_WINDOW,
    ),
    "gpt2": SmallModel(
        config=GPT2,
        wide_config=WIDE_GPT2,
        targets=("c_attn", "c_proj"),
        measured_targets=("c_attn", "mlp.c_proj"),
    ),
    "gpt_neox": SmallModel(
        config=without_grouped_queries(SMALL) | {"use_parallel_residual": True},
        wide_config=without_grouped_queries(WIDE),
        targets=("query_key_value", "dense_4h_to_h"),
        measured_targets=("query_key_value",),
    ),
}

# Configs of the families with a record, by name.
FAMILIES = {name: small.config for name, small in SMALL_MODELS.items()}

# Multi-head latent attention.
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}

# Families without a record, for tests of the split pass alone.
UNRECORDED = {
    "glm4": SMALL,
    "granite": SMALL | {"residual_multiplier": 0.22, "logits_scaling": 6.0},
    # Scales what its MLPs add by a setting of another name.
    "minicpm3": SMALL | LATENT,
}

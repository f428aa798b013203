"""Small random models of each supported family."""

SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "head_dim": 8,
}


SMALL |= {
    "intermediate_size": 48,
    "vocab_size": 101,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 256, "vocab_size": 101}


FAMILIES = {
    "qwen3": SMALL,
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 7},  # shorter than the inputs of the tests
    "gemma": SMALL,
    "gemma2": SMALL
    | {"sliding_window": 7, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0},
    "gemma3_text": SMALL
    | {
        "sliding_window": 7,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "gpt2": GPT2,
    "gpt_neox": {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}
    | {"use_parallel_residual": True},
}


MORE = {
    "glm4": SMALL,
    "granite": SMALL | {"residual_multiplier": 0.22},
}  # for tests of the split pass alone

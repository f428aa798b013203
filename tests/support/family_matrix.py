"""Small random models of all families that pml is tested with, and what works on each.

`PYTHONPATH=tests python -m support.family_matrix` measures all of them and writes docs/families.md.
"""

import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

import torch
import transformers

from pml_cli.config.schema import LinearAdapter, MlpBlockAdapter
from pml_cli.errors import UserError
from pml_cli.model.loading import load_model
from support.models import (
    T,
    local,
    own_logits,
    random_bank,
    random_ids,
    save_random,
    transformers_model,
)

# Sizes by the names that families give to them; each takes those that it knows.
SIZES = {
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "num_layers": 3,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "vocab_size": 101,
    "vocab_size_per_layer_input": 101,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "max_seq_len": 256,
    # Experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    # Linear attention and state spaces.
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Multi-head latent attention.
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
}

# Shorter than the inputs.
WINDOW = {"sliding_window": 7}

GRANITE = {
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
}

# What a family needs beside the sizes, or what a test is to meet.
SPECIAL = {
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16},
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25} | WINDOW,
    "cohere2_moe": {"logit_scale": 0.25},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "falcon_h1": {"mamba_n_heads": 4, "lm_head_multiplier": 0.5},
    "gemma2": WINDOW | {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0},
    "gemma3_text": WINDOW,
    "glm4_moe_lite": LATENT,
    "gpt_neo": {
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 7,
    },
    "gpt_oss": WINDOW,
    "gptj": {"rotary_dim": 4},
    "granite": GRANITE,
    "granitemoe": GRANITE,
    "granitemoeshared": GRANITE,
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "minicpm3": LATENT | {"scale_depth": 1.4, "dim_model_base": 16},
    "mistral": WINDOW,
    "mpt": {"expansion_ratio": 2},
    "olmo3": WINDOW,
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 3},
    # Its embedding of the padding is set to zero after loading.
    "youtu": LATENT | {"pad_token_id": None},
}

# Families of which every part of the matrix is tested in the default suite.
REPRESENTATIVE = (
    "bloom",
    "cohere2",
    "falcon",
    "gemma3",
    "gpt_neo",
    "gpt_oss",
    "granite",
    "mpt",
    "opt",
    "phi3",
    "qwen3_moe",
    "qwen3_next",
)

SUPPORTED = """
afmoe apertus arcee aria_text bamba biogpt bitnet bloom codegen cohere cohere2 cohere2_moe cwm
deepseek_v2 deepseek_v3 diffllama doge dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon
falcon_h1 flex_olmo gemma gemma2 gemma3 gemma3_text glm glm4 glm4_moe glm4_moe_lite gpt2
gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoeshared
helium hunyuan_v1_dense hunyuan_v1_moe jamba jetmoe lfm2 lfm2_moe llama minicpm3 minimax minimax_m2
ministral ministral3 mistral mixtral moshi mpt nanochat nemotron olmo olmo2 olmo3 olmo_hybrid olmoe
opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe
qwen3_next recurrent_gemma rwkv seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm
youtu
""".split()

# Families that are refused in one line: of encoders, of two parts, or of layers that share more
# than hidden states.
REFUSED = (
    "bart bert electra gemma4_text llama4_text modernbert-decoder openai-gpt prophetnet roberta t5 "
    "whisper xlnet"
).split()

COLUMNS = ("linear", "mlp_block", "PEFT", "streamed", "cached")

# Relative to the largest logit.
ROUNDING = 2e-5

# Names of modules that get linear adapters, in the order of preference.
TARGETS = (
    "q_proj",
    "o_proj",
    "c_attn",
    "query_key_value",
    "qkv_proj",
    "Wqkv",
    "q_b_proj",
    "out_proj",
    "dense",
    "c_proj",
    "fc_in",
)


def small_fields(family):
    """Fields of the small config of a family."""
    if family == "gemma3":
        vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes = {"intermediate_size": 32, "image_size": 28, "patch_size": 14}
        return {"text_config": small_fields("gemma3_text"), "vision_config": vision | sizes}

    config_class = transformers.CONFIG_MAPPING[family]
    known = config_class().to_dict()
    fields = {name: value for name, value in SIZES.items() if name in known}
    return fields | SPECIAL.get(family, {})


def linear_adapter(model):
    """A linear adapter on modules that the second layer of a model has."""
    names = [site.split(".")[-1] for site in linear_modules(model.layers[1])]
    preferred = [name for name in TARGETS if name in names]
    return LinearAdapter(targets=(preferred or sorted(set(names)))[:2], layers=[1], alpha=8.0)


def linear_modules(layer):
    """Names of the linear modules of a layer."""
    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    return [name for name, module in layer.named_modules() if isinstance(module, kinds)]


def difference(logits, expected):
    """The largest difference, relative to the largest expected logit."""
    return float((logits - expected).abs().max() / expected.abs().max())


def split_difference(model, adapter):
    """How far the split pass is from the model's own, over inputs of two lengths.

    Raises:
        UserError: the model cannot be split, or not for this adapter.
    """
    bank = random_bank(model, adapter)
    model.check_split(bank)
    rows = bank.select([0, 1])
    ids = random_ids(model, 2)
    prefix = model.prefix(ids, rows)

    differences = []
    for tokens in (T, 9):
        with torch.no_grad():
            hidden = model.upper(prefix.rows(torch.tensor([0, 1]), tokens), rows)
            logits = model.logits(hidden)
        differences.append(difference(logits, own_logits(model, ids[:, :tokens], rows)))
    return max(differences)


def peft_difference(model, folder, adapter):
    """How far PEFT's logits with a saved adapter, loaded and merged, are from ours."""
    import peft

    bank = random_bank(model, adapter).select([0])
    ids = random_ids(model, 1)
    expected = own_logits(model, ids, bank)
    with tempfile.TemporaryDirectory() as adapter_folder, torch.no_grad():
        bank.save(0, Path(adapter_folder), str(folder))
        loaded = peft.PeftModel.from_pretrained(transformers_model(folder), adapter_folder)
        as_loaded = loaded(input_ids=ids, use_cache=False).logits
        merged = loaded.merge_and_unload()(input_ids=ids, use_cache=False).logits
    return max(difference(as_loaded, expected), difference(merged, expected))


def streamed_difference(model, folder, adapter):
    """How far the split pass of the streamed model is from that of the whole one.

    Raises:
        UserError: the model cannot be streamed.
    """
    streamed = load_model(local(folder, stream=True))
    assert streamed.weights_hash() == model.weights_hash()
    bank = random_bank(model, adapter).select([0, 1])
    ids = random_ids(model, 2)
    logits = []
    for base in (model, streamed):
        with torch.no_grad():
            logits.append(base.logits(base.upper(base.prefix(ids, bank), bank)))
    return difference(*logits)


def works(measure, *arguments):
    """Whether a difference is rounding; False where it is refused in one line."""
    try:
        return measure(*arguments) <= ROUNDING
    except UserError as error:
        assert "\n" not in str(error)
        return False


def peft_works(model, folder, adapter):
    """The same of PEFT, which refuses in ways of its own."""
    try:
        return peft_difference(model, folder, adapter) <= ROUNDING
    except (ValueError, RuntimeError):
        return False


def measured(family, folder):
    """What works for a family: a dict by `COLUMNS`.

    Args:
        family: its `model_type`.
        folder: an empty folder for the model.
    """
    save_random(family, small_fields(family), folder)
    model = load_model(local(folder))
    adapter = linear_adapter(model)
    return {
        "linear": works(split_difference, model, adapter),
        "mlp_block": works(split_difference, model, MlpBlockAdapter()),
        "PEFT": peft_works(model, folder, adapter),
        "streamed": works(streamed_difference, model, folder, adapter),
        "cached": model.new_cache() is not None,
    }


DOCS = Path(__file__).parents[2] / "docs" / "families.md"

INTRODUCTION = """\
# Families of models

What works on each family, measured on small random models with {versions}.
A family that is not listed is checked in the same way when a model of it is loaded: where pml
cannot train it right, the run ends in one line before training.

- **linear**, **mlp_block**: adapters of this placement train. The split pass gives the logits of
  the model's own (largest difference: {rounding:g} of the largest logit).
- **PEFT**: a saved linear adapter on attention gives the same logits when PEFT has loaded it, and
  when PEFT has merged it. Where PEFT reads something else (on modules of shared experts, for
  one), the script in the adapter's README.md loads it without PEFT.
- **streamed**: layers below the adapter can be read one at a time (`model.stream`). Where not,
  transformers rearranges the weights of the files when it loads them.
- **cached**: decoding keeps keys and values. Where not, every token is computed again in each
  step: the same, but slower.

| family (`model_type`) | linear | mlp_block | PEFT | streamed | cached |
|---|---|---|---|---|---|
"""

AFTER = """
Refused in one line: models with an encoder, and decoders whose layers pass on more than hidden
states: {refused}. So are quantised weights (bitsandbytes, GPTQ, AWQ, FP8); GGUF files are
dequantised.
"""


def table_row(family, works_by_column):
    """The row of a family in the table."""
    cells = ["yes" if works_by_column[column] else "no" for column in COLUMNS]
    return f"| {family} | {' | '.join(cells)} |"


def document(rows):
    """The text of docs/families.md.

    Args:
        rows: of the table.
    """
    packages = ("transformers", "torch", "peft")
    versions = ", ".join(f"{name} {metadata.version(name).split('+')[0]}" for name in packages)
    head = INTRODUCTION.format(versions=versions, rounding=ROUNDING)
    return head + "\n".join(rows) + "\n" + AFTER.format(refused=", ".join(REFUSED))


def main():
    """Measure all families and write the document."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    for family in SUPPORTED:
        with tempfile.TemporaryDirectory() as folder:
            row = table_row(family, measured(family, Path(folder)))
        print(row, flush=True)
        rows.append(row)
    DOCS.parent.mkdir(exist_ok=True)
    DOCS.write_text(document(rows), "utf-8")


if __name__ == "__main__":
    sys.exit(main())

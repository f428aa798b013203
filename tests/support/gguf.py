"""Small GGUF files, written with llama.cpp's own package."""

import json
import shutil

import gguf
import torch
import transformers
from safetensors.torch import load_file

from pml_cli.config.schema import TINY

# llama.cpp's numbers for kinds of tokens.
NORMAL, CONTROL = 1, 3

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


# A small Llama with the embedded model's tokenizer.
FIELDS = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def save_small_llama(folder):
    """A folder as save_pretrained writes it, with the embedded model's tokenizer."""
    config = transformers.LlamaConfig(**FIELDS)
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return folder


def write_gguf(
    path, folder, quantization=gguf.GGMLQuantizationType.F32, add=lambda _writer: None, **changed
):
    """The model of `save_small_llama` as a GGUF file.

    Args:
        path: the file.
        folder: of the model.
        quantization: of the matrices; norms are float32.
        add: adds to the file what is not in the model.
        changed: numbers added to tensors, by their GGUF names with "_" for ".".
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_vocab_size(FIELDS["vocab_size"])
    writer.add_block_count(FIELDS["num_hidden_layers"])
    writer.add_context_length(FIELDS["max_position_embeddings"])
    writer.add_embedding_length(FIELDS["hidden_size"])
    writer.add_feed_forward_length(FIELDS["intermediate_size"])
    writer.add_head_count(FIELDS["num_attention_heads"])
    writer.add_head_count_kv(FIELDS["num_key_value_heads"])
    writer.add_rope_dimension_count(FIELDS["hidden_size"] // FIELDS["num_attention_heads"])
    writer.add_layer_norm_rms_eps(FIELDS["rms_norm_eps"])
    _add_tokenizer(writer)
    add(writer)
    _add_tensors(writer, folder, quantization, changed)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer):
    tokenizer = json.loads((TINY / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)


def _add_tensors(writer, folder, quantization, changed):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, FIELDS["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        array = tensor.float().numpy()
        if "q_proj" in name:
            array = _interleaved(array, FIELDS["num_attention_heads"])
        if "k_proj" in name:
            array = _interleaved(array, FIELDS["num_key_value_heads"])
        array = array + changed.get(gguf_name.replace(".", "_"), 0)
        kind = quantization if array.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name, gguf.quantize(array, kind), raw_dtype=kind)


def _interleaved(array, heads):
    """Rows in llama.cpp's order: it rotates neighbours, transformers the halves of a head."""
    rows, inputs = array.shape
    halves = array.reshape(heads, 2, rows // heads // 2, inputs)
    return halves.swapaxes(1, 2).reshape(rows, inputs)

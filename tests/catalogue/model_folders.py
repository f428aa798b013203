"""A folder with a base model: config.json, weights, tokenizer."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from catalogue.case import Case, Change
from catalogue.damage import GONE, both, damaged_files, put, rewrite, with_value

DOOR = "model folders"
TEXT = ("data=text", "data.path=t.txt")
PROSE = put("t.txt", "some words and some more of some words " * 20)
WEIGHTS = "m/model.safetensors"
TOKENIZER = "m/tokenizer_config.json"
INDEX = "m/model.safetensors.index.json"

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "intermediate_size", "max_position_embeddings", "head_dim"),
)
# What no size is.
NO_SIZES: dict[str, Any] = {
    "a word": "abc",
    "zero": 0,
    "negative": -3,
    "a list": [6],
    "a mapping": {},
    "1.5": 1.5,
    "a number of 400 digits": 10**400,
}
FIELDS: dict[str, tuple[str, Any]] = {
    "no model_type": ("model_type", GONE),
    "model_type unknown": ("model_type", "nope"),
    "model_type a list": ("model_type", [1]),
    "model_type null": ("model_type", None),
    "model_type a number": ("model_type", 5),
    "an encoder": ("model_type", "bert"),
    "an encoder and a decoder": ("model_type", "t5"),
    "a width of other weights": ("hidden_size", 256),
    "a width beyond all memory": ("hidden_size", 10**9),
    "more layers than weights": ("num_hidden_layers", 9),
    "a smaller vocabulary": ("vocab_size", 100),
    "heads that do not divide": ("num_key_value_heads", 3),
    "an odd head": ("head_dim", 7),
    "layer types of another length": ("layer_types", ["full_attention"]),
    "layer types of numbers": ("layer_types", [1] * 6),
    "a text part that is a list": ("text_config", [1]),
    "an unknown activation": ("hidden_act", "nope"),
    "an activation that is a list": ("hidden_act", ["silu"]),
    "quantised": ("quantization_config", {"quant_method": "gptq", "bits": 4}),
    "quantised by a list": ("quantization_config", [1]),
    "an unknown rope": ("rope_parameters", {"rope_type": "nope"}),
    "a rope that is a list": ("rope_parameters", [1]),
    "a dtype of nobody": ("dtype", "float99"),
    "norms of a word": ("rms_norm_eps", "x"),
    "an escape sequence": ("model_type", "\x1b[31mred"),
}
# These transformers takes, or pml says itself.
HARMLESS = (
    *("a dtype of nobody", "no model_type", "quantised by a list", "a text part that is a list"),
    *("layer types of another length", "a rope that is a list"),
)

# Without tokenizer_config.json a tokenizer has no special tokens.
NO_FILES = ("null", "a folder", "a link to nowhere", "a link to itself", "a pipe")

TEMPLATES = {
    "broken": "{% if %}",
    "that divides by zero": "{{ 1/0 }}",
    "that loops": "{% for i in range(10**9) %}x{% endfor %}",
    "that escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "of no output": "",
    "that is a list": [1],
    "that is a number": 5,
    "that calls itself": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
}
INDEXES = {
    "without a map": "{}",
    "with a list for a map": '{"weight_map": [1]}',
    "with a shard that is missing": '{"weight_map": {"model.norm.weight": "nope.safetensors"}}',
    "with a shard elsewhere": '{"weight_map": {"model.norm.weight": "../../../../etc/passwd"}}',
    "with a shard that is a number": '{"weight_map": {"model.norm.weight": 5}}',
    "with a shard that is empty": '{"weight_map": {"model.norm.weight": ""}}',
    "of no tensors": '{"weight_map": {}}',
}
HEADERS = {
    "a header beyond the file": struct.pack("<Q", 10**9) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 5) + b"hello",
    "a header of no tensor": struct.pack("<Q", 2) + b"{}",
    "a header nested deep": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a tensor of numbers": struct.pack("<Q", 7) + b'{"a":5}',
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
}


def cases() -> Iterator[Case]:
    """All of them."""
    for name, change in damaged_files("m/config.json"):
        yield _case(f"config.json {name}", change)

    for name, (field, value) in FIELDS.items():
        codes = (0, 1, 2) if name in HARMLESS else (1, 2)
        yield _case(f"config.json, {name}", with_value("m/config.json", (field,), value), codes)

    for size in SIZES:
        for name, value in NO_SIZES.items():
            change = with_value("m/config.json", (size,), value)
            yield _case(f"config.json, {size} {name}", change, _codes(size, value))

    yield from _weights()
    yield from _tokenizers()
    yield from _neighbours()
    yield from _random_weights()


def _codes(size: str, value: Any) -> tuple[int, ...]:
    """A context of another number, and a count of heads of another, are taken as they are."""
    is_number = isinstance(value, int | float)
    return (0, 1, 2) if size == "max_position_embeddings" and is_number else (1, 2)


def _weights() -> Iterator[Case]:
    for name, change in _damaged_weights():
        yield _case(name, change)
        yield _case(f"{name}, streamed", change, words=("model.stream=true",))
    yield _case("weights that are a pickle", _pickled)
    yield _case("an empty folder", _emptied)


def _damaged_weights() -> Iterator[tuple[str, Change]]:
    for name, change in damaged_files(WEIGHTS):
        yield f"weights {name}", change
    for name, content in HEADERS.items():
        yield f"weights with {name}", put(WEIGHTS, content)
    for name, new_tensors in TENSORS.items():
        yield f"weights {name}", _tensors(new_tensors)

    for name, text in INDEXES.items():
        yield f"index {name}", _sharded(text)
    for name, change in damaged_files(INDEX, missing=False):
        yield f"index {name}", both(_sharded("{}"), change)


def _tokenizers() -> Iterator[Case]:
    for name, change in damaged_files("m/tokenizer.json", missing=False):
        yield _tokenized(f"tokenizer.json {name}", change)
    for name, change in damaged_files(TOKENIZER, missing=False):
        codes = (0, 1, 2) if name in NO_FILES else (1, 2)
        yield _tokenized(f"tokenizer_config.json {name}", change, codes)

    for field in ("bos_token", "eos_token", "tokenizer_class", "model_max_length"):
        for kind, value in (("a number", 5), ("a list", [1]), ("a mapping", {"a": 1})):
            change = with_value(TOKENIZER, (field,), value)
            yield _tokenized(f"tokenizer_config.json, {field} {kind}", change, (0, 1, 2))

    for name, template in TEMPLATES.items():
        change = with_value(TOKENIZER, ("chat_template",), template)
        words = ("data=phonebook", "data.chat=true")
        yield _case(f"a chat template {name}", change, words=words)
    yield _tokenized("a tokenizer of more ids than embeddings", _more_ids)


def _neighbours() -> Iterator[Case]:
    """Other files of a model's folder, which transformers and tokenizers look for."""
    for file in NEIGHBOURS:
        for name, change in damaged_files(f"m/{file}", missing=False):
            made = both(put(f"m/{file}"), change)
            yield _tokenized(f"{file} {name}", made, (0, 1, 2))


NEIGHBOURS = (
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def _tokenized(name: str, change: Change, codes: tuple[int, ...] = (1, 2)) -> Case:
    """A text, which needs the tokenizer."""
    return _case(name, both(PROSE, change), codes, words=TEXT)


def _random_weights() -> Iterator[Case]:
    """Architectures of the command line."""
    start = "hidden_size:64,num_hidden_layers:2,vocab_size:50,max_position_embeddings:512"
    texts = {
        "nothing": "",
        "no type": start,
        "an unknown type": f"model_type:nope,{start}",
        "a number for a type": f"model_type:5,{start}",
        "an encoder": f"model_type:bert,{start},num_attention_heads:4",
        "an encoder and a decoder": f"model_type:t5,{start},num_attention_heads:4",
        "heads that do not divide": f"model_type:llama,{start},num_attention_heads:7",
        "a target": f"model_type:llama,_target_:os.system,{start}",
    }
    for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"):
        for value in ("0", "-1", "abc", "[1]", "{a:2}", "1.5"):
            other = f"{start},num_attention_heads:4".replace(f"{key}:", "unused:")
            texts[f"{key} {value}"] = f"model_type:llama,{other},{key}:{value}"

    for name, text in texts.items():
        given = ("model.weights=random", "model.name=x", f"model.architecture={{{text}}}")
        argv = ("sweep", "rank=1", "seqlen=8", "train.steps=2", "out=o", *given)
        # A target is one more attribute of the configuration: nothing calls it.
        codes = (1, 2) if text and name != "a target" else (0, 1, 2)
        yield Case(
            door=DOOR, name=f"random weights of {name}", argv=argv, says="model", codes=codes
        )


def _case(
    name: str, change: Change, codes: tuple[int, ...] = (1, 2), words: tuple[str, ...] = ()
) -> Case:
    argv = ("sweep", "model=hf", "model.path=m", "rank=1", "seqlen=8", "train.steps=2", "out=o")
    return Case(
        door=DOOR,
        name=name,
        argv=(*argv, *words),
        base="model",
        change=change,
        codes=codes,
        says=r"model[.=]|m/|tokenizer|chat",
        # A folder that is fine until its weights are read has begun its results folder.
        writes=False,
    )


def _sharded(index: str) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "m/model-00001-of-00001.safetensors")
        (folder / INDEX).write_text(index)

    return change


def _tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = change(load_file(folder / WEIGHTS))
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def _without(words: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: t for name, t in tensors.items() if words not in name}


def _narrower(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: t[:, :-1].contiguous() if name.endswith("gate_proj.weight") else t
        for name, t in tensors.items()
    }


TENSORS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "without a layer": _without("layers.2."),
    "without embeddings": _without("embed_tokens"),
    "of another shape": _narrower,
    "that are not numbers": lambda tensors: {n: t * float("nan") for n, t in tensors.items()},
}


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    code = b"\x80\x04cos\nsystem\n(S'touch CODE_WAS_RUN'\ntR."
    (folder / "m/pytorch_model.bin").write_bytes(code)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder / "m")
    (folder / "m").mkdir()


def _more_ids(folder: Path) -> None:
    def add(old: bytes) -> bytes:
        tree = json.loads(old)
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        tree.setdefault("added_tokens", []).append({"id": 5000, "content": "some", **flags})
        return json.dumps(tree).encode()

    rewrite("m/tokenizer.json", add)(folder)

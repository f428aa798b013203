"""The sizes of a model, and the memory of a device."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import psutil

from pml_cli.config.schema import Model
from pml_cli.model.files import config_fields, facts


def device_kind(asked: str, gpu: bool | None = None) -> str:
    """cuda or cpu, guessed without torch; `gpu`: whether there is one where it will run, None: look here."""
    if gpu is None:
        gpu = Path("/dev/nvidia0").exists()
    has_gpu = gpu if asked == "auto" else asked.startswith("cuda")
    return "cuda" if has_gpu else "cpu"


WEIGHTS_SHARE = 0.8  # of a device's memory that weights may fill

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

QKV, SCORES, OUT, UP, DOWN = range(5)  # stages of a decoder layer, in the order of the forward pass

HEAD_SIZE = {
    "qwen3": 128,
    "gemma": 256,
    "gemma2": 256,
    "gemma3_text": 256,
}  # where the config does not say

GATED = {f"self_attn.{x}_proj": x for x in "qkvo"} | {
    f"mlp.{x}_proj": x for x in ("gate", "up", "down")
}

NEOX = {
    "attention.query_key_value": "qkv",
    "attention.dense": "o",
    "mlp.dense_h_to_4h": "up",
    "mlp.dense_4h_to_h": "down",
}

PLAIN = {
    "gpt2": {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"},
    "gpt_neox": NEOX,
}


class Matrix(NamedTuple):
    inputs: int
    outputs: int
    stage: int


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only model."""

    kind: str  # model_type of its config
    layers: int
    hidden: int
    vocabulary: int
    queries: int  # heads x head size
    keys: int  # key-value heads x head size
    inner: int
    tables: int  # weights of the embeddings, and of the head where it is not tied to them
    written: int  # heads whose T x T scores are written out (where they are capped, no fused attention serves); else 0
    capped: bool  # of the logits: two more copies of them
    matrices: dict[str, Matrix]  # of one layer, by name
    inputs: int  # weights of the embeddings that the head does not share, where it does not

    @property
    def layer(self) -> int:
        """Weights of one layer, without those of the norms."""
        return sum(
            m.inputs * m.outputs + m.outputs * (self.kind in PLAIN) for m in self.matrices.values()
        )

    @property
    def parameters(self) -> int:
        """Weights of the whole model, without those of the norms."""
        return self.layers * self.layer + self.tables


def shape(model: Model) -> Shape:
    """Sizes of a model from its config.json alone (field names of Llama, Qwen, Mistral, Gemma and GPT-NeoX, or of GPT-2)."""
    fields, known = config_fields(model), facts(model)
    kind = str(fields.get("model_type", "llama"))

    def size(otherwise: int, *names: str) -> int:
        return int(next((fields[name] for name in names if fields.get(name)), otherwise))

    D, heads = known.hidden, size(1, "num_attention_heads", "n_head")
    head = size(HEAD_SIZE.get(kind, D // heads), "head_dim")
    Q, K, inner = (
        heads * head,
        size(heads, "num_key_value_heads") * head,
        size(4 * D, "intermediate_size", "n_inner"),
    )
    sizes = {
        "qkv": (D, Q + 2 * K, QKV),
        "q": (D, Q, QKV),
        "k": (D, K, QKV),
        "v": (D, K, QKV),
        "o": (Q, D, OUT),
    }
    sizes |= {"gate": (D, inner, UP), "up": (D, inner, UP), "down": (inner, D, DOWN)}
    matrices = {name: Matrix(*sizes[of]) for name, of in (PLAIN.get(kind) or GATED).items()}
    tied = fields.get("tie_word_embeddings", kind.startswith(("gpt2", "gemma")))
    rows = known.vocabulary * (1 if tied else 2) + known.context * (kind == "gpt2")
    written = heads if fields.get("attn_logit_softcapping") or kind == "gemma2" else 0
    capped = fields.get("final_logit_softcapping") is not None
    apart = 0 if tied else known.vocabulary * D
    return Shape(
        kind,
        known.layers,
        D,
        known.vocabulary,
        Q,
        K,
        inner,
        rows * D,
        written,
        capped,
        matrices,
        apart,
    )


def streams(model: Model) -> bool:
    """Whether the layers that training does not need are read one at a time: as asked, else where the weights do not fit."""
    if model.stream is not None or model.weights == "random":
        return bool(model.stream)
    room = _room(device_kind(model.device))
    return room is not None and shape(model).parameters * BYTES[model.dtype] > WEIGHTS_SHARE * room


@lru_cache(maxsize=2)
def _room(kind: str) -> int | None:
    return device_memory(kind)


def device_memory(kind: str) -> int | None:
    """Bytes of this machine's memory (cpu, as far as a container allows) or of its smallest GPU (cuda); None: unknown."""
    if kind == "cpu":
        allowed = Path("/sys/fs/cgroup/memory.max")
        limit = allowed.read_text("utf-8").strip() if allowed.exists() else "max"
        return min(int(psutil.virtual_memory().total), int(limit) if limit.isdigit() else 2**62)
    if not (program := shutil.which("nvidia-smi")):
        return None
    asked = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout
        return min(int(line) for line in told.split("\n") if line.strip()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):  # no driver, or "[N/A]"
        return None

"""What a pack costs before it runs: FLOPs and memory. Without torch.

Letters: D hidden size, Q and K widths of all query and of all key heads, T padded input tokens of a row.
Not counted: free decoding after the training, what an early stop saves, experts of which only some run.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import psutil

from .config import LinearAdapter, Model, Run
from .curriculum import minibatches
from .plan import Pack, Planned, device_kind
from .pretrained import config_fields, facts

CHUNK = 2048  # scored tokens whose logits exist at once, as in losses.token_nll
EVALUATION_TOKENS = 16384  # as in engine.py
ROWS = 8  # of the prefix at once, as in base.py
WEIGHTS_SHARE = 0.8  # of a device's memory that weights may fill
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
QKV, SCORES, OUT, UP, DOWN = range(5)  # stages of a decoder layer, in the order of the forward pass
HEAD_SIZE = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3_text": 256}  # where the config does not say
GATED = {f"self_attn.{x}_proj": x for x in "qkvo"} | {f"mlp.{x}_proj": x for x in ("gate", "up", "down")}
NEOX = {"attention.query_key_value": "qkv", "attention.dense": "o", "mlp.dense_h_to_4h": "up", "mlp.dense_4h_to_h": "down"}
PLAIN = {"gpt2": {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"}, "gpt_neox": NEOX}
QK_NORMS = ("qwen3", "gemma3_text")  # these norm queries and keys
SANDWICH = ("gemma2", "gemma3_text")  # these norm the outputs of attention and MLP too


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
        return sum(m.inputs * m.outputs + m.outputs * (self.kind in PLAIN) for m in self.matrices.values())

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
    Q, K, inner = heads * head, size(heads, "num_key_value_heads") * head, size(4 * D, "intermediate_size", "n_inner")
    sizes = {"qkv": (D, Q + 2 * K, QKV), "q": (D, Q, QKV), "k": (D, K, QKV), "v": (D, K, QKV), "o": (Q, D, OUT)}
    sizes |= {"gate": (D, inner, UP), "up": (D, inner, UP), "down": (inner, D, DOWN)}
    matrices = {name: Matrix(*sizes[of]) for name, of in (PLAIN.get(kind) or GATED).items()}
    tied = fields.get("tie_word_embeddings", kind.startswith(("gpt2", "gemma")))
    rows = known.vocabulary * (1 if tied else 2) + known.context * (kind == "gpt2")
    written = heads if fields.get("attn_logit_softcapping") or kind == "gemma2" else 0
    capped = fields.get("final_logit_softcapping") is not None
    apart = 0 if tied else known.vocabulary * D
    return Shape(kind, known.layers, D, known.vocabulary, Q, K, inner, rows * D, written, capped, matrices, apart)


class _Work:
    """What the engine does for one pack: which layers run, how often, and how far down the gradient reaches."""

    def __init__(self, pack: Pack) -> None:
        cells, run = pack.cells, pack.cells[0].run
        self.shape, self.steps, self.dtype = shape(run.model), cells[0].steps, BYTES[run.model.dtype]
        self.cells, self.rank, self.block = len(cells), max(c.run.rank for c in cells), run.adapter.kind == "mlp_block"
        self.sites = _sites(run, self.shape)
        layer = facts(run.model).adapter_layer(run.model.layer)
        self.first, self.reach = min(((layer, m.stage) for layer, m in self.sites), default=(layer, DOWN))
        self.upper = range(self.first + self.block, self.shape.layers)  # the layers that run in every step
        self.again = pack.checkpointing  # of those layers only the inputs are kept, and backward runs them once more
        self.T, self.tokens = max(c.tokens for c in cells), pack.step_tokens
        self.all_tokens = self.cells * max(len(c.samples) for c in cells) * self.T
        targets = [sum(len(s.target) for s in c.samples) for c in cells]
        self.scored = sum(n * c.rows / len(c.samples) for n, c in zip(targets, cells, strict=True))
        self.all_scored, self.rows = sum(targets), _unique_rows(pack)
        self.filled = max(_filled(c) for c in cells)
        apart = cells[0].drawn or run.adapter.dropout > 0  # else logged scores are the trained ones
        log_every = run.train.log_every or max(1, self.steps // 20)
        self.evaluations = 2 + ((self.steps - 1) // log_every if apart else 0)
        self.head = 2 * self.shape.hidden * self.shape.vocabulary  # FLOPs of a scored token, one way
        self.adapter = sum(2 * self.rank * (m.inputs + m.outputs) for _, m in self.sites)  # FLOPs of a token, forward

    def flows(self, layer: int, stage: int) -> bool:
        """Whether a gradient is wanted at the input of a stage: an adapter lies before it."""
        beside = self.shape.kind == "gpt_neox" and self.reach < UP <= stage  # its MLP does not read its attention
        return layer > self.first or (stage > self.reach and not beside)

    def forward(self, layers: int) -> float:
        """FLOPs of a token in whole layers: matrices, and two products of attention over T / 2 tokens in the mean."""
        matrices = sum(2 * m.inputs * m.outputs for m in self.shape.matrices.values())
        return layers * (matrices + (4 if self.shape.written else 2) * self.shape.queries * self.T)

    def backward(self) -> float:
        """FLOPs of a token: frozen matrices only pass gradients on; fused attention takes five products, plain four."""
        total = self.repeated() if self.again else 0.0
        attention = (8 if self.shape.written else 5) * self.shape.queries * self.T
        for layer in self.upper:
            matrices = (m for m in self.shape.matrices.values() if self.flows(layer, m.stage))
            total += sum(2 * m.inputs * m.outputs for m in matrices) + attention * self.flows(layer, SCORES)
        for layer, m in self.sites:  # of x @ A @ B: A, B and what lies between, and x where that is no cached constant
            inputs = 1 + (not self.block and self.flows(layer, m.stage))
            total += 2 * self.rank * (inputs * m.inputs + 2 * m.outputs)
        return total

    def repeated(self) -> float:
        """FLOPs of a token that checkpointing adds: the layers again, each up to the last product that a gradient needs."""
        total = self.forward(len(self.upper)) + (0 if self.block else self.adapter)
        for layer in self.upper if self.shape.kind not in SANDWICH else []:  # there a norm follows the last product
            last = max((stage for stage in (OUT, DOWN) if self.flows(layer, stage)), default=DOWN)
            if (layer, last) not in [(i, m.stage) for i, m in self.sites]:
                total -= sum(2 * m.inputs * m.outputs for m in self.shape.matrices.values() if m.stage >= last)
        return total

    def saved(self) -> tuple[float, float]:
        """Bytes of a token that autograd keeps until backward (measured with saved_tensors_hooks, see the tests).

        With activation checkpointing that is the inputs of the layers, and what one layer keeps comes back in backward.

        Queries, keys, values, attention's output; the norms' inputs, which RMS norms hold in float32; the gate, its
        activation and the other half of an MLP (GPT-2's composite GELU keeps four); adapters' inputs in float32.
        """
        m, dtype, precise = self.shape, self.dtype, max(4, self.dtype)
        norm = m.hidden * (dtype if m.kind in PLAIN else precise)
        mlp = m.inner * dtype * {"gpt2": 4, "gpt_neox": 1}.get(m.kind, 3)
        attention = 2 * (m.queries + m.keys) * dtype + (m.queries + m.keys) * precise * (m.kind in QK_NORMS)
        attention += m.written * self.T * (2 * dtype + precise * (dtype < precise))
        more, layers = 1 + (m.kind in SANDWICH), dict.fromkeys(self.upper, 0.0)
        for layer in self.upper:
            norms = norm * (self.flows(layer, QKV) + more * self.flows(layer, UP) + (more - 1) * self.flows(layer, DOWN))
            layers[layer] = norms + attention * self.flows(layer, SCORES) + mlp * self.flows(layer, DOWN)
        outside = norm * (more if self.block else 1)  # of the last norm, and of the one that follows the adapted MLP
        outside += m.hidden * precise if self.block and dtype < 4 else 0  # else such an adapter reads the cache itself
        for layer, site in self.sites if not self.block else []:
            if layer in layers:  # one that the model lacks is refused later
                layers[layer] += site.inputs * precise
        if self.again:
            inputs = len(layers) - (not self.block)  # without a block the first one's is the cache
            return outside + inputs * m.hidden * dtype, max(layers.values(), default=0.0)
        return outside + sum(layers.values()), 0.0


def _filled(cell: Planned) -> float:
    """How full its minibatches are in the mean."""
    if cell.run.train.curriculum:
        return sum(minibatches(cell.run.train, len(cell.samples))) / (cell.rows * cell.steps)
    return len(cell.samples) / (cell.rows * -(-len(cell.samples) // cell.rows))


def _sites(run: Run, model: Shape) -> list[tuple[int, Matrix]]:
    """(layer, sizes) of every place that carries an adapter."""
    layer = facts(run.model).adapter_layer(run.model.layer)
    if not isinstance(run.adapter, LinearAdapter):
        return [(layer, Matrix(model.hidden, model.hidden, DOWN))]
    layers = [layer] if run.adapter.layers is None else sorted(set(run.adapter.layers)) or range(model.layers)
    ends = tuple(f".{target}" for target in run.adapter.targets)
    return [(i, m) for i in layers for name, m in model.matrices.items() if f".{name}".endswith(ends)]


def _unique_rows(pack: Pack) -> int:
    """Rows of the prefix cache: a sample that begins another needs none. In sorted order that one comes right after it."""
    found = sorted({(s.prompt, s.target) for cell in pack.cells for s in cell.samples})
    begins = (p == q and long[: len(short)] == short for (p, short), (q, long) in itertools.pairwise(found))
    return len(found) - sum(begins)


def step_flops(pack: Pack) -> float:
    """Matmul FLOPs of one training step, forward and backward, padding included."""
    work = _Work(pack)
    token = work.forward(len(work.upper)) + work.adapter + work.backward()
    return work.tokens * token + 2 * work.scored * work.head  # the head's only gradient is that of the hidden states


def whole_step_flops(pack: Pack, passes: int) -> float:
    """Matmul FLOPs of a step of a loop that runs the whole model, `passes` forward passes and one backward: what pml avoids.

    Every input token is read off the head.
    """
    work = _Work(pack)
    token = passes * (work.forward(work.shape.layers) + work.head) + work.adapter + work.backward() + work.head
    return work.tokens * token


def flops(pack: Pack) -> float:
    """Matmul FLOPs of the training of a pack: the prefix once, every step, and the evaluations."""
    work = _Work(pack)
    prefix = work.rows * work.T * work.forward(work.first + 1)
    evaluation = work.all_tokens * (work.forward(len(work.upper)) + work.adapter) + work.all_scored * work.head
    return prefix + work.steps * work.filled * step_flops(pack) + work.evaluations * evaluation


def saved_bytes(pack: Pack) -> int:
    """Bytes that the forward pass of one step keeps for the backward pass."""
    work = _Work(pack)
    return round(work.tokens * work.saved()[0] + work.scored * work.shape.hidden * work.dtype)


def memory(pack: Pack) -> int:
    """Peak bytes of tensors on the device while a pack is trained: an estimate.

    Of a streamed model's weights the layers above the adapter and the head, and while the prefix is computed one layer more
    (or the input embeddings, where the head does not share them).

    Weights, prefix cache and the batch drawn from it, adapters (with gradient, m, v and a copy in the update), and the
    larger of a step (what is saved, and logits of a chunk or the temporaries of a layer, with checkpointing also what that
    layer keeps) and an evaluation. Without what the device's runtime and allocator take for themselves (on CUDA some 0.5 GiB
    and up).
    """
    work = _Work(pack)
    m, dtype, precise = work.shape, work.dtype, max(4, work.dtype)
    kept = 1 if not work.block else 2 + (m.kind in SANDWICH)
    cache = (work.rows * work.T + work.tokens) * m.hidden * dtype * kept
    adapters = 5 * work.cells * work.rank * precise * sum(site.inputs + site.outputs for _, site in work.sites)
    logits = min(CHUNK, work.scored) * m.vocabulary * (precise * (1 + 2 * m.capped) + dtype * (dtype < precise))
    layer = dtype * 4 * (m.inner + m.hidden) + 2 * m.written * work.T * precise
    evaluated = min(work.all_tokens, max(EVALUATION_TOKENS, work.cells * work.T))
    step = saved_bytes(pack) + work.tokens * 2 * m.hidden * dtype + max(logits, work.tokens * (work.saved()[1] + layer))
    trained = cache + adapters + max(step, evaluated * layer + logits)
    if not streams(pack.cells[0].run.model):
        return round(m.parameters * dtype + trained)
    states = work.rows * work.T * m.hidden * dtype
    below = max(m.layer, m.inputs) * dtype + (1 + kept) * states + min(ROWS, work.rows) * work.T * layer
    return round(
        (m.tables - m.inputs + len(work.upper) * m.layer) * dtype + max(trained, below + adapters, 2 * kept * states)
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

"""What a pack costs before it runs: FLOPs and memory. Without torch.

Letters: D hidden size, Q and K widths of all query and of all key heads, T padded input tokens of a row.
Not counted: free decoding after the training, what an early stop saves, experts of which only some run.
"""

from __future__ import annotations

import itertools

from pml_cli.config.schema import LinearAdapter, Run
from pml_cli.data.cell import CellPlan
from pml_cli.data.curriculum import minibatch_sizes
from pml_cli.launch.packing import Pack
from pml_cli.model.chunk_sizes import HEAD_CHUNK, PREFIX_ROWS
from pml_cli.model.dims import (
    BYTES,
    DecoderShape,
    Matrix,
    Stage,
    decoder_shape,
    is_streamed,
    model_dims,
)
from pml_cli.training.limits import EVALUATION_TOKENS


class _Work:
    """What the engine does for one pack: which layers run, how often, and how far down the gradient reaches."""

    def __init__(self, pack: Pack) -> None:
        cells, run = pack.cells, pack.cells[0].run
        self.shape, self.steps, self.dtype = (
            decoder_shape(run.model),
            cells[0].steps,
            BYTES[run.model.dtype],
        )
        self.cells, self.rank, self.block = (
            len(cells),
            max(c.run.rank for c in cells),
            run.adapter.kind == "mlp_block",
        )
        self.sites = _sites(run, self.shape)
        layer = model_dims(run.model).adapter_layer(run.model.layer)
        self.first, self.reach = min(
            ((layer, m.stage) for layer, m in self.sites), default=(layer, Stage.DOWN)
        )
        self.upper = range(
            self.first + self.block, self.shape.layers
        )  # the layers that run in every step
        self.again = (
            pack.checkpointing
        )  # of those layers only the inputs are kept, and backward runs them once more
        self.T, self.tokens = max(c.tokens for c in cells), pack.step_tokens
        self.all_tokens = self.cells * max(len(c.samples) for c in cells) * self.T
        targets = [sum(len(s.target) for s in c.samples) for c in cells]
        self.scored = sum(n * c.rows / len(c.samples) for n, c in zip(targets, cells, strict=True))
        self.all_scored, self.rows = sum(targets), _unique_rows(pack)
        self.filled = max(_filled(c) for c in cells)
        apart = (
            cells[0].is_sampled or run.adapter.dropout > 0
        )  # else logged scores are the trained ones
        log_every = run.train.log_every or max(1, self.steps // 20)
        self.evaluations = 2 + ((self.steps - 1) // log_every if apart else 0)
        self.head = (
            2 * self.shape.hidden * self.shape.vocabulary
        )  # FLOPs of a scored token, one way
        self.adapter = sum(
            2 * self.rank * (m.inputs + m.outputs) for _, m in self.sites
        )  # FLOPs of a token, forward

    def flows(self, layer: int, stage: int) -> bool:
        """Whether a gradient is wanted at the input of a stage: an adapter lies before it."""
        beside = (
            self.shape.family.parallel_residual and self.reach < Stage.UP <= stage
        )  # its MLP does not read its attention
        return layer > self.first or (stage > self.reach and not beside)

    def forward(self, layers: int) -> float:
        """FLOPs of a token in whole layers: matrices, and two products of attention over T / 2 tokens in the mean."""
        matrices = sum(2 * m.inputs * m.outputs for m in self.shape.matrices.values())
        return layers * (
            matrices + (4 if self.shape.unfused_heads else 2) * self.shape.query_width * self.T
        )

    def backward(self) -> float:
        """FLOPs of a token: frozen matrices only pass gradients on; fused attention takes five products, plain four."""
        total = self.repeated() if self.again else 0.0
        attention = (8 if self.shape.unfused_heads else 5) * self.shape.query_width * self.T
        for layer in self.upper:
            matrices = (m for m in self.shape.matrices.values() if self.flows(layer, m.stage))
            total += sum(2 * m.inputs * m.outputs for m in matrices) + attention * self.flows(
                layer, Stage.SCORES
            )
        for (
            layer,
            m,
        ) in (
            self.sites
        ):  # of x @ A @ B: A, B and what lies between, and x where that is no cached constant
            inputs = 1 + (not self.block and self.flows(layer, m.stage))
            total += 2 * self.rank * (inputs * m.inputs + 2 * m.outputs)
        return total

    def repeated(self) -> float:
        """FLOPs of a token that checkpointing adds: the layers again, each up to the last product that a gradient needs."""
        total = self.forward(len(self.upper)) + (0 if self.block else self.adapter)
        for layer in (
            self.upper if not self.shape.family.norms_outputs else []
        ):  # there a norm follows the last product
            last = max(
                (stage for stage in (Stage.OUT, Stage.DOWN) if self.flows(layer, stage)),
                default=Stage.DOWN,
            )
            if (layer, last) not in [(i, m.stage) for i, m in self.sites]:
                total -= sum(
                    2 * m.inputs * m.outputs
                    for m in self.shape.matrices.values()
                    if m.stage >= last
                )
        return total

    def saved(self) -> tuple[float, float]:
        """Bytes of a token that autograd keeps until backward (measured with saved_tensors_hooks, see the tests).

        With activation checkpointing that is the inputs of the layers, and what one layer keeps comes back in backward.

        Queries, keys, values, attention's output; the norms' inputs, which RMS norms hold in float32; the gate, its
        activation and the other half of an MLP (GPT-2's composite GELU keeps four); adapters' inputs in float32.
        """
        m, dtype, precise = self.shape, self.dtype, max(4, self.dtype)
        norm = m.hidden * (precise if m.family.norms_in_float32 else dtype)
        mlp = m.mlp_width * dtype * m.family.saved_mlp_activations
        attention = 2 * (m.query_width + m.key_width) * dtype + (
            m.query_width + m.key_width
        ) * precise * (m.family.norms_queries_and_keys)
        attention += m.unfused_heads * self.T * (2 * dtype + precise * (dtype < precise))
        more, layers = 1 + (m.family.norms_outputs), dict.fromkeys(self.upper, 0.0)
        for layer in self.upper:
            norms = norm * (
                self.flows(layer, Stage.QKV)
                + more * self.flows(layer, Stage.UP)
                + (more - 1) * self.flows(layer, Stage.DOWN)
            )
            layers[layer] = (
                norms
                + attention * self.flows(layer, Stage.SCORES)
                + mlp * self.flows(layer, Stage.DOWN)
            )
        outside = norm * (
            more if self.block else 1
        )  # of the last norm, and of the one that follows the adapted MLP
        outside += (
            m.hidden * precise if self.block and dtype < 4 else 0
        )  # else such an adapter reads the cache itself
        for layer, site in self.sites if not self.block else []:
            if layer in layers:  # one that the model lacks is refused later
                layers[layer] += site.inputs * precise
        if self.again:
            inputs = len(layers) - (not self.block)  # without a block the first one's is the cache
            return outside + inputs * m.hidden * dtype, max(layers.values(), default=0.0)
        return outside + sum(layers.values()), 0.0


def _filled(cell: CellPlan) -> float:
    """How full its minibatches are in the mean."""
    if cell.run.train.curriculum:
        return sum(minibatch_sizes(cell.run.train, len(cell.samples))) / (cell.rows * cell.steps)
    return len(cell.samples) / (cell.rows * -(-len(cell.samples) // cell.rows))


def _sites(run: Run, model: DecoderShape) -> list[tuple[int, Matrix]]:
    """(layer, sizes) of every place that carries an adapter."""
    layer = model_dims(run.model).adapter_layer(run.model.layer)
    if not isinstance(run.adapter, LinearAdapter):
        return [(layer, Matrix(model.hidden, model.hidden, Stage.DOWN))]
    layers = (
        [layer]
        if run.adapter.layers is None
        else sorted(set(run.adapter.layers)) or range(model.layers)
    )
    ends = tuple(f".{target}" for target in run.adapter.targets)
    return [
        (i, m) for i in layers for name, m in model.matrices.items() if f".{name}".endswith(ends)
    ]


def _unique_rows(pack: Pack) -> int:
    """Rows of the prefix cache: a sample that begins another needs none. In sorted order that one comes right after it."""
    found = sorted({(s.prompt, s.target) for cell in pack.cells for s in cell.samples})
    begins = (
        p == q and long[: len(short)] == short
        for (p, short), (q, long) in itertools.pairwise(found)
    )
    return len(found) - sum(begins)


def step_flops(pack: Pack) -> float:
    """Matmul FLOPs of one training step, forward and backward, padding included."""
    work = _Work(pack)
    token = work.forward(len(work.upper)) + work.adapter + work.backward()
    return (
        work.tokens * token + 2 * work.scored * work.head
    )  # the head's only gradient is that of the hidden states


def whole_step_flops(pack: Pack, passes: int) -> float:
    """Matmul FLOPs of a step of a loop that runs the whole model, `passes` forward passes and one backward: what pml avoids.

    Every input token is read off the head.
    """
    work = _Work(pack)
    token = (
        passes * (work.forward(work.shape.layers) + work.head)
        + work.adapter
        + work.backward()
        + work.head
    )
    return work.tokens * token


def flops(pack: Pack) -> float:
    """Matmul FLOPs of the training of a pack: the prefix once, every step, and the evaluations."""
    work = _Work(pack)
    prefix = work.rows * work.T * work.forward(work.first + 1)
    evaluation = (
        work.all_tokens * (work.forward(len(work.upper)) + work.adapter)
        + work.all_scored * work.head
    )
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
    kept = 1 if not work.block else 2 + (m.family.norms_outputs)
    cache = (work.rows * work.T + work.tokens) * m.hidden * dtype * kept
    adapters = (
        5
        * work.cells
        * work.rank
        * precise
        * sum(site.inputs + site.outputs for _, site in work.sites)
    )
    logits = (
        min(HEAD_CHUNK, work.scored)
        * m.vocabulary
        * (precise * (1 + 2 * m.softcaps_logits) + dtype * (dtype < precise))
    )
    layer = dtype * 4 * (m.mlp_width + m.hidden) + 2 * m.unfused_heads * work.T * precise
    evaluated = min(work.all_tokens, max(EVALUATION_TOKENS, work.cells * work.T))
    step = (
        saved_bytes(pack)
        + work.tokens * 2 * m.hidden * dtype
        + max(logits, work.tokens * (work.saved()[1] + layer))
    )
    trained = cache + adapters + max(step, evaluated * layer + logits)
    if not is_streamed(pack.cells[0].run.model):
        return round(m.parameters * dtype + trained)
    states = work.rows * work.T * m.hidden * dtype
    below = (
        max(m.layer_weights, m.untied_input_weights) * dtype
        + (1 + kept) * states
        + min(PREFIX_ROWS, work.rows) * work.T * layer
    )
    return round(
        (m.embedding_weights - m.untied_input_weights + len(work.upper) * m.layer_weights) * dtype
        + max(trained, below + adapters, 2 * kept * states)
    )

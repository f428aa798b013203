"""Cost model: the FLOPs and the memory of a pack, before it runs. Without torch.

The counts follow the trainer's arithmetic; the tests compare them with torch's FlopCounterMode and
with the tensors that autograd saves (`saved_tensors_hooks`). Not counted: free decoding after the
training, what an early stop saves, and experts of which only some run.

A token costs per layer: its weight matrices, and the two products of attention, QK' and PV, over
T / 2 earlier tokens in the mean (T: input tokens of a row, padding included).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from pml_cli.config.schema import LinearAdapter, Run
from pml_cli.data.cell import CellPlan
from pml_cli.data.curriculum import minibatch_sizes
from pml_cli.data.generic_text import generic_windows
from pml_cli.data.source import Sample
from pml_cli.launch import packed_cost
from pml_cli.launch.pack import Pack
from pml_cli.model.chunk_sizes import HEAD_CHUNK, HEAD_WORDS, PREFIX_ROWS
from pml_cli.model.dims import (
    BYTES,
    DecoderShape,
    Matrix,
    Stage,
    decoder_shape,
    model_dims,
)
from pml_cli.training.limits import (
    EVALUATION_TOKENS,
    KL_LOGITS,
    KL_TOKENS,
    KL_WINDOWS,
    LBFGS_PAIRS,
    MAIN_DIRECTIONS,
    MEASURE_EVERY,
    MEASURED_WINDOWS,
    MOMENT_NUMBERS,
    WIDEST_WHOLE,
)

# Logged steps of a run with train.log_every=0.
DEFAULT_LOGGED_STEPS = 20

# Weights, gradient, two moments of AdamW, and a copy in the update; of Muon one moment and
# two copies; of L-BFGS a few vectors beside its pairs, and what it reads of them.
ADAPTER_COPIES = {"adamw": 5, "muon": 5, "lbfgs": 12 + 2 * LBFGS_PAIRS}


def step_flops(pack: Pack) -> float:
    """Matmul FLOPs of one training step, forward and backward, padding included."""
    work = PackWork(pack)
    # The head's only gradient is that of the hidden states: one product back.
    head = 2 * work.scored_tokens * work.head_flops
    return work.upper_flops(backward=True) + head + work.penalty_flops()


def training_flops(pack: Pack) -> float:
    """Matmul FLOPs of the training of a pack: the prefix once, every step, and the evaluations."""
    work = PackWork(pack)
    prefix = work.prefix_tokens * work.forward_flops(work.first_layer + 1)
    # The penalty is the same whatever the size of a minibatch.
    penalty = work.penalty_flops()
    step = work.mean_batch_fill * (step_flops(pack) - penalty) + penalty
    steps = work.steps * step

    # Evaluations score every sample, and pass no gradient.
    layers = work.upper_flops(backward=False) * work.all_tokens / work.step_tokens
    evaluation = layers + work.all_scored_tokens * work.head_flops
    return prefix + steps + work.evaluations * evaluation + work.kept_text_flops()


def saved_bytes(pack: Pack) -> int:
    """Bytes that the forward pass of one step saves for the backward pass."""
    work = PackWork(pack)
    layers = work.upper_saved_bytes()
    hidden_states = work.scored_tokens * work.shape.hidden * work.number_bytes
    return round(layers + hidden_states)


def peak_memory(pack: Pack) -> int:
    """Estimated peak bytes of tensors on the device while a pack is trained.

    Weights, prefix cache, adapters, what `loss.keep` needs, and the larger of a training step and
    an evaluation. Of a streamed model only the layers above the adapter, the head and one more
    layer are there; where streaming is left to the workers, the model is priced whole. What the
    runtime and the allocator of the device take is not included (on CUDA 0.5 GiB and more).
    """
    work = PackWork(pack)
    training = work.prefix_cache_bytes() + work.adapter_bytes() + _compute_bytes(work, pack)
    training += work.penalty_bytes()
    if not pack.model.stream:
        return round(work.shape.parameters * work.number_bytes + training)

    weights = (
        work.shape.embedding_weights
        - work.shape.untied_input_weights
        + len(work.upper_layers) * work.shape.layer_weights
    )
    # The prefix is computed layer by layer before the training, then moved into its cache.
    computing_prefix = work.adapter_bytes() + work.streamed_prefix_bytes()
    assembling_cache = 2 * work.cached_tensors * work.prefix_state_bytes()
    return round(weights * work.number_bytes + max(training, computing_prefix, assembling_cache))


def _compute_bytes(work: PackWork, pack: Pack) -> float:
    """Temporary bytes of a training step or of an evaluation, whichever needs more."""
    logits = work.logits_bytes()
    layer = work.layer_temporary_bytes_per_token()

    # With checkpointing, what a layer saves exists again while its backward pass runs.
    recomputed = work.saved_bytes_per_token().recomputed
    residual_stream = work.step_tokens * 2 * work.shape.hidden * work.number_bytes
    in_one_layer = work.step_tokens * (recomputed + layer)
    step = saved_bytes(pack) + residual_stream + max(logits, in_one_layer)
    if work.packed:
        step += packed_cost.mask_bytes(work)

    # An evaluation takes whole rows, at least one of each cell.
    row_of_each_cell = len(pack.cells) * work.row_tokens
    evaluated_tokens = min(work.all_tokens, max(EVALUATION_TOKENS, row_of_each_cell))
    evaluation = evaluated_tokens * layer + logits
    return max(step, evaluation, work.kl_step_bytes(), work.text_reading_bytes())


@dataclass(frozen=True, kw_only=True)
class SavedBytes:
    """What autograd keeps of one token until the backward pass, in bytes."""

    stored: float
    """From the forward pass on."""

    recomputed: float
    """With activation checkpointing, again while one layer's backward pass runs."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A weight matrix with an adapter beside it."""

    layer: int
    matrix: Matrix

    @property
    def position(self) -> tuple[int, Stage]:
        """Where it stands in the forward pass."""
        return self.layer, self.matrix.stage


class PackWork:
    """What the trainer does for one pack: which layers run, how often, and where gradients flow.

    Attributes:
        run: the first run; all have its model, adapter and steps.
        runs: of the cells.
        shape: sizes of the model.
        steps: training steps.
        checkpointing: whether activation checkpointing is on for the upper layers.
        number_bytes: bytes of a number in the model's dtype.
        float32_bytes: bytes of a number where float32 is used at least (norms, adapters).
        rank: largest rank; all adapters are padded to it.
        cells: their number.
        is_block: whether the adapter is parallel to a whole MLP (`adapter=mlp_block`).
        sites: the matrices with an adapter.
        first_layer, first_stage: of the first adapter in the forward pass. No gradient goes below.
        upper_layers: the layers that run in every step; the ones below are cached.
        row_tokens: input tokens of a row, padding included (T).
        packed: whether samples share rows (sequence packing).
        distinct_samples: number of cells whose samples differ.
        attended_tokens: input tokens of a row in a step, of a packed one if there are such.
        step_tokens: input tokens of a step.
        step_queries: with packed rows, tokens of a step that the last layer runs for; else 0.
        all_tokens: input tokens of all samples.
        prefix_rows, prefix_tokens: rows and input tokens of the prefix cache.
        scored_tokens: target tokens of a step.
        all_scored_tokens: target tokens of all samples.
        mean_batch_fill: mean size of a minibatch as a share of the largest one.
        evaluations: forward passes over all samples outside the training steps.
        head_flops: of a scored token, in the forward or in the backward pass.
        adapter_width: inputs and outputs of all adapters.
        adapter_flops: of a token, forward.
    """

    def __init__(self, pack: Pack) -> None:
        cells = pack.cells
        self.run = cells[0].run
        self.runs = [cell.run for cell in cells]
        self.shape = decoder_shape(self.run.model)
        self.steps = cells[0].steps
        self.checkpointing = pack.checkpointing
        self.number_bytes = BYTES[self.run.model.dtype]
        self.float32_bytes = max(4, self.number_bytes)

        self.rank = max(cell.run.rank for cell in cells)
        self.cells = len(cells)
        self.is_block = self.run.adapter.kind == "mlp_block"
        self.sites = adapter_sites(self.run, self.shape)
        self.first_layer, self.first_stage = self._first_site()
        self.upper_layers = range(self.first_layer + self.is_block, self.shape.layers)

        self.row_tokens = max(cell.tokens for cell in cells)
        packed = pack.packed
        self.packed = packed is not None
        self.attended_tokens = packed.tokens if packed else self.row_tokens
        self.step_tokens = pack.step_tokens
        self.step_queries = self.cells * packed.rows * packed.queries if packed else 0
        steps_an_epoch = max(len(cell.samples) / cell.rows for cell in cells)
        self.all_tokens = round(steps_an_epoch * self.step_tokens)
        self.prefix_rows = unique_rows(pack)
        self.prefix_tokens = self.prefix_rows * self.row_tokens

        self.distinct_samples = len({tuple(cell.samples) for cell in cells})
        self.all_scored_tokens = 0
        self.scored_tokens = 0.0
        for cell in cells:
            tokens = sum(len(sample.target) for sample in cell.samples)
            self.all_scored_tokens += tokens
            self.scored_tokens += tokens * cell.rows / len(cell.samples)
        self.mean_batch_fill = max(batch_fill(cell) for cell in cells)
        self.evaluations = self._evaluations(is_sampled=cells[0].is_sampled)

        self.head_flops = 2 * self.shape.hidden * self.shape.vocabulary
        self.adapter_width = sum(site.matrix.inputs + site.matrix.outputs for site in self.sites)
        self.adapter_flops = 2 * self.rank * self.adapter_width

    def _first_site(self) -> tuple[int, Stage]:
        positions = [site.position for site in self.sites]
        # No site: adapters on layers that the model lacks are refused later.
        dims = model_dims(self.run.model)
        default_layer = dims.adapter_layer(self.run.model.layer)
        return min(positions, default=(default_layer, Stage.DOWN))

    def _evaluations(self, *, is_sampled: bool) -> int:
        """At the beginning and the end, and at logged steps that do not score every sample."""
        if not is_sampled and self.run.adapter.dropout == 0:
            return 2
        log_every = self.run.train.log_every or max(1, self.steps // DEFAULT_LOGGED_STEPS)
        return 2 + (self.steps - 1) // log_every

    def upper_flops(self, *, backward: bool) -> float:
        """FLOPs of one step in the layers from the adapters' on, adapters included.

        Args:
            backward: with the backward pass.
        """
        if self.packed:
            recomputed = self.recomputed_flops() if backward and self.checkpointing else 0.0
            flops = packed_cost.layer_flops(self, backward=backward)
            return flops + self.step_tokens * recomputed

        token = self.forward_flops(len(self.upper_layers)) + self.adapter_flops
        if backward:
            token += self.backward_flops()
        return self.step_tokens * token

    # FLOPs of one token

    def gradient_flows(self, layer: int, stage: Stage) -> bool:
        """Whether the input of a stage has a gradient: an adapter lies before it."""
        if layer > self.first_layer:
            return True
        if self.shape.family.parallel_residual and self.first_stage < Stage.UP <= stage:
            # Such an MLP does not read the output of the attention beside it.
            return False
        return stage > self.first_stage

    def forward_flops(self, layers: int) -> float:
        """FLOPs of a token in whole layers, without the adapters.

        Fused attention computes only the T / 2 tokens that the causal mask leaves.
        """
        matrices = _matrix_flops(self.shape.matrices.values())
        attention_flops = 4 if self.shape.unfused_heads else 2
        return layers * (matrices + attention_flops * self.shape.query_width * self.row_tokens)

    def backward_flops(self) -> float:
        """FLOPs of a token in the backward pass, recomputation included.

        Frozen matrices only pass gradients on. Fused attention takes five products, as it computes
        the scores again; plain attention takes four, over all T tokens.
        """
        total = self.recomputed_flops() if self.checkpointing else 0.0

        attention_flops = 8 if self.shape.unfused_heads else 5
        attention = attention_flops * self.shape.query_width * self.row_tokens
        for layer in self.upper_layers:
            total += _matrix_flops(
                matrix
                for matrix in self.shape.matrices.values()
                if self.gradient_flows(layer, matrix.stage)
            )
            if self.gradient_flows(layer, Stage.SCORES):
                total += attention

        for site in self.sites:
            # Of x @ A @ B: gradients of A, B and x @ A; of x, unless it is a cached constant.
            inputs = site.matrix.inputs
            if not self.is_block and self.gradient_flows(*site.position):
                inputs *= 2
            total += 2 * self.rank * (inputs + 2 * site.matrix.outputs)
        return total

    def recomputed_flops(self) -> float:
        """FLOPs of a token that activation checkpointing adds.

        torch recomputes each layer up to the last tensor that the backward pass needs, so the
        products after it are left out.
        """
        adapters = 0 if self.is_block else self.adapter_flops
        total = self.forward_flops(len(self.upper_layers)) + adapters
        if self.shape.family.norms_outputs:
            # A norm follows the last product and needs its result.
            return total

        # An adapter needs the output of the matrix beside it.
        adapted = {site.position for site in self.sites}
        for layer in self.upper_layers:
            last_stage = Stage.DOWN
            for stage in (Stage.DOWN, Stage.OUT):
                if self.gradient_flows(layer, stage):
                    last_stage = stage
                    break
            if (layer, last_stage) not in adapted:
                total -= _matrix_flops(
                    matrix for matrix in self.shape.matrices.values() if matrix.stage >= last_stage
                )
        return total

    # The penalties of `loss.keep` (training/keep.py): what an adapter changes on windows of a
    # generic text, as an energy of its weights (keep_by=energy) or as a KL (keep_by=kl). Under
    # `loss.keep_harm`, the harm (what it adds to the loss of that text) is measured too.

    def penalty_flops(self) -> float:
        """FLOPs of one step: the gradients of energies and KLs, and the harm that is measured."""
        by_energy = [run for run in self.runs if run.loss.keeps and run.loss.keep_by == "energy"]
        moments = self._products_with_moments()
        flops = 0.0
        for run in by_energy:
            flops += 2 * run.rank * (moments + 2 * run.rank * self.adapter_width)

        limited = sum(run.loss.keep_harm > 0 for run in by_energy)
        measured_tokens = limited * MEASURED_WINDOWS * self._window_tokens() / MEASURE_EVERY
        flops += measured_tokens * self._reading_flops()

        # Beside the adapted logits, those of the base and the way back.
        backward = self._on_windows().backward_flops()
        token = self._reading_flops() + backward + 2 * self.head_flops
        return flops + self._kl_tokens() * token

    def _kl_tokens(self) -> int:
        """Input tokens of the text that a step reads."""
        cells = sum(run.loss.keeps and run.loss.keep_by == "kl" for run in self.runs)
        return cells * KL_WINDOWS * self._window_tokens()

    def kl_step_bytes(self) -> float:
        """Temporary bytes of one pass over the text with gradients; 0 without a KL."""
        tokens = min(self._kl_tokens(), max(KL_TOKENS, KL_WINDOWS * self._window_tokens()))
        work = self._on_windows()
        saved = work.saved_bytes_per_token()
        temporary = work.layer_temporary_bytes_per_token()
        layers = tokens * (saved.stored + saved.recomputed + temporary)
        logits = min(KL_LOGITS, tokens * self.shape.vocabulary)
        # Of both models, and their logarithms.
        return layers + 5 * logits * self.float32_bytes

    def text_reading_bytes(self) -> float:
        """Temporary bytes where the harm is measured; 0 where nothing is kept."""
        longest_text = max(map(_input_tokens, self._generic_texts()), default=0)
        limited = sum(run.loss.keep_harm > 0 for run in self.runs)
        window_of_each = limited * self._window_tokens()
        tokens = max(longest_text, MEASURED_WINDOWS * window_of_each)

        work = self._on_windows()
        work.scored_tokens = min(tokens, max(EVALUATION_TOKENS, window_of_each))
        layer = work.layer_temporary_bytes_per_token()
        return work.scored_tokens * layer + work.logits_bytes()

    def kept_text_flops(self) -> float:
        """FLOPs of what is done once: the base reads the text, and every adapter at the end."""
        tokens = self._kept_tokens()
        prefix = tokens * self._on_windows().forward_flops(self.first_layer + 1)
        base = tokens * self._reading_flops()

        moments = 2.0 * sum(site.matrix.inputs**2 for site in self.sites)
        if not self.is_block:
            moments += self.forward_flops(len(self.upper_layers))
        texts = sum(_input_tokens(windows) for windows in self._energy_texts())
        harm = sum(_input_tokens(generic_windows(run)) for run in self.runs)
        return prefix + base + texts * moments + harm * self._reading_flops()

    def penalty_bytes(self) -> float:
        """The second moments, and the hidden states of the text: the prefix and the base's own."""
        texts = len(self._energy_texts())
        largest = 0
        for site in self.sites:
            inputs = site.matrix.inputs
            largest = max(largest, inputs**2 * (inputs > WIDEST_WHOLE))

        moments = texts * self._moment_numbers()
        if texts:
            # A wide one exists whole before it is factored.
            moments += max(min(largest * len(self.sites), MOMENT_NUMBERS), largest)
        states = (1 + self.cached_tensors) * self._kept_tokens() * self.shape.hidden
        return moments * self.float32_bytes + states * self.number_bytes

    def _moment_numbers(self) -> int:
        """Numbers of the second moments of the inputs of all sites."""
        numbers = 0
        for site in self.sites:
            inputs = site.matrix.inputs
            is_wide = inputs > WIDEST_WHOLE
            numbers += inputs * MAIN_DIRECTIONS if is_wide else inputs**2
        return numbers

    def _products_with_moments(self) -> int:
        """Multiplications of a vector at every site with its second moment."""
        products = 0
        for site in self.sites:
            inputs = site.matrix.inputs
            is_wide = inputs > WIDEST_WHOLE
            products += 2 * inputs * MAIN_DIRECTIONS if is_wide else inputs**2
        return products

    def _reading_flops(self) -> float:
        """FLOPs of a token of the text, from the prefix to the logits."""
        upper = self._on_windows().forward_flops(len(self.upper_layers))
        return upper + self.adapter_flops + self.head_flops

    def _on_windows(self) -> PackWork:
        """This work with rows as long as a window of the text."""
        work = copy.copy(self)
        work.row_tokens = self._window_tokens()
        work.attended_tokens = work.row_tokens
        return work

    def _generic_texts(self) -> set[tuple[Sample, ...]]:
        """The distinct ones of the pack: each cell leaves out what it learns itself."""
        texts = {generic_windows(run) for run in self.runs}
        return texts - {()}

    def _energy_texts(self) -> set[tuple[Sample, ...]]:
        """Texts whose second moments are needed."""
        texts = {generic_windows(run) for run in self.runs if run.loss.keep_by == "energy"}
        return texts - {()}

    def _kept_tokens(self) -> int:
        """Input tokens of all distinct windows."""
        return _input_tokens(set(itertools.chain.from_iterable(self._generic_texts())))

    def _window_tokens(self) -> int:
        """Input tokens of the longest window."""
        windows = itertools.chain.from_iterable(self._generic_texts())
        return max((_input_tokens([window]) for window in windows), default=0)

    # Bytes

    def upper_saved_bytes(self) -> float:
        """What autograd keeps of a step in the layers from the adapters' on."""
        if self.packed:
            return packed_cost.saved_bytes(self)
        return self.step_tokens * self.saved_bytes_per_token().stored

    def saved_by_last_layer(self) -> float:
        """Bytes that the last layer saves of a token."""
        return self._saved_by_layer()[self.upper_layers[-1]]

    def saved_bytes_per_token(self) -> SavedBytes:
        """What autograd keeps of a token; with checkpointing, only the inputs of the layers."""
        outside = self._saved_outside_layers()
        by_layer = self._saved_by_layer()
        if not self.checkpointing:
            return SavedBytes(stored=outside + sum(by_layer.values()), recomputed=0.0)

        # Without a block, the input of the first layer is the prefix cache.
        layer_inputs = len(by_layer) if self.is_block else len(by_layer) - 1
        stored = outside + layer_inputs * self.shape.hidden * self.number_bytes
        largest_layer = max(by_layer.values(), default=0.0)
        return SavedBytes(stored=stored, recomputed=largest_layer)

    def _saved_by_layer(self) -> dict[int, float]:
        """Bytes that each layer saves of a token: attention, MLP, norms and inputs of adapters."""
        attention = self._saved_by_attention()
        mlp = self.shape.mlp_width * self.number_bytes * self.shape.family.saved_mlp_activations
        norm = self.saved_by_norm()
        # Sandwich norms also follow attention and MLP.
        is_sandwich = self.shape.family.norms_outputs

        by_layer = {}
        for layer in self.upper_layers:
            before_attention = self.gradient_flows(layer, Stage.QKV)
            before_mlp = self.gradient_flows(layer, Stage.UP)
            before_down = self.gradient_flows(layer, Stage.DOWN)
            norms = before_attention + before_mlp
            if is_sandwich:
                norms += before_mlp + before_down

            saved = float(norms * norm)
            if self.gradient_flows(layer, Stage.SCORES):
                saved += attention
            if before_down:
                saved += mlp
            by_layer[layer] = saved

        if not self.is_block:
            # Dropout keeps its mask beside its input.
            kept = 2 if self.run.adapter.dropout else 1
            for site in self.sites:
                # A layer that the model lacks is refused later.
                if site.layer in by_layer:
                    by_layer[site.layer] += kept * site.matrix.inputs * self.float32_bytes
        return by_layer

    def _saved_by_attention(self) -> float:
        """Queries, keys, values and the output; norms of queries and keys; scores, if unfused."""
        width = self.shape.query_width + self.shape.key_width
        saved = 2 * width * self.number_bytes
        if self.shape.family.norms_queries_and_keys:
            saved += width * self.float32_bytes

        score_bytes = 2 * self.number_bytes
        if self.number_bytes < self.float32_bytes:
            score_bytes += self.float32_bytes
        return saved + self.shape.unfused_heads * self.attended_tokens * score_bytes

    def saved_by_norm(self) -> int:
        """Bytes that a norm saves of a token."""
        in_float32 = self.shape.family.norms_in_float32
        return self.shape.hidden * (self.float32_bytes if in_float32 else self.number_bytes)

    def _saved_outside_layers(self) -> float:
        """The last norm, one that follows an adapted MLP, and the input of a block adapter."""
        norms = 2 if self.is_block and self.shape.family.norms_outputs else 1
        saved = norms * self.saved_by_norm()
        # In float32 and above, a block adapter reads the prefix cache itself.
        if self.is_block and self.number_bytes < 4:
            saved += self.shape.hidden * self.float32_bytes
        return saved

    @property
    def cached_tensors(self) -> int:
        """Hidden states that the prefix cache keeps of a token.

        For a block: the MLP's input and its output with the residual; with sandwich norms also the
        output before its norm.
        """
        if not self.is_block:
            return 1
        return 3 if self.shape.family.norms_outputs else 2

    def prefix_cache_bytes(self) -> float:
        """The prefix cache, and the batch that is gathered from it."""
        tokens = self.prefix_tokens + self.step_tokens
        return tokens * self.shape.hidden * self.number_bytes * self.cached_tensors

    def prefix_state_bytes(self) -> float:
        """One hidden state of every token of the prefix."""
        return self.prefix_tokens * self.shape.hidden * self.number_bytes

    def streamed_prefix_bytes(self) -> float:
        """What computing the prefix of a streamed model takes.

        The weights of one layer, or of the input embeddings, which the head does not share; the
        hidden states; and the temporaries of a few rows.
        """
        weights = max(self.shape.layer_weights, self.shape.untied_input_weights)
        states = (1 + self.cached_tensors) * self.prefix_state_bytes()
        tokens = min(PREFIX_ROWS, self.prefix_rows) * self.row_tokens
        temporaries = tokens * self.layer_temporary_bytes_per_token()
        return weights * self.number_bytes + states + temporaries

    def adapter_bytes(self) -> float:
        """Adapters of all cells with their optimizer state."""
        optimizer = self.run.train.optimizer
        numbers = ADAPTER_COPIES[optimizer] * self.cells * self.rank * self.adapter_width
        if optimizer == "lbfgs":
            # Whitened inputs, of cells with equal samples once.
            numbers += self.distinct_samples * self._moment_numbers()
        return numbers * self.float32_bytes

    def logits_bytes(self) -> float:
        """The logits of one chunk and block of the vocabulary in float32, and in the model's dtype
        where that is smaller.
        """
        copies = 3 if self.shape.softcaps_logits else 1
        bytes_each = copies * self.float32_bytes
        if self.number_bytes < self.float32_bytes:
            bytes_each += self.number_bytes
        words = min(HEAD_WORDS, self.shape.vocabulary)
        return min(HEAD_CHUNK, self.scored_tokens) * words * bytes_each

    def layer_temporary_bytes_per_token(self) -> float:
        """Temporaries of a layer while it runs."""
        width = self.shape.mlp_width + self.shape.hidden
        activations = 4 * self.number_bytes * width
        scores = 2 * self.shape.unfused_heads * self.attended_tokens * self.float32_bytes
        return activations + scores


def _input_tokens(windows: Iterable[Sample]) -> int:
    """Input tokens of some windows: the last one of each is only predicted."""
    return sum(len(window.prompt) + len(window.target) - 1 for window in windows)


def _matrix_flops(matrices: Iterable[Matrix]) -> float:
    """FLOPs of a token in a product with each of these matrices."""
    return sum(2 * matrix.inputs * matrix.outputs for matrix in matrices)


def adapter_sites(run: Run, shape: DecoderShape) -> list[Site]:
    """The matrices of a model that have an adapter; a block counts as one (D, D) matrix."""
    default_layer = model_dims(run.model).adapter_layer(run.model.layer)
    if not isinstance(run.adapter, LinearAdapter):
        block = Matrix(shape.hidden, shape.hidden, Stage.DOWN)
        return [Site(layer=default_layer, matrix=block)]

    layers = [default_layer]
    if run.adapter.layers is not None:
        # An empty list stands for every layer.
        layers = sorted(set(run.adapter.layers)) or list(range(shape.layers))
    suffixes = tuple(f".{target}" for target in run.adapter.targets)
    return [
        Site(layer=layer, matrix=matrix)
        for layer in layers
        for name, matrix in shape.matrices.items()
        if f".{name}".endswith(suffixes)
    ]


def useful_rank(run: Run) -> int | None:
    """The largest rank that an adapted matrix of a run can have: beyond it weights add nothing.

    Returns:
        None where the family of the model has no record of these matrices.
    """
    sites = adapter_sites(run, decoder_shape(run.model))
    return max((min(site.matrix.inputs, site.matrix.outputs) for site in sites), default=None)


def batch_fill(cell: CellPlan) -> float:
    """Mean size of a cell's minibatches, as a share of the largest one."""
    if cell.run.train.curriculum:
        total = sum(minibatch_sizes(cell.run.train, len(cell.samples)))
        return total / (cell.rows * cell.steps)
    batches = -(-len(cell.samples) // cell.rows)
    return len(cell.samples) / (cell.rows * batches)


def unique_rows(pack: Pack) -> int:
    """Rows of the prefix cache: a sample that begins another one shares its row."""
    distinct: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for cell in pack.cells:
        distinct.update((sample.prompt, sample.target) for sample in cell.samples)

    samples = sorted(distinct)
    shared = 0
    # In sorted order, a longer sample comes right after the one that begins it.
    for (prompt, target), (next_prompt, next_target) in itertools.pairwise(samples):
        shared += prompt == next_prompt and next_target[: len(target)] == target
    return len(samples) - shared

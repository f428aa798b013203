"""The frozen model, split at the adapter layer.

Everything below the adapter is frozen: it is computed once (`prefix`), and training runs only the
layers above (`upper`). The layers' own code is called, with the arguments that the model itself
would pass, so this works for any decoder-only model of transformers whose layers have an `mlp`.
Attention is causal, so one pass over the longest input serves every shorter one.

Shapes: n rows of the cache, B rows of a batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pml_cli.config.schema import Adapter, LinearAdapter, MlpBlockAdapter, Model
from pml_cli.errors import UserError
from pml_cli.model.adapter_bank import AdapterBank, Site
from pml_cli.model.chunk_sizes import PREFIX_ROWS
from pml_cli.model.compiled import compiled
from pml_cli.model.dims import model_dims
from pml_cli.model.families import family_of
from pml_cli.model.faults import one_line
from pml_cli.model.layer_calls import (
    LayerCall,
    OutputForm,
    captured,
    output_form,
    serves,
    skipped,
)
from pml_cli.model.modules import (
    find_decoder,
    find_final_norm,
    find_head,
    find_mlp,
    find_post_mlp_norm,
    linear_sites,
    mlp_factor,
)
from pml_cli.model.packed_rows import (
    Call,
    PackedCalls,
    PackedRows,
    PackingMode,
    UnpackableError,
)
from pml_cli.model.streaming import WeightStream
from pml_cli.model.verify_packed import ProbeShape, find_packing_mode
from pml_cli.model.verify_split import cached_matches_full, split_matches_full
from pml_cli.model.weight_hash import tensor_checksums

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# RoPE types under which the layers below the adapter depend on the length of the whole input.
LENGTH_DEPENDENT_ROPES = ("dynamic", "longrope")

# Shapes of inputs whose layer calls are remembered; the masks of long inputs are large.
MAX_REMEMBERED_SHAPES = 4

# Random adapters that the split is verified with. Rounding may flip a router for one of them.
VERIFICATION_SEEDS = range(3)

# Hexadecimal digits of a weights hash.
HASH_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Hidden states below the adapter, from one pass, (n, T, D) each."""

    entry: Tensor
    """Input of the first adapted layer; with the paper's placement, input of its MLP."""

    block: Tensor | None = None
    """With the paper's placement: output of that layer without an adapter."""

    mlp_out: Tensor | None = None
    """With the paper's placement: output of its MLP, if a norm follows the MLP."""

    def rows(self, index: Tensor, tokens: int) -> Prefix:
        """Some of the rows, cut to the first tokens.

        Args:
            index: rows of the cache, (B,).
            tokens: number of tokens T to keep.
        """
        return self._map(lambda states: states[index, :tokens])

    def gather(self, packed: PackedRows) -> Prefix:
        """The tokens of packed rows, (B, L, D) each."""
        return self._map(lambda states: states[packed.rows, packed.positions])

    @classmethod
    def concatenate(cls, parts: Sequence[Prefix]) -> Prefix:
        """One prefix with the rows of all parts."""
        return cls(
            entry=torch.cat([part.entry for part in parts]),
            block=_concatenate([part.block for part in parts]),
            mlp_out=_concatenate([part.mlp_out for part in parts]),
        )

    @classmethod
    def assemble(cls, parts: Sequence[Prefix], rows: Sequence[Tensor], shape: torch.Size) -> Prefix:
        """One prefix of parts that are cut to fewer tokens; 0 after their last ones.

        Args:
            parts: of some rows each.
            rows: which ones.
            shape: all rows and tokens, (n, T).
        """

        def whole(tensors: Sequence[Tensor]) -> Tensor:
            states = tensors[0].new_zeros(*shape, tensors[0].shape[-1])
            for index, tensor in zip(rows, tensors, strict=True):
                states[index.to(states.device), : tensor.shape[1]] = tensor
            return states

        blocks = [part.block for part in parts if part.block is not None]
        mlp_outs = [part.mlp_out for part in parts if part.mlp_out is not None]
        return cls(
            entry=whole([part.entry for part in parts]),
            block=whole(blocks) if blocks else None,
            mlp_out=whole(mlp_outs) if mlp_outs else None,
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Prefix:
        return Prefix(
            entry=change(self.entry),
            block=None if self.block is None else change(self.block),
            mlp_out=None if self.mlp_out is None else change(self.mlp_out),
        )


def _cut_lengths(lengths: Sequence[int], tokens: int) -> list[int]:
    """Lengths rounded up to a few sizes: the layer calls of each size are recorded."""
    step = -(-tokens // MAX_REMEMBERED_SHAPES)
    return [min(tokens, -(-length // step) * step) for length in lengths]


def _concatenate(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


class SplitModel:
    """A decoder-only language model whose weights never change.

    Attributes:
        model: the model of transformers.
        settings: what it was loaded from.
        stream: reads the layers that training does not need; None if the whole model is in memory.
        modules: all modules of the model, by name.
        decoder: the model without its head.
        layers: its decoder layers.
        norm: the norm after the last layer.
        head: the output layer.
        layer: the decoder layer that carries the adapter, 0-based.
    """

    def __init__(
        self, model: PreTrainedModel, settings: Model, stream: WeightStream | None = None
    ) -> None:
        """Freeze a model and find its parts.

        Args:
            model: a causal language model of transformers.
            settings: what it was loaded from.
            stream: see the class.

        Raises:
            UserError: the model is of a kind that cannot be split.
        """
        self.model: PreTrainedModel = model.eval().requires_grad_(False)
        self.settings = settings
        self.stream = stream

        config: Any = model.config.get_text_config()
        self._refuse_length_dependent_rope(config)
        self._family = family_of(config.model_type)

        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.decoder, self.layers = find_decoder(model, settings)
        self.norm = find_final_norm(self.decoder, self._family, settings)
        self.head = find_head(model, settings)
        self.layer = model_dims(settings).adapter_layer(settings.layer)

        # Some decoders still call this argument by its older name.
        parameters = inspect.signature(type(self.decoder).forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"

        # Found out when first needed.
        self._output_form: OutputForm | None = None
        self._one_row_serves_all: bool | None = None
        self._has_exact_cache: bool | None = None

        # Caches: of layer calls by rows and length of the input, and of answers by the names of a
        # bank's sites.
        self._calls: OrderedDict[tuple[int, int], list[LayerCall]] = OrderedDict()
        self._packing_modes: dict[tuple[Any, ...], PackingMode] = {}
        self._packings: dict[int, PackedCalls] = {}
        self._packed_calls: tuple[PackedRows | None, int, Sequence[Call]] = (None, 0, [])
        self._mlp_factors: dict[int, float | None] = {}
        self._layers_of_sites: dict[tuple[str, ...], list[int]] = {}
        self._verified: set[tuple[str, ...]] = set()

    def _refuse_length_dependent_rope(self, config: Any) -> None:
        parameters = getattr(config, "rope_parameters", None) or {}
        rope_type = parameters.get("rope_type")
        if rope_type in LENGTH_DEPENDENT_ROPES:
            reason = f"its rope type {rope_type} depends on length; not supported"
            raise UserError(f"model={self.settings.name}: {reason}")

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.head.weight_VD.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's weights."""
        return self.head.weight_VD.dtype

    @property
    def hidden_size(self) -> int:
        """Size D of the hidden states that the layers pass on."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def heads(self) -> int:
        """Heads of attention."""
        return int(getattr(self.model.config.get_text_config(), "num_attention_heads", 1))

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        named = getattr(self.model.config.get_text_config(), "head_dim", None)
        return int(named or self.hidden_size // self.heads)

    @property
    def adapter_dtype(self) -> torch.dtype:
        """Dtype in which adapters are trained: float32, or float64 on a float64 model."""
        return torch.promote_types(self.dtype, torch.float32)

    # -- where the adapters go

    def sites(self, adapter: Adapter) -> list[Site]:
        """The modules that an adapter of these settings is attached to.

        Raises:
            UserError: the model has no such modules.
        """
        if isinstance(adapter, MlpBlockAdapter):
            name = self._name(self._mlp(self.layer))
            return [Site(name=name, inputs=self.hidden_size, outputs=self.hidden_size)]

        assert isinstance(adapter, LinearAdapter)
        sites = []
        for index in self._adapted_layers(adapter):
            layer = self.layers[index]
            sites += linear_sites(layer, self._name(layer), adapter.targets)
        return sites

    def _adapted_layers(self, adapter: LinearAdapter) -> list[int]:
        """Indices of the layers with linear adapters; `layers` null: `model.layer`, []: all."""
        if adapter.layers is None:
            return [self.layer]

        all_layers = list(range(len(self.layers)))
        indices = sorted(set(adapter.layers)) or all_layers
        if min(indices) < 0 or max(indices) >= len(self.layers):
            allowed = f"model={self.settings.name} has layers 0 to {len(self.layers) - 1}"
            raise UserError(f"adapter.layers={adapter.layers}: {allowed}")
        return indices

    def _mlp(self, layer: int) -> nn.Module:
        return find_mlp(self.layers[layer], self.settings)

    def _name(self, module: nn.Module) -> str:
        """Full name of a module."""
        for name, candidate in self.modules.items():
            if candidate is module:
                return name
        raise ValueError("not a module of this model")

    def first_layer(self, bank: AdapterBank) -> int:
        """The first layer that carries an adapter of the bank."""
        layers = self._layers_with(tuple(bank.sites))
        if not layers:
            raise ValueError(f"no layer holds any of {', '.join(bank.sites)}")
        return layers[0]

    def _layers_with(self, sites: tuple[str, ...]) -> list[int]:
        """The layers that hold any of these sites, in their order."""
        if sites not in self._layers_of_sites:
            found = []
            for index, layer in enumerate(self.layers):
                prefix = f"{self._name(layer)}."
                if any(site.startswith(prefix) for site in sites):
                    found.append(index)
            self._layers_of_sites[sites] = found
        return self._layers_of_sites[sites]

    # -- below the adapters

    @torch.no_grad()
    def prefix(
        self,
        ids: Tensor,
        bank: AdapterBank,
        rows: int = PREFIX_ROWS,
        *,
        lengths: Sequence[int] | None = None,
    ) -> Prefix:
        """Run everything below the bank's adapters once.

        Args:
            ids: token ids, (n, T).
            bank: its sites tell where the adapters are; its weights do not matter.
            rows: rows that are computed at once.
            lengths: tokens of each row that are needed: rows of similar length run together, cut to
                about the longest of them. What is beyond is 0. None: all.
        """
        order = torch.arange(len(ids))
        cuts = [ids.shape[1]] * len(ids)
        if lengths is not None:
            order = torch.tensor(lengths).argsort(descending=True, stable=True)
            cuts = _cut_lengths(lengths, ids.shape[1])

        batches = []
        rows_of_batches = order.split(rows)
        for index in rows_of_batches:
            longest = max(cuts[row] for row in index.tolist())
            batches.append(ids[index.to(ids.device), :longest].to(self.device))

        layer = self.first_layer(bank)
        if self.stream:
            parts = self._streamed_prefix(self.stream, batches, layer, bank.is_block)
        else:
            parts = self._whole_prefix(batches, layer, bank.is_block)
        if lengths is None:
            return Prefix.concatenate(parts)
        return Prefix.assemble(parts, rows_of_batches, ids.shape)

    def prefix_of(self, states: Tensor, bank: AdapterBank) -> Prefix:
        """A prefix that holds the same states everywhere, (n, T, D): to try out `upper`."""
        if not bank.is_block:
            return Prefix(entry=states)
        has_norm = self._post_mlp_norm(self.first_layer(bank)) is not None
        return Prefix(entry=states, block=states, mlp_out=states if has_norm else None)

    def _whole_prefix(self, batches: list[Tensor], layer: int, is_block: bool) -> list[Prefix]:
        """Run each batch (n, T) through all layers up to the adapter's."""
        parts = []
        for ids in batches:
            above = skipped(self.layers[layer + 1 :], form=self._form())
            with self._capturing(layer, is_block) as tensors, above:
                self.decoder(input_ids=ids, use_cache=False)
            parts.append(self._captured_prefix(tensors, layer))
        return parts

    def _streamed_prefix(
        self, stream: WeightStream, batches: list[Tensor], layer: int, is_block: bool
    ) -> list[Prefix]:
        """Run all batches (n, T) through one layer after the other, so that each is read once."""
        hidden = self._embedded(stream, batches)

        for index in range(layer):
            with stream.holding(self.layers[index]):
                # In place, so that no more than one batch exists twice.
                for i, states in enumerate(hidden):
                    hidden[i] = self._call_of(index, states)(states)
        if not is_block:
            return [Prefix(entry=states) for states in hidden]

        parts = []
        with stream.holding(self.layers[layer]):
            for states in hidden:
                with self._capturing(layer, is_block) as tensors:
                    self._call_of(layer, states)(states)
                parts.append(self._captured_prefix(tensors, layer))
        return parts

    def _call_of(self, layer: int, hidden: Tensor) -> LayerCall:
        """The call of one layer for hidden states, (n, T, D)."""
        return self._layer_calls(*hidden.shape[:2])[layer]

    def _embedded(self, stream: WeightStream, batches: list[Tensor]) -> list[Tensor]:
        """The input of the first layer, (n, T, D), for each batch of ids (n, T)."""
        hidden = []
        form = self._form()
        with stream.holding(self.model.get_input_embeddings()):
            for ids in batches:
                capturing = self._capturing(0, is_block=False)
                with capturing as tensors, skipped(self.layers, form=form):
                    self.decoder(input_ids=ids, use_cache=False)
                hidden.append(tensors["entry"])
                # Recorded while the embeddings are here: later they would be read once more, into
                # memory that a layer takes then.
                self._layer_calls(*ids.shape)
        return hidden

    @contextmanager
    def _capturing(self, layer: int, is_block: bool) -> Iterator[dict[str, Tensor]]:
        """Collect the tensors of a prefix, (n, T, D) each, while its layer runs."""
        tensors: dict[str, Tensor] = {}
        module = self.layers[layer]
        if not is_block:
            with captured(module, tensors, input_key="entry"):
                yield tensors
            return

        mlp = captured(self._mlp(layer), tensors, input_key="entry", output_key="mlp_out")
        with mlp, captured(module, tensors, output_key="block"):
            yield tensors

    def _captured_prefix(self, tensors: Mapping[str, Tensor], layer: int) -> Prefix:
        if "block" not in tensors:
            return Prefix(entry=tensors["entry"])

        has_norm = self._post_mlp_norm(layer) is not None
        mlp_out = tensors["mlp_out"] if has_norm else None
        return Prefix(entry=tensors["entry"], block=tensors["block"], mlp_out=mlp_out)

    def _post_mlp_norm(self, layer: int) -> nn.Module | None:
        return find_post_mlp_norm(self.layers[layer], self._family)

    def _mlp_factor(self, layer: int) -> float | None:
        # Read once, because it may be a tensor on the device.
        if layer not in self._mlp_factors:
            self._mlp_factors[layer] = mlp_factor(self.layers[layer])
        return self._mlp_factors[layer]

    # -- from the adapters on

    def upper(
        self,
        prefix: Prefix,
        bank: AdapterBank,
        checkpointing: bool = False,
        packed: PackedRows | None = None,
    ) -> Tensor:
        """Run the layers from the adapters' on.

        Args:
            prefix: its rows are those of a batch, grouped by cell.
            bank: the adapters.
            checkpointing: activation checkpointing: only the input of each layer is saved, and
                backward runs the layer again. The same numbers with less memory.
            packed: where the rows are packed: what `prefix` was gathered by.

        Returns:
            Final hidden states after the last norm, (B, T, D): what the head reads. Of packed
            rows those of their queries, (B, S, D).
        """
        layer = self.first_layer(bank)
        is_block = prefix.block is not None
        self._hold_upper(layer, is_block=is_block)
        above = self._upper_calls(layer + is_block, prefix, packed)
        if prefix.block is None:
            return self._replay(prefix.entry, above, bank, checkpointing)

        # The paper's placement has one site, whose module is never run here: only its adapter.
        (site,) = bank.sites
        delta = bank.delta(site, prefix.entry)
        norm = self._post_mlp_norm(layer)
        if norm is not None and prefix.mlp_out is not None:
            # The layer adds norm(mlp), so the adapter changes what the norm gives.
            delta = norm(prefix.mlp_out + delta) - norm(prefix.mlp_out)
        factor = self._mlp_factor(layer)
        if factor is not None:
            delta = delta * factor
        return self._replay(prefix.block + delta, above, None, checkpointing)

    def _upper_calls(self, first: int, prefix: Prefix, packed: PackedRows | None) -> Sequence[Call]:
        """What runs from one layer on."""
        if packed is None:
            return self._layer_calls(*prefix.entry.shape[:2])[first:]

        # A step on all samples has the rows of the step before.
        latest, of_layer, calls = self._packed_calls
        if latest is not packed or of_layer != first:
            calls = self._packing_of(packed.tokens).layers(packed, first)
            self._packed_calls = packed, first, calls
        return calls

    def _packing_of(self, tokens: int) -> PackedCalls:
        """Packed rows whose samples have at most so many tokens."""
        if tokens not in self._packings:
            self._packings = {tokens: self._recorded_packing(tokens)}
        return self._packings[tokens]

    def _recorded_packing(self, tokens: int) -> PackedCalls:
        calls = self._recorded_calls(1, tokens)
        packing = partial(PackedCalls, calls, dtype=self.dtype, head_dim=self.head_dim)
        try:
            return packing(self._recorded_calls(1, tokens + 1))
        except UnpackableError:
            # The next token would be the first beyond a sliding window, so a mask comes with it.
            if tokens == 1:
                raise
            return packing(self._recorded_calls(1, tokens - 1))

    @torch.no_grad()
    def block_output(self, prefix: Prefix, bank: AdapterBank) -> Tensor:
        """What a block's adapter is added to, (B, T, D), in the units of the adapter's output.

        That is the residual stream after the layer; where the model scales what the adapter gives
        before it is added, divided by that. Of a norm after the MLP, by its mean gain, position 0
        left out: an attention sink there would be most of it.
        """
        assert prefix.block is not None
        layer = self.first_layer(bank)
        self._hold_upper(layer, is_block=True)
        gain: Tensor | float = self._mlp_factor(layer) or 1.0
        norm = self._post_mlp_norm(layer)
        if norm is not None and prefix.mlp_out is not None:
            mlp_out = prefix.mlp_out[:, 1:]
            gain = gain * norm(mlp_out).float().norm() / mlp_out.float().norm()
        return prefix.block / gain

    def _hold_upper(self, layer: int, is_block: bool) -> None:
        """Keep what training needs of a streamed model: the adapter's layer and those above.

        Beside an MLP block, only the layers above it and the norm that follows it.
        """
        if not self.stream:
            return

        needed: list[nn.Module] = list(self.layers[layer + is_block :])
        norm = self._post_mlp_norm(layer) if is_block else None
        if norm is not None:
            needed.append(norm)
        self.stream.hold(needed)

    def _replay(
        self,
        hidden: Tensor,
        calls: Sequence[Call],
        bank: AdapterBank | None,
        checkpointing: bool,
    ) -> Tensor:
        """Hidden states (B, T, D) after some layers, with a bank's adapters, and the last norm."""
        # Only dropout is random in a layer, and it rewinds its own generators.
        run_again = partial(
            checkpoint,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=partial(self._checkpoint_contexts, bank),
        )
        saves_inputs_only = checkpointing and torch.is_grad_enabled()

        with self._attached(bank):
            for call in self._compiled(calls, bank):
                hidden = run_again(call, hidden) if saves_inputs_only else call(hidden)
        normed: Tensor = self.norm(hidden)
        return normed

    def _compiled(self, calls: Sequence[Call], bank: AdapterBank | None) -> Sequence[Call]:
        """The calls, those of whole layers without an adapter compiled if the settings say so."""
        if not self.settings.compile:
            return calls

        adapted = []
        if bank is not None:
            adapted = [self.layers[index] for index in self._layers_with(tuple(bank.sites))]
        chosen: list[Call] = []
        for call in calls:
            if isinstance(call, LayerCall) and call.layer not in adapted:
                chosen.append(compiled(call))
            else:
                chosen.append(call)
        return chosen

    def _attached(self, bank: AdapterBank | None) -> AbstractContextManager[None]:
        return nullcontext() if bank is None else bank.attached(self.modules)

    def _checkpoint_contexts(
        self, bank: AdapterBank | None
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        if bank is None:
            return nullcontext(), nullcontext()
        return bank.checkpoint_contexts(self.modules)

    def _layer_calls(self, rows: int, tokens: int) -> list[LayerCall]:
        """The call of each layer for inputs of this shape, recorded with all layers skipped."""
        key = (1 if self._broadcasts_rows() else rows, tokens)
        if key not in self._calls:
            self._calls[key] = self._recorded_calls(*key)
            if len(self._calls) > MAX_REMEMBERED_SHAPES:
                self._calls.popitem(last=False)
        return self._calls[key]

    def _recorded_calls(self, rows: int, tokens: int) -> list[LayerCall]:
        # The ids do not matter: masks and position embeddings depend on the shape alone.
        calls: list[LayerCall] = []
        ids = torch.zeros(rows, tokens, dtype=torch.long, device=self.device)
        with skipped(self.layers, calls, self._form()), torch.no_grad():
            self.decoder(input_ids=ids, use_cache=False)
        return calls

    def _broadcasts_rows(self) -> bool:
        """Whether the arguments of a layer for one row serve any number of rows.

        BLOOM's ALiBi does not: rows and heads share a dimension of it.
        """
        if self._one_row_serves_all is None:
            first = self._recorded_calls(rows=1, tokens=2)[0]
            hidden = torch.zeros(2, 2, self.hidden_size, dtype=self.dtype, device=self.device)
            self._one_row_serves_all = serves(first, hidden)
        return self._one_row_serves_all

    def _form(self) -> OutputForm:
        """What the layers return, as the first one shows on one token."""
        if self._output_form is None:
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            with torch.no_grad():
                run = partial(self.decoder, input_ids=ids, use_cache=False)
                self._output_form = output_form(self.layers[0], run)
        return self._output_form

    # -- the whole model

    def full(self, ids: Tensor, bank: AdapterBank | None = None, cache: Cache | None = None) -> Any:
        """The plain forward pass of the whole decoder, adapters by hooks: the reference of `upper`.

        Args:
            ids: token ids, (B, T).
            bank: adapters; None: the model as it is.
            cache: keys and values of the tokens before ids; those of ids are added to it.

        Returns:
            The decoder's output; its `last_hidden_state` is (B, T, D), after the last norm.
        """
        cached = {} if cache is None else {self._cache_argument: cache}
        with self._attached(bank):
            return self.decoder(input_ids=ids, use_cache=cache is not None, **cached)

    def new_cache(self) -> Cache | None:
        """An empty cache of keys and values for `full`.

        Returns:
            The cache; None where the family does not compute the same with one as without, or
            keeps a state of another kind.
        """
        from transformers import DynamicCache

        if self._has_exact_cache is None:
            self._has_exact_cache = cached_matches_full(self)
        if not self._has_exact_cache:
            return None
        return DynamicCache(config=self.model.config.get_text_config())

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of final hidden states (..., D), as the model's own head has them."""
        return self.head.logits(hidden)

    def check_split(self, bank: AdapterBank) -> None:
        """Refuse a model whose split pass differs from its own; done once for the same sites.

        Raises:
            UserError: they differ for each of several random adapters, or the model's layers
                cannot be run one by one.
        """
        # Where the adapters are decides which layers are replayed; their weights do not matter.
        key = tuple(bank.sites)
        if key in self._verified:
            return

        placement = "adapter=mlp_block" if bank.is_block else "adapter=linear"
        unsupported = f"this family is not supported with {placement}"
        option = f"model={self.settings.name}"
        with one_line(option, f"{unsupported}: its split forward pass fails"):
            matches = any(split_matches_full(self, bank, seed) for seed in VERIFICATION_SEEDS)
        if not matches:
            reason = "its split forward pass differs from the full one"
            if self.settings.compile:
                reason = f"{reason}; model.compile=false may help"
            raise UserError(f"{option}: {unsupported}: {reason}")
        self._verified.add(key)

    def packing_mode(
        self, bank: AdapterBank, common: int, tokens: int, longest: int
    ) -> PackingMode:
        """How samples may be packed into rows of this model; found out once for the same sites.

        Args:
            bank: its sites tell where the adapters are; its weights do not matter.
            common: tokens at the beginning of a row that all of its samples begin with.
            tokens: length of a row.
            longest: length of the longest sample.
        """
        key = (*bank.sites, common, tokens, longest)
        if key not in self._packing_modes:
            shape = ProbeShape(common=common, tokens=tokens, longest=longest)
            self._packing_modes[key] = find_packing_mode(self, bank, shape)
        return self._packing_modes[key]

    def weights_hash(self) -> str:
        """A short exact hash of the weights: of every tensor's name, dtype, shape and bits.

        The same whatever the device, the number of threads, and whether the model is streamed; see
        model/weight_hash.py for how it differs from the hashes in run ids.
        """
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            tensor = weight
            # A streamed weight is read for its checksum and freed at once.
            if self.stream is not None and weight.is_meta:
                tensor = self.stream.read(name, weight)
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor_checksums(tensor).numpy().tobytes())
        return digest.hexdigest()[:HASH_DIGITS]

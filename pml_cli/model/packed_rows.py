"""Packed rows: several samples one after the other in a row, none of which sees another.

A row may begin with tokens that all of its samples begin with (a chat template's, say): they come
once, and every sample sees them and itself. Positions are those of the sample alone. What a layer
is called with for such rows is gathered from what the model passes to it for one plain row:
position embeddings by position, masks by pairs of positions, so that sliding windows and biases by
distance stay as they are.

The layers' outputs are wanted at some tokens only (queries). Below the last layer all tokens run,
because others see them; the last layer gives only its keys and values of all tokens, and runs whole
for the queries.

Shapes: B rows, L tokens of a row, S queries of a row, T tokens of a plain row, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pml_cli.model.layer_calls import LayerCall

Call: TypeAlias = Callable[[Tensor], Tensor]
"""One layer on hidden states."""

# Segment of the common beginning of a row, which all of its samples see; samples have 1, 2, ...
COMMON = 0

# Segment of what fills up a row; nothing else sees it.
PADDING = -1

# Names that layers give to the cache of keys and values, and to the mask.
CACHE_NAMES = ("cache", "past_key_values", "past_key_value", "layer_past")
MASK_NAME = "attention_mask"


class PackingMode(Enum):
    """How samples may share a row, from the most work to the least."""

    SEPARATE = "separate"
    """Not at all."""

    ALL_TOKENS = "all tokens"
    """All layers run for all tokens."""

    QUERIES = "queries"
    """After its keys and values, the last layer runs for the queries alone."""

    KEYS = "keys"
    """And only its keys and values are computed of all tokens."""


class UnpackableError(ValueError):
    """Layers whose calls cannot be made for packed rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedRows:
    """Where the tokens of packed rows come from, and at which of them outputs are wanted."""

    rows: Tensor
    """Plain row that each token is taken from, (B, L)."""

    positions: Tensor
    """Its position there, (B, L)."""

    segments: Tensor
    """Its sample, (B, L): any number from 1, COMMON or PADDING."""

    queries: Tensor
    """Tokens whose outputs are wanted, as indices into their row, (B, S)."""

    tokens: int
    """Length T of the longest plain row: no position is as large."""

    mode: PackingMode
    """What runs for them."""

    def visible(self, to_queries: bool = False) -> Tensor:
        """Whether a token (second dimension) sees another (third); each sees itself.

        Args:
            to_queries: of the queries alone, (B, S, L); else of all tokens, (B, L, L).
        """
        key_positions = self.positions
        key_segments = self.segments
        positions = self.at_queries(key_positions) if to_queries else key_positions
        segments = self.at_queries(key_segments) if to_queries else key_segments

        is_before = key_positions[:, None] <= positions[:, :, None]
        is_own = key_segments[:, None] == segments[:, :, None]
        is_common = key_segments[:, None] == COMMON
        return is_before & (is_own | is_common)

    def at_queries(self, values: Tensor) -> Tensor:
        """Values of all tokens, (B, L, ...), at the queries: (B, S, ...); differentiable."""
        B, L = self.rows.shape
        first_B1 = torch.arange(0, B * L, L, device=values.device)[:, None]
        index = (first_B1 + self.queries).flatten()
        chosen = values.flatten(0, 1).index_select(0, index)
        return chosen.view(*self.queries.shape, *values.shape[2:])


class PackedCalls:
    """The calls of layers for packed rows, from their calls for one plain row."""

    def __init__(
        self,
        calls: Sequence[LayerCall],
        other_calls: Sequence[LayerCall],
        *,
        dtype: torch.dtype,
        head_dim: int,
    ) -> None:
        """
        Args:
            calls: of each layer, for one row of T tokens; no position may be T or above.
            other_calls: for one row of another length: which dimensions count tokens.
            dtype: of the model.
            head_dim: size of an attention head.

        Raises:
            UnpackableError: the calls differ in more than sizes.
        """
        self._layers = [call.layer for call in calls]
        self._dtype = dtype
        self._head_dim = head_dim
        self._arguments = []
        for call, other_call in zip(calls, other_calls, strict=True):
            named = _named_arguments(call)
            other = _named_arguments(other_call)
            self._arguments.append(_with_token_dims(named, other))

    def layers(self, packed: PackedRows, first: int) -> list[Call]:
        """What runs for packed rows from one layer on, (B, L, D) to (B, S, D).

        Args:
            packed: the rows.
            first: the first layer that runs.
        """
        of_all = _Gather(packed, self._dtype)
        indices = range(first, len(self._layers))
        if not indices or packed.mode is PackingMode.ALL_TOKENS:
            return [*[self._call(index, of_all) for index in indices], packed.at_queries]

        is_alone = packed.mode is PackingMode.KEYS
        last = LastLayerCall(
            packed=packed,
            # Keys and values need no mask.
            all_tokens=self._call(-1, of_all, masked=not is_alone),
            queries=self._call(-1, _Gather(packed, self._dtype, to_queries=True)),
            head_dim=self._head_dim if is_alone else 0,
        )
        return [*[self._call(index, of_all) for index in indices[:-1]], last]

    def _call(self, index: int, gather: _Gather, *, masked: bool = True) -> LayerCall:
        arguments = gather.arguments(self._arguments[index], masked=masked)
        return LayerCall(layer=self._layers[index], args=(), kwargs=arguments)


@dataclass(frozen=True, kw_only=True)
class _ByToken:
    """A tensor of a call, (1, ...), with a dimension, or two, that counts tokens."""

    tensor: Tensor
    dims: tuple[int, ...]

    @property
    def is_of_keys(self) -> bool:
        """Whether a single dimension counts keys: a bias by key stands last, of many dimensions."""
        last = self.tensor.dim() - 1
        return self.dims == (last,) and last >= 2


def _named_arguments(call: LayerCall) -> dict[str, Any]:
    """The arguments after the hidden states, all by name."""
    parameters = list(inspect.signature(type(call.layer).forward).parameters)
    # After self and the hidden states.
    names = parameters[2 : 2 + len(call.args)]
    return dict(zip(names, call.args, strict=True)) | call.kwargs


def _with_token_dims(value: Any, longer: Any) -> Any:
    """The arguments of a call, those tensors that have dimensions of tokens as `_ByToken`."""
    if isinstance(value, Tensor) and isinstance(longer, Tensor):
        sizes = zip(value.shape, longer.shape, strict=True)
        dims = tuple(dim for dim, (size, other) in enumerate(sizes) if size != other)
        if not dims:
            return value
        if len(dims) > 2 or value.shape[0] != 1 or 0 in dims:
            raise UnpackableError("a tensor whose token dimensions pml cannot pack")
        return _ByToken(tensor=value, dims=dims)

    if type(value) is not type(longer):
        raise UnpackableError("other arguments for another length")
    if isinstance(value, dict):
        return {name: _with_token_dims(item, longer[name]) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_with_token_dims(a, b) for a, b in zip(value, longer, strict=True)]
        return tuple(items)
    return value


class _Gather:
    """Gathers the tensors of calls by position; layers mostly share them."""

    def __init__(self, packed: PackedRows, dtype: torch.dtype, *, to_queries: bool = False) -> None:
        """
        Args:
            packed: the rows.
            dtype: of the model.
            to_queries: whether the queries alone run, (B, S); else all tokens, (B, L).
        """
        self.dtype = dtype
        self.key_positions = packed.positions
        self.query_positions = packed.positions
        if to_queries:
            self.query_positions = packed.at_queries(packed.positions)
        self._find_visible = partial(packed.visible, to_queries)
        self._gathered: dict[int, Tensor] = {}

    @cached_property
    def visible(self) -> Tensor:
        """Whether the tokens that run see all tokens, (B, S or L, L)."""
        return self._find_visible()

    @cached_property
    def own_mask(self) -> Tensor:
        """What is added to the scores, (B, 1, S or L, L), where the model passes no mask."""
        mask = torch.zeros(self.visible.shape, dtype=self.dtype, device=self.visible.device)
        mask.masked_fill_(~self.visible, torch.finfo(self.dtype).min)
        return mask[:, None]

    def arguments(self, arguments: dict[str, Any], *, masked: bool) -> dict[str, Any]:
        """The arguments of one layer, with or without a mask."""
        if MASK_NAME not in arguments:
            raise UnpackableError(f"no {MASK_NAME}")
        unmasked = {name: value for name, value in arguments.items() if name != MASK_NAME}
        gathered: dict[str, Any] = self._value(unmasked)

        mask = arguments[MASK_NAME]
        gathered[MASK_NAME] = None
        if masked:
            gathered[MASK_NAME] = self.own_mask if mask is None else self._value(mask)
        return gathered

    def _value(self, value: Any) -> Any:
        if isinstance(value, _ByToken):
            key = id(value.tensor)
            if key not in self._gathered:
                self._gathered[key] = self._tensor(value)
            return self._gathered[key]
        if isinstance(value, dict):
            return {name: self._value(item) for name, item in value.items()}
        if isinstance(value, tuple):
            return tuple(self._value(item) for item in value)
        return value

    def _tensor(self, value: _ByToken) -> Tensor:
        if len(value.dims) == 2:
            return self._by_pair(value)

        positions = self.key_positions if value.is_of_keys else self.query_positions
        (dim,) = value.dims
        tokens_first = value.tensor[0].movedim(dim - 1, 0)
        # (B, S, ...), then the tokens back to where they were.
        return tokens_first[positions].movedim(1, dim)

    def _by_pair(self, value: _ByToken) -> Tensor:
        """A mask or bias, (1, ..., T, T): what is not visible is masked."""
        query_dim, key_dim = value.dims
        pairs_first = value.tensor[0].movedim((query_dim - 1, key_dim - 1), (0, 1))
        queries = self.query_positions[:, :, None]
        keys = self.key_positions[:, None]
        chosen = pairs_first[queries, keys].movedim((1, 2), (query_dim, key_dim))

        shape = [1] * chosen.dim()
        for dim, size in zip((0, query_dim, key_dim), self.visible.shape, strict=True):
            shape[dim] = size
        visible = self.visible.view(shape)
        if chosen.dtype == torch.bool:
            return chosen & visible
        return chosen.masked_fill(~visible, torch.finfo(chosen.dtype).min)


class _SeenError(Exception):
    """Ends the pass of a layer once its keys and values are there."""


class _KeysAndValues:
    """Stands in for the cache of a layer: ends its first pass, and serves the second.

    Attributes:
        seen: keys and values of all tokens.
    """

    def __init__(self) -> None:
        self.seen: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep the first keys and values; give them instead of the later ones."""
        if self.seen is None:
            self.seen = keys, values
            raise _SeenError
        return self.seen


class _OneHead(nn.Module):
    """Stands in for a projection whose output is not used: zeros of one head, (B, L, head_dim)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, hidden: Tensor) -> Tensor:
        zero = hidden.new_zeros(1)
        return zero.expand(*hidden.shape[:-1], self.head_dim)


@contextmanager
def _unused(layer: nn.Module, names: Sequence[str], head_dim: int) -> Iterator[None]:
    """Replace projections of a layer, by the ends of their names, while inside."""
    replaced = []
    for parent in layer.modules():
        for name in names:
            # Replaced, not hooked: an adapter's hook would add to what is not used.
            if name in parent._modules:
                replaced.append((parent, name, parent._modules[name]))

    try:
        for parent, name, _ in replaced:
            parent._modules[name] = _OneHead(head_dim)
        yield
    finally:
        for parent, name, module in replaced:
            parent._modules[name] = module


@dataclass(frozen=True, kw_only=True)
class LastLayerCall:
    """The last layer: keys and values of all tokens, and all else of the queries alone."""

    packed: PackedRows
    all_tokens: LayerCall
    queries: LayerCall
    head_dim: int
    """Head dimension of the attention; 0: unused projections are computed as well."""

    def __call__(self, hidden_BLD: Tensor) -> Tensor:
        """Run the layer on hidden states, (B, L, D): its output at the queries, (B, S, D)."""
        store = _KeysAndValues()
        try:
            self._run(self.all_tokens, store, hidden_BLD, unused=("q_proj",))
        except _SeenError:
            pass
        else:
            raise UnpackableError("the last layer keeps no keys and values")

        queries_BSD = self.packed.at_queries(hidden_BLD)
        return self._run(self.queries, store, queries_BSD, unused=("k_proj", "v_proj"))

    def _run(
        self, call: LayerCall, store: _KeysAndValues, hidden: Tensor, unused: Sequence[str]
    ) -> Tensor:
        names = [name for name in CACHE_NAMES if name in call.kwargs]
        if not names:
            raise UnpackableError("the last layer takes no cache")
        kwargs = call.kwargs | dict.fromkeys(names, store)
        with_cache = LayerCall(layer=call.layer, args=call.args, kwargs=kwargs)
        with _unused(call.layer, unused if self.head_dim else (), self.head_dim):
            return with_cache(hidden)

"""The frozen base model, split at the adapter layer.

Everything below the adapter never changes: it is computed once (`prefix`), and training runs the layers above alone
(`upper`). The layers' own code is called, with the arguments that the model itself would pass, so any decoder-only model of
transformers works whose layers have an `mlp`. Causality makes one pass over the longest input serve every shorter one.

Shapes: n rows of the cache, B rows of a batch, T tokens, D hidden size.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pml_cli.config.schema import Adapter, LinearAdapter, MlpBlockAdapter, Model
from pml_cli.errors import UserError, did_you_mean
from pml_cli.model.adapter_bank import AdapterBank, Site
from pml_cli.model.dims import model_dims
from pml_cli.model.families import ModelFamily, family_of
from pml_cli.model.head import Head
from pml_cli.model.streaming import Stream
from pml_cli.model.verify_split import agrees
from pml_cli.model.weight_hash import tensor_checksums

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True)
class Prefix:
    """What one pass below the adapter leaves behind, (n, T, D) each.

    entry: the input of the first adapted layer, or (paper's placement) the input of its MLP.
    block: that layer's output without an adapter; mlp_out: its MLP's, kept only where a norm follows the MLP.
    """

    entry: Tensor
    block: Tensor | None = None
    mlp_out: Tensor | None = None

    def rows(self, index: Tensor, tokens: int) -> Prefix:
        """Chosen rows (B,), cut to the first `tokens` tokens."""

        def picked(kept: Tensor | None) -> Tensor | None:
            return None if kept is None else kept[index, :tokens]

        return Prefix(self.entry[index, :tokens], picked(self.block), picked(self.mlp_out))


def find_layers(model: nn.Module, settings: Model) -> nn.ModuleList:
    """The decoder layers of a transformers model.

    Raises:
        UserError: it has no list of as many modules as its config has layers.
    """
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    for module in model.get_decoder().modules():  # type: ignore[operator]
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(
        f"model={settings.name}: no list of {count} decoder layers found; this family is not supported"
    )


class SplitModel:
    """A decoder-only language model whose weights never change."""

    def __init__(self, model: nn.Module, settings: Model, stream: Stream | None = None) -> None:
        """`stream`: reads the layers that training does not need, where they do not stay in memory."""
        self.model = model.eval().requires_grad_(False)
        self.settings, self.stream = settings, stream
        self.modules = dict(model.named_modules())
        self.decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
        config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
        self.family: ModelFamily = family_of(config.model_type)
        self.layers = find_layers(model, settings)
        self.norm = self._find_norm()
        output: Any = model.get_output_embeddings()  # type: ignore[operator]
        self.head = Head(
            output.weight,
            getattr(output, "bias", None),
            getattr(config, "final_logit_softcapping", None),
        )
        self.context = int(config.max_position_embeddings)
        self.layer = model_dims(settings).adapter_layer(settings.layer)
        scaling = getattr(config, "rope_parameters", None) or {}
        if scaling.get("rope_type") in (
            "dynamic",
            "longrope",
        ):  # a prefix would depend on how long the whole input is
            raise UserError(
                f"model={settings.name}: its rope type {scaling['rope_type']} depends on length; not supported"
            )
        named = inspect.signature(type(self.decoder).forward).parameters
        self._cache_word = "cache" if "cache" in named else "past_key_values"  # its older name
        self._calls: OrderedDict[int, list[Call]] = OrderedDict()
        self._checked: set[tuple[str, ...]] = set()
        self._lowest_of: dict[tuple[str, ...], int] = {}

    @property
    def device(self) -> torch.device:
        return self.head.weight_VD.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight_VD.dtype

    @property
    def adapter_dtype(self) -> torch.dtype:
        """Adapters are trained in float32, or in float64 on a float64 base."""
        return torch.promote_types(self.dtype, torch.float32)

    def _find_norm(self) -> nn.Module:
        for name in self.family.final_norms:
            if isinstance(norm := getattr(self.decoder, name, None), nn.Module):
                return norm
        raise UserError(
            f"model={self.settings.name}: no final norm found ({', '.join(self.family.final_norms)}); this family is not supported"
        )

    # -- where the adapters go

    def sites(self, adapter: Adapter) -> list[Site]:
        """The modules that an adapter of these settings is attached to."""
        if isinstance(adapter, MlpBlockAdapter):
            size = self.head.weight_VD.shape[1]
            return [Site(self._name(self._mlp(self.layer)), size, size)]
        assert isinstance(adapter, LinearAdapter)
        return [
            site
            for i in self._linear_layers(adapter)
            for site in self._linear_sites(i, adapter.targets)
        ]

    def _mlp(self, layer: int) -> nn.Module:
        if isinstance(mlp := getattr(self.layers[layer], "mlp", None), nn.Module):
            return mlp
        raise UserError(
            f"adapter=mlp_block: the layers of model={self.settings.name} have no module named mlp"
        )

    def _linear_layers(self, adapter: LinearAdapter) -> list[int]:
        layers = (
            [self.layer]
            if adapter.layers is None
            else sorted(set(adapter.layers)) or list(range(len(self.layers)))
        )
        if min(layers) < 0 or max(layers) >= len(self.layers):
            raise UserError(
                f"adapter.layers={adapter.layers}: model={self.settings.name} has layers 0 to {len(self.layers) - 1}"
            )
        return layers

    def _linear_sites(self, layer: int, targets: list[str]) -> list[Site]:
        prefix = self._name(self.layers[layer])
        linear = {
            n: m
            for n, m in self.layers[layer].named_modules()
            if getattr(getattr(m, "weight", None), "dim", lambda: 0)() == 2
        }
        sites = []
        for target in targets:
            names = [n for n in linear if n == target or n.endswith(f".{target}")]
            if not names:
                raise UserError(
                    f"adapter.targets={target}: {did_you_mean(target, {n.split('.')[-1] for n in linear})}"
                )
            for name in names:
                transposed = not isinstance(
                    linear[name], nn.Linear
                )  # GPT-2's Conv1D stores (in, out)
                rows, columns = linear[name].weight.shape
                inputs, outputs = (rows, columns) if transposed else (columns, rows)
                sites.append(Site(f"{prefix}.{name}", int(inputs), int(outputs), transposed))
        return sites

    def _name(self, wanted: nn.Module) -> str:
        return str(next(name for name, module in self.modules.items() if module is wanted))

    def first_layer(self, bank: AdapterBank) -> int:
        """The first layer that carries an adapter of the bank."""
        key = tuple(bank.sites)
        if key not in self._lowest_of:
            starts = [f"{self._name(layer)}." for layer in self.layers]
            self._lowest_of[key] = min(
                i for i, start in enumerate(starts) for site in key if site.startswith(start)
            )
        return self._lowest_of[key]

    # -- the forward pass, whole and split

    @torch.no_grad()
    def prefix(self, ids: Tensor, bank: AdapterBank, rows: int = 8) -> Prefix:
        """Run everything below the bank's adapters once over ids (n, T), `rows` rows at a time."""
        block, layer = bank.is_block, self.first_layer(bank)
        split = [part.to(self.device) for part in ids.split(rows)]
        parts = (
            self._streamed_prefix(split, layer, block)
            if self.stream
            else self._whole_prefix(split, layer, block)
        )

        def joined(kept: list[Tensor | None]) -> Tensor | None:
            return torch.cat([x for x in kept if x is not None]) if kept[0] is not None else None

        entry = torch.cat([p.entry for p in parts])
        return Prefix(entry, joined([p.block for p in parts]), joined([p.mlp_out for p in parts]))

    def _whole_prefix(self, split: list[Tensor], layer: int, block: bool) -> list[Prefix]:
        """One part after the other through all layers."""
        parts = []
        for ids in split:
            with self._catching(layer, block) as caught, self._skipping_above(layer):
                self.decoder(input_ids=ids, use_cache=False)
            parts.append(self._caught_prefix(caught, layer))
        return parts

    def _streamed_prefix(self, split: list[Tensor], layer: int, block: bool) -> list[Prefix]:
        """All parts through one layer after the other: each is read once."""
        assert self.stream is not None
        calls, hidden = self._calls_at(split[0].shape[1]), []
        with self.stream.kept(self.model.get_input_embeddings()):  # type: ignore[operator]
            for ids in split:
                with self._catching(0, block=False) as caught, self._skipping_above(-1):
                    self.decoder(input_ids=ids, use_cache=False)
                hidden.append(caught["entry"])
        for call in calls[:layer]:
            with self.stream.kept(call.layer):
                for i, states in enumerate(hidden):
                    hidden[i] = call(states)
        if not block:
            return [Prefix(states) for states in hidden]
        parts = []
        with self.stream.kept(calls[layer].layer):
            for states in hidden:
                with self._catching(layer, block) as caught:
                    calls[layer](states)
                parts.append(self._caught_prefix(caught, layer))
        return parts

    @contextmanager
    def _catching(self, layer: int, block: bool) -> Iterator[dict[str, Tensor]]:
        """Collect what a prefix is made of while its layer runs."""
        caught: dict[str, Tensor] = {}
        with ExitStack() as stack:
            if block:
                stack.enter_context(_caught(self._mlp(layer), caught, "entry", "mlp_out"))
                stack.enter_context(_caught(self.layers[layer], caught, "", "block"))
            else:
                stack.enter_context(_caught(self.layers[layer], caught, "entry", ""))
            yield caught

    def _caught_prefix(self, caught: dict[str, Tensor], layer: int) -> Prefix:
        if "block" not in caught:
            return Prefix(caught["entry"])
        keep = caught["mlp_out"] if self._post_norm(layer) is not None else None
        return Prefix(caught["entry"], caught["block"], keep)

    def upper(self, prefix: Prefix, bank: AdapterBank, checkpointing: bool = False) -> Tensor:
        """Run the layers from the adapters' on; rows grouped by cell.

        Args:
            checkpointing: keep of each layer its input alone; backward runs it again. The same numbers, less memory.

        Returns:
            final hidden states (B, T, D), after the last norm: what the head reads.
        """
        layer, T = self.first_layer(bank), prefix.entry.shape[1]
        self._hold_upper(layer, prefix.block is not None)
        calls = self._calls_at(T)
        if prefix.block is None:
            return self._replay(prefix.entry, calls[layer:], bank, checkpointing)
        (name,) = bank.sites
        delta = bank.delta(name, prefix.entry)
        norm = self._post_norm(layer)
        if norm is not None and prefix.mlp_out is not None:
            delta = norm(prefix.mlp_out + delta) - norm(prefix.mlp_out)
        return self._replay(prefix.block + delta, calls[layer + 1 :], None, checkpointing)

    def full(self, ids: Tensor, bank: AdapterBank | None = None, cache: Cache | None = None) -> Any:
        """The plain forward pass of the whole decoder over ids (B, T), adapters by hooks; the reference of `upper`.

        Args:
            cache: keys and values of the tokens before ids, which takes in those of ids.
        """
        kept = {} if cache is None else {self._cache_word: cache}
        with bank.attached(self.modules) if bank else ExitStack():
            return self.decoder(input_ids=ids, use_cache=cache is not None, **kept)

    def _hold_upper(self, layer: int, block: bool) -> None:
        """Of a streamed model keep what training needs: the layers from the adapter's on, beside an MLP only those above."""
        if self.stream:
            norm = self._post_norm(layer) if block else None
            self.stream.hold(
                [*list(self.layers)[layer + block :], *([norm] if norm is not None else [])]
            )

    def _post_norm(self, layer: int) -> nn.Module | None:
        return next(
            (
                n
                for name in self.family.post_mlp_norms
                if (n := getattr(self.layers[layer], name, None)) is not None
            ),
            None,
        )

    def _replay(
        self, hidden: Tensor, calls: list[Call], bank: AdapterBank | None, checkpointing: bool
    ) -> Tensor:
        def twice() -> Any:
            return (
                bank.checkpoint_contexts(self.modules) if bank else (nullcontext(), nullcontext())
            )

        with bank.attached(self.modules) if bank else ExitStack():
            for call in calls:
                if (
                    checkpointing and torch.is_grad_enabled()
                ):  # only dropout is random there, and draws for itself
                    hidden = checkpoint(
                        call,
                        hidden,
                        use_reentrant=False,
                        preserve_rng_state=False,
                        context_fn=twice,
                    )
                else:
                    hidden = call(hidden)
        return self.norm(hidden)  # type: ignore[no-any-return]

    def _calls_at(self, T: int) -> list[Call]:
        """The arguments each layer gets at T tokens, seen by running the model with every layer passed over."""
        if T not in self._calls:
            calls: list[Call] = []
            with self._skipping_above(-1, calls), torch.no_grad():
                self.decoder(
                    input_ids=torch.zeros(1, T, dtype=torch.long, device=self.device),
                    use_cache=False,
                )
            self._calls[T] = calls
            if len(self._calls) > 4:  # masks of long inputs are large
                self._calls.popitem(last=False)
        return self._calls[T]

    @contextmanager
    def _skipping_above(self, layer: int, calls: list[Call] | None = None) -> Iterator[None]:
        """Layers above `layer` return their input; their calls are noted."""
        chosen = list(self.layers)[layer + 1 :]
        try:
            for module in chosen:
                module.forward = _passing(module, calls)
            yield
        finally:
            for module in chosen:
                del module.forward

    def check_split(self, bank: AdapterBank) -> None:
        """Refuse a model whose split pass differs from its own (once for each choice of places).

        Raises:
            UserError: it differs for three adapters, each on tokens of its own: one may meet a router that rounding flips.
        """
        key = tuple(bank.sites)
        if key in self._checked:
            return
        if not any(agrees(self, bank, seed) for seed in range(3)):
            raise UserError(
                f"model={self.settings.name}: its split forward pass differs from the full one; not supported"
            )
        self._checked.add(key)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states, as the model's own head gives them."""
        raw = nn.functional.linear(hidden, self.head.weight_VD, self.head.bias_V)
        return raw if self.head.cap is None else self.head.cap * torch.tanh(raw / self.head.cap)

    def weights_hash(self) -> str:
        """A short hash of the weights: every tensor's name, type, shape and bits (`tensor_checksums`).

        The same whatever the device, the number of threads, and whether the model is streamed.
        """
        digest = hashlib.sha256()
        for name, kept in sorted(self.model.state_dict().items()):
            tensor = self.stream.read(name, kept) if self.stream and kept.is_meta else kept
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor_checksums(tensor).numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Call:
    """One decoder layer with the arguments the model passes to it."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, hidden: Tensor) -> Tensor:
        out: Tensor | tuple[Tensor, ...] = self.layer(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


def _passing(module: nn.Module, calls: list[Call] | None) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if calls is not None:
            calls.append(Call(module, args, kwargs))
        return hidden_states

    return forward


@contextmanager
def _caught(module: nn.Module, into: dict[str, Tensor], before: str, after: str) -> Iterator[None]:
    """Keep the first input of a module under `before`, its output under `after` (empty: neither)."""

    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if before:
            into[before] = args[0] if args else kwargs["hidden_states"]
        if after:
            into[after] = output[0] if isinstance(output, tuple) else output

    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

"""A bank of LoRA adapters of different ranks on one frozen base, trained as one batch.

Shapes: K cells, R largest rank of the bank, b rows of a cell in the batch, T tokens, I inputs and O outputs of a module.
Columns of A and rows of B beyond a cell's own rank are zero, get zero gradients and so stay zero: padding is exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pml_cli.config.schema import Adapter, LinearAdapter
from pml_cli.io import save_tensors


@dataclass(frozen=True)
class Site:
    """A module of the base that carries an adapter: its full name, its sizes, and whether its weight is stored (in, out)."""

    name: str
    inputs: int
    outputs: int
    transposed: bool = False


class AdapterBank:
    """K adapters on the same sites; A (K, I, R) and B (K, R, O) per site, in at least float32."""

    def __init__(
        self,
        sites: Sequence[Site],
        ranks: Sequence[int],
        seeds: Sequence[int],
        kind: Adapter,
        dtype: torch.dtype,
    ) -> None:
        self.sites = {site.name: site for site in sites}
        self.ranks, self.kind = list(ranks), kind
        self.A: dict[str, Tensor] = {}
        self.B: dict[str, Tensor] = {}
        top = max(ranks)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for site in sites:
            A = torch.zeros(len(ranks), site.inputs, top, dtype=dtype)
            for k, (rank, generator) in enumerate(zip(ranks, generators, strict=True)):
                A[k, :, :rank] = _kaiming(site.inputs, rank, generator).T.to(dtype)
            self.A[site.name] = A
            self.B[site.name] = torch.zeros(len(ranks), top, site.outputs, dtype=dtype)
        alpha = kind.alpha if isinstance(kind, LinearAdapter) else None
        self.scale = torch.tensor(
            [1.0 if alpha is None else alpha / rank for rank in ranks], dtype=dtype
        )
        self.dropout: Dropout | None = None

    def __len__(self) -> int:
        return len(self.ranks)

    def parameters(self) -> list[Tensor]:
        return [*self.A.values(), *self.B.values()]

    def requires_grad_(self, wanted: bool = True) -> AdapterBank:
        for parameter in self.parameters():
            parameter.requires_grad_(wanted)
        return self

    def to(self, device: torch.device) -> AdapterBank:
        self.A = {name: A.detach().to(device) for name, A in self.A.items()}
        self.B = {name: B.detach().to(device) for name, B in self.B.items()}
        self.scale = self.scale.to(device)
        return self

    @torch.no_grad()
    def largest(self) -> list[float]:
        """The largest absolute weight of each adapter; NaN where one is NaN."""
        return torch.stack([p.abs().flatten(1).amax(1) for p in self.parameters()]).amax(0).tolist()

    def count(self, k: int) -> int:
        """Trainable parameters of one adapter: rank * (inputs + outputs) over its sites."""
        return sum(self.ranks[k] * (site.inputs + site.outputs) for site in self.sites.values())

    def delta(self, name: str, x: Tensor) -> Tensor:
        """What the adapters add to a module's output: scale * x @ A @ B, rows grouped by cell.

        Args:
            x: the module's input, (K * b, T, I) of any float type.

        Returns:
            (K * b, T, O) in the type of x.
        """
        A, B = self.A[name], self.B[name]
        x_KNI = x.reshape(len(self), -1, x.shape[-1]).to(A.dtype)
        before = isinstance(
            self.kind, LinearAdapter
        )  # PEFT drops inputs, the paper's block drops its output
        if self.dropout and before:
            x_KNI = self.dropout(x_KNI, x.shape)
        y_KNO = x_KNI @ A @ (B * self.scale[:, None, None])  # B is small, the product is not
        if self.dropout and not before:
            y_KNO = self.dropout(y_KNO, (*x.shape[:-1], B.shape[-1]))
        return y_KNO.view(*x.shape[:-1], B.shape[-1]).to(x.dtype)

    @contextmanager
    def attached(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Add the adapters to the outputs of the sites' modules while inside."""
        hooks = [
            modules[name].register_forward_hook(self._hook(name))
            for name in self.sites
            if name in modules
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def twice(
        self, modules: dict[str, nn.Module]
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """What a layer runs in that backward runs again: as it is, then with the adapters on it and the same dropout."""
        dropout = self.dropout
        drawn = dropout.states() if dropout else []

        @contextmanager
        def again() -> Iterator[None]:
            with self.attached(modules), dropout.rewound(drawn) if dropout else nullcontext():
                yield

        return nullcontext(), again()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        return lambda _module, inputs, output: output + self.delta(name, inputs[0])

    def keep(self, cells: Sequence[int]) -> None:
        """Reduce the bank to some of its cells."""
        index = torch.tensor(cells, device=self.scale.device)
        self.ranks = [self.ranks[k] for k in cells]
        self.A = {name: A.detach()[index] for name, A in self.A.items()}
        self.B = {name: B.detach()[index] for name, B in self.B.items()}
        self.scale = self.scale[index]

    def only(self, cells: Sequence[int]) -> AdapterBank:
        """A bank of some of the cells, without dropout or gradients; rows of one cell may be repeated."""
        part = object.__new__(AdapterBank)
        part.sites, part.kind, part.dropout = self.sites, self.kind, None
        part.A, part.B, part.scale, part.ranks = self.A, self.B, self.scale, self.ranks
        part.keep(cells)
        return part

    def save(self, k: int, folder: Path, base: str) -> None:
        """One adapter in PEFT's layout: adapter_config.json and adapter_model.safetensors."""
        rank, tensors = self.ranks[k], {}
        for name in self.sites:
            tensors[f"base_model.model.{name}.lora_A.weight"] = (
                self.A[name][k, :, :rank].T.detach().contiguous().cpu()
            )
            tensors[f"base_model.model.{name}.lora_B.weight"] = (
                self.B[name][k, :rank].T.detach().contiguous().cpu()
            )
        save_tensors(
            tensors,
            folder / "adapter_model.safetensors",
            {"format": "pt", "pml_kind": self.kind.kind},
        )
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": self.kind.alpha if isinstance(self.kind, LinearAdapter) else rank,
            "lora_dropout": self.kind.dropout,
            "target_modules": sorted(self.sites),
            "fan_in_fan_out": any(site.transposed for site in self.sites.values()),
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")

    def load(self, k: int, folder: Path) -> None:
        """Put a saved adapter of the same sites and rank into place k."""
        tensors, rank = load_file(folder / "adapter_model.safetensors"), self.ranks[k]
        with torch.no_grad():
            for name in self.sites:
                self.A[name][k, :, :rank] = tensors[f"base_model.model.{name}.lora_A.weight"].T
                self.B[name][k, :rank] = tensors[f"base_model.model.{name}.lora_B.weight"].T


def stack(banks: Sequence[AdapterBank]) -> AdapterBank:
    """One bank of all the cells of several banks on the same sites, in order, without dropout or gradients."""
    out, top = banks[0].only(range(len(banks[0]))), max(max(bank.ranks) for bank in banks)

    def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
        wide = [
            nn.functional.pad(
                p.detach(), (0, top - p.shape[2], 0, 0) if dim == 2 else (0, 0, 0, top - p.shape[1])
            )
            for p in parts
        ]
        return torch.cat(wide)

    out.A = {name: joined([bank.A[name] for bank in banks], 2) for name in out.sites}
    out.B = {name: joined([bank.B[name] for bank in banks], 1) for name in out.sites}
    out.scale = torch.cat([bank.scale for bank in banks])
    out.ranks = [rank for bank in banks for rank in bank.ranks]
    return out


def _kaiming(inputs: int, rank: int, generator: torch.Generator) -> Tensor:
    """PEFT's initial A (rank, inputs): Kaiming uniform with a = sqrt(5), that is uniform within 1 / sqrt(inputs)."""
    return (torch.rand(rank, inputs, generator=generator, dtype=torch.float64) * 2 - 1) / math.sqrt(
        inputs
    )


class Dropout:
    """Dropout in which every cell draws from its own generator, over its own rows and tokens alone: packed equals solo."""

    def __init__(
        self,
        share: float,
        seeds: Sequence[int],
        shapes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        """`shapes`: rows and tokens (b, T) of each cell, without the pack's padding."""
        self.share, self.shapes = share, list(shapes)
        # a stream of their own: the initial weights draw from the seed itself
        self.generators = [torch.Generator(device).manual_seed(2**40 + seed) for seed in seeds]

    def __call__(self, x_KNF: Tensor, shape: Sequence[int]) -> Tensor:
        rows, tokens, features = shape[0] // len(self.shapes), shape[1], shape[2]
        keep = x_KNF.new_ones(len(self.shapes), rows, tokens, features)
        for k, ((b, T), generator) in enumerate(zip(self.shapes, self.generators, strict=True)):
            drawn = torch.rand(b, T, features, generator=generator, device=x_KNF.device)
            # a minibatch may be shorter than the cell's longest sample; as much is drawn all the same, whatever the pack
            keep[k, :b, :T] = (drawn[:, :tokens] >= self.share).to(keep.dtype) / (1 - self.share)
        return x_KNF * keep.view_as(x_KNF)

    def states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self.generators]

    @contextmanager
    def rewound(self, states: Sequence[Tensor]) -> Iterator[None]:
        """Inside, draw again what was drawn from these states on; afterwards nothing has been drawn."""
        now = self.states()
        self._set(states)
        try:
            yield
        finally:
            self._set(now)

    def _set(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def keep_cells(self, cells: Sequence[int]) -> None:
        self.shapes = [self.shapes[k] for k in cells]
        self.generators = [self.generators[k] for k in cells]

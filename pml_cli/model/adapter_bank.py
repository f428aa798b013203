"""A bank of LoRA adapters of different ranks on one frozen model, trained as one batch.

Columns of A and rows of B beyond a cell's own rank are zero, get zero gradients and so stay zero:
padding is exact.

Shapes: K cells, R largest rank of the bank, b rows of a cell in the batch, T tokens, I inputs and O
    outputs of a module,
N = b * T tokens of a cell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pml_cli.config.schema import Adapter, LinearAdapter
from pml_cli.io import save_tensors
from pml_cli.model.layer_calls import first_tensor, with_first_tensor

# A forward hook of torch: (module, inputs, output) -> new output.
ForwardHook = Callable[[nn.Module, tuple[Any, ...], Any], Any]

# Names of PEFT's files in the folder of an adapter.
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"

# What PEFT calls an adapter of this kind.
PEFT_TYPE = "LORA"

# Weights beyond it are damaged: products of two of them would not be finite in single precision.
LARGEST = 1e18

# Added to a cell's seed for its dropout: the initial weights draw from the seed itself.
DROPOUT_SEED_OFFSET = 2**40


@dataclass(frozen=True, kw_only=True)
class Site:
    """A module of the model that carries an adapter."""

    name: str
    """Full name of the module in the model."""

    inputs: int
    """Size I of its input."""

    outputs: int
    """Size O of its output."""

    transposed: bool = False
    """Whether its weight is stored as (in, out), as in GPT-2's Conv1D."""


class AdapterBank:
    """The adapters of K cells, on the same modules.

    Attributes:
        sites: the modules that carry an adapter, by name.
        settings: kind and settings of the adapters.
        ranks: rank of each cell.
        A: (K, I, R) of each site, at least float32.
        B: (K, R, O) of each site, at least float32.
        scale: factor of each cell's A @ B, (K,).
        dropout: drawn in each forward pass; None: no dropout.
    """

    def __init__(
        self,
        *,
        sites: Mapping[str, Site],
        settings: Adapter,
        ranks: Sequence[int],
        A: Mapping[str, Tensor],
        B: Mapping[str, Tensor],
        scale: Tensor,
    ) -> None:
        """A bank of given weights, without dropout; see the class for the arguments."""
        self.sites = dict(sites)
        self.settings = settings
        self.ranks = list(ranks)
        self.A = dict(A)
        self.B = dict(B)
        self.scale = scale
        self.dropout: Dropout | None = None

    @classmethod
    def initial(
        cls,
        sites: Sequence[Site],
        settings: Adapter,
        *,
        ranks: Sequence[int],
        seeds: Sequence[int],
        dtype: torch.dtype,
    ) -> AdapterBank:
        """Untrained adapters as PEFT initialises them: A Kaiming uniform, B zero.

        Args:
            sites: the modules that carry an adapter.
            settings: kind and settings of the adapters.
            ranks: rank of each cell.
            seeds: seed of each cell, which alone determines its A.
            dtype: of A, B and scale.
        """
        cells = len(ranks)
        largest_rank = max(ranks)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        A = {}
        B = {}
        for site in sites:
            A_KIR = torch.zeros(cells, site.inputs, largest_rank, dtype=dtype)
            for k, rank in enumerate(ranks):
                # Drawn in float64 whatever the dtype, so that a seed gives the same weights.
                uniform_RI = _kaiming_uniform(site.inputs, rank, generators[k])
                A_KIR[k, :, :rank] = uniform_RI.T.to(dtype)
            A[site.name] = A_KIR
            B[site.name] = torch.zeros(cells, largest_rank, site.outputs, dtype=dtype)

        scales = [_scale(settings, rank) for rank in ranks]
        return cls(
            sites={site.name: site for site in sites},
            settings=settings,
            ranks=ranks,
            A=A,
            B=B,
            scale=torch.tensor(scales, dtype=dtype),
        )

    def __len__(self) -> int:
        """Number of cells K."""
        return len(self.ranks)

    @property
    def is_block(self) -> bool:
        """Whether the adapter bypasses a whole MLP block, as in the paper, not a linear module."""
        return not isinstance(self.settings, LinearAdapter)

    def parameters(self) -> list[Tensor]:
        """All A, (K, I, R) each, then all B, (K, R, O) each, in the order of the sites."""
        return [*self.A.values(), *self.B.values()]

    def requires_grad_(self, requires_grad: bool = True) -> AdapterBank:
        """Switch gradients of all parameters on or off, in place."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def to(self, device: torch.device) -> AdapterBank:
        """Move the bank to a device, in place; gradients are switched off."""
        self._apply(lambda weight: weight.detach().to(device))
        self.scale = self.scale.to(device)
        return self

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace each A and each B, in place."""
        self.A = {name: change(A) for name, A in self.A.items()}
        self.B = {name: change(B) for name, B in self.B.items()}

    @torch.no_grad()
    def largest_weights(self) -> list[float]:
        """The largest absolute weight of each cell; NaN if one of its weights is NaN."""
        magnitudes = [parameter.abs().flatten(1) for parameter in self.parameters()]
        largest_K = torch.stack([magnitude.amax(1) for magnitude in magnitudes]).amax(0)
        # The only wait for the device.
        values: list[float] = largest_K.tolist()
        return values

    def parameter_count(self, k: int) -> int:
        """Trainable parameters of cell k: rank * (inputs + outputs), summed over the sites."""
        widths = [site.inputs + site.outputs for site in self.sites.values()]
        return self.ranks[k] * sum(widths)

    def effective_parameter_count(self, k: int, tokens: int) -> int:
        """Degrees of freedom of what the adapter of cell k can do to some inputs.

        A matrix of m x n numbers and rank r has r (m + n - r); of the inputs of a module only as
        many directions count as there are tokens.

        Args:
            k: index of the cell.
            tokens: input tokens that it is trained on.
        """
        count = 0
        for site in self.sites.values():
            inputs = min(tokens, site.inputs)
            rank = min(self.ranks[k], inputs, site.outputs)
            count += rank * (inputs + site.outputs - rank)
        return count

    # -- the forward pass

    def delta(self, name: str, x: Tensor) -> Tensor:
        """What the adapters add to the output of a module: scale * x @ A @ B.

        Args:
            name: the module, one of `sites`.
            x: its input, (K * b, T, I) of any float dtype, rows grouped by cell.

        Returns:
            (K * b, T, O); beside a block in the dtype of x, else in that of the adapters.
        """
        A = self.A[name]
        B = self.B[name]
        x_KNI = x.reshape(len(self), -1, x.shape[-1]).to(A.dtype)
        output_shape = (*x.shape[:-1], B.shape[-1])

        # PEFT drops inputs of linear modules; the paper's block drops its output.
        if self.dropout and not self.is_block:
            x_KNI = self.dropout(x_KNI, x.shape)
        # The scale goes into B because B is small and the product is not.
        y_KNO = x_KNI @ A @ (B * self.scale[:, None, None])
        if self.dropout and self.is_block:
            y_KNO = self.dropout(y_KNO, output_shape)

        y = y_KNO.view(output_shape)
        return y.to(x.dtype) if self.is_block else y

    @contextmanager
    def attached(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Add the adapters to the outputs of their modules while inside.

        Args:
            modules: modules of the model, by name; sites that it lacks are left out.
        """
        hooks = []
        for name in self.sites:
            if name in modules:
                hooks.append(modules[name].register_forward_hook(self.output_hook(name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def output_hook(self, name: str) -> ForwardHook:
        """The forward hook of one module, which adds the adapters to its output."""

        def add_delta(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            plain = first_tensor(output)
            # Of a linear module rounded once, after the sum, as PEFT does.
            changed = plain + self.delta(name, inputs[0])
            return with_first_tensor(output, changed.to(plain.dtype))

        return add_delta

    def checkpoint_contexts(
        self, modules: Mapping[str, nn.Module]
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for activation checkpointing, as torch.utils.checkpoint's `context_fn` returns.

        Nothing on the first forward; on recomputation, adapters attached and dropout's generators
        rewound.
        """
        dropout = self.dropout
        states = dropout.states() if dropout else []

        @contextmanager
        def recomputation() -> Iterator[None]:
            rewound = dropout.rewound(states) if dropout else nullcontext()
            with self.attached(modules), rewound:
                yield

        return nullcontext(), recomputation()

    # -- subsets

    def keep_cells(self, cells: Sequence[int]) -> None:
        """Reduce the bank to some of its cells, in place; gradients are switched off."""
        index = torch.tensor(cells, device=self.scale.device)
        self.ranks = [self.ranks[k] for k in cells]
        self._apply(lambda weight: weight.detach()[index])
        self.scale = self.scale[index]

    def select(self, cells: Sequence[int]) -> AdapterBank:
        """A bank with copies of some of the cells, without dropout or gradients.

        Args:
            cells: indices into this bank; one may occur several times.
        """
        bank = AdapterBank(
            sites=self.sites,
            settings=self.settings,
            ranks=self.ranks,
            A=self.A,
            B=self.B,
            scale=self.scale,
        )
        bank.keep_cells(cells)
        return bank

    # -- files

    def save(
        self,
        k: int,
        folder: Path,
        model_path: str,
        *,
        revision: str | None = None,
        peft_type: str = PEFT_TYPE,
    ) -> None:
        """Write one adapter in PEFT's layout: adapter_config.json, adapter_model.safetensors.

        Args:
            k: index of the cell.
            folder: an existing folder.
            model_path: where PEFT loads the frozen model from.
            revision: of the model on the hub.
            peft_type: another text than PEFT's own makes PEFT refuse the folder, and show the text.
        """
        rank = self.ranks[k]
        # Without the padding to the largest rank of the bank.
        tensors = {}
        for name in self.sites:
            A_IR = self.A[name][k, :, :rank].detach()
            B_RO = self.B[name][k, :rank].detach()
            tensors[_peft_name(name, "A")] = A_IR.T.contiguous().cpu()
            tensors[_peft_name(name, "B")] = B_RO.T.contiguous().cpu()
        metadata = {"format": "pt", "pml_kind": self.settings.kind}
        save_tensors(tensors, folder / WEIGHTS_FILE, metadata)

        # PEFT scales by alpha / rank; a block adapter has the scale 1.
        alpha = self.settings.alpha if isinstance(self.settings, LinearAdapter) else rank
        config = {
            "peft_type": peft_type,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model_path,
            "revision": revision,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": alpha,
            "lora_dropout": self.settings.dropout,
            "target_modules": sorted(self.sites),
            "fan_in_fan_out": any(site.transposed for site in self.sites.values()),
            "bias": "none",
        }
        text = json.dumps(config, indent=1) + "\n"
        (folder / CONFIG_FILE).write_text(text, "utf-8")

    @torch.no_grad()
    def load(self, k: int, folder: Path) -> None:
        """Read a saved adapter of the same sites and rank into cell k.

        Raises:
            ValueError: it has other sites, or another rank, or weights that are no numbers.
        """
        rank = self.ranks[k]
        tensors = load_file(folder / WEIGHTS_FILE)
        for name, site in self.sites.items():
            # PEFT stores the transposes.
            A_RI = tensors.get(_peft_name(name, "A"))
            B_OR = tensors.get(_peft_name(name, "B"))
            if A_RI is None or B_OR is None:
                raise ValueError(f"it has no weights for {name}")
            if A_RI.shape != (rank, site.inputs) or B_OR.shape != (site.outputs, rank):
                sizes = f"of rank {len(A_RI)} from {A_RI.shape[1]} to {len(B_OR)}"
                needed = f"of rank {rank} from {site.inputs} to {site.outputs}"
                raise ValueError(f"for {name} it is {sizes}, not {needed}")
            if not (is_usable(A_RI) and is_usable(B_OR)):
                raise ValueError(f"its weights for {name} are no numbers, or beyond {LARGEST:g}")
            self.A[name][k, :, :rank] = A_RI.T
            self.B[name][k, :rank] = B_OR.T


def is_usable(weights: Tensor) -> bool:
    """Whether the product of an adapter's two matrices can be computed."""
    # False also of what is no number.
    return bool((weights.float().abs() <= LARGEST).all())


def stack(banks: Sequence[AdapterBank]) -> AdapterBank:
    """One bank with all cells of several banks on the same sites, in order.

    It has neither dropout nor gradients.
    """
    first = banks[0]
    largest_rank = max(max(bank.ranks) for bank in banks)
    A = {}
    B = {}
    for name in first.sites:
        padded_A = []
        padded_B = []
        for bank in banks:
            A_KIR = bank.A[name].detach()
            B_KRO = bank.B[name].detach()
            # F.pad counts from the last dimension; a negative number cuts off padding.
            missing = largest_rank - A_KIR.shape[2]
            padded_A.append(F.pad(A_KIR, (0, missing)))
            padded_B.append(F.pad(B_KRO, (0, 0, 0, missing)))
        A[name] = torch.cat(padded_A)
        B[name] = torch.cat(padded_B)

    return AdapterBank(
        sites=first.sites,
        settings=first.settings,
        ranks=[rank for bank in banks for rank in bank.ranks],
        A=A,
        B=B,
        scale=torch.cat([bank.scale for bank in banks]),
    )


def merged(banks: Sequence[AdapterBank]) -> AdapterBank:
    """The sum of adapters, cell by cell, as one adapter of all their ranks.

    What adapters of A1, B1 and A2, B2 add is what one of [A1, A2] and [B1; B2] adds: exact, without
    another training. The scales go into B.

    Args:
        banks: of as many cells each, on the same sites.

    Returns:
        A bank of scale 1, without dropout or gradients.
    """
    first = banks[0]
    A = {}
    B = {}
    for name in first.sites:
        A[name] = torch.cat([bank.A[name].detach() for bank in banks], dim=2)
        scaled = [bank.B[name].detach() * bank.scale[:, None, None] for bank in banks]
        B[name] = torch.cat(scaled, dim=1)

    # Columns of zeros that pad the cells of a bank stay between those of two banks: they count, as
    # the rank says how many columns are saved.
    columns = next(iter(A.values())).shape[2]
    settings = first.settings
    if isinstance(settings, LinearAdapter):
        # By which PEFT's scale is 1 too.
        settings = replace(settings, alpha=float(columns))
    return AdapterBank(
        sites=first.sites,
        settings=settings,
        ranks=[columns] * len(first),
        A=A,
        B=B,
        scale=torch.ones_like(first.scale),
    )


def _scale(settings: Adapter, rank: int) -> float:
    """alpha / rank for linear modules with an alpha, else 1."""
    alpha = settings.alpha if isinstance(settings, LinearAdapter) else None
    return 1.0 if alpha is None else alpha / rank


def _kaiming_uniform(inputs: int, rank: int, generator: torch.Generator) -> Tensor:
    """PEFT's initial A, (rank, inputs) in float64: Kaiming uniform with a = sqrt(5).

    That is uniform between -1 / sqrt(inputs) and 1 / sqrt(inputs).
    """
    uniform = torch.rand(rank, inputs, generator=generator, dtype=torch.float64)
    return (uniform * 2 - 1) / math.sqrt(inputs)


def _peft_name(site: str, matrix: str) -> str:
    """Name of a tensor in PEFT's files; `matrix` is A or B."""
    return f"base_model.model.{site}.lora_{matrix}.weight"


class Dropout:
    """Dropout in which each cell draws from its own generator, over its own rows and tokens.

    So a cell in a pack sees the same dropout as the cell alone.

    Attributes:
        p: probability that an element is zeroed.
        shapes: rows and tokens (b, T) of each cell, without the pack's padding.
        generators: of each cell.
    """

    def __init__(
        self,
        p: float,
        seeds: Sequence[int],
        shapes: Sequence[tuple[int, int]],
        device: torch.device,
    ) -> None:
        """Seed the generators; see the class for the arguments."""
        self.p = p
        self.shapes = list(shapes)
        self.generators = [
            torch.Generator(device).manual_seed(DROPOUT_SEED_OFFSET + seed) for seed in seeds
        ]

    def __call__(self, x_KNF: Tensor, shape: Sequence[int]) -> Tensor:
        """Zero elements and scale the others by 1 / (1 - p).

        Args:
            x_KNF: values of each cell, (K, N, F).
            shape: (K * b, T, F), the shape before rows and tokens were joined.

        Returns:
            (K, N, F).
        """
        rows = shape[0] // len(self.shapes)
        tokens = shape[1]
        features = shape[2]
        mask = x_KNF.new_ones(len(self.shapes), rows, tokens, features)

        for k, generator in enumerate(self.generators):
            b, T = self.shapes[k]
            uniform = torch.rand(b, T, features, generator=generator, device=x_KNF.device)
            # A minibatch may be shorter than the cell's longest sample. As much is drawn all the
            # same, so that the pack makes no difference.
            keep = (uniform[:, :tokens] >= self.p).to(mask.dtype)
            mask[k, :b, :T] = keep / (1 - self.p)

        return x_KNF * mask.view_as(x_KNF)

    def states(self) -> list[Tensor]:
        """States of the K generators, as `torch.Generator.get_state` returns them."""
        return [generator.get_state() for generator in self.generators]

    def resume(self, states: Tensor, step: int) -> None:
        """Go on where a checkpoint ended.

        A generator of a GPU cannot take the state of one of a CPU, nor the other way round: a
        training that moves between them goes on with other draws, the same each time.

        Args:
            states: (K, bytes), those of `states`.
            step: of the checkpoint.
        """
        for generator, state in zip(self.generators, states, strict=True):
            if len(state) == len(generator.get_state()):
                # Cloned: a view into a file's bytes may lie unaligned, and torch crashes on it.
                generator.set_state(state.clone())
            else:
                # Of a seed, a CPU's generator takes 32 bits.
                mixed = np.random.SeedSequence([generator.initial_seed(), step])
                generator.manual_seed(int(mixed.generate_state(1)[0]))

    @contextmanager
    def rewound(self, states: Sequence[Tensor]) -> Iterator[None]:
        """Rewind the generators to earlier states while inside, to repeat their draws."""
        present = self.states()
        self._set_states(states)
        try:
            yield
        finally:
            self._set_states(present)

    def _set_states(self, states: Sequence[Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def keep_cells(self, cells: Sequence[int]) -> None:
        """Drop the generators of all cells but these."""
        self.shapes = [self.shapes[k] for k in cells]
        self.generators = [self.generators[k] for k in cells]

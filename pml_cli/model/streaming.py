"""A model whose lower layers never lie in memory together: read from safetensors when they run, freed after it.

Everything below the adapter is needed once, for the prefix. So decoder layers (and input embeddings that the head does not
share) are left without weights; a hook reads them before they run and another frees them. The layers that training needs
are held (`hold`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.families import family_of
from pml_cli.model.files import config_fields, locate

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint:
    """The tensors of a model's safetensors files, by the names that the model itself gives them."""

    def __init__(self, settings: Model, prefix: str) -> None:
        """`prefix`: of the decoder's names, which some files leave out (transformer.h.0 is h.0 in GPT-2's)."""
        self.settings, self.prefix = settings, prefix
        model_type = str(config_fields(settings).get("model_type"))
        self.renamed = family_of(model_type).renamed_tensors
        self.places = _places(settings)

    def read(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        """One tensor, in the type of another (which may be without data), never a view of the file.

        Raises:
            UserError: the files have no such tensor, or one of another shape.
        """
        return self.place(name, like).read().to(device, like.dtype)

    def place(self, name: str, like: Tensor) -> Place:
        """Where a tensor lies; raises as `read` does."""
        short = name.removeprefix(f"{self.prefix}.")
        known = next((n for n in (name, short, self.renamed.get(name)) if n in self.places), None)
        if known is None or tuple(self.places[known].shape) != tuple(like.shape):
            raise UserError(
                f"model.stream=true: the weights of model={self.settings.name} have no {name} as the model has it"
            )
        return self.places[known]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a safetensors file."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: list[int]

    def read(self) -> Tensor:
        """The tensor, on the CPU; read, not mapped: mapped pages would count as memory beside the copy."""
        found = torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            into = memoryview(found.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            while into:
                count = file.readinto(into)  # of large tensors the system hands over a part
                if not count:
                    raise UserError(f"{self.path}: ends before its tensors do")
                into = into[count:]
        return found


def _places(settings: Model) -> dict[str, Place]:
    """Where every tensor lies."""
    index = locate(settings, "model.safetensors.index.json")
    shards = (
        sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        if index
        else ["model.safetensors"]
    )
    places: dict[str, Place] = {}
    for shard in shards:
        path = locate(settings, shard)
        if path is None:
            raise UserError(
                f"model.path={settings.path}: no weights in safetensors there ({shard})"
            )
        places |= _header(path)
    return places


def _header(path: Path) -> dict[str, Place]:
    """The tensors of one file; safetensors checks the header and the size of the file."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        told = json.loads(raw.read(length))
    return {
        n: Place(
            path,
            8 + length + told[n]["data_offsets"][0],
            DTYPES[told[n]["dtype"]],
            told[n]["shape"],
        )
        for n in names
    }


class Stream:
    """Reads the weights of some modules when they run and frees them afterwards, but for those that are held."""

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, device: torch.device) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        self.watched: set[nn.Module] = set()
        self.held: set[nn.Module] = set()

    def watch(self, module: nn.Module) -> None:
        """From now on this module has weights only while it runs.

        Raises:
            UserError: the files lack one of them.
        """
        for name, parameter in module.named_parameters():
            self.checkpoint.place(f"{self.names[module]}.{name}", parameter)
        self.watched.add(module)
        module.register_forward_pre_hook(lambda m, _: self._before(m))
        module.register_forward_hook(lambda m, _i, _o: self._after(m), always_call=True)

    def hold(self, modules: Iterable[nn.Module]) -> None:
        """Keep the weights of these modules, and of no other watched one."""
        wanted = set(modules)
        left, self.held = self.held - wanted, self.held & wanted
        for module in left:
            self._empty(module)
        for module in wanted - self.held:
            self.fill(module)
        self.held = wanted

    @contextmanager
    def kept(self, module: nn.Module) -> Iterator[None]:
        """Keep the weights of one more module while inside (one that is not watched has them in any case)."""
        held = self.held
        self.hold(held | ({module} & self.watched))
        try:
            yield
        finally:
            self.hold(held)

    def fill(self, module: nn.Module) -> None:
        """Read all weights of a module."""
        for part in module.modules():
            self.fill_own(part)

    def fill_own(self, module: nn.Module) -> None:
        """Read the weights of a module itself, without those of its parts."""
        for key, parameter in module.named_parameters(recurse=False):
            found = self.read(f"{self.names[module]}.{key}", parameter)
            module._parameters[key] = nn.Parameter(found, requires_grad=False)

    def read(self, name: str, like: Tensor) -> Tensor:
        """One tensor of the model, by its name there."""
        return self.checkpoint.read(name, like, self.device)

    def _before(self, module: nn.Module) -> None:
        if module not in self.held and "forward" not in module.__dict__:  # else it is passed over
            self.fill(module)

    def _after(self, module: nn.Module) -> None:
        if module not in self.held:
            self._empty(module)

    def _empty(self, module: nn.Module) -> None:
        for part in module.modules():
            for key, parameter in (
                part.named_parameters(recurse=False) if part not in self.held else ()
            ):
                part._parameters[key] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=False
                )


@contextmanager
def weightless() -> Iterator[None]:
    """Modules that are made inside have parameters without data; their buffers are real."""
    plain: Callable[..., None] = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        plain(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = plain  # type: ignore[method-assign]

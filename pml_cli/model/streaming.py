"""Layer streaming: weights are read from safetensors when a module runs and freed afterwards.

Everything below the adapter is needed once, for the prefix. So decoder layers (and input embeddings
that the head does not share) are left without weights; a hook reads them before they run and
another frees them. The layers that training needs are held (`WeightStream.hold`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pml_cli.config.schema import Model
from pml_cli.errors import UserError
from pml_cli.model.families import family_of
from pml_cli.model.faults import one_line
from pml_cli.model.files import locate
from pml_cli.model.model_config import config_fields
from pml_cli.model.weight_files import shard_names

# Names of dtypes in the header of a safetensors file.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# Bytes at the start of a safetensors file that give the length of its header.
HEADER_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class TensorSlice:
    """Where a tensor lies in a safetensors file."""

    path: Path
    """The file."""

    offset: int
    """Its first byte in the file."""

    dtype: torch.dtype
    """Its dtype in the file."""

    shape: tuple[int, ...]
    """Its shape."""

    def read(self) -> Tensor:
        """Read the tensor to the CPU, (`shape`).

        Read, not memory-mapped: mapped pages would count as memory beside the copy.

        Raises:
            UserError: the file is too short.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            array = tensor.view(-1).view(torch.uint8).numpy()
            unread = memoryview(array)  # type: ignore[arg-type]
            # Of large tensors, the system returns only a part at a time.
            while unread:
                count = file.readinto(unread)
                if not count:
                    raise UserError(f"{self.path}: file ends before its last tensor does")
                unread = unread[count:]
        return tensor


class WeightFiles:
    """The tensors in a model's safetensors files, by the names that the model itself gives them."""

    def __init__(self, settings: Model, prefix: str) -> None:
        """Read the headers of the files.

        Args:
            settings: of the model.
            prefix: prefix of the decoder's names, which some files leave out (transformer.h.0 is
                h.0 in GPT-2's).

        Raises:
            UserError: the model has no safetensors files.
        """
        self.settings = settings
        self.prefix = prefix
        self.slices = _tensor_slices(settings)
        model_type = str(config_fields(settings).get("model_type"))
        self.renamed = family_of(model_type).renamed_tensors

    def read(self, name: str, like: Tensor, device: torch.device) -> Tensor:
        """Read one tensor.

        Args:
            name: its name in the model.
            like: a tensor of the expected shape and dtype; may lie on the meta device.
            device: where to put the tensor.

        Raises:
            UserError: the files have no such tensor, or one of another shape.
        """
        return self.find(name, like).read().to(device, like.dtype)

    def find(self, name: str, like: Tensor) -> TensorSlice:
        """Where a tensor lies; arguments and errors as in `read`."""
        short_name = name.removeprefix(f"{self.prefix}.")
        file_name = self.renamed.get(name)
        for candidate in (name, short_name, file_name):
            if candidate in self.slices:
                tensor_slice = self.slices[candidate]
                if tensor_slice.shape == tuple(like.shape):
                    return tensor_slice
                # Of the right name, but of another shape.
                break

        # Of experts, for one: transformers stacks their matrices when it loads them.
        reason = f"the weights of model={self.settings.name} have no {name} as the model has it"
        raise UserError(f"model.stream=true: {reason}; use model.stream=false")


def check_files(settings: Model) -> None:
    """Read the headers of a model's safetensors files.

    Raises:
        UserError: one of them is missing or damaged, or holds numbers of an unknown dtype.
    """
    _tensor_slices(settings)


def _tensor_slices(settings: Model) -> dict[str, TensorSlice]:
    """Where every tensor of a model lies, by its name in the files."""
    slices: dict[str, TensorSlice] = {}
    find = partial(locate, settings)
    for shard in shard_names(settings, find):
        path = find(shard)
        if path is None:
            reason = f"no weights in safetensors there (*.safetensors): {shard} is missing"
            raise UserError(f"model.path={settings.path}: {reason}")

        with one_line(f"model.path={settings.path}", f"{shard} is damaged"):
            slices |= _read_header(path)
    return slices


def _read_header(path: Path) -> dict[str, TensorSlice]:
    """Where the tensors of one file lie."""
    # safetensors checks the header and the size of the file, but does not tell the offsets.
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())

    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(HEADER_LENGTH_BYTES), "little")
        header = json.loads(raw.read(length))

    slices = {}
    for name in names:
        # What torch has no dtype for is no weight that a model of ours has.
        if header[name]["dtype"] not in DTYPES:
            continue
        begin, _end = header[name]["data_offsets"]
        slices[name] = TensorSlice(
            path=path,
            offset=HEADER_LENGTH_BYTES + length + begin,
            dtype=DTYPES[header[name]["dtype"]],
            shape=tuple(header[name]["shape"]),
        )
    return slices


class WeightStream:
    """Reads the weights of watched modules when they run and frees them afterwards.

    Modules that are held keep their weights.

    Attributes:
        files: the model's safetensors files.
        device: where weights are read to.
        names: full name of each module of the model.
        watched: modules that have weights only while they run.
        held: watched modules that have weights until they are held no more.
    """

    def __init__(self, model: nn.Module, files: WeightFiles, device: torch.device) -> None:
        self.files = files
        self.device = device
        self.names = {module: name for name, module in model.named_modules()}
        self.watched: set[nn.Module] = set()
        self.held: set[nn.Module] = set()

    def watch(self, module: nn.Module) -> None:
        """Let a module have weights only while it runs.

        Raises:
            UserError: the files lack one of its weights.
        """
        # Fail now, not in the middle of a training.
        for name, parameter in module.named_parameters():
            self.files.find(f"{self.names[module]}.{name}", parameter)

        self.watched.add(module)
        module.register_forward_pre_hook(lambda called, _inputs: self._before_forward(called))
        module.register_forward_hook(
            lambda called, _inputs, _output: self._after_forward(called), always_call=True
        )

    def hold(self, modules: Iterable[nn.Module]) -> None:
        """Keep the weights of these modules in memory, and of no other watched ones."""
        requested = set(modules)
        released = self.held - requested
        missing = requested - self.held

        # Free memory first. If reading fails, `self.held` still says what is in memory.
        self.held &= requested
        for module in released:
            self._free(module)
        for module in missing:
            self.fill(module)
        self.held = requested

    @contextmanager
    def holding(self, module: nn.Module) -> Iterator[None]:
        """Hold one more module while inside; one that is not watched always has its weights."""
        held = self.held
        self.hold(held | ({module} & self.watched))
        try:
            yield
        finally:
            self.hold(held)

    def fill(self, module: nn.Module) -> None:
        """Read all weights of a module."""
        for submodule in module.modules():
            self.fill_own(submodule)

    def fill_own(self, module: nn.Module) -> None:
        """Read the weights of a module itself, without those of its submodules."""
        for key, parameter in module.named_parameters(recurse=False):
            tensor = self.read(f"{self.names[module]}.{key}", parameter)
            module._parameters[key] = nn.Parameter(tensor, requires_grad=False)

    def fill_buffers(self, module: nn.Module) -> None:
        """Bring the buffers of a module itself to the device, where they stay: they are small.

        Raises:
            UserError: the files lack one that is saved with the weights.
        """
        for key, buffer in module.named_buffers(recurse=False):
            is_computed = key in module._non_persistent_buffers_set
            name = f"{self.names[module]}.{key}"
            value = buffer.to(self.device) if is_computed else self.read(name, buffer)
            module._buffers[key] = value

    def read(self, name: str, like: Tensor) -> Tensor:
        """Read one tensor, of the shape of `like`, to the device of the stream."""
        return self.files.read(name, like, self.device)

    def _before_forward(self, module: nn.Module) -> None:
        # A module whose forward is replaced is skipped and needs no weights.
        is_skipped = "forward" in module.__dict__
        if module not in self.held and not is_skipped:
            self.fill(module)

    def _after_forward(self, module: nn.Module) -> None:
        if module not in self.held:
            self._free(module)

    def _free(self, module: nn.Module) -> None:
        """Replace the weights of a module by empty ones, except in submodules that are held."""
        for submodule in module.modules():
            if submodule in self.held:
                continue
            for key, parameter in submodule.named_parameters(recurse=False):
                # A tensor on the meta device has a shape and a dtype, but no memory.
                empty = torch.empty_like(parameter, device="meta")
                submodule._parameters[key] = nn.Parameter(empty, requires_grad=False)

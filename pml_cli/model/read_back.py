"""Whether PEFT reads a saved adapter as it was trained, found out by letting it.

A random adapter is saved, loaded onto the model by PEFT as a user would, and the logits compared.
Not every family passes: PEFT renames the experts of some mixtures of experts while it loads, warns
of missing keys, and answers as the base model.

It is done once for each kind of model and placement, on the model in memory, which is put back as
it was; the answer is kept in the cache folder. A streamed model's layers are read for it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from pml_cli.errors import UserError
from pml_cli.io import cache_folder, write_json
from pml_cli.model.adapter_bank import AdapterBank
from pml_cli.model.device import is_fault_of_machine
from pml_cli.model.verify_split import changes_alike, full_logits, probe_ids, scaled_probe
from pml_cli.validation import read_json

if TYPE_CHECKING:
    from pml_cli.model.split_model import SplitModel

# Of the answers in the cache folder; changed with what is saved.
FORMAT = 1

# Another version may read the same folder otherwise.
LIBRARIES = ("peft", "transformers", "torch")

# Fields of a config that tell where it came from.
ORIGIN_FIELDS = ("_name_or_path", "transformers_version")

# Random adapters that are tried. Rounding may flip a router for one of them.
SEEDS = range(3)

# Loads a folder onto a model of transformers.
Loader = Callable[[Any, Path], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a saved adapter is put on its model."""

    sites: tuple[str, ...]
    """Names of the modules that carry it."""

    by_peft: bool
    """Whether `PeftModel.from_pretrained` loads it as it was trained."""

    by_block: bool
    """Whether `pml_cli.peft_block.load_mlp_block` does."""

    returns_tuple: bool
    """Whether the modules return a tuple, whose first element the adapter is added to."""

    @property
    def peft_type(self) -> str:
        """The type for adapter_config.json; PEFT shows a type that it does not know."""
        if self.by_peft:
            return "LORA"
        if self.by_block:
            return "MLP_BLOCK of pml: README.md in the adapter's folder says how to load it"
        return "LORA of pml, which PEFT misreads: README.md in the adapter's folder has a script"


class KeptFields(TypedDict):
    """An answer in the cache folder."""

    by_peft: bool
    by_block: bool
    returns_tuple: bool


def loading_of(model: SplitModel, bank: AdapterBank) -> Loading:
    """How adapters on a bank's modules can be loaded.

    Args:
        model: the frozen model; the same afterwards.
        bank: tells the modules; its weights do not matter.
    """
    path = None
    # The code of a model may change, and its config not tell.
    if not model.settings.trust_remote_code:
        path = cache_folder() / "read_back" / f"{_key(model, bank)}.json"

    answer = _read(path)
    if answer is None:
        answer = _try_out(model, bank)
        _store(path, answer)
    return Loading(sites=tuple(bank.sites), **answer)


def _key(model: SplitModel, bank: AdapterBank) -> str:
    """A hash of what decides the answer; the weights of the model do not."""
    config = model.model.config.to_dict()
    for name in ORIGIN_FIELDS:
        config.pop(name, None)

    content = [
        FORMAT,
        [metadata.version(name) for name in LIBRARIES],
        json.dumps(config, sort_keys=True, default=str),
        [str(model.dtype), model.device.type, bank.is_block],
        list(bank.sites),
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _read(path: Path | None) -> dict[str, bool] | None:
    """An answer of the cache folder; None where there is none, or a damaged one."""
    if path is None:
        return None
    try:
        answer = read_json(path, KeptFields, "")
    except UserError:
        return None
    return {name: answer[name] for name in KeptFields.__annotations__}


def _store(path: Path | None, answer: dict[str, bool]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, answer)
    # A cache that cannot be written is no fault.
    except OSError:
        pass


def _try_out(model: SplitModel, bank: AdapterBank) -> dict[str, bool]:
    """The fields of `Loading` but for the sites."""
    loader = _load_block if bank.is_block else _load_plain
    returns_tuple = _returns_tuple(model, bank)

    # PEFT initialises adapters at random; the caller's generators must not notice the draws.
    generators = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=generators):
        reads = any(reads_back(model, bank, loader, seed) for seed in SEEDS)
    return {
        "by_peft": reads and not bank.is_block,
        "by_block": reads and bank.is_block,
        "returns_tuple": returns_tuple,
    }


@torch.no_grad()
def reads_back(model: SplitModel, bank: AdapterBank, loader: Loader, seed: int) -> bool:
    """Whether a loader puts a saved adapter on the model as it was.

    Args:
        model: the frozen model; the same afterwards.
        bank: tells the modules of the adapter.
        loader: puts the adapter of a folder on a model.
        seed: chooses the tokens and the adapter's weights.
    """
    ids_3T = probe_ids(model, seed)
    probe, _ = scaled_probe(model, ids_3T, bank.select([0, 0, 0]), seed)
    full_3TV, _ = full_logits(model, ids_3T, probe)

    with tempfile.TemporaryDirectory(prefix="pml-") as folder:
        # The second cell is the random one, the others are zero.
        probe.save(1, Path(folder), "")
        with restored(model.model), _held(model, probe):
            loaded_TV = _logits_as_loaded(model.model, Path(folder), loader, ids_3T)
    if loaded_TV is None:
        return False
    return changes_alike(loaded_TV - full_3TV[0], full_3TV, model.dtype)


def _logits_as_loaded(model: Any, folder: Path, loader: Loader, ids_3T: Tensor) -> Tensor | None:
    """Logits of the second row, (T, V) in float64, with the adapter of a folder.

    Returns:
        None where the adapter cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = loader(model, folder).eval()
            logits_3TV: Tensor = adapted(input_ids=ids_3T, use_cache=False).logits
    # What PEFT raises for modules that it does not know is not enumerable.
    except Exception as error:
        if is_fault_of_machine(error):
            raise
        return None

    return logits_3TV[1].double()


def _load_plain(model: Any, folder: Path) -> nn.Module:
    from peft import PeftModel

    # By itself PEFT puts the file onto a GPU first, be it another process's.
    adapted: nn.Module = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
    return adapted


def _load_block(model: Any, folder: Path) -> nn.Module:
    from pml_cli.peft_block import load_mlp_block

    adapted: nn.Module = load_mlp_block(model, folder)
    return adapted


@contextmanager
def _held(model: SplitModel, bank: AdapterBank) -> Iterator[None]:
    """Hold the layers of a streamed model that carry adapters: PEFT's modules are in no file."""
    if model.stream is None:
        yield
        return

    held = model.stream.held
    model.stream.hold(held | set(model.layers[model.first_layer(bank) :]))
    try:
        yield
    finally:
        model.stream.hold(held)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put a model back as it was: its modules, their attributes and their hooks.

    PEFT replaces modules of the model that it is given, and leaves attributes behind.
    """
    snapshot = []
    for module in model.modules():
        attributes = dict(vars(module))
        # Those that register modules, parameters, buffers and hooks.
        mappings = [(it, dict(it)) for it in attributes.values() if isinstance(it, dict)]
        snapshot.append((module, attributes, mappings))

    try:
        yield
    finally:
        for module, attributes, mappings in snapshot:
            vars(module).clear()
            vars(module).update(attributes)
            for mapping, content in mappings:
                mapping.clear()
                mapping.update(content)


@torch.no_grad()
def _returns_tuple(model: SplitModel, bank: AdapterBank) -> bool:
    """Whether the modules of the adapter return more than one tensor."""
    are_tuples: list[bool] = []
    module = model.modules[next(iter(bank.sites))]
    hook = module.register_forward_hook(lambda _m, _x, y: are_tuples.append(isinstance(y, tuple)))
    try:
        model.full(probe_ids(model, 0)[:1])
    finally:
        hook.remove()
    return any(are_tuples)

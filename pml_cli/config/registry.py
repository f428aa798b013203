"""The settings classes of each group, by the value of `kind:` (data: `source:`) in YAML files.

A class joins its group with a decorator, and its module lies in the group's package:

    @register("loss", "memft_ot")
    @dataclass(kw_only=True)
    class MemftOtLoss(Loss): ...

Looking up a group imports every module of its package once, so that a new file needs no
edit elsewhere. What a user may choose are the YAML files (`option_files.py`).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

from pml_cli.errors import UserError, did_you_mean

T = TypeVar("T")

# Where the classes of a group are declared: a package with one class a file, or a module.
# In the order of a run's settings.
HOMES = {
    "model": "pml_cli.config.schema",
    "data": "pml_cli.data.sources",
    "adapter": "pml_cli.config.schema",
    "loss": "pml_cli.training.losses",
    "train": "pml_cli.config.schema",
    "launch": "pml_cli.launch.executors",
}
GROUPS = tuple(HOMES)

# Filled by `register` while the modules are imported.
_classes: dict[str, dict[str, type[Any]]] = {group: {} for group in GROUPS}


def discriminator(group: str) -> str:
    """The key of an option's YAML file that names its class."""
    return "source" if group == "data" else "kind"


def register(group: str, name: str = "") -> Callable[[type[T]], type[T]]:
    """Class decorator: a settings dataclass joins a group.

    Args:
        group: one of `GROUPS`.
        name: the value of `kind:` (data: `source:`) that stands for the class, and the default of
            that field. Empty where the group has one class.

    Raises:
        ValueError: the name is taken, or is not the field's default.
    """

    def add(declared: type[T]) -> type[T]:
        # A run is read back by the name in its config.yaml, so the two must agree.
        default = getattr(declared, discriminator(group), "")
        if default != name:
            field = f"{declared.__name__}.{discriminator(group)}"
            raise ValueError(f"{field} is {default!r}, registered as {name!r}")
        holder = _classes[group].get(name)
        if holder is not None and _address(holder) != _address(declared):
            raise ValueError(f"{group}: {name!r} is already {_address(holder)}")
        _classes[group][name] = declared
        return declared

    return add


def _address(declared: type[Any]) -> str:
    return f"{declared.__module__}.{declared.__qualname__}"


def declared(group: str) -> Mapping[str, type[Any]]:
    """The settings classes of a group by name.

    Raises:
        ImportError: a module of the group's package cannot be imported; the message names both.
    """
    _import_modules(group)
    return dict(sorted(_classes[group].items()))


def settings_class(group: str, fields: Mapping[str, Any]) -> type[Any]:
    """The dataclass that declares an option's settings.

    By its `source` or `kind`, where the group has several.

    Args:
        group: one of `GROUPS`.
        fields: the option's settings, as in its YAML file.

    Raises:
        UserError: `source` or `kind` is missing or unknown.
    """
    classes = declared(group)
    # A group of one class, such as train, needs no name for it.
    if list(classes) == [""]:
        return classes[""]

    key = discriminator(group)
    name = str(fields.get(key, ""))
    if name not in classes:
        raise UserError(f"{group}.{key}={name}: {did_you_mean(name, classes)}")
    return classes[name]


def with_kind_of_name(group: str, option: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """An option's settings; one without `kind` (`source`) has that of its name, if there is one.

    So a user's own launch/slurm.yaml need not repeat it.

    Args:
        option: name of the YAML file.
        fields: the option's settings, as in it.
    """
    key = discriminator(group)
    if key in fields or option not in declared(group):
        return fields
    return {key: option, **fields}


def create(group: str, name: str) -> Any:
    """The settings of a registered class, all at their defaults."""
    return declared(group)[name]()


@cache
def _import_modules(group: str) -> None:
    """Import the home of a group and, where that is a package, each of its modules."""
    name = HOMES[group]
    home = _import(group, name)
    for module in pkgutil.iter_modules(getattr(home, "__path__", [])):
        _import(group, f"{name}.{module.name}")


def _import(group: str, module: str) -> ModuleType:
    # A broken module would otherwise show as an unknown option, far from its cause.
    try:
        return importlib.import_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ImportError(
            f"the settings of {group}= cannot be read: {module} does not import ({reason})"
        ) from error

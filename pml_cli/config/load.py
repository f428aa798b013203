"""Finished runs read back: from a folder's config.yaml to the typed run that it was.

Imports neither hydra nor torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pml_cli.config.option_files import option_file, options
from pml_cli.config.registry import GROUPS, settings_class
from pml_cli.config.schema import Run
from pml_cli.config.setting import absent_values, faults, has_type, type_fault
from pml_cli.errors import UserError, did_you_mean, raise_all
from pml_cli.validation import read_yaml

T = TypeVar("T")

# The settings of a run that belong to no group.
PLAIN = ("rank", "seqlen", "seed")

# How the lines about a file end that is not where it was.
MISSING_FILES = (": no such file", ": a folder, not a file", ": must be a regular file")
GROUPS_OF_RUN = tuple(group for group in GROUPS if group != "launch")


def read_run(config: Path, *, model_path: str | None = None, data_path: str | None = None) -> Run:
    """The run that a config.yaml describes.

    Settings missing from the file were added after the run was made. They take their `absent` value
    (the behaviour before the setting existed, see `setting.py`), or their default without one.

    Args:
        config: the file.
        model_path: where the base model is now, if it was moved; ignored for the embedded model.
        data_path: where the data is now, if it was moved; ignored for a source without a path.

    Raises:
        UserError: it cannot be read, or names what this version does not know.
    """
    try:
        tree: Any = read_yaml(config)
        plain = {name: tree[name] for name in PLAIN}
        groups = {group: group_settings(group, tree[group]) for group in GROUPS_OF_RUN}
        run = build_run(plain, groups)
        raise_all(faults_of_run(run))

    except OSError as error:
        raise UserError(f"{config}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{config}: not the settings of a run ({reason})") from error

    if model_path is not None and has_movable_model(run):
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, path=model_path))
    if data_path is not None and has_movable_data(run):
        data: Any = run.data
        run = dataclasses.replace(run, data=dataclasses.replace(data, path=data_path))
    return run


def faults_of_run(run: Run) -> list[str]:
    """What is wrong with the values of a run that was read from a file.

    Files that it names may have moved since: they are looked for when they are read.
    """
    return [line for line in faults(run) if not line.endswith(MISSING_FILES)]


def has_movable_model(run: Run) -> bool:
    """Whether the base model of a run lies at a path that may have changed since."""
    return run.model.path != "tiny"


def has_movable_data(run: Run) -> bool:
    """Whether the data of a run lies at a path that may have changed since."""
    return bool(getattr(run.data, "path", None))


@contextmanager
def moved_files(recorded_in: Path | None = None) -> Iterator[None]:
    """While inside, an error about the path of a model or of data names the setting that mends it.

    For commands that read finished runs and take `model.path` and `data.path` anew.

    Args:
        recorded_in: the file that names the model and the data, to be shown; None: it is shown
            already.
    """
    recorded = f" (recorded in {recorded_in})" if recorded_in else ""
    try:
        yield
    except UserError as error:
        message = str(error)
        for key in ("model.path", "data.path"):
            if message.startswith(f"{key}="):
                hint = f"if it was moved, say where it is now: {key}=..."
                raise UserError(f"{message}{recorded}; {hint}") from error
        raise


def build_run(plain: Mapping[str, Any], groups: Mapping[str, Any]) -> Run:
    """A run of plain values and of typed settings.

    Args:
        plain: values of `PLAIN`.
        groups: a settings object for each of `GROUPS_OF_RUN`.

    Raises:
        UserError: a plain value is not of its declared type.
    """
    for name in PLAIN:
        _check_type(Run, name, plain[name], prefix="")

    return Run(**plain, **groups)


def group_settings(group: str, values: Mapping[str, Any]) -> Any:
    """The typed settings of a group, from values as they were written to YAML or JSON.

    Raises:
        UserError: an unknown setting, or a value that is not of the declared type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{group}: must be a mapping of settings")
    return typed_values(settings_class(group, values), values, prefix=f"{group}.")


def shipped_settings(group: str, option: str) -> Any:
    """The typed settings of a shipped option: those of conf/GROUP/OPTION.yaml."""
    file = option_file(group, option)
    assert file is not None
    return group_settings(group, yaml.safe_load(file.read_text("utf-8")))


def typed_values(owner: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """An instance of a dataclass; a field that is not named is `absent`, or has its default.

    Args:
        owner: the dataclass.
        values: by field.
        prefix: put before a field's name in messages.

    Raises:
        UserError: an unknown field, or a value that is not of the declared type.
    """
    fields = [field.name for field in dataclasses.fields(owner)]  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{prefix}{name}: no such setting; {did_you_mean(name, fields)}")
        _check_type(owner, name, value, prefix)

    return owner(**(absent_values(owner) | dict(values)))


def _check_type(owner: type[Any], name: str, value: Any, prefix: str) -> None:
    if not has_type(owner, name, value):
        raise UserError(type_fault(owner, name, value, f"{prefix}{name}"))


def option_settings(group: str, option: str) -> Any:
    """The settings of a shipped option: those its YAML file names, the others at their defaults.

    Args:
        group: such as `loss`.
        option: name of one of the group's YAML files, such as `memft_sw_axolotl`.

    Raises:
        UserError: no such option.
    """
    file = option_file(group, option)
    if file is None:
        raise UserError(f"{group}={option}: {did_you_mean(option, options(group))}")

    fields = yaml.safe_load(file.read_text("utf-8"))
    return settings_class(group, fields)(**fields)

"""Sweep files: a YAML mapping of keys to a value, a list (swept) or a sweep in Hydra's grammar.

A text that is no sweep of values (`4,8`, `range(1,9)`, `glob(*)`) means itself, but for a number,
true, false and null.
Nested mappings are flattened with dots. `grids:` lists such mappings; each is merged over the
shared keys. A sweep file may be from somebody else: it is data, and neither runs code nor reads the
environment of who uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pml_cli.config.option_files import shipped
from pml_cli.errors import UserError, first_line

YAMLError: type[Exception] = yaml.YAMLError

# Settings that are code, or name some.
CODE = ("model.trust_remote_code", "launch.setup", "launch.python", "launch.extra")

# An interpolation that calls a resolver, such as ${oc.env:HOME}, or whose name is made of others.
CALL = re.compile(r"\$\{[^}]*:|\$\{[^}:]*\$\{")
# The one that is harmless.
BASENAME = re.compile(r"\$\{basename:[^{}]*\}")


def read(file: Path) -> list[dict[str, Any]]:
    """The grids of a sweep file, flat, values as written.

    Raises:
        UserError: no such file, not UTF-8, not YAML, not a mapping, empty, or a key given twice; a
            setting that is code, or a value that is computed.
    """
    path = find(file)
    shared = read_mapping(path)
    if not shared:
        raise UserError(
            f"{path}: empty; a sweep file maps keys to values, for example rank: [4, 8]"
        )

    grids = shared.pop("grids", None)
    base = _flat(shared, path)
    if grids is None:
        _check_is_data(path, base)
        return [base]
    if not isinstance(grids, list) or not grids:
        raise UserError(f"{path}: grids must be a list of mappings")
    if not all(isinstance(grid, dict) for grid in grids):
        raise UserError(f"{path}: grids must be a list of mappings")
    merged = [base | _flat(grid, path) for grid in grids]
    for grid in merged:
        _check_is_data(path, grid)
    return merged


def _check_is_data(path: Path, grid: Mapping[str, Any]) -> None:
    """Refuse what would run code, or read more than the file.

    Raises:
        UserError: names the key.
    """
    for key, value in grid.items():
        if key.startswith(CODE):
            raise UserError(
                f"{path}: {key}: runs code, which a sweep file may not; give it on the command "
                "line or in an option of --config-dir"
            )
        if CALL.search(BASENAME.sub("", f"{key} {value}")):
            raise UserError(
                f"{path}: {key}={value}: a sweep file may refer to other settings, "
                "such as ${rank}, and call nothing"
            )


def names() -> list[str]:
    """The sweeps that come with pml."""
    return sorted(path.stem for path in shipped("sweeps").glob("*.yaml"))


def find(file: Path) -> Path:
    """The path of a sweep file, or of a shipped sweep: `law`, `law.yaml`, `sweeps/law.yaml`.

    Raises:
        UserError: there is no such file.
    """
    if file.is_file():
        return file

    # A path that leads elsewhere is the user's own file, and is missing.
    may_be_shipped = file.parent.name in ("", "sweeps") and len(file.parts) <= 2
    if may_be_shipped:
        name = file.name if file.suffix else f"{file.name}.yaml"
        candidate = shipped("sweeps") / name
        if candidate.is_file():
            return candidate

    reason = "is a folder, not a sweep file" if file.is_dir() else "no such sweep file"
    available = ", ".join(names()) or "none"
    raise UserError(f"{file}: {reason}; those that come with pml: {available}")


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; empty where the file is.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    # Completion imports this module too, and checks no file.
    from pml_cli.validation import parse_yaml, read_regular

    try:
        text = read_regular(path)[0].decode("utf-8")
        tree = parse_yaml(text)
        # Plain YAML takes a key given twice and reads 1e-3 as a text; OmegaConf does neither.
        if isinstance(tree, dict):
            tree = OmegaConf.to_container(OmegaConf.create(text))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not a sweep file in YAML: {one_line(error)}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error

    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must be a mapping of keys to values, not a {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def mapping_under(tree: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The mapping of settings under a key of a YAML file; empty where there is none.

    Args:
        tree: what `read_mapping` has read from it.
        key: of the file.
        path: the file, for messages.

    Raises:
        UserError: something else is there.
    """
    value = tree.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{path}: {key}: must be a mapping of settings")
    return value


def _flat(tree: dict[Any, Any], path: Path) -> dict[str, Any]:
    """A mapping without nested ones: `train: {lr: 1}` becomes `train.lr: 1`."""
    flat: dict[str, Any] = {}
    for key, value in _leaves(tree):
        if key in flat:
            raise UserError(f"{path}: {key} is given twice")
        flat[key] = value
    return flat


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def one_line(error: Exception) -> str:
    """The message of a YAML, OmegaConf or Hydra error on one line, with its line if known."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None) or "not readable"
        return f"line {mark.line + 1}: {problem}"
    return first_line(error)

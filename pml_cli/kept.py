"""Finished runs read back: from a folder's config.yaml to the typed run that it was. Without hydra and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .config import Run
from .errors import UserError
from .options import GROUPS, schema
from .sequences import Sample


@dataclass(frozen=True)
class Subject:
    """A finished run that is to be measured."""

    id: str
    run: Run
    samples: list[Sample]
    adapter: Path  # its folder
    weights: str  # hash of the base that it was trained on
    texts: dict[str, list[Sample]]  # where damage is looked for, by name


PLAIN = ("rank", "seqlen", "seed")


def read_run(config: Path) -> Run:
    """The run that a config.yaml describes; a setting that it does not name has its default.

    Raises:
        UserError: it cannot be read, or names what this version does not know.
    """
    try:
        tree: Any = yaml.safe_load(config.read_text("utf-8"))
        groups = {name: schema(name, tree[name])(**tree[name]) for name in GROUPS if name != "launch"}
        return Run(**{name: tree[name] for name in PLAIN}, **groups)
    except OSError as error:
        raise UserError(f"{config}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, yaml.YAMLError, UserError) as error:
        raise UserError(f"{config}: not the settings of a run ({' '.join(str(error).split())})") from error

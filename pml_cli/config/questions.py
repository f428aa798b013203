"""The command line of `pml ask`: a run, questions, which may hold any character, and settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pml_cli.config.setting import Settings, dotted_keys
from pml_cli.errors import UserError, nearest
from pml_cli.io import expand_home

# What a key looks like; no question begins like that.
DOTTED_KEY = re.compile(r"[a-z_]+(\.[a-z_]+)+")

# Similarity from which a word before "=" is a misspelt key.
NEAR = 0.8


def split_arguments(
    arguments: Sequence[str], settings: type[Settings]
) -> tuple[Path, list[str], list[str]]:
    """Part the arguments of `pml ask`.

    Args:
        arguments: as on the command line.
        settings: the class of its settings.

    Returns:
        The path of the run, the questions, and the settings as KEY=VALUE.

    Raises:
        UserError: no run is named.
    """
    names = list(dotted_keys(settings))
    overrides = [argument for argument in arguments if _is_setting(argument, names)]
    positional = [argument for argument in arguments if argument not in overrides]
    if not positional:
        raise UserError("RUN: give the folder of a finished run, as `pml probe` prints it")
    return expand_home(positional[0]), positional[1:], overrides


def _is_setting(argument: str, names: Sequence[str]) -> bool:
    """Whether an argument is KEY=VALUE, and not a question with an equals sign."""
    key, equals, _ = argument.partition("=")
    if not equals:
        return False
    is_misspelt = nearest(key, names, NEAR) is not None
    return key in names or is_misspelt or DOTTED_KEY.fullmatch(key) is not None

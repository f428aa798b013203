"""Finished runs read back: from a folder's config.yaml to the typed run that it was. Without hydra and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pml_cli.config.option_files import option_file, options
from pml_cli.config.registry import GROUPS, settings_class
from pml_cli.config.schema import Run
from pml_cli.errors import UserError, did_you_mean

PLAIN = ("rank", "seqlen", "seed")


def read_run(config: Path) -> Run:
    """The run that a config.yaml describes; a setting that it does not name has its default.

    Raises:
        UserError: it cannot be read, or names what this version does not know.
    """
    try:
        tree: Any = yaml.safe_load(config.read_text("utf-8"))
        groups = {
            name: settings_class(name, tree[name])(**tree[name])
            for name in GROUPS
            if name != "launch"
        }
        return Run(**{name: tree[name] for name in PLAIN}, **groups)
    except OSError as error:
        raise UserError(f"{config}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, yaml.YAMLError, UserError) as error:
        raise UserError(
            f"{config}: not the settings of a run ({' '.join(str(error).split())})"
        ) from error


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

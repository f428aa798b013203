"""`pml settings`: every setting with its default, meaning, unit and allowed values."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pml_cli.config.listing import sections
from pml_cli.io import json_text, jsonable
from pml_cli.report.output import print_json
from pml_cli.report.tables.settings import settings_view


def run(
    asked: str,
    console: Console,
    config_dir: Path | None = None,
    *,
    as_json: bool = False,
) -> int:
    """List the settings of everything, of a group, an option or a command, or one setting.

    Args:
        asked: empty, `data`, `data=jsonl`, `memorize` or `train.lr`.
        console: to print to.
        config_dir: a user's folder of options.
        as_json: print them as JSON, a list of `config.listing.Section`.

    Returns:
        Exit code 0.

    Raises:
        UserError: no such group, option, command or key; a command without settings.
    """
    listed = sections(asked, config_dir)
    if as_json:
        print_json(console, json_text(jsonable(listed)))
    else:
        console.print(settings_view(listed))
    return 0

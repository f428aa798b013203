"""Overrides and YAML files to typed requests, by Hydra. The only module that imports hydra (1.3; pinned below 1.4).

The grammar is Hydra's: `rank=4,8`, `range(1,9)`, `choice(a,b)`, `glob(*)` for groups, `group=option`. What Hydra accepts
silently and is nearly always a slip is refused here: a key given twice (bash makes that of rank={4,8}), interval(), `+key`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra import version
from hydra.compose import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pml_cli.config import sweep_file
from pml_cli.config.convert import typed_settings
from pml_cli.config.grid import MAX_CELLS, Grid, OptionSet, OptionSetOf, RootSettings, expand_grid
from pml_cli.config.option_files import options, root_file, shipped
from pml_cli.config.registry import GROUPS
from pml_cli.config.reports import REPORTS, ReportSettings
from pml_cli.config.schema import Launch, Request, Run
from pml_cli.config.setting import written
from pml_cli.config.sweep_file import YAMLError, one_line
from pml_cli.errors import UserError, did_you_mean, raise_all

# The key of conf/memft.yaml that lists the losses to compare; no setting of a run.
COMPARE = "compare"


def load(
    command: str, overrides: list[str], file: Path | None = None, config_dir: Path | None = None
) -> Request:
    """What `pml COMMAND OVERRIDES` asks for: every cell typed and checked.

    Args:
        command: probe, sweep or memft; the root file is conf/COMMAND.yaml.
        overrides: as on the command line; they win over the file's keys.
        file: a sweep file, or the name of a shipped one.
        config_dir: a folder laid out like conf/, looked up first.

    Raises:
        UserError: all faults at once, one line each.
    """
    _check_folder(config_dir)
    lines: list[str] = []
    given = _parse(overrides, config_dir, lines)
    grids = [given]
    if file is not None:
        grids = [grid | given for grid in _file_grids(file, config_dir, lines)]
    if command == "memft":
        grids = [_with_compared_losses(grid, config_dir, lines) for grid in grids]

    swept = _swept(grids)
    lines += _single_value_faults(command, grids, swept)
    with _hydra(config_dir):
        cells, cell_lines = expand_grid(grids, _option_sets(command))
    lines += cell_lines
    if cells:
        lines += _device_faults(cells)
    raise_all(lines)
    return _request(cells, swept)


def load_report(
    command: str, overrides: list[str], config_dir: Path | None = None
) -> ReportSettings:
    """The settings of a command that reads finished runs: no groups, one value a key.

    Args:
        command: one of `REPORTS`.
        overrides: as on the command line.
        config_dir: a folder whose COMMAND.yaml, if there is one, holds other defaults.

    Raises:
        UserError: all faults at once, one line each.
    """
    _check_folder(config_dir)
    lines: list[str] = []
    given = _parse(overrides, config_dir, lines, groups=())
    defaults: dict[str, Any] = {}
    if root_file(command, config_dir) is not None:
        with _hydra(config_dir):
            defaults = _compose(command, [])

    file_values = {key: [value] for key, value in defaults.items()}
    try:
        settings = typed_settings(REPORTS[command], file_values | given)
    except UserError as error:
        raise_all([*lines, *error.faults])
        raise
    raise_all(lines)
    return settings


def _parse(
    overrides: Iterable[str],
    config_dir: Path | None,
    lines: list[str],
    groups: tuple[str, ...] = GROUPS,
) -> Grid:
    """Overrides in Hydra's grammar to the values of each key; faults are appended to `lines`."""
    grid: Grid = {}
    for text in overrides:
        try:
            key, values = _parse_override(text, config_dir, groups)
        except UserError as error:
            lines += error.faults
            continue
        if key in grid:
            lines.append(f"{key}: given twice (several values: {key}=a,b, without braces)")
        grid[key] = _known_options(key, values, config_dir, lines) if key in groups else values
    return grid


def _parse_override(
    text: str, config_dir: Path | None, groups: tuple[str, ...]
) -> tuple[str, list[Any]]:
    """The key of an override and its values, each once.

    Raises:
        UserError: it cannot be read.
    """
    if text[:1] in ("+", "~"):
        bare = text.lstrip("+~") or "key"
        raise UserError(f"{text}: no {text[0]} here, every setting is declared; write {bare}")
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{text}: not of the form key=value")

    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:
        raise UserError(
            f"{text}: not in Hydra's grammar ({one_line(error)}); "
            f"special characters need quotes: '{key}=\"{value}\"'"
        ) from error
    if override.package is not None:
        raise UserError(f"{text}: no @ here, an option has its group's place")

    key = override.key_or_group
    names = options(key, config_dir) if key in groups else None
    values = _values(override, text, names)
    if not values:
        raise UserError(f"{text}: no values")
    return key, _distinct(values)


def _values(override: Override, text: str, names: list[str] | None) -> list[Any]:
    """The values of an override.

    Args:
        names: the options of the group; None for a plain key.
    """
    value = override.value()
    if isinstance(value, IntervalSweep):
        raise UserError(
            f"{text}: an interval has no list of values; use range(start,stop,step) or a,b,c"
        )
    if isinstance(value, Glob):
        if names is None:
            raise UserError(f"{text}: glob() is for groups ({', '.join(GROUPS)})")
        return list(value.filter(names))
    if isinstance(value, RangeSweep):
        return _range_values(value, text)
    if isinstance(value, ChoiceSweep):
        return [_unquoted(element) for element in value.list]
    return [value]


def _range_values(value: RangeSweep, text: str) -> list[int] | list[float]:
    """Hydra's range, with decimal steps: range(0.1,0.5,0.1) holds 0.3 and not 0.30000000000000004."""
    start, stop, step = (Decimal(str(v)) for v in (value.start, value.stop, value.step))
    if not step or not all(number.is_finite() for number in (start, stop, step)):
        raise UserError(f"{text}: a range needs finite ends and a step that is not 0")

    # The negated floor division rounds up; a last value at or beyond `stop` is dropped below.
    count = max(0, int(-((start - stop) // step)))
    if count > MAX_CELLS:
        raise UserError(f"{text}: {count} values; at most {MAX_CELLS} cells in one sweep")
    numbers = [start + index * step for index in range(count + 1)]
    inside = [number for number in numbers if (number < stop if step > 0 else number > stop)]

    if all(isinstance(number, int) for number in (value.start, value.stop, value.step)):
        return [int(number) for number in inside]
    return [float(number) for number in inside]


def _unquoted(value: Any) -> Any:
    """A value of Hydra's grammar as plain Python."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_unquoted(element) for element in value]
    if isinstance(value, dict):
        return {_unquoted(key): _unquoted(element) for key, element in value.items()}
    return value


def _distinct(values: list[Any]) -> list[Any]:
    """Each value once, in the order given; by their text, as 1 and 1.0 and True are equal."""
    return list({repr(value): value for value in values}.values())


def _known_options(
    group: str, values: list[Any], config_dir: Path | None, lines: list[str]
) -> list[Any]:
    """The values that are options of a group; a line for each of the others."""
    names = options(group, config_dir)
    for value in values:
        if value not in names:
            text = written(value)
            lines.append(f"{group}={text}: no such option; {did_you_mean(text, names)}")
    return [value for value in values if value in names]


def _file_grids(file: Path, config_dir: Path | None, lines: list[str]) -> Iterator[Grid]:
    """The grids of a sweep file; strings are in Hydra's grammar, lists are swept."""
    for mapping in sweep_file.read(file):
        overrides = [f"{key}={value}" for key, value in mapping.items() if isinstance(value, str)]
        parsed = _parse(overrides, config_dir, lines)
        grid: Grid = {}
        for key, value in mapping.items():
            if isinstance(value, str):
                grid.update({key: parsed[key]} if key in parsed else {})
                continue
            if value == []:
                lines.append(f"{file}: {key}: no values")
                continue
            values = _distinct(value) if isinstance(value, list) else [value]
            is_group = key in GROUPS
            grid[key] = _known_options(key, values, config_dir, lines) if is_group else values
        yield grid


def _with_compared_losses(grid: Grid, config_dir: Path | None, lines: list[str]) -> Grid:
    """A grid of `pml memft`: without a loss of the user's it is over those that memft.yaml compares."""
    if "loss" in grid:
        return grid
    losses: list[Any] = []
    for file in (root_file("memft", config_dir), shipped("conf") / "memft.yaml"):
        if file is not None and not losses:
            losses = sweep_file.read_mapping(file).get(COMPARE, [])
    return {"loss": _known_options("loss", losses, config_dir, lines), **grid}


def _swept(grids: list[Grid]) -> list[str]:
    """The keys that have several values, within a grid or between grids."""
    swept = []
    for key in dict.fromkeys(key for grid in grids for key in grid):
        differs = any(grid.get(key) != grids[0].get(key) for grid in grids)
        if differs or any(len(grid.get(key, [])) > 1 for grid in grids):
            swept.append(key)
    return swept


def _single_value_faults(command: str, grids: list[Grid], swept: list[str]) -> Iterator[str]:
    """Keys that were given several values and take one."""
    if command == "probe" and swept:
        values = ",".join(map(written, grids[0][swept[0]]))
        yield f"{swept[0]}={values}: a probe is one run; for several values use `pml sweep`"
    for key in swept:
        if key.split(".")[0] in ("out", "launch"):
            yield f"{key}: takes one value for the whole sweep"


def _device_faults(cells: list[RootSettings]) -> Iterator[str]:
    """A GPU by number, where every process is given one of its own and sees no other."""
    launch: Launch = cells[0].launch
    if not launch.assigns_devices:
        return
    numbered = dict.fromkeys(cell.model.device for cell in cells if ":" in cell.model.device)
    for device in numbered:
        yield f"model.device={device}: must be auto, cpu or cuda with launch={launch.kind}"


def _request(cells: list[RootSettings], swept: list[str]) -> Request:
    names = [field.name for field in fields(Run)]
    runs = [Run(**{name: getattr(cell, name) for name in names}) for cell in cells]
    out = Path(cells[0].out).expanduser()
    return Request(runs=runs, out=out, launch=cells[0].launch, swept=swept)


def _option_sets(command: str) -> OptionSetOf:
    """Compose the option sets of a command, each combination of options once."""
    composed: dict[tuple[tuple[str, str], ...], OptionSet] = {}

    def option_set_of(chosen: dict[str, str]) -> OptionSet:
        combination = tuple(sorted(chosen.items()))
        if combination not in composed:
            overrides = [f"{group}={option}" for group, option in combination]
            tree = _compose(command, overrides, with_choices=True)
            tree.pop(COMPARE, None)
            choices = tree.pop("hydra")["runtime"]["choices"]
            options_chosen = {group: str(choices.get(group)) for group in GROUPS}
            composed[combination] = OptionSet(tree, options_chosen)
        return composed[combination]

    return option_set_of


def _compose(root: str, overrides: list[str], *, with_choices: bool = False) -> dict[str, Any]:
    """The tree of a root file and its options; with Hydra's own node, which names the options chosen."""
    try:
        tree: Any = OmegaConf.to_container(
            compose(root, overrides, return_hydra_config=with_choices)
        )
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{root} {' '.join(overrides)}: {one_line(error)}") from error
    return {str(key): value for key, value in tree.items()}


def _check_folder(config_dir: Path | None) -> None:
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder")


@contextmanager
def _hydra(config_dir: Path | None) -> Iterator[None]:
    """Hydra over our conf/, with a user's folder in front. An application's own Hydra is put back afterwards."""
    application_hydra = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        version.setbase("1.3")
        start_hydra(shipped("conf"), config_dir)
        OmegaConf.register_new_resolver("basename", _last_path_parts, replace=True)
        yield
    finally:
        GlobalHydra.instance().hydra = application_hydra


def start_hydra(conf: Path, config_dir: Path | None) -> None:
    """What `hydra.initialize_config_dir` does, plus a user's folder in front of ours.

    Hydra's public functions take one folder, hence its internals; a test says so when a release moves them.
    """
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path

    search_path = create_config_search_path(str(conf.resolve()))
    if config_dir is not None:
        search_path.prepend(provider="user", path=f"file://{config_dir.resolve()}")
    Hydra.create_main_hydra2(task_name="pml", config_search_path=search_path)


def _last_path_parts(path: Any, count: int = 1) -> str:
    """The last parts of a path, as a name: ${basename:./a/final,2} is a-final."""
    return "-".join([part for part in Path(str(path)).parts if part != "/"][-count:])

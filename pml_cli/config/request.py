"""From a command line to a typed request: every cell of a sweep, or the settings of a report.

All faults are collected and named at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from pml_cli.config import sweep_file
from pml_cli.config.capacity import CapacityRequest
from pml_cli.config.compose import compose_root, distinct, hydra_session, parse, parse_file_texts
from pml_cli.config.convert import typed_settings
from pml_cli.config.grid import Grid, OptionSetOf, expand_grid
from pml_cli.config.memorize import (
    CHAT_SETTINGS,
    FACTS,
    KEPT_BY_USER,
    MANY_FACTS,
    REPLACED_BY,
    SEEDS,
    TEXTS,
    Limits,
    MemorizeRequest,
    data_of_files,
    split_files,
)
from pml_cli.config.option_files import root_file, shipped, split_known
from pml_cli.config.option_set import OptionSet, RootSettings
from pml_cli.config.override_text import override_of
from pml_cli.config.registry import GROUPS, declared
from pml_cli.config.reports import REPORTS, ReportSettings
from pml_cli.config.schema import FactsData, Request, Run, Train
from pml_cli.config.setting import value_text
from pml_cli.config.unread import unread_faults
from pml_cli.errors import UserError, raise_all, shortened
from pml_cli.io import expand_home

# The key of conf/memft.yaml that lists the losses to compare. It is not a setting of a run.
COMPARE = "compare"
NO_SETTINGS = (COMPARE, FACTS, MANY_FACTS, TEXTS)

Options: TypeAlias = tuple[tuple[str, str], ...]
"""Groups with their options, sorted."""

# What a search may be given several values of.
SEARCHED = ("rank", "seed")


def load(
    command: str, overrides: list[str], file: Path | None = None, config_dir: Path | None = None
) -> Request:
    """What `pml COMMAND OVERRIDES` asks for: every cell typed and checked.

    Args:
        command: probe, sweep, memft, memorize or capacity; the root file is conf/COMMAND.yaml.
        overrides: as on the command line; they win over the file's keys.
        file: a sweep file, or the name of a shipped one.
        config_dir: a folder laid out like conf/, looked up first.

    Raises:
        UserError: all faults at once, one line each.
    """
    _check_folder(config_dir)
    overridden, lines = parse(overrides, config_dir)
    grids = [overridden]
    if file is not None:
        file_grids, file_lines = _read_grids(file, config_dir)
        if _overrules_steps(overridden):
            file_grids = [_with_one_number_of_steps(grid) for grid in file_grids]
        grids = [grid | overridden for grid in file_grids]
        lines += file_lines
        lines += _rate_faults(file, file_grids, overridden)
    if command == "memft" and not all("loss" in grid for grid in grids):
        losses, unknown = split_known("loss", _compared_losses(config_dir), config_dir)
        grids = [{"loss": losses, **grid} for grid in grids]
        lines += unknown

    swept = _swept(grids)
    lines += _single_value_faults(command, grids, swept)
    lines += _length_faults(grids)
    with hydra_session(config_dir):
        cells, cell_lines = expand_grid(grids, _option_sets(command, config_dir))
    lines += cell_lines
    # Without cells there is a fault above, and no launcher to ask.
    if cells:
        lines += _device_faults(cells)
    # What is read can be told of cells without faults alone.
    if cells and not lines:
        lines += unread_faults(cells, _given(grids, overridden), overridden)
    raise_all(lines)
    return _request(cells, swept)


def load_memorize(
    arguments: list[str], limits: Limits, config_dir: Path | None = None, *, command: str = ""
) -> MemorizeRequest:
    """What `pml memorize ARGUMENTS` asks for.

    Args:
        arguments: files of facts or of text, and settings.
        limits: from the options.
        config_dir: a folder laid out like conf/, looked up first.
        command: the command line as it was typed.

    Raises:
        UserError: all faults at once, one line each.
    """
    _check_folder(config_dir)
    files, overrides = split_files(arguments)
    given = {override.partition("=")[0] for override in overrides}
    chosen = [override for override in overrides if override.startswith("data=")]
    if files:
        chosen = data_of_files(files, given)
        overrides += chosen
    elif not given & {"data", "data.path"}:
        raise UserError("FILE: give a file of facts or a text, or data=...")

    kind = _kind_of(chosen)
    if kind == FACTS and given & CHAT_SETTINGS and "data.chat" not in given:
        overrides.append("data.chat=true")
    file = root_file("memorize", config_dir) or shipped("conf")
    root = sweep_file.read_mapping(file)
    defaults = _defaults(sweep_file.mapping_under(root, kind, file), given)
    request = load("memorize", overrides + defaults, config_dir=config_dir)
    _refuse_moving_penalty(request.runs[0], limits, given)
    many_facts = None
    if kind == FACTS:
        defaults = _defaults(sweep_file.mapping_under(root, MANY_FACTS, file), given)
        many_facts = load("memorize", overrides + defaults, config_dir=config_dir).runs[0]

    ranks = sorted({run.rank for run in request.runs})
    seeds = list(dict.fromkeys(run.seed for run in request.runs))
    return MemorizeRequest(
        command=command,
        request=Request(runs=request.runs[:1], out=request.out, launch=request.launch, swept=[]),
        files=files,
        ranks=ranks if "rank" in given else [],
        seeds=seeds if "seed" in given else SEEDS,
        limits=limits,
        given=frozenset(given),
        many_facts=many_facts,
    )


def load_capacity(
    overrides: list[str],
    config_dir: Path | None = None,
    *,
    resolution: int = 1,
    passes: int | None = None,
) -> CapacityRequest:
    """What `pml capacity OVERRIDES` asks for.

    Args:
        overrides: as on the command line; seqlen is the first length.
        config_dir: a folder laid out like conf/, looked up first.
        resolution: target tokens between what is recalled and what is not, at the end.
        passes: most forward-backward passes of one growth; None: any number.

    Raises:
        UserError: all faults at once, one line each.
    """
    request = load("capacity", overrides, config_dir=config_dir)
    first = request.runs[0].seqlen
    is_given = any(override.startswith("seqlen=") for override in overrides)
    faults = []
    for run in request.runs:
        if isinstance(run.data, FactsData):
            reason = "is many facts, `pml capacity` needs one text; for facts use `pml memorize`"
            faults.append(f"data={run.data.source}: {reason}")
        if run.train.start is not None:
            reason = "`pml capacity` starts from an untrained adapter; leave it out"
            faults.append(f"train.start={run.train.start}: {reason}")
    raise_all(list(dict.fromkeys(faults)))
    return CapacityRequest(
        request=request, first=first if is_given else None, resolution=resolution, passes=passes
    )


def _defaults(values: Mapping[str, Any], given: set[str]) -> list[str]:
    """What a kind of data is trained with beside the given keys, as overrides.

    An option of a group (train=mine) is taken whole.
    """
    keys = []
    for key in values:
        names = {key, key.partition(".")[0]}
        if not given & (names | REPLACED_BY.get(key, set())):
            keys.append(key)
    return [_default_override(key, values[key]) for key in keys]


def _default_override(key: str, value: Any) -> str:
    """A value of a YAML file as an override; an interpolation stays one."""
    if "${" in repr(value):
        return f"{key}={value_text(value)}"
    # As one value, also where it is a list.
    return override_of(key, [value])


def _refuse_moving_penalty(run: Run, limits: Limits, given: set[str]) -> None:
    """Refuse a line search under the limit of forgetting, whose penalty changes in training.

    Raises:
        UserError: names the optimiser.
    """
    is_limited = limits.max_forgetting is not None and not given & KEPT_BY_USER
    if is_limited and run.train.optimizer == "lbfgs":
        raise UserError(
            "train.optimizer=lbfgs: needs --max-forgetting none, as the penalty of the limit "
            "changes in training; muon takes any"
        )


def _kind_of(chosen: Sequence[str]) -> str:
    """Whether the data is facts or texts, by `data=`; what is unknown is refused later."""
    source = chosen[0].partition("=")[2] if chosen else "jsonl"
    owner = declared("data").get(source, FactsData)
    return FACTS if issubclass(owner, FactsData) else TEXTS


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
    overridden, lines = parse(overrides, config_dir, groups=())

    defaults: dict[str, Any] = {}
    if root_file(command, config_dir) is not None:
        with hydra_session(config_dir):
            defaults, _ = compose_root(command, [])

    # The grammar gives a list of values for each key, a YAML file one value.
    values = {key: [value] for key, value in _flat(defaults).items()}
    settings, value_lines = typed_settings(REPORTS[command], values | overridden)
    raise_all([*lines, *value_lines])
    return settings


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a nested mapping by dotted key: `model.path`."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            values |= {f"{name}.{key}": inner for key, inner in _flat(value).items()}
        else:
            values[name] = value
    return values


def _check_folder(config_dir: Path | None) -> None:
    if config_dir is None:
        return
    try:
        is_folder = config_dir.is_dir()
    except OSError as error:
        reason = error.strerror
        raise UserError(f"--config-dir {shortened(str(config_dir))}: {reason}") from error
    if not is_folder:
        raise UserError(f"--config-dir {config_dir}: no such folder")


def _read_grids(file: Path, config_dir: Path | None) -> tuple[list[Grid], list[str]]:
    """The grids of a sweep file, and what is wrong with it."""
    try:
        mappings = sweep_file.read(file)
    except UserError as error:
        # An empty grid lets the command line be checked as well.
        return [{}], error.faults

    grids: list[Grid] = []
    lines: list[str] = []
    for mapping in mappings:
        grid, grid_lines = _file_grid(mapping, file, config_dir)
        grids.append(grid)
        lines += grid_lines
    return grids, lines


def _file_grid(
    mapping: dict[str, Any], file: Path, config_dir: Path | None
) -> tuple[Grid, list[str]]:
    """One grid of a sweep file: texts may be sweeps in Hydra's grammar, lists are swept."""
    texts = {key: value for key, value in mapping.items() if isinstance(value, str)}
    parsed, lines = parse_file_texts(texts, file, config_dir)

    grid: Grid = {}
    for key, value in mapping.items():
        if key in parsed:
            grid[key] = parsed[key]
        elif value == []:
            lines.append(f"{file}: {key}: no values")
        elif key not in texts:
            grid[key] = distinct(value) if isinstance(value, list) else [value]
            if key in GROUPS:
                grid[key], unknown = split_known(key, grid[key], config_dir)
                lines += unknown
    return grid, lines


def _rate_faults(file: Path, grids: list[Grid], overridden: Grid) -> list[str]:
    """A line for each rate of a sweep file that was chosen for another optimiser."""
    asked = overridden.get("train.optimizer", [])
    faults = []
    for grid in grids:
        own = grid.get("train.optimizer", [Train().optimizer])
        others = [value_text(value) for value in asked if value not in own]
        rates = [value_text(value) for value in grid.get("train.lr", []) if value is not None]
        if others and rates and "train.lr" not in overridden:
            faults.append(
                f"train.lr={','.join(rates)}: {file} has chosen it for {value_text(own[0])}; with "
                f"train.optimizer={','.join(others)} give train.lr too (null: its own)"
            )
    return list(dict.fromkeys(faults))


def _compared_losses(config_dir: Path | None) -> list[Any]:
    """The losses that `pml memft` compares where the user names none."""
    # A user's memft.yaml may have been written before there was such a list.
    ours = shipped("conf") / "memft.yaml"
    file = root_file("memft", config_dir) or ours
    mapping = sweep_file.read_mapping(file)
    if COMPARE not in mapping:
        mapping = sweep_file.read_mapping(ours)

    losses = mapping[COMPARE]
    if not isinstance(losses, list) or not losses:
        raise UserError(f"{file}: {COMPARE}={value_text(losses)}: must be a list of losses")
    return losses


def _swept(grids: list[Grid]) -> list[str]:
    """The keys that have several values, within a grid or between grids."""
    swept = []
    for key in dict.fromkeys(key for grid in grids for key in grid):
        values_of_grids = [grid.get(key, []) for grid in grids]
        differs_between = any(values != values_of_grids[0] for values in values_of_grids)
        differs_within = any(len(values) > 1 for values in values_of_grids)
        if differs_between or differs_within:
            swept.append(key)
    return swept


def _single_value_faults(command: str, grids: list[Grid], swept: list[str]) -> Iterator[str]:
    """A line for each key that was given several values and takes one."""
    if command == "probe" and swept:
        key = swept[0]
        values = ",".join(map(value_text, grids[0][key]))
        yield f"{key}={values}: a probe is one run; for several values use `pml sweep`"
    if command == "memorize":
        for key in swept:
            if key not in SEARCHED:
                yield f"{key}: takes one value, a search tries ranks alone; pml sweep takes several"
        return
    if command == "capacity":
        yield from _first_length_faults(grids, swept)
    for key in swept:
        if key.split(".")[0] in ("out", "launch"):
            yield f"{key}: takes one value for the whole sweep"


def _first_length_faults(grids: list[Grid], swept: list[str]) -> Iterator[str]:
    """A line where the length that a growth begins with is no single number."""
    if "seqlen" in swept:
        yield "seqlen: takes one value, the length to begin with; pml sweep takes several"
    elif any("all" in grid.get("seqlen", []) for grid in grids):
        yield (
            "seqlen=all: must be a number, the length to begin with; `pml capacity` grows up to "
            "the end of a text by itself"
        )


def _length_faults(grids: list[Grid]) -> Iterator[str]:
    """A line for each grid whose lengths are given both as tokens and as samples."""
    for grid in grids:
        samples = [value for value in grid.get("data.samples", []) if value is not None]
        lengths = [value for value in grid.get("seqlen", []) if value != "all"]
        if samples and lengths:
            samples_text = f"data.samples={','.join(map(value_text, samples))}"
            lengths_text = f"seqlen={','.join(map(value_text, lengths))}"
            yield (
                f"{samples_text}: cannot be combined with {lengths_text}; leave one out, or give "
                "seqlen=all"
            )


def _overrules_steps(overridden: Grid) -> bool:
    """Whether the command line says in epochs how long every cell is trained."""
    epochs = overridden.get("train.epochs", [])
    return bool(epochs) and None not in epochs and "train.steps" not in overridden


def _with_one_number_of_steps(grid: Grid) -> Grid:
    """A grid of a sweep file whose steps nothing reads: they make no cells of their own."""
    if "train.steps" not in grid:
        return grid
    # Not none, as ids count them all the same.
    return grid | {"train.steps": grid["train.steps"][:1]}


def _given(grids: list[Grid], overridden: Grid) -> set[str]:
    """The keys that were given, but for steps of a sweep file that the command line overrules."""
    given = {key for grid in grids for key in grid}
    if _overrules_steps(overridden):
        given.discard("train.steps")
    return given


def _device_faults(cells: list[RootSettings]) -> Iterator[str]:
    """A line for each GPU by number, where processes are given one each and see no other."""
    launch = cells[0].launch
    if not launch.assigns_devices:
        return
    devices = dict.fromkeys(cell.model.device for cell in cells)
    for device in devices:
        if ":" in device:
            allowed = "auto, cpu or cuda"
            yield f"model.device={device}: must be {allowed} with launch={launch.kind}"


def _request(cells: list[RootSettings], swept: list[str]) -> Request:
    # What surrounds a run is one for the whole sweep.
    first = cells[0]
    folder = expand_home(first.out)
    runs = [_run(cell) for cell in cells]
    return Request(runs=runs, out=folder, launch=first.launch, swept=swept)


def _run(cell: RootSettings) -> Run:
    """The run of a cell, without what surrounds it."""
    return Run(**{field.name: getattr(cell, field.name) for field in fields(Run)})


def _option_sets(command: str, config_dir: Path | None) -> OptionSetOf:
    """Composes the option sets of a command, each combination of options once."""
    compose = _shipped_tree if config_dir is None else _tree
    composed: dict[Options, OptionSet] = {}

    def option_set_of(chosen: dict[str, str]) -> OptionSet:
        combination = tuple(sorted(chosen.items()))
        # Hydra composes slowly, and every grid of a sweep file asks again.
        if combination not in composed:
            tree, choices = compose(command, combination)
            composed[combination] = OptionSet(tree, choices)
        return composed[combination]

    return option_set_of


def _tree(command: str, combination: Options) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """The settings of some options, and the option of each group; inside a `hydra_session`."""
    overrides = [f"{group}={option}" for group, option in combination]
    tree, choices = compose_root(command, overrides, with_choices=True)
    for key in NO_SETTINGS:
        tree.pop(key, None)
    return tree, choices


# `pml memorize` asks for the same options twice, and tests hundreds of times.
_shipped_tree = lru_cache(maxsize=64)(_tree)

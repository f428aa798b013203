"""Hydra: overrides and YAML groups to typed requests. The only module that imports hydra (1.3; pinned below 1.4).

The grammar is Hydra's: `rank=4,8`, `range(1,9)`, `choice(a,b)`, `glob(*)` for groups, `group=option`. What Hydra accepts
silently and is nearly always a slip is refused here: a key given twice (bash makes that of rank={4,8}), interval(), `+key`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import (
    Hydra,  # what hydra.initialize_config_dir does, plus a user's folder in front
)
from hydra._internal.utils import create_config_search_path
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
from pml_cli.config.cache_key import CacheKey
from pml_cli.config.grid import (
    MAX_CELLS,
    Grid,
    OptionSet,
    Settings,
    expand_grid,
    refuse,
    typed_report,
)
from pml_cli.config.option_files import options, shipped
from pml_cli.config.registry import GROUPS
from pml_cli.config.reports import Fit, Lasting, Predict, ReportSettings, Transition
from pml_cli.config.schema import Launch, Request, Run
from pml_cli.config.setting import faults
from pml_cli.config.sweep_file import YAMLError, one_line
from pml_cli.errors import UserError, did_you_mean

MEMFT_LOSSES = ["sft", "memft_ot", "memft_sw", "memft_margin"]
# verbs that train nothing
REPORTS: dict[str, type[ReportSettings]] = {
    "fit": Fit,
    "predict": Predict,
    "lasting": Lasting,
    "transition": Transition,
}
RUN_FIELDS = [f.name for f in dataclasses.fields(Run)]


def load(
    verb: str, overrides: list[str], file: Path | None = None, config_dir: Path | None = None
) -> Request:
    """What `pml VERB overrides` asks for: every cell typed and checked.

    Args:
        verb: probe, sweep or memft; the root file conf/VERB.yaml.
        overrides: as on the command line; they win over the file's keys.
        file: a sweep file, or the name of a shipped one.
        config_dir: a folder laid out like conf/, looked up first.

    Raises:
        UserError: all faults at once, one line each.
    """
    _check_folder(config_dir)
    given = parse(overrides, config_dir)
    asked = [grid | given for grid in _file_grids(file, config_dir)] if file else [given]
    if verb == "memft":
        asked = [grid if "loss" in grid else {"loss": list(MEMFT_LOSSES), **grid} for grid in asked]
    swept = _swept(asked)
    if verb == "probe" and swept:
        shown = f"{swept[0]}={','.join(map(str, asked[0][swept[0]]))}"
        raise UserError(f"{shown}: a probe is one run; for several values use `pml sweep`")
    for key in ("out", "launch"):
        refuse(
            [f"{k}: takes one value for the whole sweep" for k in swept if k.split(".")[0] == key]
        )
    with _hydra(config_dir):
        cells = expand_grid(asked, _templates(verb))
    return _request(cells, swept)


def load_report(verb: str, overrides: list[str], config_dir: Path | None = None) -> ReportSettings:
    """The settings of a verb that trains nothing (of REPORTS): no groups, one value a key.

    Raises:
        UserError: an unknown key, several values for one, or a value of another type.
    """
    _check_folder(config_dir)
    given = parse(overrides, config_dir, groups=())
    with _hydra(config_dir):
        return typed_report(REPORTS[verb], _compose(verb, []), given)


def to_yaml(run: Run) -> str:
    """A run as YAML, every setting resolved."""
    return "".join(_field_yaml(name, CacheKey(getattr(run, name))) for name in RUN_FIELDS)


@lru_cache(maxsize=1024)  # the cells of a sweep share most of their groups, and YAML is slow
def _field_yaml(name: str, field: CacheKey) -> str:
    value = field.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return OmegaConf.to_yaml(OmegaConf.create({name: value}))


def describe(asked: Request | ReportSettings) -> str:
    """What `--print-config` shows: the settings; of many runs the first, the folder and launch, and how many there are."""
    if isinstance(asked, ReportSettings):
        return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(asked)))
    around = {"out": str(asked.out), "launch": dataclasses.asdict(asked.launch)}
    many = (
        f"# the first of {len(asked.runs)} cells; swept: {', '.join(asked.swept)}\n"
        if asked.swept
        else ""
    )
    return many + to_yaml(asked.runs[0]) + OmegaConf.to_yaml(OmegaConf.create(around))


def parse(
    overrides: Iterable[str], config_dir: Path | None = None, groups: tuple[str, ...] = GROUPS
) -> Grid:
    """Overrides in Hydra's grammar to the values of each key.

    Raises:
        UserError: what cannot be read, is given twice or names no option; all at once.
    """
    grid: Grid = {}
    faults: list[str] = []
    for text in overrides:
        try:
            key, values = _one(text, config_dir, groups)
            if key in grid:
                faults.append(f"{key}: given twice (several values: {key}=a,b, without braces)")
            grid[key] = values
        except UserError as error:
            faults.append(str(error))
    refuse(faults)
    return grid


def _one(text: str, config_dir: Path | None, groups: tuple[str, ...]) -> tuple[str, list[Any]]:
    if text[:1] in ("+", "~"):
        raise UserError(
            f"{text}: no {text[0]} here, every setting is declared; write {text.lstrip('+~') or 'key'}"
        )
    if not text.partition("=")[0].strip() or "=" not in text:
        raise UserError(f"{text}: not of the form key=value")
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:
        key, _, value = text.partition("=")
        raise UserError(
            f"{text}: not in Hydra's grammar ({one_line(error)}); special characters need quotes: '{key}=\"{value}\"'"
        ) from error
    if override.package is not None:
        raise UserError(f"{text}: no @ here, an option has its group's place")
    key = override.key_or_group
    values = _values(override, text, options(key, config_dir) if key in groups else None)
    if key in groups:
        _check_options(key, values, config_dir)
    return key, values


def _values(override: Override, text: str, names: list[str] | None) -> list[Any]:
    value = override.value()
    found: list[Any]
    if isinstance(value, IntervalSweep):
        raise UserError(
            f"{text}: an interval has no list of values; use range(start,stop,step) or a,b,c"
        )
    if isinstance(value, Glob):
        if names is None:
            raise UserError(f"{text}: glob() is for groups ({', '.join(GROUPS)})")
        found = value.filter(names)
    elif isinstance(value, RangeSweep):
        found = _range(value, text)
    elif isinstance(value, ChoiceSweep):
        found = [_plain(v) for v in value.list]
    else:
        found = [value]
    if not found:
        raise UserError(f"{text}: no values")
    return list({repr(v): v for v in found}.values())


def _range(value: RangeSweep, text: str) -> list[int] | list[float]:
    """Hydra's range, with decimal steps: range(0.1,0.5,0.1) holds 0.3 and not 0.30000000000000004."""
    start, stop, step = (Decimal(str(v)) for v in (value.start, value.stop, value.step))
    if not step or not all(v.is_finite() for v in (start, stop, step)):
        raise UserError(f"{text}: a range needs finite ends and a step that is not 0")
    count = max(0, int(-((start - stop) // step)))
    if count > MAX_CELLS:
        raise UserError(f"{text}: {count} values; at most {MAX_CELLS} cells in one sweep")
    steps = [start + i * step for i in range(count + 1)]
    within = [v for v in steps if (v < stop if step > 0 else v > stop)]
    whole = all(isinstance(v, int) for v in (value.start, value.stop, value.step))
    return [int(v) for v in within] if whole else [float(v) for v in within]


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return {_plain(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _check_options(group: str, values: list[Any], config_dir: Path | None) -> None:
    allowed = options(group, config_dir)
    for value in values:
        if value not in allowed:
            raise UserError(
                f"{group}={'null' if value is None else value}: no such option; {did_you_mean(str(value), allowed)}"
            )


def _file_grids(file: Path, config_dir: Path | None) -> Iterator[Grid]:
    for written in sweep_file.read(file):
        texts = parse((f"{k}={v}" for k, v in written.items() if isinstance(v, str)), config_dir)
        grid = {
            key: texts[key] if key in texts else _listed(key, value, file)
            for key, value in written.items()
        }
        for group in (key for key in grid if key in GROUPS):
            _check_options(group, grid[group], config_dir)
        yield grid


def _listed(key: str, value: Any, file: Path) -> list[Any]:
    if value == []:
        raise UserError(f"{file}: {key}: no values")
    return list({repr(v): v for v in value}.values()) if isinstance(value, list) else [value]


def _swept(asked: list[Grid]) -> list[str]:
    found = dict.fromkeys(key for grid in asked for key in grid)
    return [
        key
        for key in found
        if any(len(g.get(key, [])) > 1 or g.get(key) != asked[0].get(key) for g in asked)
    ]


def _templates(verb: str) -> Any:
    composed: dict[tuple[tuple[str, str], ...], OptionSet] = {}

    def template(chosen: dict[str, str]) -> OptionSet:
        known = tuple(sorted(chosen.items()))
        if known not in composed:
            tree = _compose(verb, [f"{group}={option}" for group, option in known])
            choices = tree.pop("hydra")["runtime"]["choices"]
            composed[known] = OptionSet(tree, {group: str(choices.get(group)) for group in GROUPS})
        return composed[known]

    return template


def _compose(root: str, overrides: list[str]) -> dict[str, Any]:
    try:
        tree: Any = OmegaConf.to_container(
            compose(root, overrides, return_hydra_config=root not in REPORTS)
        )
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{root} {' '.join(overrides)}: {one_line(error)}") from error
    return {str(key): value for key, value in tree.items()}


def _check_folder(config_dir: Path | None) -> None:
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder")


@contextmanager
def _hydra(config_dir: Path | None) -> Iterator[None]:
    """Hydra over our conf/, and a user's folder in front of it. An application's own Hydra is put back afterwards."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        version.setbase("1.3")
        path = create_config_search_path(str(shipped("conf").resolve()))
        if config_dir is not None:
            path.prepend(provider="user", path=f"file://{config_dir.resolve()}")
        Hydra.create_main_hydra2(task_name="pml", config_search_path=path)
        OmegaConf.register_new_resolver("basename", _last_parts, replace=True)
        yield
    finally:
        GlobalHydra.instance().hydra = before


def _last_parts(path: Any, count: int = 1) -> str:
    """The last parts of a path, as a name: ${basename:./a/final,2} is a-final."""
    return "-".join([part for part in Path(str(path)).parts if part != "/"][-count:])


def _request(cells: list[Settings], swept: list[str]) -> Request:
    refuse(faults(cells[0].launch, "launch."))
    runs = [Run(**{name: getattr(cell, name) for name in RUN_FIELDS}) for cell in cells]
    refuse(_device_faults(runs, cells[0].launch))
    out = Path(cells[0].out).expanduser()
    return Request(runs=runs, out=out, launch=cells[0].launch, swept=swept)


def _device_faults(runs: list[Run], launch: Launch) -> list[str]:
    """A GPU by number where every process is given one of its own and sees no other."""
    if launch.allows_device_numbers:
        return []
    numbered = dict.fromkeys(run.model.device for run in runs if ":" in run.model.device)
    return [
        f"model.device={device}: must be auto, cpu or cuda with launch={launch.kind}"
        for device in numbered
    ]
